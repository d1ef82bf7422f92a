"""The fused engine against the float64 kernel, and the same bits however the images are cut into micro-tiles."""

import json
import math
import os
import pickle
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from numba import njit

from cnn_gp import (
    GELU,
    Abs,
    AvgPool,
    ChannelMix,
    Conv,
    DeepKernel,
    Dense,
    ExErf,
    ExReLU,
    GlobalAvgPool,
    LeakyReLU,
    NNGPKernel,
    NTKKernel,
    ResnetKernel,
    Sequential,
    Sum,
    gram_both,
)
from cnn_gp.data import datasets
from cnn_gp.engines.choice import choose_engine, make_engine
from cnn_gp.engines.fused.engine import FusedEngine, is_compiled, positions_per_entry
from cnn_gp.engines.fused.lowering import NotLowered, lower
from cnn_gp.engines.fused.microtile import PAIRS, ROWS
from cnn_gp.engines.fused.program import OPERATIONS
from cnn_gp.engines.fused.simd import WIDTH, load, splat, store
from cnn_gp.errors import ShrunkMapError, UserError
from cnn_gp.kernels.architectures import build_kernel
from cnn_gp.kernels.layer import Layer, layer_from_description
from cnn_gp.kernels.myrtle import myrtle_kernel
from helpers.small_runs import job_of

KERNELS = {
    "fully connected": (DeepKernel([7], [[]] * 3, ExReLU(), 2.0, 0.3), 3e-7),
    "one axis": (DeepKernel([3, 17], [3, 4], ExReLU(), 2.0, 0.3), 1e-6),
    "colour, even filters, stride 2": (DeepKernel([3, 9, 7], [4, 2], ExReLU(), 1.3, 0.2, "SAME", [2, 1]), 1e-6),
    "valid, stride beyond the filter": (DeepKernel([1, 12, 11], [1, 2], ExReLU(), 1.3, 0.2, "VALID", [3, 1]), 1e-6),
    "wide filters": (DeepKernel([1, 6, 6], [7, 6, 5], ExReLU(), 1.3, 0.2), 1e-6),
    "filters of two sizes": (DeepKernel([1, 8, 6], [[3, 1], [1, 5]], ExReLU(), 1.3, 0.2, strides=[[1, 2], 1]), 1e-6),
    "skips": (DeepKernel([2, 8, 8], [3] * 6, ExReLU(multiply_by_sqrt2=True), 2.0, 1.0, skip_freq=2), 1e-6),
    "skips everywhere": (DeepKernel([2, 8, 8], [3] * 4, ExReLU(), 2.0, 1.0, skip_freq=1), 1e-6),
    "step": (DeepKernel([2, 8, 8], [3] * 3, ExReLU(exponent=0, multiply_by_sqrt2=True), 2.0, 1.0), 1e-3),
    "erf": (DeepKernel([2, 8, 8], [3] * 9, ExErf(), 6.3, 5.0, skip_freq=3), 1e-5),
    "leaky": (
        NNGPKernel(
            Sequential(
                Conv(3, 2, var_weight=1.3, var_bias=0.1),
                LeakyReLU(0.2),
                Sum(Sequential(), Sequential(Conv(2), Abs())),
                AvgPool(2),
                Dense(),
                Abs(),
                Dense(),
            ),
            [2, 9, 8],
        ),
        1e-6,
    ),
    "resnet": (ResnetKernel([1, 10, 10], [2, 2], [1, 2], 3, ExReLU(), 1.0, 0.1), 1e-6),
    "sums of three": (
        NNGPKernel(
            Sequential(
                ExReLU(),
                Sum(Sequential(), Conv(3), Sequential(ExErf(), ExReLU())),
                Sum(ChannelMix(), Sequential()),
                Sum(ExReLU(), ExReLU()),
                Dense(),
                ExReLU(),
                Dense(),
            ),
            [1, 5, 5],
        ),
        1e-5,
    ),
    "a readout alone": (NNGPKernel(Sequential(Dense(2.0, 0.5)), [2, 4, 4]), 3e-7),
}


def conv(size=3, stride=1, padding="SAME"):
    return Conv(size, stride, padding, 1.8, 0.1, divide_by_patch=True)


POOLED = {
    "pool of the image": (Sequential(GlobalAvgPool()), [2, 3, 4]),
    "pool over one axis": (Sequential(conv(), ExReLU(), AvgPool(4, 3, "SAME"), Dense(1.2, 0.1)), [3, 9]),
    "pool": (Sequential(conv(), ExReLU(), conv(4), ExReLU(), AvgPool(3, 1, "SAME"), Dense(1.2, 0.1)), [2, 6, 5]),
    "pool of a strided map, layers after": (
        Sequential(conv(2, 2), ExReLU(), conv(3, 1, "VALID"), ExReLU(), AvgPool((2, 3)), Dense(), ExReLU(), Dense()),
        [1, 13, 12],
    ),
    "pool, erf": (Sequential(conv(), ExErf(), conv(), ExErf(), AvgPool(3, 2), Dense(), ExErf(), Dense()), [1, 7, 7]),
    "pool, residual": (
        Sequential(
            conv(),
            Sum(Sequential(), Sequential(ExReLU(), conv(3, 1, "FIXED"), ChannelMix())),
            Sum(Sequential(conv(3, 2, "FIXED"), ExReLU()), Sequential(ExReLU(), conv(1, 2))),
            ExReLU(),
            GlobalAvgPool(),
            ExReLU(),
            Dense(1.2, 0.1),
        ),
        [1, 8, 8],
    ),
}
STREAMED = {
    "myrtle": (myrtle_kernel((2, 1, 1), [3, 8, 8]).network, [3, 8, 8]),
    "pool of 3 within, stride 2": (
        Sequential(conv(), ExReLU(), AvgPool(3, 2), conv(), ExReLU(), GlobalAvgPool(), Dense(1.2, 0.1)),
        [2, 9, 8],
    ),
    "pools within, no last one, erf": (
        Sequential(
            *(conv(), ExReLU(), AvgPool(2, 1), conv(3, 2), ExReLU(), AvgPool((2, 1)), conv(), ExErf()),
            *(Dense(1.2, 0.1), ExReLU(), Dense()),
        ),
        [1, 9, 8],
    ),
    "pools within, residual": (
        Sequential(
            conv(),
            Sum(Sequential(), Sequential(ExReLU(), conv(), ChannelMix())),
            ExReLU(),
            AvgPool(2),
            Sum(Sequential(), Sequential(ExReLU(), conv())),
            ExReLU(),
            AvgPool(2, 1, "SAME"),
            Dense(1.2, 0.1),
            ExReLU(),
            Dense(),
        ),
        [2, 8, 6],
    ),
    "two pools together, one axis": (
        Sequential(conv(), ExReLU(), AvgPool(2), AvgPool(2), conv(), ExReLU(), GlobalAvgPool(), Dense()),
        [2, 17],
    ),
}
POOLED |= STREAMED
KERNELS |= {name: (NNGPKernel(network, shape), 2e-6) for name, (network, shape) in POOLED.items()}
KERNELS |= {
    f"{name}, ntk": (NTKKernel(kernel.network, kernel.input_shape), 3e-6)
    for name, (kernel, _) in KERNELS.items()
    if name != "step"
}


def images(kernel, n, seed=0):
    """Random ones, of which one is black and two are equal."""
    X = np.random.default_rng(seed).random((n, kernel.input_size)).astype(np.float32)
    X *= np.random.default_rng(1).random(X.shape) < 0.6
    X[1] = 0
    X[3] = X[2]
    return X


@pytest.mark.parametrize("name", KERNELS)
def test_every_layer_agrees_with_the_float64_kernel(name):
    kernel, tolerance = KERNELS[name]
    X = images(kernel, 21)
    engine = FusedEngine(lower(kernel))
    expected = kernel(X.astype(np.float64)).numpy()
    K, cross = engine.matrix(X), engine.matrix(X[:9], X)
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    # Relative to the value, or where black images make it 0, to the deviations.
    assert (np.abs(K - expected) <= tolerance * np.maximum(expected, 1e-3 * scale)).all()
    assert (np.abs(cross - expected[:9]) <= tolerance * np.maximum(expected, 1e-3 * scale)[:9]).all()
    np.testing.assert_array_equal(K, K.T)
    np.testing.assert_array_equal(np.diag(K), engine.diag(X))


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


@pytest.mark.parametrize("name", KERNELS)
def test_a_covariance_with_itself_is_the_variance_to_the_bit(name):
    kernel, _ = KERNELS[name]
    engine = FusedEngine(lower(kernel))
    X = images(kernel, 21)
    K = engine.matrix(X, X)
    np.testing.assert_array_equal(np.diag(K), engine.diag(X))
    assert K[2, 3] == K[2, 2]


# The largest relative errors between images that differ by 1e-3 and 1e-5; of the NTK one rounding error of a covariance
# costs its root. Measured: 9e-8, 8e-5, 2.1e-4, 1.6e-4.
NEAR = {"resnet": 5e-7, "resnet, ntk": 3e-4, "skips, ntk": 6e-4, "fully connected, ntk": 6e-4}


@pytest.mark.parametrize("name", NEAR)
def test_nearly_identical_images(name):
    kernel, _ = KERNELS[name]
    rng = np.random.default_rng(4)
    X = rng.random((4, kernel.input_size)).astype(np.float32)
    noise = rng.normal(size=X.shape)
    near = np.concatenate([X + 1e-3 * noise, X + 1e-5 * noise]).astype(np.float32)
    expected = kernel(X.astype(np.float64), near.astype(np.float64))
    np.testing.assert_allclose(FusedEngine(lower(kernel)).matrix(X, near), expected, rtol=NEAR[name])


def test_the_ntk_of_a_layer_that_is_read_twice():
    """Maps whose unit one layer takes up and another doesn't; a ChannelMix of the images, and of a sum."""
    mixed = Sum(ChannelMix(), Sequential(Conv(3), ExReLU(), ChannelMix()))
    network = Sequential(
        ChannelMix(), ExReLU(), mixed, ChannelMix(), ExErf(), mixed, Dense(1.2, 0.1), ExReLU(), Dense()
    )
    kernel = NTKKernel(network, [2, 5, 4])
    X = images(kernel, 9)
    np.testing.assert_allclose(FusedEngine(lower(kernel)).matrix(X), kernel(X.astype(np.float64)), rtol=1e-5)


STORED = Path(__file__).parents[1] / "golden" / "pooling_ntk"
MANIFEST = json.loads((STORED / "manifest.json").read_text())


@pytest.mark.parametrize("name", MANIFEST)
@pytest.mark.parametrize(("kind", "cls"), [("nngp", NNGPKernel), ("ntk", NTKKernel)])
def test_neural_tangents_values(name, kind, cls):
    """Of every network but those with a padded pool before other layers of a map, which are refused."""
    kernel = cls(layer_from_description(MANIFEST[name]["network"]), MANIFEST[name]["input_shape"])
    try:
        engine = FusedEngine(lower(kernel))
    except NotLowered as error:
        assert "windows reach beyond the map before other layers" in error.reason
        return
    stored = np.load(STORED / f"{name}.npz")
    X, X2 = stored["X"].astype(np.float32), stored["X2"].astype(np.float32)
    # Measured: 1.9e-7, at the fully connected network of 3 layers.
    np.testing.assert_allclose(engine.matrix(X, X2), stored[f"{kind}_XX2"], rtol=5e-7)
    np.testing.assert_allclose(engine.matrix(X), stored[f"{kind}_XX"], rtol=5e-7)


@pytest.mark.parametrize("weight", [1e-28, 1e28])
def test_the_ntk_of_very_large_and_small_covariances(weight):
    kernel = NTKKernel(Sequential(Conv(3, var_weight=weight), ExReLU(), Conv(3), ExReLU(), Dense()), [1, 5, 5])
    X = images(kernel, 9)
    expected = kernel(X.astype(np.float64)).numpy()
    np.testing.assert_allclose(FusedEngine(lower(kernel)).matrix(X), expected, rtol=3e-6, atol=0)


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


NAMED = ["convnet_gp", "residual_cnn_gp", "resnet_gp"]


@pytest.mark.parametrize("model", NAMED)
def test_the_papers_kernels_on_mnist(model, mnist_dir):
    """200 images; the float64 reference on 40 x 200 of the pairs, which takes it long enough."""
    X = datasets.load("mnist", data_dir=mnist_dir, N_train=200, N_vali=1, N_test=1).X.astype(np.float32)
    kernel = build_kernel(model, [1, 28, 28])
    engine = FusedEngine(lower(kernel))
    K = engine.matrix(X)
    reference = make_engine("tensorflow", kernel).matrix(X[:40].astype(np.float64), X.astype(np.float64))
    np.testing.assert_allclose(K[:40], reference, rtol=2e-6)
    np.testing.assert_array_equal(K, K.T)
    np.testing.assert_array_equal(np.diag(K), engine.diag(X))


@pytest.mark.parametrize("seed", range(1, 61))
def test_the_random_search_on_digits(seed):
    """On images of 8 x 8 pixels in the middle of 28 x 28: every working network, against float64."""
    try:
        kernel = build_kernel("random", [1, 28, 28], seed=seed)
    except ShrunkMapError:
        return
    X = np.zeros((3, 28, 28), np.float32)
    X[:, 6:22, 6:22] = datasets.load("digits", N_train=3).X.reshape(3, 8, 8).repeat(2, 1).repeat(2, 2)
    X = X.reshape(3, -1)
    erf = any(step.before and step.before.function == "erf" for step in lower(kernel).steps)
    K = FusedEngine(lower(kernel)).matrix(X)
    np.testing.assert_allclose(K, kernel(X.astype(np.float64)), rtol=1e-5 if erf else 2e-6)


def pointwise(kernel, c, v1, v2):
    """The engine's nonlinearity at given covariances: by images of one pixel in as many channels as are needed."""
    engine = FusedEngine(lower(kernel))
    s1, s2 = math.sqrt(v1), math.sqrt(v2)
    rho = c / (s1 * s2)
    x = np.zeros((1, 2), np.float32)
    x[0] = (s1 * math.sqrt(2), 0)
    x2 = np.stack([s2 * math.sqrt(2) * rho, s2 * math.sqrt(2) * np.sqrt(np.maximum(1 - rho**2, 0))], 1)
    x2 = x2.astype(np.float32)
    return engine.matrix(x, x2)[0], kernel(x.astype(np.float64), x2.astype(np.float64)).numpy()[0]


@pytest.mark.parametrize(("nonlinearity", "bound"), [(ExReLU(), 2e-7), (ExErf(), 2e-7), (ExReLU(exponent=0), 2e-4)])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_the_nonlinearities_over_all_correlations(nonlinearity, bound, scale):
    """-1, 0 and 1 included: absolute error, relative to the product of the deviations."""
    kernel = NNGPKernel(Sequential(nonlinearity, Dense()), [2])
    rho = np.concatenate([np.linspace(-1, 1, 4001), 1 - np.logspace(-8, -1, 500), np.logspace(-8, -1, 500) - 1])
    got, expected = pointwise(kernel, rho * scale, scale, scale)
    if isinstance(nonlinearity, ExErf) and scale > 1:
        # As good as a step: at a correlation of 1 the slope is infinite.
        bound = 5e-4
    size = scale if isinstance(nonlinearity, ExReLU) and nonlinearity.exponent == 1 else 1
    assert np.abs(got - expected).max() <= bound * size
    if isinstance(nonlinearity, ExReLU) and nonlinearity.exponent == 0:
        away = np.abs(rho) < 0.99
        assert np.abs(got - expected)[away].max() <= 1e-6


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


def test_lanes_are_not_reordered():
    @njit
    def doubled(array):
        for i in range(0, len(array), WIDTH):
            store(array, i, load(array, i) * splat(np.float32(2)))

    array = np.arange(PAIRS, dtype=np.float32)
    doubled(array)
    np.testing.assert_array_equal(array, 2 * np.arange(PAIRS))
    assert ROWS * WIDTH == PAIRS


@pytest.mark.long
def test_the_other_width_gives_the_same_bits(tmp_path):
    """With AVX-512: vectors of 8 in the machine code of a processor that has AVX2 only. Without: vectors of 16."""
    kernels = [KERNELS[name][0] for name in ("resnet", "erf", "step", "resnet, ntk", "pool, erf, ntk")]
    (tmp_path / "programs").write_bytes(pickle.dumps([lower(kernel) for kernel in kernels]))
    X = [images(kernel, 70) for kernel in kernels]
    np.savez(tmp_path / "images.npz", *X)
    script = (
        "import pickle, sys; import numpy as np; from cnn_gp.engines.fused.engine import FusedEngine, WIDTH;"
        "programs = pickle.load(open(sys.argv[1] + '/programs', 'rb'));"
        "images = np.load(sys.argv[1] + '/images.npz').values();"
        "np.savez(sys.argv[1] + '/K.npz', *(FusedEngine(p).matrix(X) for p, X in zip(programs, images)));"
        "print(WIDTH)"
    )
    other = {"CNN_GP_SIMD_WIDTH": str(24 - WIDTH)}
    if WIDTH == 16:
        other |= {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma"}
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env=os.environ | other,
        check=True,
        text=True,
        capture_output=True,
    )
    assert run.stdout == f"{24 - WIDTH}\n"
    for kernel, x, K in zip(kernels, X, np.load(tmp_path / "K.npz").values(), strict=True):
        np.testing.assert_array_equal(K, FusedEngine(lower(kernel)).matrix(x))


def test_another_width_is_refused():
    run = subprocess.run(
        [sys.executable, "-c", "import cnn_gp.engines.fused.simd"],
        env=os.environ | {"CNN_GP_SIMD_WIDTH": "4"},
        capture_output=True,
        text=True,
    )
    assert run.returncode
    assert "CNN_GP_SIMD_WIDTH is '4'; expected 8 or 16" in run.stderr


def test_a_change_in_any_source_that_enters_the_machine_code_compiles_it_again(tmp_path):
    """On a copy of the package, with a small function in the place of loops.py's."""
    package = tmp_path / "cnn_gp"
    shutil.copytree(Path(datasets.__file__).parents[1], package, ignore=shutil.ignore_patterns("__pycache__"))
    fused = package / "engines" / "fused"
    (fused / "small.py").write_text(
        "import numpy as np\n"
        "from ...kernels.polynomials import ASIN_QUARTER\n"
        "from .cache import is_kept, kept\n"
        "from .simd import WIDTH, fma, load, splat, store\n"
        "CONSTANT = np.float32(ASIN_QUARTER[0])\n"
        "@kept\n"
        "def small(array):\n"
        "    store(array, 0, fma(load(array, 0), splat(CONSTANT), load(array, 0)))\n"
        "array = np.full(WIDTH, 3, np.float32)\n"
        "before = is_kept(small)\n"
        "small(array)\n"
        "print(before, sum(small.stats.cache_hits.values()), is_kept(small), array[0])\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}

    def run():
        command = [sys.executable, "-c", "import cnn_gp.engines.fused.small"]
        options = {"cwd": tmp_path, "env": environment | {"PYTHONPATH": str(tmp_path)}}
        return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout.split()

    def edit(path, old, new):
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))

    assert run() == ["False", "0", "True", "6.0"]
    assert run() == ["True", "1", "True", "6.0"]
    edit(package / "kernels" / "polynomials.py", "(0.999999996, ", "(2.0, ")
    assert run() == ["False", "0", "True", "9.0"]
    edit(fused / "simd.py", '_llvm_function("fma", 3)', '_select(">")')
    assert run() == ["False", "0", "True", "2.0"]
    assert run() == ["True", "1", "True", "2.0"]


def test_it_knows_whether_it_is_compiled():
    FusedEngine(lower(KERNELS["a readout alone"][0])).matrix(images(KERNELS["a readout alone"][0], 4))
    assert is_compiled()
