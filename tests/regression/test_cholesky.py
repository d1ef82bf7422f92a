"""The block factorisation against NumPy, whatever the blocks."""

import numpy as np
import pytest

from cnn_gp.errors import UserError
from cnn_gp.regression.cholesky import LowerBlocks, NotPositiveDefinite, largest


def made(N, block, shift=1.0):
    A = np.random.default_rng(0).normal(size=(N, N + 3))
    K = A @ A.T + shift * np.eye(N)
    lower = LowerBlocks(N, block)
    # In columns of other widths than the blocks'.
    for first in range(0, N, 4):
        lower.fill(first, K[first:, first : first + 4].astype(np.float32 if block == 1 else np.float64))
    return K, lower


@pytest.mark.parametrize("N", [1, 7, 23])
@pytest.mark.parametrize("block", [1, 3, 7, 50])
def test_factor_solve_and_determinant(N, block):
    K, lower = made(N, block)
    K = lower.matrix()
    np.testing.assert_array_equal(lower.diagonal(), np.diag(K))
    lower.add_to_diagonal(0.5)
    K = K + 0.5 * np.eye(N)
    done: list[int] = []
    lower.factorise(done.append)
    assert sum(done) == lower.n_steps
    L = np.linalg.cholesky(K)
    B = np.random.default_rng(1).normal(size=(N, 3))
    np.testing.assert_allclose(lower.forward(B), np.linalg.solve(L, B), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(lower.backward(B), np.linalg.solve(L.T, B), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(lower.solve(B), np.linalg.solve(K, B), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(lower.times(B), K @ B, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(lower.inverse_diagonal(), np.diag(np.linalg.inv(K)), rtol=1e-9)
    for n in {1, (N + 1) // 2, N}:
        np.testing.assert_allclose(lower.log_determinant(n), np.linalg.slogdet(K[:n, :n])[1], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(lower.solve(B[:n], n), np.linalg.solve(K[:n, :n], B[:n]), rtol=1e-8, atol=1e-12)


def test_right_sides_are_kept_and_checked():
    _, lower = made(9, 4)
    lower.factorise()
    B = np.ones((9, 2), order="F")
    lower.solve(B)
    np.testing.assert_array_equal(B, 1)
    with pytest.raises(ValueError, match="has 8 rows; expected 9"):
        lower.solve(B[:8])


def test_a_factor_makes_room_and_goes_on(tmp_path, monkeypatch):
    _, lower = made(9, 4)
    lower.factorise()
    B = np.arange(18.0).reshape(9, 2)
    before = lower.solve(B), lower.times(B), lower.inverse_diagonal(), lower.log_determinant()
    lower.make_room(tmp_path)
    assert all(isinstance(block, np.memmap) for row in lower._blocks for block in row)
    for one, other in zip(
        before, (lower.solve(B), lower.times(B), lower.inverse_diagonal(), lower.log_determinant()), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    # A file without a name: there is nothing to be left behind.
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"can't be put aside in .*: free 0.0 GB there, or give one --noise"):
        made(9, 4)[1].make_room(tmp_path / "missing")


@pytest.mark.parametrize("at", [0, 4, 8])
def test_the_order_of_failure(at):
    K, lower = made(9, 4)
    K[at, at] = -1
    lower.fill(0, K)
    with pytest.raises(NotPositiveDefinite) as failure:
        lower.factorise()
    assert failure.value.order == at + 1


def test_memory_is_about_half():
    assert LowerBlocks.n_bytes(50_000) == pytest.approx(10.5e9, rel=1e-9)
    blocks = LowerBlocks(23, 5)
    assert LowerBlocks.n_bytes(23, 5) == sum(b.nbytes for row in blocks._blocks for b in row)
    for n_bytes in (1e6, 1e9, 2e10):
        N = largest(n_bytes)
        assert LowerBlocks.n_bytes(N) <= n_bytes < LowerBlocks.n_bytes(N + N // 100 + 2)
