"""The faults of the programs before this one, each with a test that would catch its return."""

import subprocess
import sys

import numpy as np
import pytest

from cnn_gp import (
    DeepKernel,
    ExErf,
    ExReLU,
    ResnetKernel,
    build_kernel,
    gram,
)
from cnn_gp.engines.choice import make_engine
from cnn_gp.errors import UserError
from helpers.paths import GOLDEN

RELU = ExReLU(multiply_by_sqrt2=True)


@pytest.fixture(scope="module")
def strokes():
    with np.load(GOLDEN / "strokes_resnet_gp.npz") as file:
        return file["X"] / 255


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_black_images_do_not_make_the_resnet_nan(dtype, strokes):
    X = np.concatenate([np.zeros((2, 784)), strokes[:2]]).astype(dtype)
    K = build_kernel("resnet_gp", [1, 28, 28])(X).numpy()
    assert np.isfinite(K).all()
    assert (K[:2] == 0).all() and (np.diag(K)[2:] > 0).all()


def test_the_erf_is_clipped(strokes):
    """Deep in an erf network rounding takes the arcsine's argument beyond 1."""
    kernel = build_kernel("random", [1, 28, 28], seed=36)
    X = strokes[[0, 0, 1]].astype(np.float32)
    assert np.isfinite(kernel(X, X)).all()


@pytest.mark.parametrize("skip_freq", [1, 2])
@pytest.mark.parametrize("nonlinearity", [RELU, ExErf()], ids=["relu", "erf"])
def test_the_diagonal_knows_of_skip_connections(skip_freq, nonlinearity, rng):
    X = rng.normal(size=(4, 16))
    kernel = DeepKernel([1, 4, 4], [3] * 5, nonlinearity, 1.3, 0.4, skip_freq=skip_freq)
    plain = DeepKernel([1, 4, 4], [3] * 5, nonlinearity, 1.3, 0.4)
    np.testing.assert_allclose(kernel.K_diag(X), np.diag(kernel.K(X, X)), rtol=1e-7)
    assert (np.abs(kernel.K_diag(X) / plain.K_diag(X) - 1) > 0.01).all()


def test_channels_last_is_refused_and_channels_are_averaged(rng):
    """The 2019 diagonal was wrong for NHWC: there is one layout here, and its diagonal counts the channels right."""
    with pytest.raises(UserError, match="expected 'NCHW', channels first"):
        DeepKernel([3, 4, 4], [3], RELU, data_format="NHWC")
    X = rng.normal(size=(3, 48))
    kernel = DeepKernel([3, 4, 4], [3], RELU)
    np.testing.assert_allclose(kernel.K_diag(X), np.diag(kernel.K(X, X)), rtol=1e-7)


def test_the_step_has_its_sqrt2_off_the_diagonal(rng):
    X, X2 = rng.normal(size=(3, 5)), rng.normal(size=(2, 5))
    plain = DeepKernel([5], [[]], ExReLU(0), var_bias=0.0)
    twice = DeepKernel([5], [[]], ExReLU(0, multiply_by_sqrt2=True), var_bias=0.0)
    np.testing.assert_allclose(twice(X, X2), 2 * plain(X, X2).numpy(), rtol=1e-14)
    np.testing.assert_allclose(twice.K_diag(X), 2 * plain.K_diag(X).numpy(), rtol=1e-14)


def test_a_list_as_skip_freq_is_no_type_error():
    DeepKernel([1, 4, 4], [3] * 4, RELU, skip_freq=[1, 3])


def test_stage_two_imports_scipy_and_not_tensorflow():
    program = (
        "import sys, cnn_gp, cnn_gp.data.datasets, cnn_gp.evaluation.classify, cnn_gp.regression.predict;"
        "assert 'scipy.linalg' in sys.modules; assert not {'tensorflow', 'gpflow', 'keras'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_the_gram_matrix_has_the_diagonal_and_one_triangle_mirrored(strokes):
    kernel = ResnetKernel([1, 28, 28], [1, 1], [1, 2], 3, ExReLU(), 1.0, 0.0)
    X = np.concatenate([strokes, strokes[::-1]]).astype(np.float32)
    engine = make_engine("tensorflow", kernel)
    K = gram(kernel, X, engine=engine)
    np.testing.assert_array_equal(K, K.T)
    np.testing.assert_array_equal(np.diag(K), engine.diag(X))
    np.testing.assert_allclose(np.diag(K), kernel.K_diag(X), rtol=1e-6)
    eager = kernel.K(X).numpy()
    np.testing.assert_array_equal(eager, eager.T)
    np.testing.assert_array_equal(np.diag(eager), kernel.K_diag(X))


def test_kernels_that_reach_1e30_do_not_overflow_float32():
    """sqrt(v1 * v2) would: with skips at every layer the variances multiply."""
    X = np.full((2, 16), 0.5, np.float32)
    X[1, 3:] = 0.1
    kernel = DeepKernel([1, 4, 4], [4] * 18, RELU, 8.0, 5.0, skip_freq=1)
    K = kernel(X).numpy()
    assert np.isfinite(K).all() and K.min() > 1e20
    np.testing.assert_allclose(K, kernel(X.astype(np.float64)), rtol=3e-6)
