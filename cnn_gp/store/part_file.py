"""
What is in a part's file: HDF5, made and read in memory.

A group for each of its rows of tiles, named by the row's first image, with ``entries`` [rows, columns from
``first_column``] and ``variances`` [rows], the kernel's diagonal at the images of these rows. A chunk is a tile, with
HDF5's Fletcher-32 checksum for programs that read the file without its seal (:mod:`.sealed`).
"""

import contextlib
import io
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import h5py
import numpy as np

from .sealed import Damaged
from .tiling import Part, TileRow


@dataclass(frozen=True)
class Layout:
    """
    Where the tiles of a row of tiles are in a file.

    So they are read several times faster than by HDF5, whose checksums the seal makes needless.
    """

    dtype: np.dtype
    shape: tuple[int, int]
    tile: tuple[int, int]
    """The shape of a tile; those at the end are padded."""
    offsets: tuple[tuple[int, int, int], ...]
    """First row, first column and first byte of each, from left to right."""

    @property
    def columns(self) -> int:
        """Of all tiles: those of a piece that is the whole row."""
        return self.tile[1] * -(-self.shape[1] // self.tile[1])

    @classmethod
    def of(cls, entries: h5py.Dataset, n_bytes: int) -> "Layout | None":
        """
        None where only HDF5 can decode the entries.

        :param n_bytes: of the file.
        """
        tiles: list[Any] = []
        if entries.chunks is not None and entries.compression is None and not entries.shuffle:
            entries.id.chunk_iter(tiles.append)
        (height, width), (n_rows, n_columns) = entries.chunks or (1, 1), entries.shape
        last = max((tile.byte_offset for tile in tiles), default=0) + height * width * entries.dtype.itemsize
        # Tiles may be left out of a file that another program wrote; HDF5 knows what they hold.
        if len(tiles) != -(-n_rows // height) * -(-n_columns // width) or last > n_bytes:
            return None
        offsets = sorted(((*tile.chunk_offset, tile.byte_offset) for tile in tiles), key=lambda tile: tile[1])
        return cls(entries.dtype, entries.shape, (height, width), tuple(offsets))

    def read(self, file: BinaryIO, columns: int) -> Iterator[tuple[int, np.ndarray]]:
        """
        Read the entries from an open file: (first column, entries [rows, columns]) of pieces, in order.

        An array is written over by the next one: that of a few columns stays in the processor's cache.

        :param columns: of a piece, a multiple of a tile's.
        :raises Damaged: where the file ends before they do.
        """
        height, width = self.tile
        n_rows, n_columns = self.shape
        stored = np.empty(self.tile, self.dtype)
        memory = np.empty(n_rows * min(columns, n_columns), self.dtype)
        for first, tiles in itertools.groupby(self.offsets, lambda tile: tile[1] // columns * columns):
            there = min(columns, n_columns - first)
            piece = memory[: n_rows * there].reshape(n_rows, there)
            for top, left, offset in tiles:
                file.seek(offset)
                if file.readinto(stored) != stored.nbytes:  # type: ignore[attr-defined]
                    raise Damaged("its end is missing")
                piece[top : top + height, left - first : left - first + width] = stored[
                    : n_rows - top, : n_columns - left
                ]
            yield first, piece


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
    with _of_hdf5(io.BytesIO(content)) as file:
        entries, diagonal = file[f"{row.start}/entries"], file[f"{row.start}/variances"]
        if (entries.shape, diagonal.shape) != (row.shape, row.shape[:1]):
            raise Damaged("its shape is wrong")
        layout = None if selection else Layout.of(entries, len(content))
        if layout is None:
            return entries[selection], diagonal[()]
        ((_, whole),) = layout.read(io.BytesIO(content), layout.columns)
        return whole, diagonal[()]


def layouts(file: BinaryIO, rows: Sequence[TileRow]) -> dict[int, Layout | None]:
    """
    Where the tiles of rows are in an open part, by their first images; None where only HDF5 can decode them.

    :raises Damaged: where the content isn't that of a part with these rows.
    """
    found = {}
    with _of_hdf5(file) as there:
        for row in rows:
            entries = there[f"{row.start}/entries"]
            if entries.shape != row.shape:
                raise Damaged("its shape is wrong")
            found[row.start] = Layout.of(entries, os.fstat(file.fileno()).st_size)
    return found


@contextlib.contextmanager
def _of_hdf5(content: Any) -> Iterator[h5py.File]:
    """:raises Damaged: in place of what h5py raises."""
    try:
        with h5py.File(content, "r") as file:
            yield file
    except (OSError, KeyError, RuntimeError) as error:
        raise Damaged(f"HDF5 can't read it: {' '.join(str(error).split())}") from error
