"""The solve by conjugate gradients from stored tiles, against the Cholesky factorisation."""

import functools
import weakref

import numpy as np
import pytest
from scipy.linalg import cho_factor, cho_solve

from cnn_gp.errors import UserError
from cnn_gp.regression import conjugate_gradients as cg
from cnn_gp.regression import iterative as module
from cnn_gp.regression.gram_matrix import ArrayGram
from cnn_gp.regression.iterative import Iterative, IterativeFactor
from cnn_gp.regression.learning_curve import learning_curve
from cnn_gp.regression.leave_one_out import leave_one_out
from cnn_gp.regression.predict import posterior_variances, predict
from cnn_gp.regression.solve import solve
from cnn_gp.regression.tile_products import TileProducts
from helpers.iterative import NOISE, N
from helpers.matrices import stored


@pytest.mark.parametrize("n", [N, 211])
def test_everything_equals_the_factorisation_s(run, Y, n):
    Kxx, Kxvx, Kxtx = stored(run)
    exact = solve(Kxx, Y[:n], noise=NOISE)
    found = solve(Kxx, Y[:n], noise=NOISE, iterative=Iterative())
    n_vali = 30 + N - n
    for one, other in zip(
        *(vars(predict(solution, Kxvx, Kxtx, n_vali, 30)).values() for solution in (exact, found)), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-6)
        np.testing.assert_array_equal(one.argmax(axis=1), other.argmax(axis=1))
    assert found.relative_residual <= module.TOLERANCE
    close = functools.partial(np.testing.assert_allclose, atol=1e-6)
    close(posterior_variances(Kxtx, found, 30), posterior_variances(Kxtx, exact, 30))
    close(leave_one_out(found, Y[:n]).means, leave_one_out(exact, Y[:n]).means)
    close(found.factor.solve(Y[:150], 150), exact.factor.solve(Y[:150], 150), atol=1e-5 * abs(exact.alpha).max())
    for size in (None, 150):
        error = abs(found.factor.log_determinant(size) - exact.factor.log_determinant(size))
        assert error < 3 * found.factor.log_determinant_error(size) + 1e-6
    assert found.log_marginal_likelihood_error == 1.5 * found.factor.log_determinant_error()
    assert exact.log_marginal_likelihood_error is None
    assert found.extreme_eigenvalues[1] == pytest.approx(exact.extreme_eigenvalues[1], rel=0.02)


def test_a_learning_curve_makes_each_size_s_preconditioner_once_and_holds_one(run, Y, monkeypatch):
    made, alive, real = [], weakref.WeakSet(), module.LowRank

    def low_rank(F, trace):
        assert not alive
        result = real(F, trace)
        made.append(result.N)
        alive.add(result)
        return result

    monkeypatch.setattr(module, "LowRank", low_rank)
    Kxx, Kxvx, Kxtx = stored(run)
    solution = solve(Kxx, Y, noise=NOISE, iterative=Iterative())
    labels = np.zeros(30, int)
    points = learning_curve(solution, Y, [100, 150, N], (Kxvx, labels), (Kxtx, labels))
    assert made == [N, 100, 150, N] and [point.N_train for point in points] == [100, 150, N]


def test_a_stagnant_solve_says_so_in_one_line(run, Y, monkeypatch):
    monkeypatch.setattr(module, "TOLERANCE", 1e-19)
    monkeypatch.setattr(cg, "PATIENCE", 10)
    said: list[str] = []
    solve(stored(run)[0], Y, noise=NOISE, say=said.append, iterative=Iterative())
    (line,) = [line for line in said if "no longer falls" in line]
    assert "relative residual of" in line and "--noise" in line and "--solver=cholesky" in line


def test_several_noises_share_the_tiles_and_the_pivots(run, Y, monkeypatch):
    passes, real = [0], TileProducts.columns

    def columns(*arguments):
        passes[0] += 1
        return real(*arguments)

    monkeypatch.setattr(TileProducts, "columns", columns)
    gram, iterative = stored(run)[0], Iterative()
    alone = solve(stored(run)[0], Y, noise=1e-2, iterative=Iterative())
    once, passes[0] = passes[0], 0
    said: list[str] = []
    solutions = [solve(gram, Y, noise=noise, say=said.append, iterative=iterative) for noise in (NOISE, 1e-2)]
    assert passes[0] == once > 0 and len([line for line in said if "Preconditioner" in line]) == 1
    np.testing.assert_array_equal(solutions[1].alpha, alone.alpha)
    # Another size, and what follows when nothing of the matrix is in use any more, begin anew.
    solve(gram, Y[:200], noise=NOISE, iterative=iterative)
    assert passes[0] > once
    passes[0] = 0
    del solutions
    solve(gram, Y, noise=NOISE, iterative=iterative)
    assert passes[0] == once


def test_jitters_share_the_pivots(run, Y, K, monkeypatch):
    made: list[int] = []
    real = module.randomly_pivoted_cholesky
    monkeypatch.setattr(module, "randomly_pivoted_cholesky", lambda *some: made.append(1) or real(*some))
    found = solve(ArrayGram(K - 5e-4 * np.eye(N), 50), Y, iterative=Iterative())
    assert found.jitter > 0 and made == [1]


def test_memory_that_is_too_little(run, Y):
    with pytest.raises(UserError, match=r"need 0\.00 GB of memory and have 0\.00 GB: give a larger --memory"):
        solve(stored(run)[0], Y, noise=NOISE, iterative=Iterative(memory=1000))


def test_a_limited_memory_gives_the_same_solution(run, Y):
    Kxx = stored(run)[0]
    enough = solve(Kxx, Y, noise=NOISE, iterative=Iterative())
    little = solve(Kxx, Y, noise=NOISE, iterative=Iterative(memory=1_250_000))
    assert little.factor._prepared.products.share_in_memory < 0.5 and little.factor.rank < enough.factor.rank
    np.testing.assert_allclose(little.products, enough.products, atol=1e-6)


def test_many_right_sides_are_solved_for_in_groups_that_memory_allows(run, Y, rng):
    gram = stored(run)[0]
    # Some 800 kB for vectors, of which a right side takes 48 kB, are left after what is needed in any case.
    few = Iterative(memory=5_000_000, many_right_sides=True)
    plan = few.plan(gram, N, 3)
    assert 16 < plan.at_a_time < 60 and plan.room < Iterative(memory=5_000_000).plan(gram, N, 3).room
    assert Iterative(memory=10**9, many_right_sides=True).plan(gram, N, 3).at_a_time == module.AT_A_TIME
    solution = solve(gram, Y, noise=NOISE, iterative=few)
    B = rng.normal(size=(N, 2 * plan.at_a_time + 1))
    exact = solve(gram, Y, noise=NOISE).factor.solve(B.copy())
    np.testing.assert_allclose(solution.factor.solve(B), exact, atol=1e-6 * abs(exact).max())


def test_jitter_is_added_where_the_matrix_is_not_positive_definite(Y, K):
    bad = ArrayGram(K - 5e-4 * np.eye(N), 50)
    said: list[str] = []
    found = solve(bad, Y, say=said.append, iterative=Iterative())
    assert found.jitter > 0 and any("isn't positive definite at relative jitter 0 " in line for line in said)
    assert isinstance(found.factor, IterativeFactor) and found.relative_residual <= module.TOLERANCE
    factor = cho_factor(K + (found.added - 5e-4) * np.eye(N))
    np.testing.assert_allclose(found.alpha, cho_solve(factor, Y), atol=1e-5 * abs(found.alpha).max())
