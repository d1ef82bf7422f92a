"""Variances, leave-one-out and learning curves against GPflow and explicit refits; the residual's refinement."""

import csv
import io

import gpflow
import numpy as np
import pytest

from cnn_gp import memory
from cnn_gp.errors import UserError
from cnn_gp.evaluation.tables import to_csv
from cnn_gp.regression.cholesky import CholeskyFactor
from cnn_gp.regression.learning_curve import Point, default_sizes, learning_curve
from cnn_gp.regression.leave_one_out import leave_one_out
from cnn_gp.regression.memory_needs import check_memory
from cnn_gp.regression.predict import ValidationKernel, error_percent, posterior_variances, predict
from cnn_gp.regression.solve import extreme_eigenvalues, solve, targets
from cnn_gp.regression.spectrum import eigenvalues
from helpers.matrices import stored
from helpers.small_runs import NumpyEngine, complete, make_data

NOISE = 1e-2


def solved(run, N, **options):
    Y = targets(run.labels()["Y"][:N], run.description().n_classes)
    return Y, solve(stored(run)[0], Y, **options)


def variances(run, solution, N_vali, N_test):
    Kxx, Kxvx, Kxtx = stored(run)
    validation = ValidationKernel(Kxx, Kxvx, len(solution.alpha))
    return posterior_variances(validation, solution, N_vali), posterior_variances(Kxtx, solution, N_test)


def regression(data, Y, noise=NOISE):
    kernel = gpflow.kernels.SquaredExponential(variance=2.0)
    # Relative to the mean diagonal, which is 2.
    return gpflow.models.GPR((data.X[: len(Y)].astype(np.float64), Y), kernel, noise_variance=2 * noise)


@pytest.mark.parametrize("N", [23, 13])
@pytest.mark.parametrize("n_max", [4, 50])
def test_variances_and_likelihoods_equal_gpflows(tmp_path, N, n_max, monkeypatch):
    monkeypatch.setattr("cnn_gp.regression.predict.GATHERED", 3)
    data = make_data()
    run = complete(tmp_path, data, n_max=n_max)
    Y, solution = solved(run, N, noise=NOISE)
    assert solution.noise == NOISE and solution.jitter == 0
    vali, test = variances(run, solution, 9 + 23 - N, 7)
    model = regression(data, Y)
    cut_off_first = np.concatenate([data.X[N:], data.Xv]).astype(np.float64)
    np.testing.assert_allclose(vali, model.predict_f(cut_off_first)[1][:, 0], rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(test, model.predict_f(data.Xt.astype(np.float64))[1][:, 0], rtol=1e-8, atol=1e-8)
    for y, likelihood in zip(Y.T, solution.log_marginal_likelihoods, strict=True):
        one = regression(data, y[:, None]).log_marginal_likelihood()
        assert likelihood == pytest.approx(float(one), rel=1e-8)
    few = variances(run, solution, 2, 3)
    np.testing.assert_allclose(few[0], vali[:2], rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(few[1], test[:3], rtol=1e-10, atol=1e-14)


def test_leave_one_out_equals_refits(tmp_path):
    data = make_data()
    run = complete(tmp_path, data)
    Y, solution = solved(run, 23, noise=NOISE)
    found = leave_one_out(solution, Y)
    X = data.X.astype(np.float64)
    density = 0.0
    for i in range(23):
        rest = np.arange(23) != i
        kernel = gpflow.kernels.SquaredExponential(variance=2.0)
        model = gpflow.models.GPR((X[rest], Y[rest]), kernel, noise_variance=2 * NOISE)
        mean, variance = model.predict_y(X[i : i + 1])
        np.testing.assert_allclose(found.means[i], mean[0], rtol=1e-7, atol=1e-8)
        np.testing.assert_allclose(found.variances[i], variance[0, 0], rtol=1e-8)
        density += float(np.sum(model.predict_log_density((X[i : i + 1], Y[i : i + 1]))))
    assert found.log_predictive_density(Y) == pytest.approx(density, rel=1e-7)


@pytest.mark.parametrize("block", [4, 100])
def test_the_learning_curve_equals_separate_solves(tmp_path, block, monkeypatch):
    monkeypatch.setattr("cnn_gp.regression.lower_triangle.LowerTriangle.__init__.__defaults__", (block,))
    data = make_data()
    run = complete(tmp_path, data)
    Y, solution = solved(run, 23, noise=NOISE)
    sizes = [3, 10, 17, 23]
    _, Kxvx, Kxtx = stored(run)
    points = learning_curve(solution, Y, sizes, (Kxvx, data.Yv), (Kxtx, data.Yt))
    for n, point in zip(sizes, points, strict=True):
        y, alone = solved(run, n, noise=NOISE)
        means = predict(alone, *stored(run)[1:], 23 - n + 9, 7)
        assert point.N_train == n
        # The stored validation set, without the images that a smaller training set cuts off.
        assert point.validation_error == error_percent(means.vali[23 - n :], data.Yv)
        assert point.test_error == error_percent(means.test, data.Yt)
        assert point.log_marginal_likelihood == pytest.approx(alone.log_marginal_likelihood / y.size, rel=1e-9)
    lines = list(csv.DictReader(io.StringIO(to_csv(map(vars, points)))))
    assert [Point(int(line.pop("N_train")), *map(float, line.values())) for line in lines] == points
    with pytest.raises(UserError, match="asked for at 24 images; expected 1 to 23"):
        learning_curve(solution, Y, [24], (Kxvx, data.Yv), (Kxtx, data.Yt))


def test_default_sizes():
    assert default_sizes(50_000) == [500, 1000, 2000, 5000, 10_000, 20_000, 50_000]
    assert default_sizes(1000) == [100, 200, 500, 1000]
    assert default_sizes(7) == [7]
    assert isinstance(Point(1, 2.0, 3.0, 4.0), Point)


def test_extreme_eigenvalues(tmp_path):
    data = make_data(N_train=60)
    run = complete(tmp_path, data)
    _, solution = solved(run, 60, noise=NOISE)
    K = NumpyEngine().matrix(data.X.astype(np.float64)) + solution.added * np.eye(60)
    smallest, largest = np.linalg.eigvalsh(K)[[0, -1]]
    assert solution.extreme_eigenvalues == pytest.approx((smallest, largest), rel=0.02)
    assert solution.condition_number == pytest.approx(largest / smallest, rel=0.04)
    _, tiny = solved(run, 2, noise=NOISE)
    assert extreme_eigenvalues(tiny.factor) == pytest.approx(tuple(np.linalg.eigvalsh(K[:2, :2])), rel=1e-6)


@pytest.mark.parametrize("N", [23, 13])
def test_the_spectrum(tmp_path, N, monkeypatch):
    data = make_data()
    run = complete(tmp_path, data)
    expected = np.linalg.eigvalsh(NumpyEngine().matrix(data.X[:N].astype(np.float64)))
    np.testing.assert_allclose(eigenvalues(stored(run)[0], N), expected, rtol=1e-9, atol=1e-12)
    monkeypatch.setattr(memory, "available", lambda: 3000)
    with pytest.raises(UserError, match=r"The spectrum of .* leave --spectrum out, or give --N_train=\d+ or less"):
        eigenvalues(stored(run)[0], N)


def test_a_large_residual_is_refined(tmp_path, monkeypatch):
    run = complete(tmp_path, make_data())
    _, exact = solved(run, 23, noise=NOISE)
    assert exact.refinements == 0 and exact.relative_residual < 1e-12
    # A solver of three digits.
    real = CholeskyFactor.solve
    monkeypatch.setattr(CholeskyFactor, "solve", lambda self, B, n=None: real(self, B, n) * (1 + 1e-3))
    _, refined = solved(run, 23, noise=NOISE)
    assert 1 <= refined.refinements <= 3 and refined.relative_residual < 1e-9
    np.testing.assert_allclose(refined.alpha, exact.alpha, rtol=1e-6)


def test_memory_is_refused_before_it_is_taken(tmp_path, monkeypatch):
    run = complete(tmp_path, make_data())
    assert check_memory(stored(run)[0], 23) < 100_000
    monkeypatch.setattr(memory, "available", lambda: 3000)
    with pytest.raises(UserError, match=r"of 23 images needs .* GB of memory .* give --N_train=\d+ or less"):
        solved(run, 23)
    # Less than the rows of tiles take: no number of images fits.
    monkeypatch.setattr(memory, "available", lambda: 1000)
    with pytest.raises(UserError, match=r"are available: solve by conjugate gradients \(--solver=cg\), or take"):
        solved(run, 23)


def test_equal_images_are_named(tmp_path):
    data = make_data()
    data.X[7] = data.X[4]

    class Singular(NumpyEngine):
        def entries(self, X, X2=None, progress=None):
            K = super().entries(X, X2, progress)
            if X2 is None:
                # As rounding may have it.
                K[np.diag_indices(len(K))] -= 1e-9
            return K

        def diag(self, X):
            return np.full(len(X), 2 - 1e-9, X.dtype)

    said: list[str] = []
    run = complete(tmp_path, data, Singular(), n_max=50)
    _, solution = solved(run, 23, say=said.append, images=lambda: run.images()["X"])
    assert "Training images 4 and 7 are equal" in said[0]
    assert solution.jitter > 0

    def unreadable():
        raise UserError("images.h5 can't be read")

    for images in (None, unreadable):
        said.clear()
        _, other = solved(run, 23, say=said.append, images=images)
        assert said[0].endswith("of 23 rows).")
        np.testing.assert_array_equal(other.alpha, solution.alpha)
