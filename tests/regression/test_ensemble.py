"""The variance of an ensemble of trained networks against the formula on whole matrices."""

import numpy as np
import pytest

from cnn_gp import memory
from cnn_gp.errors import UserError
from cnn_gp.regression import ensemble
from cnn_gp.regression.ensemble import ensemble_variances
from cnn_gp.regression.predict import ValidationKernel, posterior_variances
from cnn_gp.regression.solve import solve, targets
from helpers.matrices import in_memory, stored
from helpers.small_runs import NumpyEngine, complete, make_data

NOISE = 1e-2


class WiderEngine(NumpyEngine):
    """Another kernel: as that of images of half the size."""

    def entries(self, X, X2=None, progress=None):
        return super().entries(X / 2, None if X2 is None else X2 / 2, progress)


@pytest.fixture
def runs(tmp_path):
    """The run of T and that of K, in rows of tiles of other sizes."""
    data = make_data()
    T = complete(tmp_path / "T", data, n_max=4)
    return data, T, complete(tmp_path / "K", data, WiderEngine(), n_max=7)


def dense(data, X, N):
    """The formula, for the images X and the first N training images."""
    x = data.X[:N]
    T, K = NumpyEngine().matrix, WiderEngine().matrix
    T_tx, T_xx, K_tx, K_xx = (k(a.astype(np.float64), x.astype(np.float64)) for k in (T, K) for a in (X, x))
    weights = T_tx @ np.linalg.inv(T_xx + 2 * NOISE * np.eye(N))
    return 2 - 2 * np.sum(weights * K_tx, axis=1) + np.einsum("tx,xy,ty->t", weights, K_xx, weights)


@pytest.mark.parametrize("N", [23, 13])
@pytest.mark.parametrize("read", [stored, lambda run: in_memory(run, 6)])
@pytest.mark.parametrize("at_a_time", [3, 100])
def test_the_variances_are_the_formulas(runs, N, read, at_a_time, monkeypatch):
    monkeypatch.setattr(ensemble, "images_at_a_time", lambda N, n_max: at_a_time)
    monkeypatch.setattr("cnn_gp.regression.predict.GATHERED", 3)
    data, T_run, K_run = runs
    T, Tv, Tt = read(T_run)
    K, Kv, Kt = read(K_run)
    solution = solve(T, targets(data.Y[:N], 3), noise=NOISE)
    test, of_process = ensemble_variances(Tt, Kt, K, solution, 7)
    np.testing.assert_allclose(of_process, posterior_variances(Tt, solution, 7), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(test, dense(data, data.Xt, N), rtol=1e-9, atol=1e-9)
    cut_off_first = np.concatenate([data.X[N:], data.Xv])
    of_vali = ValidationKernel(T, Tv, N)
    vali, of_process = ensemble_variances(of_vali, ValidationKernel(K, Kv, N), K, solution, 9 + 23 - N)
    np.testing.assert_allclose(of_process, posterior_variances(of_vali, solution, 9 + 23 - N), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(vali, dense(data, cut_off_first, N), rtol=1e-9, atol=1e-9)
    few, _ = ensemble_variances(Tt, Kt, K, solution, 2)
    np.testing.assert_allclose(few, test[:2], rtol=1e-12)


def test_of_equal_kernels_it_is_the_posterior_variance(runs):
    data, run, _ = runs
    T, _, Tt = stored(run)
    solution = solve(T, targets(data.Y, 3))
    assert solution.added == 0
    expected = posterior_variances(Tt, solution, 7)
    assert expected.max() > 1e-3
    np.testing.assert_allclose(ensemble_variances(Tt, Tt, T, solution, 7)[0], expected, atol=1e-6)


def test_the_memory_is_asked_for_first(runs, monkeypatch):
    gram = stored(runs[1])[0]
    for has_factor, needed in ((True, 8 * 23**2), (False, 0)):
        needed += 8 * 23 * 4 + 8 * 4 * 4 + 40 * 23 * 500 + 20 * 4 * 23
        monkeypatch.setattr(memory, "available", lambda there=needed: there)
        ensemble.check_memory(gram, 23, has_factor=has_factor)
        monkeypatch.setattr(memory, "available", lambda there=needed: there - 1)
        with pytest.raises(UserError, match=r"variance with 23 training images needs .* leave --ensemble out"):
            ensemble.check_memory(gram, 23, has_factor=has_factor)


def test_as_many_images_at_a_time_as_memory_holds(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 20_000_000_000)
    assert 10_000 < ensemble.images_at_a_time(50_000, 200) < 25_000
    monkeypatch.setattr(memory, "available", lambda: 1000)
    assert ensemble.images_at_a_time(50_000, 200) == 200
