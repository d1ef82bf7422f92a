"""
Which tiles of entries make up the matrices of a run.

A run has three matrices over N training images: ``Kxx`` [N, N], of which only the upper triangle of tiles is computed,
``Kxvx`` [N_vali, N] and ``Kxtx`` [N_test, N]. A tile is a square of ``n_max`` rows and columns (the last ones smaller).
A row of tiles is what is computed and committed at a time. A part is a file of a few rows of tiles.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import UserError

#: Images on a side of a tile, where nothing else is asked for.
DEFAULT_N_MAX = 200

#: A run has fewer part files than this, or one per row of tiles if that is fewer.
MAX_PARTS = 500

MATRICES = ("Kxx", "Kxvx", "Kxtx")


@dataclass(frozen=True)
class TileRow:
    """Rows ``start`` to ``stop`` of a matrix, from column ``first_column`` to its end."""

    matrix: str
    start: int
    stop: int
    first_column: int
    n_columns: int
    """Columns stored: the matrix has ``first_column + n_columns``."""

    @property
    def shape(self) -> tuple[int, int]:
        """Of the stored entries. In Kxx the first tile of the row is the whole symmetric one on the diagonal."""
        return self.stop - self.start, self.n_columns

    @property
    def n_entries(self) -> int:
        """Kernel entries to compute: in a tile on the diagonal one triangle, diagonal included."""
        n, m = self.shape
        return n * m - n * (n - 1) // 2 if self.matrix == "Kxx" else n * m


@dataclass(frozen=True)
class Part:
    """Consecutive rows of tiles of one matrix: a file."""

    name: str
    rows: tuple[TileRow, ...]

    @property
    def n_entries(self) -> int:
        """Kernel entries to compute, of all its rows."""
        return sum(row.n_entries for row in self.rows)


@dataclass(frozen=True)
class Tiling:
    """The sizes that decide a run's tiles."""

    N_train: int
    N_vali: int
    N_test: int
    n_max: int

    def __post_init__(self) -> None:
        for name in ("N_train", "N_vali", "N_test", "n_max"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; expected a whole number of at least 1.")

    @property
    def heights(self) -> dict[str, int]:
        """The number of rows of each matrix."""
        return dict(zip(MATRICES, (self.N_train, self.N_vali, self.N_test), strict=True))

    def rows(self, matrix: str) -> list[TileRow]:
        """The rows of tiles of a matrix, in order."""
        height = self.heights[matrix]
        rows = []
        for start in range(0, height, self.n_max):
            first = start if matrix == "Kxx" else 0
            rows.append(TileRow(matrix, start, min(start + self.n_max, height), first, self.N_train - first))
        return rows

    def parts(self) -> list[Part]:
        """All part files of the run, the longest rows of tiles first."""
        rows = {matrix: self.rows(matrix) for matrix in MATRICES}
        # Each matrix's last part may be short, hence one part less for each.
        per_part = -(-sum(map(len, rows.values())) // (MAX_PARTS - len(MATRICES)))
        return [
            Part(f"{matrix}_{i:04d}", tuple(rows[matrix][start : start + per_part]))
            for matrix in MATRICES
            for i, start in enumerate(range(0, len(rows[matrix]), per_part))
        ]

    @property
    def n_entries(self) -> int:
        """Kernel entries to compute in all."""
        return sum(part.n_entries for part in self.parts())

    @property
    def n_tiles(self) -> int:
        """Tiles in all."""
        return sum(-(-row.n_columns // self.n_max) for row in self.all_rows())

    def n_bytes(self, itemsize: int) -> int:
        """Bytes on disk, without the files' small overhead."""
        return itemsize * sum(n * m + n for n, m in (row.shape for row in self.all_rows()))

    def all_rows(self) -> Iterator[TileRow]:
        """Every row of tiles of the run, in the order of the parts."""
        for part in self.parts():
            yield from part.rows
