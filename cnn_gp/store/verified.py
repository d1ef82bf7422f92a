"""Which files of parts were verified, so that they needn't be each time that they are read."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from . import part_file
from .part_file import Layout
from .sealed import Damaged, FileState, state_of, verify_sealed
from .tiling import TileRow


@dataclass
class _Part:
    """What is known of a file."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    state: FileState | None = None
    """In which it was verified."""
    layouts: dict[int, Layout | None] = field(default_factory=dict)
    """Of its rows, by their first images; None: only HDF5 can decode it."""
    finite: set[int] = field(default_factory=set)
    """The rows of which every number was looked at."""


class VerifiedParts:
    """
    Reads rows from the files of parts; every byte of a file is verified when the first of its rows is read.

    A file that has changed since is verified again. Threads may share this object.
    """

    def __init__(self) -> None:
        self._parts: dict[Path, _Part] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type, tuple]:
        # Another process reads the files itself.
        return type(self), ()

    def read(
        self, file: BinaryIO, path: Path, owner: str, rows: Sequence[TileRow], row: TileRow, width: int | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """
        Read a row: (first column, entries [rows, at most width]) of pieces, in order.

        :param file: open for reading.
        :param owner: what the file should belong to.
        :param rows: all rows of the part.
        :param width: of a piece, a multiple of a tile's; None: one piece. An array is written over by the next one.
        :raises Damaged: where the file isn't what was written, or another one's, or a number isn't finite.
        :raises OSError: where it can't be read.
        """
        with self._lock:
            part = self._parts.setdefault(path, _Part())
        with part.lock:
            if part.state != state_of(file):
                state = verify_sealed(file, path, owner)
                part.layouts, part.finite = part_file.layouts(file, rows), set()
                part.state = state
            layout, is_known = part.layouts[row.start], row.start in part.finite
        if layout is None:
            file.seek(0)
            whole, _ = part_file.from_bytes(file.read(), row)
            columns = width or whole.shape[1]
            pieces = iter([(left, whole[:, left : left + columns]) for left in range(0, whole.shape[1], columns)])
        else:
            pieces = layout.read(file, layout.columns if width is None else width)
        for left, entries in pieces:
            if not is_known and not np.isfinite(entries).all():
                raise Damaged("it holds numbers that aren't finite")
            yield left, entries
        part.finite.add(row.start)
