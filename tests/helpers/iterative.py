"""A small stored run that is solved by conjugate gradients, with its products and preconditioners."""

from collections.abc import Callable
from typing import Any

import numpy as np

from cnn_gp.regression.pivoted_cholesky import LowRank, Preconditioner, randomly_pivoted_cholesky
from cnn_gp.regression.tile_products import TileProducts
from cnn_gp.store.run_directory import RunDirectory

from .matrices import stored

#: Training images, those of a row of tiles, and what is added to the diagonal relative to its mean.
N, N_MAX, NOISE = 300, 32, 1e-3


def products(run: RunDirectory, limit: float = 1e9) -> TileProducts:
    """From the tiles of a run with N training images."""
    return TileProducts(stored(run)[0], N, limit)


def preconditioner(run: RunDirectory, rank: int = 40, added: float = 2 * NOISE, **options: Any) -> Preconditioner:
    """Of the run's Gram matrix."""
    F = randomly_pivoted_cholesky(products(run), N, rank, **options)
    return Preconditioner(LowRank(F, float(products(run).diagonal().sum())), added)


def times(run: RunDirectory, limit: float = 1e9, added: float = 2 * NOISE) -> Callable[[np.ndarray], np.ndarray]:
    """The product with the run's Gram matrix and what is added to its diagonal."""
    of_tiles = products(run, limit)
    return lambda B: of_tiles.times(B) + added * B


class Memory:
    """Keeps the state in memory."""

    def __init__(self, there: dict[str, np.ndarray] | None = None) -> None:
        self.there = there
        self.saved: list[dict[str, np.ndarray]] = []

    def load(self) -> dict[str, np.ndarray] | None:
        return None if self.there is None else dict(self.there)

    def save(self, arrays: dict[str, np.ndarray]) -> None:
        self.there = arrays
        self.saved.append(arrays)

    def remove(self) -> None:
        self.there = None
