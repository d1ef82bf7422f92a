"""The block factorisation against NumPy, whatever the blocks."""

import numpy as np
import pytest

from cnn_gp.errors import UserError
from cnn_gp.regression.cholesky import NotPositiveDefinite, factorise, n_steps
from cnn_gp.regression.lower_triangle import LowerTriangle


def positive_definite(N):
    A = np.random.default_rng(0).normal(size=(N, N + 3))
    return A @ A.T + np.eye(N)


@pytest.mark.parametrize("N", [1, 7, 23])
@pytest.mark.parametrize("block", [1, 3, 7, 50])
def test_factor_solve_and_determinant(N, block):
    K = positive_definite(N)
    done: list[int] = []
    lower = LowerTriangle.of(K, block)
    factor = factorise(lower, done.append)
    assert sum(done) == n_steps(lower) and factor.N == N
    L = np.linalg.cholesky(K)
    B = np.random.default_rng(1).normal(size=(N, 3))
    np.testing.assert_allclose(factor.forward(B), np.linalg.solve(L, B), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(factor.backward(B), np.linalg.solve(L.T, B), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(factor.solve(B), np.linalg.solve(K, B), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(factor.times(B), K @ B, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(factor.inverse_diagonal(), np.diag(np.linalg.inv(K)), rtol=1e-9)
    for n in {1, (N + 1) // 2, N}:
        np.testing.assert_allclose(factor.log_determinant(n), np.linalg.slogdet(K[:n, :n])[1], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(factor.solve(B[:n], n), np.linalg.solve(K[:n, :n], B[:n]), rtol=1e-8, atol=1e-12)


def test_the_factor_takes_the_triangles_place():
    lower = LowerTriangle.of(positive_definite(9), 4)
    addresses = [block.ctypes.data for row in lower.blocks for block in row]
    factor = factorise(lower)
    assert [block.ctypes.data for row in factor._blocks for block in row] == addresses
    for use in (lower.matrix, lambda: lower.add_to_diagonal(1.0), lambda: lower.fill(0, np.eye(9))):
        with pytest.raises(ValueError, match="was factorised, which replaces its entries: assemble it again"):
            use()
    with pytest.raises(ValueError, match="was factorised"):
        factorise(lower)


def test_right_sides_are_kept_and_checked():
    factor = factorise(LowerTriangle.of(positive_definite(9), 4))
    B = np.ones((9, 2), order="F")
    factor.solve(B)
    np.testing.assert_array_equal(B, 1)
    with pytest.raises(ValueError, match="has 8 rows; expected 9"):
        factor.solve(B[:8])


def test_a_factor_makes_room_and_goes_on(tmp_path):
    factor = factorise(LowerTriangle.of(positive_definite(9), 4))
    B = np.arange(18.0).reshape(9, 2)

    def results():
        return factor.solve(B), factor.times(B), factor.inverse_diagonal(), factor.log_determinant()

    before = results()
    with pytest.raises(UserError, match=r"can't be moved to a file in .*: free 0.0 GB there, or give one --noise"):
        factor.make_room(tmp_path / "missing")
    factor.make_room(tmp_path)
    assert all(isinstance(block, np.memmap) for row in factor._blocks for block in row)
    for one, other in zip(before, results(), strict=True):
        np.testing.assert_array_equal(one, other)
    # A file without a name: there is nothing to be left behind.
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("at", [0, 4, 8])
def test_the_order_of_failure(at):
    K = positive_definite(9)
    K[at, at] = -1
    lower = LowerTriangle.of(K, 4)
    with pytest.raises(NotPositiveDefinite) as failure:
        factorise(lower)
    assert failure.value.order == at + 1
    with pytest.raises(ValueError, match="was factorised"):
        lower.matrix()
