"""The solve and the predictions, against GPflow's regression and plain linear algebra."""

import gpflow
import numpy as np
import pytest

from cnn_gp.errors import UserError
from cnn_gp.regression.lower_triangle import assemble
from cnn_gp.regression.predict import error_percent, predict, validation_labels
from cnn_gp.regression.solve import JITTER_LADDER, solve, targets
from helpers.matrices import stored
from helpers.small_runs import NumpyEngine, complete, make_data

NOISE = 1e-3


def solved(run, N, jitter=NOISE, said=None):
    description, labels = run.description(), run.labels()
    Y = targets(labels["Y"][:N], description.n_classes)
    solution = solve(stored(run)[0], Y, jitter, say=(said if said is not None else []).append)
    return Y, solution


@pytest.mark.parametrize("n_max", [4, 5, 23, 50])
@pytest.mark.parametrize("N", [23, 13, 10])
def test_equals_gpflow_regression(tmp_path, n_max, N):
    data = make_data()
    run = complete(tmp_path, data, n_max=n_max)
    Y, solution = solved(run, N)
    n_vali = 9 + 23 - N
    means = predict(solution, *stored(run)[1:], n_vali, 7)

    X = data.X[:N].astype(np.float64)
    kernel = gpflow.kernels.SquaredExponential(variance=2.0)
    # The jitter is relative to the mean diagonal, which is 2.
    model = gpflow.models.GPR((X, Y), kernel, noise_variance=2 * NOISE)
    cut_off_first = np.concatenate([data.X[N:], data.Xv]).astype(np.float64)
    np.testing.assert_allclose(means.vali, model.predict_f(cut_off_first)[0], rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(means.test, model.predict_f(data.Xt.astype(np.float64))[0], rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(means.train, model.predict_f(X)[0], rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(solution.log_marginal_likelihood, model.log_marginal_likelihood(), rtol=1e-8)
    assert solution.relative_residual < 1e-12
    assert len(validation_labels(run.labels(), N)) == n_vali


def test_fewer_validation_images_than_are_cut_off(tmp_path):
    data = make_data()
    run = complete(tmp_path, data)
    _, solution = solved(run, 13)
    every = predict(solution, *stored(run)[1:], 19, 7)
    few = predict(solution, *stored(run)[1:], 4, 2)
    # BLAS may add up fewer rows in another order.
    np.testing.assert_allclose(few.vali, every.vali[:4], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(few.test, every.test[:2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("N", [23, 12, 5, 1])
def test_gram_is_the_whole_symmetric_matrix(tmp_path, N):
    data = make_data()
    K = assemble(stored(complete(tmp_path, data))[0], N).matrix()
    np.testing.assert_array_equal(K, NumpyEngine().matrix(data.X[:N].astype(np.float64)))
    assert K.dtype == np.float64


def test_no_jitter_where_none_is_needed(tmp_path):
    data, said = make_data(), []
    _, solution = solved(complete(tmp_path, data), 23, jitter=0.0, said=said)
    assert solution.jitter == solution.added == 0 and said == []


def test_duplicates_climb_the_ladder_aloud_and_the_training_error_is_that_of_the_stored_kernel(tmp_path):
    data = make_data()
    data.X[5] = data.X[4]
    data.Y[5] = data.Y[4]
    said: list[str] = []
    run = complete(tmp_path, data)
    _, solution = solved(run, 23, jitter=0.0, said=said)
    # LAPACK may or may not notice an exactly singular matrix at 1e-10; it does at 0 or the matrix is regular.
    assert solution.jitter in (0.0, *JITTER_LADDER)
    assert len(said) == ([0.0, *JITTER_LADDER]).index(solution.jitter)
    means = predict(solution, *stored(run)[1:], 9, 7)
    assert error_percent(means.train, data.Y) == 0
    assert solution.relative_residual < 1e-5


def test_an_indefinite_matrix_is_refused_with_what_to_do(tmp_path):
    class Indefinite(NumpyEngine):
        def entries(self, X, X2=None, progress=None):
            return 5 - super().entries(X, X2, progress)

    said: list[str] = []
    run = complete(tmp_path, make_data(), Indefinite())
    with pytest.raises(UserError, match=r"isn't positive definite even at relative jitter 0.001: look for"):
        solved(run, 23, jitter=0.0, said=said)
    assert len(said) == 9
    assert said[1].startswith("The Gram matrix isn't positive definite at relative jitter 1e-10")


def test_the_ladder_restores_the_matrix_exactly(tmp_path):
    """A matrix that needs 1e-4: the solution is as good as if that jitter had been asked for."""

    class Shifted(NumpyEngine):
        def entries(self, X, X2=None, progress=None):
            K = super().entries(X, X2, progress)
            if X2 is None:
                K[np.diag_indices(len(X))] -= self.shift
            return K

        def diag(self, X):
            return np.full(len(X), 2 - self.shift, X.dtype)

    data = make_data()
    smallest = np.linalg.eigvalsh(NumpyEngine().matrix(data.X.astype(np.float64)))[0]
    engine = Shifted()
    engine.shift = smallest + 5e-5
    run = complete(tmp_path, data, engine)
    said: list[str] = []
    _, climbed = solved(run, 23, jitter=0.0, said=said)
    assert climbed.jitter == pytest.approx(1e-4) and len(said) == 7
    _, direct = solved(run, 23, jitter=climbed.jitter)
    np.testing.assert_array_equal(climbed.alpha, direct.alpha)
    assert climbed.relative_residual < 1e-10


def test_targets_and_error():
    np.testing.assert_array_equal(targets(np.array([1, 0]), 3), [[-1, 1, -1], [1, -1, -1]])
    means = np.array([[0.1, 0.2], [0.3, 0.2], [0.0, 1.0], [0.5, 0.1]])
    assert error_percent(means, np.array([1, 0, 0, 0])) == 25
    with pytest.raises(UserError, match="4 predictions and 3 labels"):
        error_percent(means, np.array([1, 0, 0]))
