"""The fused engine's numbers: against the float64 kernel, stored values, and between nearly identical images."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from cnn_gp import (
    ChannelMix,
    Conv,
    Dense,
    ExErf,
    ExReLU,
    NNGPKernel,
    NTKKernel,
    Sequential,
    Sum,
)
from cnn_gp.data import datasets
from cnn_gp.engines.choice import make_engine
from cnn_gp.engines.fused.engine import FusedEngine
from cnn_gp.engines.fused.lowering import NotLowered, lower
from cnn_gp.errors import ShrunkMapError
from cnn_gp.kernels.architectures import build_kernel
from cnn_gp.kernels.layer import layer_from_description
from helpers.fused_kernels import KERNELS, NAMED, images


@pytest.mark.parametrize("name", KERNELS)
def test_every_layer_agrees_with_the_float64_kernel(name):
    """At the first rows, a black image and two equal ones among them: the reference takes most of the time."""
    kernel, tolerance = KERNELS[name]
    X = images(kernel, 21)
    engine = FusedEngine(lower(kernel))
    K, cross = engine.matrix(X), engine.matrix(X[:4], X)
    double = X.astype(np.float64)
    expected, variances = kernel(double[:4], double).numpy(), kernel(double, full_cov=False).numpy()
    # Relative to the value, or where black images make it 0, to the deviations.
    bound = tolerance * np.maximum(expected, 1e-3 * np.sqrt(np.outer(variances[:4], variances)))
    assert (np.abs(K[:4] - expected) <= bound).all()
    assert (np.abs(cross - expected) <= bound).all()
    np.testing.assert_allclose(np.diag(K), variances, rtol=tolerance)
    np.testing.assert_array_equal(K, K.T)
    np.testing.assert_array_equal(np.diag(K), engine.diag(X))


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
    """Maps whose factor 1/2 one layer's scale takes in and another's doesn't; a ChannelMix of images and of a sum."""
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
