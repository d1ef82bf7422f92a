"""Randomly pivoted Cholesky, and the preconditioner made of it."""

import numpy as np
import pytest

from cnn_gp.regression.gram_matrix import ArrayGram
from cnn_gp.regression.pivoted_cholesky import LowRank, Preconditioner, randomly_pivoted_cholesky
from cnn_gp.regression.tile_products import TileProducts
from helpers.iterative import NOISE, N, products


@pytest.mark.parametrize("greedy", [False, True])
def test_the_pivoted_factor_is_near_the_matrix_from_below(run, K, greedy):
    F = randomly_pivoted_cholesky(products(run), N, 40, greedy=greedy)
    left = np.linalg.eigvalsh(K - F @ F.T)
    # The best of this rank leaves the smallest eigenvalues.
    assert left.sum() < 5 * np.linalg.eigvalsh(K)[:-40].sum() + 1e-4 and left[0] > -1e-5
    np.testing.assert_array_equal(F, randomly_pivoted_cholesky(products(run), N, 40, greedy=greedy))


def test_the_rank_ends_where_nothing_is_left():
    V = np.random.default_rng(0).normal(size=(60, 5))
    of_tiles = TileProducts(ArrayGram(V @ V.T, 16), 60, 1e9)
    assert randomly_pivoted_cholesky(of_tiles, 60, 30).shape[1] == 5


@pytest.mark.parametrize("greedy", [False, True])
def test_a_pass_that_finds_few_pivots_is_not_the_last(greedy):
    # After the first pivot a thousandth is left of all diagonals: the other 59 proposals of its pass are rejected.
    of_tiles = TileProducts(ArrayGram(1 + 1e-3 * np.eye(1200), 200), 1200, 1e9)
    assert randomly_pivoted_cholesky(of_tiles, 1200, 600, greedy=greedy).shape[1] > 500


def test_the_inverse_root_and_the_determinant(run, rng):
    F = randomly_pivoted_cholesky(products(run), N, 40)
    trace = float(products(run).diagonal().sum())
    M = Preconditioner(LowRank(F.copy(), trace), NOISE)
    whole = F @ F.T + M.mu * np.eye(N)
    B = rng.normal(size=(N, 2))
    twice = M.inverse_root_times(M.inverse_root_times(B))
    np.testing.assert_allclose(whole @ twice, B, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(M.log_determinant, np.linalg.slogdet(whole)[1], rtol=1e-9)
    np.testing.assert_allclose(M.largest, np.linalg.eigvalsh(whole)[-1], rtol=1e-9)


@pytest.mark.parametrize("condition", [1e2, 1e7, 1e14])
def test_the_preconditioner_s_factor_has_orthonormal_columns(rng, condition):
    wide = rng.normal(size=(400, 50)) * np.logspace(0, -np.log10(condition), 50)
    F = np.asfortranarray(wide @ rng.normal(size=(50, 50)))
    low_rank = LowRank(F.copy(order="F"), 1e9)
    np.testing.assert_allclose(low_rank.Q.T @ low_rank.Q, np.eye(50), atol=1e-13)
    vectors = low_rank.Q @ low_rank.V
    found = (vectors * low_rank.eigenvalues) @ vectors.T
    np.testing.assert_allclose(found, F @ F.T, atol=1e-12 * abs(F @ F.T).max())
