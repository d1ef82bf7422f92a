"""What a row of tiles adds to a product, against the whole matrix."""

import numpy as np
import pytest

from cnn_gp.regression import row_product as module
from cnn_gp.regression.row_product import row_product


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("n_rows", "M", "N"), [(1, 1, 1), (3, 3, 3), (5, 9, 5), (7, 1029, 1029), (8, 1024, 1000), (13, 2050, 14)]
)
@pytest.mark.parametrize("m", [1, 3, 10, 32, 70])
@pytest.mark.parametrize("n_max", [2, 700, 2500])
def test_equals_the_products_of_the_row_and_its_transpose(rng, dtype, n_rows, M, N, m, n_max):
    entries, B = rng.normal(size=(n_rows, M)).astype(dtype), rng.normal(size=(N, m))
    expected = np.zeros((M, m))
    expected[:n_rows] = entries[:, :N].astype(np.float64) @ B
    expected[n_rows:] += entries[:, n_rows:].T.astype(np.float64) @ B[:n_rows]
    found = row_product(B, entries, n_max)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    # The same bits each time, and where the arrays are parts of others.
    np.testing.assert_array_equal(row_product(B, entries, n_max), found)
    wider = np.concatenate([np.full_like(entries, np.nan), entries, np.full_like(entries, np.nan)], axis=1)
    for part in (wider[:, M : 2 * M], wider[:, ::-1][:, M : 2 * M][:, ::-1], np.asfortranarray(entries)):
        np.testing.assert_array_equal(row_product(np.asfortranarray(B), part, n_max), found)
    # Of other types of numbers too.
    np.testing.assert_array_equal(row_product(B, entries.astype(entries.dtype.newbyteorder()), n_max), found)
    assert np.isnan(row_product(np.full_like(B, np.nan), entries, n_max)).all()


def test_columns_of_a_wider_array_are_not_copied(rng):
    wider = rng.normal(size=(5, 40))
    for entries in (wider, wider[:, 3:20], wider[1:4, :7]):
        block = module._block(entries)
        assert np.shares_memory(block, wider) and block.flags.c_contiguous
        np.testing.assert_array_equal(block[:-1, : entries.shape[1]], entries[:-1])
    for entries in (wider.T, wider[:, ::2], wider[:, ::-1], wider[::-1]):
        block = module._block(entries)
        assert not np.shares_memory(block, wider)
        np.testing.assert_array_equal(block, entries)


def test_where_numba_finds_no_place_for_its_cache_it_compiles_without(monkeypatch):
    def jit(**options):
        if options.get("cache"):
            raise RuntimeError("no locator available")
        return lambda function: function

    monkeypatch.setattr(module.numba, "njit", jit)
    assert module._compiled(len) is len
