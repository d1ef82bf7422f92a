"""A symmetric matrix in half its memory: what is filled in comes out again."""

import numpy as np
import pytest

from cnn_gp.regression.lower_triangle import LowerTriangle, largest


@pytest.mark.parametrize("N", [1, 7, 23])
@pytest.mark.parametrize("block", [1, 3, 7, 50])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_columns_of_any_width_fill_it(N, block, dtype):
    K = np.random.default_rng(0).normal(size=(N, N)).astype(dtype)
    K = K + K.T
    lower = LowerTriangle(N, block)
    for first in range(0, N, 4):
        lower.fill(first, K[first:, first : first + 4])
    np.testing.assert_array_equal(lower.matrix(), K)
    np.testing.assert_array_equal(LowerTriangle.of(K, block).matrix(), K)
    assert lower.matrix().dtype == np.float64
    lower.add_to_diagonal(0.5)
    np.testing.assert_array_equal(lower.matrix(), K.astype(np.float64) + 0.5 * np.eye(N))


def test_memory_is_about_half():
    assert LowerTriangle.n_bytes(50_000) == pytest.approx(10.5e9, rel=1e-9)
    lower = LowerTriangle(23, 5)
    assert LowerTriangle.n_bytes(23, 5) == sum(b.nbytes for row in lower.blocks for b in row)
    for n_bytes in (1e6, 1e9, 2e10):
        N = largest(n_bytes)
        assert LowerTriangle.n_bytes(N) <= n_bytes < LowerTriangle.n_bytes(N + N // 100 + 2)
