"""
What is in a part's file: HDF5, made and read in memory.

A group for each of its rows of tiles, named by the row's first image, with ``entries`` [rows, columns from
``first_column``] and ``variances`` [rows], the kernel's diagonal at the images of these rows. A chunk is a tile, with
HDF5's Fletcher-32 checksum for programs that read the file without its seal (:mod:`.sealed`).
"""

import io
from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np

from .sealed import Damaged
from .tiling import Part, TileRow

#: Entries [rows, columns] of a row of tiles and the diagonal [rows] at its images.
Row = tuple[np.ndarray, np.ndarray]


def to_bytes(part: Part, rows: Sequence[Row], n_max: int) -> bytes:
    """The file's content."""
    content = io.BytesIO()
    # The latest format has checksums of HDF5's own structures too. HDF5 crashes the process where a disk fills up: in
    # memory it never sees the disk.
    with h5py.File(content, "w", libver="latest") as file:
        for row, (entries, diagonal) in zip(part.rows, rows, strict=True):
            group = file.create_group(str(row.start))
            chunks = (row.shape[0], min(n_max, row.n_columns))
            group.create_dataset("entries", data=entries, chunks=chunks, fletcher32=True)
            group.create_dataset("variances", data=diagonal, chunks=diagonal.shape, fletcher32=True)
    return content.getvalue()


def from_bytes(content: bytes, row: TileRow, selection: tuple[slice, ...] = ()) -> Row:
    """
    One row of tiles of a part.

    :param selection: of the entries.
    :raises Damaged: where the content isn't that of a part with this row.
    """
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            entries, diagonal = file[f"{row.start}/entries"], file[f"{row.start}/variances"]
            if (entries.shape, diagonal.shape) != (row.shape, row.shape[:1]):
                raise Damaged("its shape is wrong")
            there = entries[selection] if selection else _whole(content, entries)
            return there, diagonal[()]
    except (OSError, KeyError, RuntimeError) as error:
        raise Damaged(f"HDF5 can't read it: {' '.join(str(error).split())}") from error


def _whole(content: bytes, entries: h5py.Dataset) -> np.ndarray:
    """All entries, several times faster than by HDF5, whose checksums the seal makes needless."""
    tiles: list[Any] = []
    if entries.chunks is not None and entries.compression is None and not entries.shuffle:
        entries.id.chunk_iter(tiles.append)
    height, width = entries.chunks or (1, 1)
    n_rows, n_columns = entries.shape
    n_bytes = height * width * entries.dtype.itemsize
    last = max((tile.byte_offset for tile in tiles), default=0) + n_bytes
    # Tiles may be left out of a file that another program wrote; HDF5 knows what they hold.
    if len(tiles) != -(-n_rows // height) * -(-n_columns // width) or last > len(content):
        return entries[()]
    whole = np.empty(entries.shape, entries.dtype)
    for tile in tiles:
        top, left = tile.chunk_offset
        stored = np.frombuffer(content, entries.dtype, height * width, tile.byte_offset).reshape(height, width)
        whole[top : top + height, left : left + width] = stored[: n_rows - top, : n_columns - left]
    return whole
