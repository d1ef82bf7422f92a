"""The output scale of an ensemble of trained networks against ensembles that are trained without an image."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from cnn_gp.regression import ensemble_scale
from cnn_gp.regression.ensemble_scale import ensemble_output_scale
from cnn_gp.regression.gram_matrix import ArrayGram
from cnn_gp.regression.iterative import Iterative
from cnn_gp.regression.solve import solve, targets
from helpers.matrices import in_memory
from helpers.small_runs import NumpyEngine, complete, make_data

NOISE = 1e-2


def kernels(X):
    """T and K, float64, of images of which the second has the smaller norm."""
    X = X.astype(np.float64)
    return NumpyEngine().matrix(X, X), NumpyEngine().matrix(X / 2, X / 2)


class SmallerEngine(NumpyEngine):
    def entries(self, X, X2=None, progress=None):
        return super().entries(X / 2, None if X2 is None else X2 / 2, progress)


@pytest.fixture
def runs(tmp_path):
    data = make_data()
    T = in_memory(complete(tmp_path / "T", data, n_max=4), 6)[0]
    return data, T, in_memory(complete(tmp_path / "K", data, SmallerEngine(), n_max=7), 7)[0]


def left_out(T, K, Y, noise_variance):
    """The errors [N, C] and variances [N] of ensembles that are trained without one image each."""
    errors, variances = np.empty_like(Y), np.empty(len(Y))
    for i in range(len(Y)):
        others = np.delete(np.arange(len(Y)), i)
        A = T[np.ix_(others, others)] + noise_variance * np.eye(len(others))
        weights = np.linalg.solve(A, T[others, i])
        errors[i] = Y[i] - weights @ Y[others]
        variances[i] = K[i, i] - 2 * weights @ K[others, i] + weights @ K[np.ix_(others, others)] @ weights
    return errors, variances


@pytest.mark.parametrize("N", [23, 13])
@pytest.mark.parametrize("noise", [0.0, NOISE])
@pytest.mark.parametrize("at_a_time", [5, 100])
@pytest.mark.parametrize("iterative", [None, Iterative()])
def test_the_left_out_targets_are_most_likely(runs, N, noise, at_a_time, iterative, monkeypatch):
    monkeypatch.setattr(ensemble_scale, "images_at_a_time", lambda N, n_max: at_a_time)
    monkeypatch.setattr(ensemble_scale, "GATHERED", 3)
    data, T, K = runs
    Y = targets(data.Y[:N], 3)
    solution = solve(T, Y, noise=noise, iterative=iterative)
    errors, variances = left_out(*kernels(data.X[:N]), Y, solution.added)

    def loss(log_scale):
        return -norm.logpdf(errors, scale=np.sqrt(np.exp(log_scale) * variances)[:, None]).sum()

    best = minimize_scalar(loss, bracket=(-5, 5), tol=1e-10)
    assert ensemble_output_scale(K, solution) == pytest.approx(np.exp(best.x), rel=1e-4)


def test_of_many_images_some_are_drawn(runs, monkeypatch):
    data, T, K = runs
    Y = targets(data.Y, 3)
    solution = solve(T, Y, noise=NOISE)
    errors, variances = left_out(*kernels(data.X), Y, solution.added)
    ratios = np.mean(errors**2, axis=1) / variances
    monkeypatch.setattr(ensemble_scale, "LEFT_OUT", 7)
    scale = ensemble_output_scale(K, solution)
    chosen = np.random.default_rng(0).choice(23, 7, replace=False)
    assert scale == pytest.approx(ratios[chosen].mean(), rel=1e-5)
    # Neither the first ones nor all.
    assert scale != pytest.approx(ratios[:7].mean(), rel=1e-2) and scale != pytest.approx(ratios.mean(), rel=1e-2)


def test_a_variance_below_the_entries_rounding(rng):
    """Initial outputs that are the same at every image: an ensemble whose weights' sum is nearly 1 has no variance."""
    N = 20
    T = np.eye(N) + 1e5
    K = np.full((N, N), 2, np.float32)
    Y = rng.normal(size=(N, 3))
    solution = solve(ArrayGram(T, 6), Y)
    errors, variances = left_out(T, K.astype(np.float64), Y, 0)
    rounding = 2 * np.finfo(np.float32).eps
    assert variances.max() < 1e-3 * rounding
    expected = np.mean(errors**2) / rounding
    assert ensemble_output_scale(ArrayGram(K, 6), solution) == pytest.approx(expected, rel=1e-5)
