"""A part's content, read without HDF5's own reading of tiles and with it."""

import io

import h5py
import numpy as np
import pytest

from cnn_gp.store import part_file
from cnn_gp.store.sealed import Damaged
from cnn_gp.store.tiling import TileRow


def content_of(entries, **options):
    content = io.BytesIO()
    with h5py.File(content, "w", libver="latest") as file:
        file.create_dataset("0/entries", data=entries, **options)
        file.create_dataset("0/variances", data=entries[:, 0])
    return content.getvalue()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (5, 13), (3, 40)])
@pytest.mark.parametrize(
    "options",
    [{"fletcher32": True}, {}, {"compression": "gzip"}, {"shuffle": True, "compression": "gzip"}, {"shuffle": True}],
)
def test_the_entries_are_those_that_hdf5_reads(rng, dtype, shape, options):
    entries = rng.normal(size=shape).astype(dtype)
    row = TileRow("Kxtx", 0, shape[0], 0, shape[1])
    content = content_of(entries, chunks=(shape[0], min(5, shape[1])), **options)
    found, diagonal = part_file.from_bytes(content, row)
    assert found.dtype == entries.dtype and found.flags.writeable
    np.testing.assert_array_equal(found, entries)
    np.testing.assert_array_equal(diagonal, entries[:, 0])


def test_files_of_other_layouts_are_read_by_hdf5(rng):
    entries = rng.normal(size=(5, 13))
    row = TileRow("Kxtx", 0, 5, 0, 13)
    np.testing.assert_array_equal(part_file.from_bytes(content_of(entries), row)[0], entries)
    content = io.BytesIO()
    with h5py.File(content, "w", libver="latest") as file:
        there = file.create_dataset("0/entries", shape=(5, 13), dtype="float64", chunks=(5, 5), fillvalue=7.0)
        there[:, :5] = 1.0
        file.create_dataset("0/variances", data=np.ones(5))
    found, _ = part_file.from_bytes(content.getvalue(), row)
    assert (found[:, :5] == 1).all() and (found[:, 5:] == 7).all()


@pytest.mark.parametrize("columns", [5, 10, 15, 500])
@pytest.mark.parametrize("shape", [(5, 13), (3, 15), (8, 4)])
def test_pieces_are_read_from_an_open_file(tmp_path, rng, shape, columns):
    # A file of another program may have tiles below each other.
    entries, row = rng.normal(size=shape), TileRow("Kxtx", 0, shape[0], 0, shape[1])
    (tmp_path / "part.h5").write_bytes(content_of(entries, chunks=(min(5, shape[0]), min(5, shape[1]))))
    with open(tmp_path / "part.h5", "rb") as file:
        layout = part_file.layouts(file, [row])[0]
        pieces = [(left, piece.copy()) for left, piece in layout.read(file, columns)]
    assert [left for left, _ in pieces] == list(range(0, shape[1], columns))
    np.testing.assert_array_equal(np.hstack([piece for _, piece in pieces]), entries)


def test_a_file_that_was_cut_after_its_layout_was_read_is_damaged(tmp_path, rng):
    path, row = tmp_path / "part.h5", TileRow("Kxtx", 0, 5, 0, 13)
    path.write_bytes(content_of(rng.normal(size=(5, 13)), chunks=(5, 5)))
    with open(path, "rb+") as file:
        layout = part_file.layouts(file, [row])[0]
        file.truncate(max(offset for *_, offset in layout.offsets) + 10)
        with pytest.raises(Damaged, match="its end is missing"):
            list(layout.read(file, 5))
        with pytest.raises(Damaged, match="HDF5 can't read it"):
            part_file.layouts(file, [row])


def test_the_layout_of_another_row_is_damaged(tmp_path, rng):
    path = tmp_path / "part.h5"
    path.write_bytes(content_of(rng.normal(size=(5, 13)), chunks=(5, 5)))
    with open(path, "rb") as file, pytest.raises(Damaged, match="its shape is wrong"):
        part_file.layouts(file, [TileRow("Kxtx", 0, 5, 0, 14)])


def test_tiles_are_not_decoded_one_by_one_by_hdf5(rng, monkeypatch):
    entries = rng.normal(size=(5, 13))
    content = content_of(entries, chunks=(5, 5), fletcher32=True)
    real = h5py.Dataset.__getitem__

    def refuse(self, selection, **options):
        assert self.name.endswith("variances")
        return real(self, selection, **options)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", refuse)
    np.testing.assert_array_equal(part_file.from_bytes(content, TileRow("Kxtx", 0, 5, 0, 13))[0], entries)
