"""Entries that aren't finite: no row with one is ever written."""

import numpy as np

from ..errors import UserError
from .tiling import TileRow


class NonFiniteError(UserError):
    """An entry to be committed isn't finite: in row ``row`` and column ``column`` of ``matrix``."""

    def __init__(self, matrix: str, row: int, column: int, where: str = "") -> None:
        self.matrix, self.row, self.column, self._where = matrix, row, column, where
        super().__init__(
            f"{matrix} has a non-finite entry at row {row}, column {column}{where}; nothing of this row of tiles was "
            "written: look at these images, or take --float_type=float64 if it is float32."
        )

    def __reduce__(self) -> tuple[type, tuple[str, int, int, str]]:
        # It comes back from worker processes; an exception would be made anew from its message.
        return type(self), (self.matrix, self.row, self.column, self._where)


def refuse_non_finite(row: TileRow, entries: np.ndarray, diagonal: np.ndarray) -> None:
    """:raises NonFiniteError: where a row of tiles has such an entry, or its diagonal."""
    bad = np.argwhere(~np.isfinite(entries))
    if len(bad) or not np.isfinite(diagonal).all():
        i, j = bad[0] if len(bad) else (int(np.argmin(np.isfinite(diagonal))),) * 2
        raise NonFiniteError(row.matrix, row.start + int(i), row.first_column + int(j))
