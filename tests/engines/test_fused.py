"""The fused engine: the same bits however images are cut into micro-tiles, progress, threads, and what it refuses."""

import pickle
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from cnn_gp import (
    GELU,
    AvgPool,
    Conv,
    DeepKernel,
    Dense,
    ExErf,
    ExReLU,
    GlobalAvgPool,
    NNGPKernel,
    NTKKernel,
    Sequential,
    Sum,
    gram_both,
)
from cnn_gp.data import datasets
from cnn_gp.engines.choice import choose_engine, make_engine
from cnn_gp.engines.fused.engine import FusedEngine, positions_per_entry
from cnn_gp.engines.fused.lowering import NotLowered, lower
from cnn_gp.engines.fused.program import OPERATIONS
from cnn_gp.engines.fused.simd import WIDTH
from cnn_gp.errors import UserError
from cnn_gp.kernels.architectures import build_kernel
from cnn_gp.kernels.layer import Layer
from cnn_gp.kernels.myrtle import myrtle_kernel
from helpers.fused_kernels import KERNELS, NAMED, STREAMED, conv, images
from helpers.small_runs import job_of


def test_the_work_of_an_entry_counts_the_rectangles_of_each_displacement():
    trunk, whole = [conv(), ExReLU()], GlobalAvgPool()
    assert positions_per_entry(lower(NNGPKernel(Sequential(*trunk, Dense()), [1, 6, 6]))) == 2 * 36 + 1
    # The input and the convolution: all pairs of pixels, in 11 x 11 displacements, each of which leaves one number.
    pooled = NNGPKernel(Sequential(*trunk, whole, Dense()), [1, 6, 6])
    assert positions_per_entry(lower(pooled)) == 2 * 36**2 + 121
    # The pool after it adds to maps of 3 x 3 pixels, at 1 to 4 displacements for each before it, 9 for each after it.
    within = positions_per_entry(lower(NNGPKernel(Sequential(*trunk, AvgPool(2), *trunk, whole, Dense()), [1, 6, 6])))
    assert within == 2 * 36**2 + 9 * 9**2 + (2 * 9**2) + 25 + 1


def test_pools_within_hold_two_rows_of_displaced_maps():
    """A map twice as long and wide takes 8 times the memory, not 16 times."""
    sizes = [FusedEngine(lower(myrtle_kernel((1, 1, 1), [1, n, n])))._code.positions for n in (16, 32)]
    assert 32**2 + 2 * 31 * 16**2 <= sizes[1] <= 1.2 * (32**2 + 2 * 31 * 16**2) and sizes[1] < 8 * sizes[0]


@pytest.mark.parametrize("name", ["resnet, ntk", "erf, ntk", "pool, erf, ntk", "pools within, no last one, erf, ntk"])
def test_both_kernels_come_from_one_pass(name):
    kernel, tolerance = KERNELS[name]
    nngp, X = NNGPKernel(kernel.network, kernel.input_shape), images(kernel, 21)
    engine = FusedEngine(lower(kernel))
    for X2 in (None, X[:9]):
        K, T = engine.both(X, X2)
        np.testing.assert_array_equal(T, engine.matrix(X, X2))
        np.testing.assert_allclose(
            K, nngp(X.astype(np.float64), X2 if X2 is None else X2.astype(np.float64)), tolerance
        )
        for one, expected in zip(gram_both(kernel, X, X2), (K, T), strict=True):
            np.testing.assert_array_equal(one, expected)
    K = engine.both(X)[0]
    np.testing.assert_array_equal(K, K.T)
    np.testing.assert_array_equal(np.diag(K), np.diag(engine.both(X, X)[0]))
    with pytest.raises(UserError, match="Both kernels come from a neural tangent kernel's program"):
        FusedEngine(lower(nngp)).both(X)
    with pytest.raises(UserError, match="is a NNGPKernel; expected an NTKKernel"):
        gram_both(nngp, X)


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", ["resnet", "pool", "myrtle"])
def test_entries_that_are_there_are_not_computed_again(name, symmetric, n_threads):
    kernel, _ = KERNELS[name]
    engine = FusedEngine(lower(kernel), n_threads=n_threads)
    X = images(kernel, 150)
    X2 = None if symmetric else images(kernel, 70, seed=2)
    expected = engine.matrix(X, X2)
    shape, count = expected.shape, []
    out = np.full(shape, np.nan, np.float32)
    engine.matrix(X, X2, count.append, out)
    np.testing.assert_array_equal(out, expected)
    total = sum(count)
    assert total == (150 * 151 // 2 if symmetric else 150 * 70)
    # Of every column only some entries are there; what is there isn't touched, here to be recognised.
    out[np.random.default_rng(0).random(shape) < 0.01] = np.nan
    out[:, :WIDTH] = expected[:, :WIDTH] if symmetric else -1
    del count[:]
    assert engine.matrix(X, X2, count.append, out) is out
    np.testing.assert_array_equal(out[:, WIDTH:], expected[:, WIDTH:])
    assert symmetric or (out[:, :WIDTH] == -1).all()
    assert sum(count) == total


def test_the_same_working_memory_for_any_pool():
    trunk, held = [conv(), ExReLU(), conv(), ExReLU()], []
    for size in (2, 9):
        kernel = NNGPKernel(Sequential(*trunk, AvgPool(size, 1, "SAME"), Dense()), [1, 9, 9])
        engine, X = FusedEngine(lower(kernel), n_threads=1), images(kernel, 100)
        engine.matrix(X)
        tracemalloc.start()
        engine.matrix(X)
        held.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 9 displacements and 289.
    assert held[1] < 1.1 * held[0]


@pytest.mark.parametrize(
    "name", ["resnet", "erf", "step", "resnet, ntk", "erf, ntk", "pool, erf", "pool, residual, ntk", *STREAMED]
)
def test_the_same_bits_for_any_threads_and_places(name, monkeypatch):
    kernel, _ = KERNELS[name]
    X = images(kernel, 150)
    program = lower(kernel)
    whole = FusedEngine(program, n_threads=1).matrix(X)
    np.testing.assert_array_equal(FusedEngine(program, n_threads=3).matrix(X), whole)
    engine = FusedEngine(program)
    for i, j in ((0, 0), (5, 17), (70, 3)):
        part = engine.matrix(X[i : i + 33], X[j : j + 41])
        upper = np.arange(i, i + 33)[:, None] < np.arange(j, j + 41)
        np.testing.assert_array_equal(part[upper], whole[i : i + 33, j : j + 41][upper])
    monkeypatch.setattr("cnn_gp.engines.fused.engine.STRIP", 40)
    np.testing.assert_array_equal(engine.matrix(X), whole)


def test_stored_matrices_are_the_same_for_any_n_max(tmp_path):
    from cnn_gp.compute.scheduler import compute_run
    from cnn_gp.store.description import Description
    from cnn_gp.store.run_directory import RunDirectory
    from cnn_gp.store.stored_matrix import StoredGram

    data = datasets.load("digits", N_train=110, N_vali=20, N_test=20)
    kernel = DeepKernel([1, 8, 8], [3] * 4, ExReLU(), 2.0, 1.0)
    engine = FusedEngine(lower(kernel))
    stored = []
    for n_max in (7, 64, 200):
        run = RunDirectory(tmp_path, f"n{n_max}")
        description = Description.of(data, model="random", kernel=kernel.describe(), n_max=n_max, float_type="float32")
        run.begin(description, data)
        compute_run(job_of(run, lambda device: engine))
        from cnn_gp.regression.lower_triangle import assemble

        cross = np.concatenate([entries for _, entries in run.parts.read_rows("Kxtx")])
        stored.append((assemble(StoredGram(run), 110).matrix(), cross, run.parts.read_diagonal("Kxx")))
    for others in stored[1:]:
        for one, other in zip(stored[0], others, strict=True):
            np.testing.assert_array_equal(one, other)


def test_overflow_is_not_hidden_and_the_layer_is_named():
    kernel = NNGPKernel(
        Sequential(Conv(3, var_weight=1e30), Sum(Sequential(), Conv(3, var_weight=1e30)), Dense()), [1, 4, 4]
    )
    engine = FusedEngine(lower(kernel))
    X = np.ones((2, 16), np.float32)
    assert not np.isfinite(engine.matrix(X)).any()
    assert not np.isfinite(engine.diag(X)).any()
    assert engine.first_non_finite(X[0], X[1]) == "layers[1].branches[1] (Conv)"
    # The covariances stay below 1e13, and the tangents don't.
    layers = [layer for _ in range(6) for layer in (Conv(1, var_weight=1e12), ExErf())]
    assert np.isfinite(FusedEngine(lower(NNGPKernel(Sequential(*layers, Dense()), [1, 4, 4]))).matrix(X)).all()
    tangents = FusedEngine(lower(NTKKernel(Sequential(*layers, Dense()), [1, 4, 4])))
    assert not np.isfinite(tangents.matrix(X)).any()
    assert tangents.first_non_finite(X[0], X[1]) == "layers[10] (Conv)"
    layers = [conv(), ExReLU(), AvgPool(2), Dense(), ExReLU(), Dense(1e30), Dense(1e30)]
    pooled = FusedEngine(lower(NNGPKernel(Sequential(*layers), [1, 4, 4])))
    assert not np.isfinite(pooled.matrix(X)).any()
    assert pooled.first_non_finite(X[0], X[1]) == "layers[6] (Dense)"
    layers = [conv(), ExReLU(), AvgPool(2), *(conv(), ExReLU()) * 2, AvgPool(2), Conv(3, var_weight=1e30), Conv(3, 1)]
    streamed = FusedEngine(lower(NNGPKernel(Sequential(*layers, Conv(3, var_weight=1e30), Dense()), [1, 8, 8])))
    X = np.random.default_rng(0).random((2, 64)).astype(np.float32)
    assert not np.isfinite(streamed.matrix(X)).any()
    assert streamed.first_non_finite(X[0], X[1]) == "layers[10] (Conv)"
    good = FusedEngine(lower(KERNELS["resnet"][0]))
    X = np.ones((2, 100), np.float32)
    assert good.first_non_finite(X[0], X[1]) == "the merged program only"
    X[1, 5] = np.nan
    assert good.first_non_finite(X[0], X[1]) == "the images"
    assert np.isnan(good.matrix(X[:1], X[1:])).all()


@pytest.mark.parametrize("pixel", [np.nan, np.inf, 1e20])
@pytest.mark.parametrize("nonlinearity", [ExReLU(), ExReLU(0), ExErf()], ids=["relu", "step", "erf"])
def test_pixels_whose_squares_overflow_are_not_hidden_by_bounded_functions(nonlinearity, pixel):
    """The erf of an infinite covariance would be 1, the step's value 1/2."""
    kernel = NNGPKernel(Sequential(conv(), nonlinearity, Dense()), [1, 4, 4])
    X = np.random.default_rng(0).random((3, 16)).astype(np.float32)
    X[1, 5] = pixel
    for name in ("fused", "tensorflow"):
        engine = make_engine(name, kernel)
        entries = [engine.matrix(X), engine.matrix(X, X.copy()), np.diag(engine.diag(X))]
        for K in entries[:2]:
            assert not np.isfinite(K[1]).any() and not np.isfinite(K[:, 1]).any(), name
            assert np.isfinite(K[::2, ::2]).all(), name
        np.testing.assert_array_equal(np.isfinite(np.diag(entries[2])), [True, False, True])


class Unheard(Layer):
    def propagate(self, state):
        return state

    def describe(self):
        return {"layer": "Unheard"}


@pytest.mark.parametrize(
    ("kernel", "options", "said"),
    [
        (NNGPKernel(Sequential(Sum(Unheard()), Dense()), [4]), {}, r"layers\[0\].branches\[0\] \(Unheard\)"),
        (NNGPKernel(Sequential(Sum(AvgPool(2)), Dense()), [1, 4, 4]), {}, r"no pool in a branch of a sum: layers\[0\]"),
        (
            NNGPKernel(Sequential(ExReLU(), AvgPool(2, 1, "SAME"), Conv(1), Dense()), [1, 4, 4]),
            {},
            r"windows reach beyond the map before other layers: layers\[1\] \(AvgPool\)",
        ),
        (
            NNGPKernel(Sequential(AvgPool(4), Conv(1), GlobalAvgPool(), Dense()), [1, 4, 4]),
            {},
            r"that another pool left one pixel of: layers\[2\] \(GlobalAvgPool\)",
        ),
        (
            NTKKernel(Sequential(Sum(Conv(1, 2), Conv(5, 1, "VALID")), GlobalAvgPool()), [1, 8, 8]),
            {},
            r"equal strides in the branches of a sum before a pool: layers\[1\] \(GlobalAvgPool\)",
        ),
        (DeepKernel([1, 4, 4], [3], ExReLU(), padding="CIRCULAR"), {}, "has no padding CIRCULAR: layers"),
        (NNGPKernel(Sequential(GELU(), Dense()), [4]), {}, r"no rule for the layer layers\[0\] \(GELU\)"),
        (NNGPKernel(Sequential(ExReLU(2), Dense()), [4]), {}, r"no exponent 2 of layers\[0\] \(ExReLU\)"),
        (DeepKernel([1, 3, 3, 3], [3], ExReLU()), {}, "up to 2 spatial axes, and these have 3"),
        (KERNELS["erf"][0], {"float_type": "float64"}, "in float32, not in float64"),
        (KERNELS["erf"][0], {"n_gpus": 1}, "--n_gpus is 1"),
    ],
)
def test_what_it_has_not_is_refused_and_auto_says_why(kernel, options, said):
    with pytest.raises(NotLowered, match=said):
        choose_engine("fused", kernel, **options)
    choice = choose_engine("auto", kernel, **options)
    assert choice.name == "tensorflow"
    if "n_gpus" not in options:
        with pytest.raises(NotLowered) as refused:
            choose_engine("fused", kernel, **options)
        assert choice.reason == refused.value.reason and "--engine" not in choice.reason


def test_auto_takes_it_on_the_cpu():
    assert choose_engine("auto", KERNELS["resnet"][0]).name == "fused"
    assert make_engine("auto", KERNELS["resnet"][0], n_threads=1).name == "fused"
    assert choose_engine("tensorflow", KERNELS["resnet"][0]).name == "tensorflow"


@pytest.mark.parametrize(
    ("X", "said"),
    [
        (np.ones((2, 100)), "dtype float64; the fused engine computes in float32"),
        (np.ones((2, 99), np.float32), r"shape \(2, 99\); expected \[N, 100\]"),
    ],
)
def test_bad_images_are_refused(X, said):
    with pytest.raises(UserError, match=said):
        FusedEngine(lower(KERNELS["resnet"][0])).matrix(X)
    with pytest.raises(UserError, match="n_threads is 0"):
        FusedEngine(lower(KERNELS["resnet"][0]), n_threads=0)


def test_progress_counts_every_entry_once():
    kernel, _ = KERNELS["a readout alone"]
    engine = FusedEngine(lower(kernel))
    X = images(kernel, 600)
    counted: list[int] = []
    engine.matrix(X, progress=counted.append)
    assert sum(counted) == 600 * 601 // 2
    counted.clear()
    engine.matrix(X, X[:70], progress=counted.append)
    assert sum(counted) == 600 * 70


def test_progress_moves_with_each_displacement():
    kernel, _ = KERNELS["pool"]
    counted: list[int] = []
    FusedEngine(lower(kernel)).matrix(images(kernel, 20), progress=counted.append)
    # 25 displacements, 2 groups of columns at most 16 wide.
    assert sum(counted) == 20 * 21 // 2 and len(counted) >= 50 and max(counted) <= 10


def test_an_error_in_a_thread_is_raised():
    kernel, _ = KERNELS["a readout alone"]

    def stop(entries):
        raise KeyError(entries)

    with pytest.raises(KeyError):
        FusedEngine(lower(kernel)).matrix(images(kernel, 300), progress=stop)


def test_a_worker_does_not_import_tensorflow(tmp_path):
    kernel, _ = KERNELS["resnet"]
    (tmp_path / "program").write_bytes(pickle.dumps(lower(kernel)))
    np.save(tmp_path / "X.npy", images(kernel, 12))
    program = (
        "import pickle, sys; import numpy as np; from cnn_gp.engines.choice import Choice, engine_on_device;"
        "program = pickle.load(open(sys.argv[1] + '/program', 'rb'));"
        "engine = engine_on_device('cluster', choice=Choice('fused', program, True), kernel={}, n_max=6);"
        "np.save(sys.argv[1] + '/K.npy', engine.matrix(np.load(sys.argv[1] + '/X.npy')));"
        "sys.exit('tensorflow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "K.npy"), FusedEngine(lower(kernel)).matrix(images(kernel, 12)))


@pytest.mark.parametrize("model", NAMED)
def test_merging_saves_passes_and_places(model):
    """What the speed rests on: the ResNet in two maps, the other two in one."""
    program = lower(build_kernel(model, [1, 28, 28]))
    code = program.compiled().code
    n_maps = 2 if model == "resnet_gp" else 1
    assert code.row == n_maps * 784
    assert len(code.steps) < 0.6 * len(program.steps) or model == "convnet_gp"
    # In the paper's nets every nonlinearity is done by the way.
    assert (code.steps["operation"] == OPERATIONS["pointwise"]).sum() <= 2
