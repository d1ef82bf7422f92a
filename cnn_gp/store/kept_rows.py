"""
Rows of tiles of parts that aren't finished, put aside so that a kill loses only what was computed since.

``RUN/Kxx_0000.row_0.npz`` holds the row's "entries", NaN where they are missing, and its diagonal, "variances", once
the row is finished.
"""

import contextlib
import io
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..npz import npz_bytes
from .non_finite import refuse_non_finite
from .run_folder import RunFolder
from .sealed import Damaged
from .tiling import Part, TileRow


class KeptRows:
    """The rows put aside in a run's folder."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run

    def keep(
        self,
        part: Part,
        row: TileRow,
        entries: np.ndarray,
        diagonal: np.ndarray | None,
        engine: str,
        seconds: float = 0.0,
    ) -> None:
        """
        Put a row of an unfinished part aside, so that a kill loses only what was computed since.

        :param entries: NaN where they aren't computed yet.
        :param diagonal: None where the row isn't finished.
        :param engine: that computed them.
        :param seconds: the time that the row has taken so far.
        """
        if diagonal is not None:
            refuse_non_finite(row, entries, diagonal)
        about = {"entries": _n_entries(row, entries), "seconds": seconds, "engine": engine}
        arrays = {"entries": entries} | ({} if diagonal is None else {"variances": diagonal})
        self._run.write(self._path(part, row), npz_bytes(arrays), about)

    def get(self, part: Part, row: TileRow, engine: str) -> tuple[np.ndarray, np.ndarray | None] | None:
        """
        What :meth:`keep` put aside for an engine; None where there is nothing, or nothing whole.

        :return: the entries, and the diagonal, None where the row isn't finished.
        :raises UserError: where the disk can't read it.
        """
        try:
            content, found = self._run.read(self._path(part, row))
        except (FileNotFoundError, Damaged):
            return None
        if found.about.get("engine") != engine:
            return None
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return file["entries"], file.get("variances")

    def so_far(self, part: Part, engine: str | None = None) -> tuple[int, float]:
        """
        Of an unfinished part, how many entries were put aside, and the seconds that they took.

        :param engine: only what this engine computed.
        """
        entries, seconds = 0, 0.0
        for row in part.rows:
            try:
                about = self._run.read_seal(self._path(part, row)).about
            except (FileNotFoundError, UserError, Damaged):
                continue
            if engine in (None, about.get("engine")):
                entries += about.get("entries", row.n_entries)
                seconds += about.get("seconds", 0.0)
        return entries, seconds

    def forget(self, part: Part) -> None:
        """Remove what was put aside of a part, as far as it can be removed."""
        for row in part.rows:
            with contextlib.suppress(OSError):
                self._path(part, row).unlink(missing_ok=True)

    def parts(self) -> set[str]:
        """The names of the parts of which something was put aside."""
        return {path.name.split(".")[0] for path in self._run.folder.glob("*.row_*.npz")}

    def _path(self, part: Part, row: TileRow) -> Path:
        return self._run.folder / f"{part.name}.row_{row.start}.npz"


def _n_entries(row: TileRow, entries: np.ndarray) -> int:
    """How many of a row's entries are there; those that only mirror others aren't counted."""
    there = ~np.isnan(entries)
    if row.matrix == "Kxx":
        there[np.tril_indices(row.shape[0], -1)] = False
    return int(there.sum())
