"""The tensorflow engine: the kernel's own numbers, whatever the batches, and errors that don't hang."""

import math

import gpflow
import numpy as np
import pytest
import tensorflow as tf

import cnn_gp
from cnn_gp import (
    AvgPool,
    Conv,
    DeepKernel,
    Dense,
    ElementwiseNumerical,
    ExErf,
    ExReLU,
    GlobalAvgPool,
    NNGPKernel,
    NTKKernel,
    Sequential,
    Sum,
    gram,
    memory,
)
from cnn_gp.compute.status import ENGINES_DIFFER
from cnn_gp.engines import gram as engines_of_gram
from cnn_gp.engines import tensorflow as module
from cnn_gp.engines.choice import make_engine
from cnn_gp.engines.tensorflow import CPU_BATCH, GPU_BATCH, TensorFlowEngine, configure, default_batch_size
from cnn_gp.errors import UserError
from helpers.small_runs import job_of

KERNELS = {
    "relu": DeepKernel([1, 8, 8], [3, 4, 3], ExReLU(multiply_by_sqrt2=True), 2.0, 1.0, skip_freq=1),
    "erf": DeepKernel([1, 8, 8], [3] * 4, ExErf(), 6.3, 5.0),
}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(("dtype", "size", "tolerance"), [(np.float32, 64, 2e-6), (np.float64, 7, 1e-9)])
def test_batches_of_any_size_give_the_kernel(name, dtype, size, tolerance, rng):
    kernel = KERNELS[name]
    X, X2 = (rng.random((n, 64)).astype(dtype) for n in (37, 21))
    engine = TensorFlowEngine(kernel, batch_size=size)
    cross, square = engine.matrix(X, X2), engine.matrix(X)
    assert cross.dtype == square.dtype == dtype
    np.testing.assert_allclose(cross, kernel(X, X2), rtol=tolerance)
    np.testing.assert_allclose(square, kernel(X), rtol=tolerance)
    np.testing.assert_array_equal(square, square.T)
    np.testing.assert_array_equal(np.diag(square), engine.diag(X))
    np.testing.assert_allclose(engine.diag(X), kernel.K_diag(X), rtol=tolerance)


def test_the_same_stored_matrix_whatever_n_max_is(tmp_path):
    """float32, n_max 7, 64 and 200: relative 2e-6."""
    from cnn_gp.compute.scheduler import compute_run
    from cnn_gp.data import datasets
    from cnn_gp.regression.lower_triangle import assemble
    from cnn_gp.store.description import Description
    from cnn_gp.store.run_directory import RunDirectory
    from cnn_gp.store.stored_matrix import StoredGram

    data = datasets.load("digits", N_train=210, N_vali=20, N_test=20)
    kernel = KERNELS["erf"]
    engine = TensorFlowEngine(kernel)
    matrices = []
    for n_max in (7, 64, 200):
        run = RunDirectory(tmp_path, f"n{n_max}")
        description = Description.of(data, model="random", kernel=kernel.describe(), n_max=n_max, float_type="float32")
        run.begin(description, data)
        compute_run(job_of(run, lambda device: engine))
        K = assemble(StoredGram(run), 210).matrix()
        np.testing.assert_array_equal(np.diag(K), run.parts.read_diagonal("Kxx"))
        np.testing.assert_array_equal(K, K.T)
        matrices.append((K, np.concatenate([entries for _, entries in run.parts.read_rows("Kxtx")])))
    for K, cross in matrices[1:]:
        np.testing.assert_allclose(K, matrices[0][0], rtol=2e-6)
        np.testing.assert_allclose(cross, matrices[0][1], rtol=2e-6)
    np.testing.assert_allclose(matrices[0][0], kernel(data.X.astype(np.float64)), rtol=1e-5)


def test_progress_counts_the_entries(rng):
    X = rng.random((21, 64)).astype(np.float32)
    counted = []
    engine = TensorFlowEngine(KERNELS["relu"], batch_size=8)
    engine.matrix(X, progress=counted.append)
    assert sum(counted) == 21 * 22 // 2
    counted.clear()
    engine.matrix(X, X[:5], progress=counted.append)
    assert sum(counted) == 21 * 5


def test_both_kernels_in_float64(rng):
    network, X = DeepKernel([1, 4, 4], [3], ExReLU(), 2.0, 0.3).network, rng.random((5, 18))
    kernel = NTKKernel(network, [1, 4, 4], active_dims=slice(1, 17))
    K, T = cnn_gp.gram_both(kernel, X, X[:3])
    np.testing.assert_array_equal(K, cnn_gp.gram(NNGPKernel(network, [1, 4, 4]), X[:, 1:17], X[:3, 1:17]))
    np.testing.assert_array_equal(T, cnn_gp.gram(kernel, X, X[:3]))
    # A second call compiles nothing.
    before = list(engines_of_gram._COMPILED)
    cnn_gp.gram_both(kernel, X, X[:3])
    assert list(engines_of_gram._COMPILED) == before


@pytest.mark.parametrize("combined", [lambda kernel: kernel + gpflow.kernels.White(), gpflow.kernels.RBF])
def test_other_kernels_of_gpflow_are_refused_in_one_line(combined):
    kernel = combined(KERNELS["relu"]) if combined is not gpflow.kernels.RBF else combined()
    for compute in (lambda: cnn_gp.gram(kernel, np.ones((2, 16))), lambda: make_engine("auto", kernel)):
        with pytest.raises(UserError, match=r"kernel is a \w+; expected an NNGPKernel or an NTKKernel"):
            compute()


def test_batches_of_float64_are_half_as_large():
    kernel = NNGPKernel(Sequential(Conv(3), ExReLU(), AvgPool(5), Dense()), [1, 28, 28])
    one, two = (default_batch_size(kernel, 1, itemsize=itemsize) for itemsize in (4, 8))
    assert two < one < GPU_BATCH and one**2 == pytest.approx(2 * two**2, rel=0.1)


@pytest.mark.parametrize("symmetric", [True, False])
def test_entries_that_are_there_are_not_computed_again(symmetric, rng):
    kernel = DeepKernel([1, 4, 4], [3], ExReLU(), 2.0, 0.3)
    engine = TensorFlowEngine(kernel, batch_size=4)
    X = rng.random((11, 16))
    X2 = None if symmetric else X[:9]
    expected, count = engine.matrix(X, X2), []
    out = np.full(expected.shape, -1.0)
    out[5, 6] = np.nan
    assert engine.matrix(X, X2, count.append, out) is out
    # Of the batch of which one is missing all are computed; a symmetric matrix's diagonal always is.
    np.testing.assert_array_equal(out[4:8, 4:8], expected[4:8, 4:8])
    out[4:8, 4:8] = -1
    assert ((out == -1) | (symmetric & np.eye(*out.shape, dtype=bool))).all()
    assert sum(count) == (66 if symmetric else 99)


def test_an_error_in_a_batch_is_raised_and_the_engine_goes_on(rng):
    engine = TensorFlowEngine(KERNELS["relu"], batch_size=4)
    with pytest.raises(UserError, match="have 63 columns; expected 64"):
        engine.matrix(rng.random((40, 63)))
    assert engine.matrix(rng.random((5, 64))).shape == (5, 5)


def test_hyperparameters_are_those_of_the_call(rng):
    """The compiled program reads the parameters; it doesn't bake them in."""
    kernel = NNGPKernel(Sequential(Conv(3, var_bias=0.1), ExReLU(), Dense()), [1, 4, 4])
    engine = TensorFlowEngine(kernel)
    X = rng.random((3, 16))
    before = engine.matrix(X)
    kernel.network.layers[2].var_weight.assign(2.0)
    np.testing.assert_allclose(engine.matrix(X), 2 * before, rtol=1e-12)


def test_gram(rng):
    X, X2 = rng.random((5, 64)), rng.random((3, 64)).astype(np.float32)
    kernel = KERNELS["relu"]
    np.testing.assert_allclose(gram(kernel, X), kernel(X), rtol=1e-10)
    np.testing.assert_allclose(gram(kernel, X, X2, engine="tensorflow", n_max=2), kernel(X, X2), rtol=1e-10)
    assert gram(kernel, X2).dtype == np.float32
    engine = make_engine("auto", kernel, float_type="float64")
    np.testing.assert_array_equal(gram(kernel, X, engine=engine), engine.matrix(X))
    assert cnn_gp.gram is gram


@pytest.mark.parametrize("active_dims", [slice(2, 66), [*range(10, 42), *range(32)], slice(64)])
def test_gram_takes_the_columns_that_are_the_image(active_dims, rng):
    kernel = NNGPKernel(KERNELS["relu"].network, [1, 8, 8], active_dims=active_dims)
    X = rng.random((3, 70))
    for dtype, rtol in ((np.float32, 1e-4), (np.float64, 1e-10)):
        np.testing.assert_allclose(gram(kernel, X.astype(dtype)), kernel(X), rtol=rtol)
    with pytest.raises(UserError, match=r"The images have 3[13] columns"):
        gram(kernel, X[:, :33])


@pytest.mark.parametrize("name", ["fused", "tensorflow"])
def test_gram_refuses_an_engine_that_computes_something_else(name, rng):
    kernel, other = (NNGPKernel(Sequential(Conv(3, var_bias=b), Dense()), [1, 4, 4]) for b in (0.1, 0.2))
    X = rng.random((3, 16)).astype(np.float32)
    with pytest.raises(UserError, match="made for another kernel, or before a parameter of this one changed"):
        gram(kernel, X, engine=make_engine(name, other))
    engine = make_engine(name, kernel)
    np.testing.assert_array_equal(gram(kernel, X, engine=engine), engine.matrix(X))
    kernel.network.layers[0].var_bias.assign(0.3)
    if name == "fused":
        with pytest.raises(UserError, match="or before a parameter of this one changed"):
            gram(kernel, X, engine=engine)
    else:
        np.testing.assert_allclose(gram(kernel, X, engine=engine), kernel(X), rtol=1e-5)


def test_gram_refuses_an_engine_of_another_kernel_where_one_has_no_description(rng):
    plain = NNGPKernel(Sequential(Dense(), ExReLU(), Dense()), [3])
    tanh, other = (NNGPKernel(Sequential(Dense(), ElementwiseNumerical(tf.tanh, degree=n)), [3]) for n in (6, 7))
    X = rng.random((3, 3)).astype(np.float32)
    for kernel, engine in (
        (tanh, make_engine("tensorflow", other)),
        (plain, make_engine("tensorflow", other)),
        (tanh, make_engine("fused", plain)),
    ):
        with pytest.raises(UserError, match="The engine was made for another kernel"):
            gram(kernel, X, engine=engine)


def test_gram_compiles_a_kernel_once(rng, monkeypatch):
    traced = []
    propagate = Conv.propagate
    monkeypatch.setattr(Conv, "propagate", lambda layer, state: (traced.append(layer), propagate(layer, state))[1])
    kernel = NNGPKernel(Sequential(Conv(3, var_bias=0.1), ExReLU(), Dense()), [1, 4, 4])
    layer = kernel.network.layers[0]
    expected = []
    for n in (2, 20, 5):
        X = rng.random((n, 16))
        layer.var_bias.assign(0.1 * n)
        expected.append((X, layer.var_bias.numpy(), gram(kernel, X)))
    # The matrix and its diagonal.
    assert len(traced) == 2
    for X, bias, found in expected:
        layer.var_bias.assign(bias)
        np.testing.assert_allclose(found, kernel(X), rtol=1e-10)


def test_gram_of_a_function_without_a_description_compiles_once_and_anew_for_another_degree(rng):
    traced = []
    tanh = ElementwiseNumerical(lambda x: (traced.append(x), tf.tanh(x))[1], degree=6)
    kernel, X = NNGPKernel(Sequential(Dense(), tanh, Dense()), [3]), rng.random((3, 3))
    first = gram(kernel, X)
    n = len(traced)
    np.testing.assert_array_equal(gram(kernel, X), first)
    assert len(traced) == n
    tanh.degree = 20
    finer = gram(kernel, X)
    assert len(traced) > n
    np.testing.assert_allclose(finer, kernel(X), rtol=1e-12)
    assert (finer != first).all()
    np.testing.assert_array_equal(gram(kernel, X, engine=make_engine("tensorflow", kernel)), finer)


def test_another_network_is_compiled_anew(rng):
    kernel = NNGPKernel(Sequential(Conv(3), ExReLU(), Dense()), [1, 4, 4])
    X = rng.random((3, 16))
    engine = make_engine("tensorflow", kernel)
    for change in (
        lambda: None,
        lambda: setattr(kernel.network.layers[1], "multiply_by_sqrt2", True),
        lambda: setattr(kernel.network.layers[0], "var_weight", gpflow.Parameter(3.0)),
        lambda: kernel.network.layers[0].var_weight.assign(2.0),
    ):
        change()
        np.testing.assert_allclose(engine.matrix(X), kernel(X), rtol=1e-10)
        np.testing.assert_allclose(gram(kernel, X), kernel(X), rtol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"X": np.ones((2, 5))}, "have 5 columns; expected 64"),
        ({"X": np.ones((0, 64))}, r"shape \(0, 64\)"),
        ({"X": np.ones(64)}, r"shape \(64,\)"),
        ({"X": np.ones((2, 64), int)}, "dtype int64; expected float32 or float64"),
        ({"X": np.ones((2, 64)), "engine": "fast"}, "The engine is 'fast'; expected one of auto, tensorflow"),
        ({"X": np.ones((2, 64)), "n_max": 0}, "n_max is 0"),
    ],
)
def test_gram_refuses_in_one_line(arguments, said):
    with pytest.raises(UserError, match=said):
        gram(KERNELS["relu"], **arguments)


def test_tf32_is_off():
    tf.config.experimental.enable_tensor_float_32_execution(True)
    make_engine("tensorflow", KERNELS["relu"])
    assert not tf.config.experimental.tensor_float_32_execution_enabled()


def test_more_gpus_than_there_are_is_refused():
    with pytest.raises(UserError, match=r"--n_gpus is 9, but TensorFlow sees \d GPUs"):
        configure(9)


def test_a_batch_is_no_larger_than_a_tile_on_a_gpu():
    kernel = KERNELS["relu"]
    assert default_batch_size(kernel, n_gpus=0, n_max=6) == CPU_BATCH
    assert default_batch_size(kernel, n_gpus=1, n_max=50) == 50
    assert default_batch_size(kernel, n_gpus=2, n_max=5000) == GPU_BATCH == 200


def pooled(kind=NNGPKernel, *pools):
    layers = [layer for pool in pools for layer in (Conv(3), ExReLU(), pool)]
    return kind(Sequential(*layers, Dense()), [1, 8, 8])


def test_the_largest_map_that_pooling_holds():
    """A pool of 2 x 2 has 9 differences, and the map before the last pool is needed at one at a time."""
    assert pooled().largest_map == 64
    assert pooled(NNGPKernel, GlobalAvgPool()).largest_map == 64
    assert pooled(NTKKernel, GlobalAvgPool()).largest_map == 2 * 64
    assert pooled(NNGPKernel, AvgPool(2), GlobalAvgPool()).largest_map == 9 * 64
    assert pooled(NTKKernel, AvgPool(2), AvgPool(2), GlobalAvgPool()).largest_map == 2 * 9 * 9 * 64
    branches = Sum(Conv(3), Sequential(AvgPool(3, 1, "SAME"), Conv(3)))
    network = Sequential(Conv(3), ExReLU(), branches, ExReLU(), GlobalAvgPool(), Dense())
    assert NNGPKernel(network, [1, 8, 8]).largest_map == 25 * 64


def test_batches_of_a_pooled_kernel_give_the_kernel(rng):
    kernel, X = NNGPKernel(Sequential(Conv(2), ExReLU(), AvgPool(2, 1), Dense()), [1, 3, 3]), rng.random((9, 9))
    np.testing.assert_allclose(TensorFlowEngine(kernel, batch_size=7).matrix(X), kernel(X), rtol=1e-9)


def test_the_batches_of_pooled_kernels_are_as_large_as_memory_allows(monkeypatch):
    kernel = pooled(NNGPKernel, AvgPool(2), GlobalAvgPool())
    # As the test above has it, which traces the network for it each time.
    monkeypatch.setattr(NNGPKernel, "largest_map", 9 * 64)
    of_a_pair = 14 * 4 * 9 * 64
    assert default_batch_size(kernel, 0) == CPU_BATCH
    assert default_batch_size(kernel, 1) == math.isqrt(10**9 // of_a_pair) < GPU_BATCH
    monkeypatch.setattr(module, "LARGEST_MAPS", 50 * of_a_pair)
    assert default_batch_size(kernel, 0) == default_batch_size(kernel, 1) == 7
    assert TensorFlowEngine(kernel)._batch_size == 7
    monkeypatch.setattr(module, "n_cores", lambda: 3)
    for available, size in ((3 * of_a_pair, 1), (12 * of_a_pair, 2), (10**12, 7)):
        monkeypatch.setattr(memory, "available", lambda available=available: available)
        assert default_batch_size(kernel, 0) == size
    monkeypatch.setattr(memory, "available", lambda: 3 * of_a_pair - 1)
    with pytest.raises(
        UserError, match=r"on each of 3 cores needs 0.0 GB .*: take smaller images, a smaller pool"
    ) as e:
        TensorFlowEngine(kernel)
    assert "\n" not in str(e.value)
    # The machine's memory isn't the GPU's, and a batch that is asked for is taken.
    assert default_batch_size(kernel, 1) == 7
    TensorFlowEngine(kernel, batch_size=16)
    assert default_batch_size(KERNELS["relu"], 0) == CPU_BATCH


def test_two_devices_share_the_batches(rng, monkeypatch):
    """Two GPUs, with the CPU in their places."""
    engine = TensorFlowEngine(KERNELS["relu"], n_gpus=0, batch_size=8)
    used = []
    real = tf.device
    monkeypatch.setattr(tf, "device", lambda name: (used.append(name), real("/CPU:0"))[1])
    import queue

    engine._free_devices = queue.SimpleQueue()
    for device in ("/GPU:0", "/GPU:1"):
        engine._free_devices.put(device)
    X = rng.random((40, 64))
    np.testing.assert_allclose(engine.matrix(X), KERNELS["relu"](X), rtol=1e-10)
    assert {"/GPU:0", "/GPU:1"} <= set(used)


@pytest.mark.parametrize("cls", [NNGPKernel, NTKKernel])
@pytest.mark.parametrize(("name", "bound"), [("relu", 1e-6), ("erf", 1e-5)])
def test_two_engines_differ_by_no_more_than_is_said(name, bound, cls, rng):
    """What save_kernels.py says of a run whose parts come from both; the erf's layers amplify the difference."""
    network = {"relu": KERNELS["relu"], "erf": DeepKernel([1, 8, 8], [3] * 8, ExErf(), 6.3, 5.0)}[name].network
    kernel = cls(network, [1, 8, 8])
    X = rng.random((70, 64)).astype(np.float32)
    fused, compiled = (gram(kernel, X, engine=engine).astype(np.float64) for engine in ("fused", "tensorflow"))
    np.testing.assert_allclose(fused, compiled, rtol=bound)
    assert f"up to {bound:.0e}".replace("-0", "-") in ENGINES_DIFFER
