"""The parts of a run: the files that hold its matrices, as they are written and read."""

import base64
import contextlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from . import part_file
from .atomic import remove
from .non_finite import refuse_non_finite
from .part_file import Row
from .run_folder import RunFolder
from .sealed import Damaged
from .tiling import MATRICES, Part, TileRow
from .verified import VerifiedParts


class Parts:
    """The parts in a run's folder."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._verified = VerifiedParts()

    def write(self, part: Part, rows: Sequence[Row], provenance: Mapping[str, Any] | None = None) -> None:
        """
        Commit a part.

        :param rows: for each row of tiles its entries [rows, columns] and the diagonal at its images [rows].
        :param provenance: what else to record with it: who computed it, and how long it took.
        :raises UserError: where an entry isn't finite, or the run isn't there any longer: the part isn't written.
        """
        for row, (entries, diagonal) in zip(part.rows, rows, strict=True):
            assert entries.shape == row.shape and diagonal.shape == (row.shape[0],)
            refuse_non_finite(row, entries, diagonal)
        diagonals = {
            str(row.start): base64.b64encode(diagonal.tobytes()).decode()
            for row, (_, diagonal) in zip(part.rows, rows, strict=True)
        }
        content = part_file.to_bytes(part, rows, self._run.description().n_max)
        self._run.write(self._path(part), content, {"provenance": dict(provenance or {}), "diagonals": diagonals})

    def missing(self, verify: bool = False) -> tuple[list[Part], dict[str, str]]:
        """
        The parts still to be computed, and for those of which a file is there, why it doesn't count.

        :param verify: read every byte of the parts and check its SHA-256, not only each file's seal and length.
        :raises UserError: where a part is there and can't be read, which is no reason to compute it again.
        """
        missing, reasons = [], {}
        for part in self._run.description().tiling.parts():
            path = self._path(part)
            try:
                if verify:
                    self._check(part)
                else:
                    self._run.read_seal(path)
            except FileNotFoundError:
                missing.append(part)
                if path.is_symlink():
                    reasons[part.name] = "it is a link to nothing"
            except Damaged as reason:
                missing.append(part)
                reasons[part.name] = str(reason)
        return missing, reasons

    def is_done(self, part: Part) -> bool:
        """Whether a part is on disk, of the right length, and of this run."""
        try:
            self._run.read_seal(self._path(part))
        except (FileNotFoundError, Damaged):
            return False
        return True

    def discard(self, part: Part) -> None:
        """
        Delete a part's file that :meth:`missing` has found damaged.

        It is read once more: another program may have computed the part again since.

        :raises UserError: where it can't be read or removed.
        """
        try:
            self._check(part)
        except FileNotFoundError:
            pass
        except Damaged:
            remove(self._path(part))

    def delete(self) -> None:
        """Delete all of them."""
        for part in self._run.description().tiling.parts():
            remove(self._path(part))

    def read_rows(self, matrix: str, start: int = 0, stop: int | None = None) -> Iterator[tuple[TileRow, np.ndarray]]:
        """
        The stored rows of tiles of a matrix, in order, as they were computed (float32 or float64).

        The next row is read, and its part verified, by another thread meanwhile.

        :param start, stop: of the rows whose first is from ``start`` on and before ``stop``.
        :raises UserError: where a part can't be read or a byte of it is wrong.
        """
        assert matrix in MATRICES
        wanted = [
            (part, row)
            for part in self._run.description().tiling.parts()
            for row in part.rows
            if row.matrix == matrix and start <= row.start and (stop is None or row.start < stop)
        ]
        verified = VerifiedParts()

        def read(part: Part, row: TileRow) -> np.ndarray:
            ((_, entries),) = self._pieces(part, row, verified)
            return entries

        with ThreadPoolExecutor(1, thread_name_prefix="read ahead") as ahead:
            following: deque[Future[np.ndarray]] = deque()
            for i, (_, row) in enumerate(wanted):
                for coming in wanted[i + len(following) : i + 2]:
                    following.append(ahead.submit(read, *coming))
                yield row, following.popleft().result()

    def read_pieces(self, matrix: str, start: int, width: int) -> Iterator[tuple[int, np.ndarray]]:
        """
        (first column of the row's, entries) of the pieces of one row of tiles, in order, in any thread.

        For those who read the same again and again: a part is verified when the first of its rows is read, and once
        more only where its file has changed since. An array is written over by the next one.

        :param start: its first row.
        :param width: columns of a piece, a multiple of the tiles'.
        :raises UserError: where its part can't be read or a byte of it is wrong.
        """
        return self._pieces(*self._places[matrix, start], self._verified, width)

    @cached_property
    def _places(self) -> dict[tuple[str, int], tuple[Part, TileRow]]:
        """The part of a row, and the row, by its matrix and its first row."""
        parts = self._run.description().tiling.parts()
        return {(row.matrix, row.start): (part, row) for part in parts for row in part.rows}

    def _pieces(
        self, part: Part, row: TileRow, verified: VerifiedParts, width: int | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        with self._reading(part) as path, open(path, "rb") as file:
            yield from verified.read(file, path, self._run.description().fingerprint, part.rows, row, width)

    def read_upper(self, start: int, stop: int, left: int, right: int) -> np.ndarray:
        """
        Rows ``start`` to ``stop`` and columns ``left`` to ``right`` of Kxx, float64, from on or above its diagonal.

        :param left: ``start``, and then ``right`` is ``stop``: a whole symmetric block; or at least ``stop``.
        """
        assert (left, right) == (start, stop) or left >= stop
        block = np.zeros((stop - start, right - left))
        for part in self._run.description().tiling.parts():
            wanted = [row for row in part.rows if row.matrix == "Kxx" and row.start < stop and start < row.stop]
            if not wanted:
                continue
            with self._reading(part) as path:
                content, _ = self._run.read(path)
                for row in wanted:
                    top, bottom, first = max(start, row.start), min(stop, row.stop), max(left, row.first_column)
                    if first < right:
                        rows = slice(top - row.start, bottom - row.start)
                        columns = slice(first - row.first_column, right - row.first_column)
                        there, _ = part_file.from_bytes(content, row, (rows, columns))
                        if not np.isfinite(there).all():
                            raise Damaged("it holds numbers that aren't finite")
                        block[top - start : bottom - start, first - left :] = there
        return np.triu(block) + np.triu(block, 1).T if left == start else block

    def read_diagonal(self, matrix: str) -> np.ndarray:
        """The kernel's diagonal K(x, x) at the images of a matrix's rows: of Kxx the training images."""
        dtype = np.dtype(self._run.description().float_type).newbyteorder("<")
        pieces = []
        for part in self._run.description().tiling.parts():
            if part.rows[0].matrix == matrix:
                with self._reading(part) as path:
                    diagonals = self._run.read_seal(path).about["diagonals"]
                pieces += [np.frombuffer(base64.b64decode(diagonals[str(row.start)]), dtype) for row in part.rows]
        return np.concatenate(pieces).astype(dtype.newbyteorder("="))

    def provenance(self, parts: Sequence[Part] | None = None) -> list[dict[str, Any]]:
        """What was recorded with each part: engine, device, versions, host and "seconds"."""
        parts = self._run.description().tiling.parts() if parts is None else parts
        found = []
        for part in parts:
            with self._reading(part) as path:
                found.append(self._run.read_seal(path).about["provenance"])
        return found

    def _path(self, part: Part) -> Path:
        return self._run.folder / f"{part.name}.h5"

    def _check(self, part: Part) -> None:
        """:raises Damaged: where a byte is wrong, or an entry isn't finite."""
        content, _ = self._run.read(self._path(part))
        for row in part.rows:
            if not all(np.isfinite(values).all() for values in part_file.from_bytes(content, row)):
                raise Damaged("it holds a number that isn't finite")

    @contextlib.contextmanager
    def _reading(self, part: Part) -> Iterator[Path]:
        """A block that reads a part's file. :raises UserError: where it isn't there, or is damaged."""
        path = self._path(part)
        try:
            with self._run.reading(path):
                yield path
        except FileNotFoundError as error:
            raise UserError(
                f"{path} isn't there any longer: start save_kernels.py again with the same flags, it does only what is "
                "missing."
            ) from error
        except Damaged as error:
            raise UserError(
                f"{path} can't be read ({error}): delete this file and start save_kernels.py again with the same "
                "flags, it does only what is missing."
            ) from error
