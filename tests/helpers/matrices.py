"""A run's three matrices: as the regression takes them, from parts or in memory, and byte by byte to be compared."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from cnn_gp.regression.gram_matrix import ArrayGram, ArrayKernel, GramMatrix, KernelMatrix
from cnn_gp.store.run_directory import RunDirectory
from cnn_gp.store.stored_matrix import StoredGram, StoredKernel

Matrices = tuple[GramMatrix, KernelMatrix, KernelMatrix]


def stored(run: RunDirectory) -> Matrices:
    """Kxx, Kxvx, Kxtx from the run's directory."""
    return StoredGram(run), StoredKernel(run, "Kxvx"), StoredKernel(run, "Kxtx")


def in_memory(run: RunDirectory, n_max: int) -> Matrices:
    """The same as arrays, which come in rows of n_max."""
    N_train = run.description().N_train
    upper = np.zeros((N_train, N_train), run.description().float_type)
    for row, entries in run.parts.read_rows("Kxx"):
        upper[row.start : row.stop, row.first_column :] = entries
    K = np.triu(upper) + np.triu(upper, 1).T
    Kxvx, Kxtx = (
        ArrayKernel(
            np.concatenate([entries for _, entries in run.parts.read_rows(name)]), run.parts.read_diagonal(name), n_max
        )
        for name in ("Kxvx", "Kxtx")
    )
    return ArrayGram(K, n_max), Kxvx, Kxtx


def bytes_of(folder: Path) -> dict[tuple[str, str], bytes]:
    """Every byte of the matrices in a run's folder, by part and dataset."""
    found = {}
    for part in sorted(folder.glob("K*.h5")):
        with h5py.File(part) as file:
            for row, group in file.items():
                for name, values in group.items():
                    found[part.name, f"{row}/{name}"] = values[()].tobytes()
    return found


@dataclass(frozen=True)
class SlowGram(ArrayGram):
    """Takes seconds to read, and makes the file ``began`` where it begins to."""

    began: str = ""

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        for row in super().rows(start, stop):
            self._take_time()
            yield row

    def pieces(self, start: int, width: int) -> Iterator[tuple[int, np.ndarray]]:
        self._take_time()
        yield from super().pieces(start, width)

    def block(self, start: int, stop: int, left: int, right: int) -> np.ndarray:
        self._take_time()
        return super().block(start, stop, left, right)

    def _take_time(self) -> None:
        Path(self.began).touch()
        time.sleep(1)
