"""The log determinant's estimate, against the exact one."""

import numpy as np
import pytest

from cnn_gp.regression.gram_matrix import ArrayGram
from cnn_gp.regression.log_determinant import log_determinant
from cnn_gp.regression.pivoted_cholesky import LowRank, Preconditioner, randomly_pivoted_cholesky
from cnn_gp.regression.tile_products import TileProducts
from helpers.iterative import NOISE, Memory, N, preconditioner, times
from helpers.small_runs import make_data


@pytest.mark.parametrize("rank", [0, 5, 40])
def test_the_log_determinant_is_within_three_standard_errors(run, K, rank):
    A = K + 2 * NOISE * np.eye(N)
    found, error = log_determinant(lambda B: A @ B, preconditioner(run, rank))
    assert abs(found - np.linalg.slogdet(A)[1]) < 3 * error + 1e-9 * N
    assert error < 30


def test_the_log_determinant_s_state_goes_on_to_the_same_bits(run, monkeypatch):
    M, of_run, kept, count = preconditioner(run, 10), times(run), Memory(), [0]
    whole = log_determinant(of_run, M)

    def stopped(B):
        count[0] += 1
        if count[0] == 4:
            raise KeyboardInterrupt
        return of_run(B)

    with pytest.raises(KeyboardInterrupt):
        log_determinant(stopped, M, kept=kept)
    assert len(kept.there["diagonals"]) == 3
    assert log_determinant(stopped, M, kept=kept) == whole
    # At its end nothing is left to be computed.
    assert log_determinant(lambda B: pytest.fail("a product"), M, kept=kept) == whole
    # Of another preconditioner's state nothing is taken.
    other = preconditioner(run, 20)
    assert log_determinant(of_run, other, kept=kept) == log_determinant(of_run, other)


@pytest.mark.long
@pytest.mark.parametrize("noise", [1e-4, 1e-2])
def test_the_log_determinant_of_5000_images_is_within_three_standard_errors(noise):
    X = make_data(5000).X.astype(np.float64)
    squares = np.einsum("ij,ij->i", X, X)
    K = (2 * np.exp(-0.5 * np.maximum(squares[:, None] + squares - 2 * X @ X.T, 0))).astype(np.float32)
    np.fill_diagonal(K, 2)
    of_tiles = TileProducts(ArrayGram(K, 500), 5000, 1e9)
    # A small rank, which leaves much to be estimated.
    M = Preconditioner(LowRank(randomly_pivoted_cholesky(of_tiles, 5000, 20), 10_000.0), 2 * noise)
    found, error = log_determinant(lambda B: of_tiles.times(B) + 2 * noise * B, M)
    A = np.triu(K).astype(np.float64)
    A += np.triu(A, 1).T
    A[np.diag_indices(5000)] += 2 * noise
    exact = 2 * np.log(np.diagonal(np.linalg.cholesky(A))).sum()
    assert abs(found - exact) < 3 * error
    assert 0 < error < 0.01 * abs(exact)
