"""Products from stored tiles, against the whole matrix."""

import numpy as np
import pytest

from cnn_gp.errors import UserError
from cnn_gp.regression.gram_matrix import gram_times
from cnn_gp.regression.tile_products import TileProducts
from cnn_gp.store import tiling, verified
from cnn_gp.store.stored_matrix import StoredGram
from helpers.iterative import N_MAX, N, products
from helpers.matrices import stored
from helpers.small_runs import complete, make_data


@pytest.mark.parametrize("limit", [0, 1e5, 1e9])
def test_products_and_columns_equal_the_whole_matrix_s(run, K, rng, limit):
    of_tiles = products(run, limit)
    for n in (N, 190):
        # The first time the rows are read, later some of them are in memory.
        for m in (1, 3, 40, 3):
            B = rng.normal(size=(n, m))
            np.testing.assert_allclose(of_tiles.times(B), K[:n, :n] @ B, rtol=1e-12, atol=1e-11)
        indices = np.array([5, 180, 77, 31, 32])
        np.testing.assert_array_equal(of_tiles.columns(indices, n), K[:n, indices])


@pytest.mark.parametrize("limit", [0, 1e5])
def test_the_limit_changes_no_bit_and_no_more_is_kept(run, rng, limit):
    B = rng.normal(size=(N, 3))
    every, few = products(run), products(run, limit)
    for _ in range(2):
        np.testing.assert_array_equal(few.times(B), every.times(B))
    assert sum(rows.nbytes for rows in few._kept.values()) <= limit
    assert few.share_in_memory < 0.5 and every.share_in_memory == 1


def test_what_is_in_memory_is_not_read_again(run, rng, monkeypatch):
    of_tiles = products(run)
    B = rng.normal(size=(N, 3))
    first = of_tiles.times(B)
    monkeypatch.setattr(StoredGram, "pieces", lambda *arguments: pytest.fail("read"))
    np.testing.assert_array_equal(of_tiles.times(B), first)


def test_tiles_are_verified_by_the_first_product_and_where_their_file_has_changed(tmp_path, rng, monkeypatch):
    run = complete(tmp_path, make_data(40, 10, 10), n_max=8)
    of_tiles = TileProducts(stored(run)[0], 40, 0)
    B = rng.normal(size=(40, 3))
    files = []
    verify = verified.verify_sealed
    monkeypatch.setattr(verified, "verify_sealed", lambda file, *rest: files.append(rest[0]) or verify(file, *rest))
    first = of_tiles.times(B)
    paths = sorted(run.folder.glob("Kxx_*.h5"))
    assert sorted(files) == paths
    np.testing.assert_array_equal(of_tiles.times(B), first)
    assert sorted(files) == paths
    of_tiles.stored_times(B)
    assert sorted(files) == sorted(2 * paths)
    path = run.folder / "Kxx_0001.h5"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"Kxx_0001\.h5 can't be read"):
        of_tiles.times(B)


def test_a_part_of_several_rows_is_verified_once_and_its_numbers_are_looked_at(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(tiling, "MAX_PARTS", 7)
    run = complete(tmp_path, make_data(40, 10, 10), n_max=8)
    files, verify = [], verified.verify_sealed
    monkeypatch.setattr(verified, "verify_sealed", lambda file, *rest: files.append(rest[0]) or verify(file, *rest))
    B = rng.normal(size=(40, 3))
    expected = stored(run)[0]
    of_tiles = TileProducts(expected, 40, 0)
    for _ in range(3):
        found = of_tiles.times(B)
    parts = [part for part in run.description().tiling.parts() if part.rows[0].matrix == "Kxx"]
    assert len(files) == len(parts) < 5 and max(len(part.rows) for part in parts) > 1
    np.testing.assert_allclose(found, gram_times(expected, B), rtol=1e-12, atol=1e-12)


def test_after_an_error_in_the_first_product_the_others_are_right(run, K, rng, monkeypatch):
    of_tiles = products(run)
    B = rng.normal(size=(N, 3))

    def interrupted(gram, start, width):
        if start == 3 * N_MAX:
            raise KeyboardInterrupt
        return real(gram, start, width)

    real = StoredGram.pieces
    with monkeypatch.context() as patch:
        patch.setattr(StoredGram, "pieces", interrupted)
        with pytest.raises(KeyboardInterrupt):
            of_tiles.times(B)
    np.testing.assert_allclose(of_tiles.times(B), K @ B, rtol=1e-12, atol=1e-11)
