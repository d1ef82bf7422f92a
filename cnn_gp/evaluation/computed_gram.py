"""The kernel's matrices computed in memory for the regression: half of the symmetric one, and rows of the others."""

from collections.abc import Iterator

import numpy as np

from ..engines.engine import Engine
from ..errors import UserError
from ..progress import Progress
from ..regression.gram_matrix import ArrayKernel, in_pieces

#: Rows that are computed at a time.
ROWS = 512


class ComputedGram:
    """
    K(X, X) of images [N, D], a :class:`~cnn_gp.regression.gram_matrix.GramMatrix` in half its memory.

    :raises UserError: where an entry isn't finite; it names the images and the layer.
    """

    is_in_memory = True

    def __init__(self, engine: Engine, X: np.ndarray, n_max: int = ROWS) -> None:
        self.N, self.n_max = len(X), n_max
        self._rows = []
        with Progress(self.N * (self.N + 1) // 2, "kernel entries") as progress:
            for start in range(0, self.N, n_max):
                images, beyond = X[start : start + n_max], X[start + n_max :]
                entries = engine.matrix(images, progress=progress)
                if len(beyond):
                    entries = np.concatenate([entries, engine.matrix(images, beyond, progress)], axis=1)
                _check_finite(engine, entries, X[start:], X[start:])
                self._rows.append(entries)

    @staticmethod
    def n_bytes(N: int, n_max: int = ROWS) -> int:
        """The memory that it takes in float32, and a row of tiles in float64 twice while it is read."""
        return sum(4 * min(n_max, N - start) * (N - start) for start in range(0, N, n_max)) + 16 * min(n_max, N) * N

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """:meth:`~cnn_gp.regression.gram_matrix.GramMatrix.rows`"""
        for i, entries in enumerate(self._rows):
            if start <= i * self.n_max < (self.N if stop is None else stop):
                yield i * self.n_max, entries

    def pieces(self, start: int, width: int) -> Iterator[tuple[int, np.ndarray]]:
        """:meth:`~cnn_gp.regression.gram_matrix.GramMatrix.pieces`"""
        yield from in_pieces(self._rows[start // self.n_max], width)

    def diagonal(self) -> np.ndarray:
        """:meth:`~cnn_gp.regression.gram_matrix.GramMatrix.diagonal`"""
        return np.concatenate([np.diagonal(entries) for entries in self._rows])

    def block(self, start: int, stop: int, left: int, right: int) -> np.ndarray:
        """:meth:`~cnn_gp.regression.gram_matrix.GramMatrix.block`"""
        block = np.zeros((stop - start, right - left))
        for first, entries in self.rows():
            top, bottom, column = max(start, first), min(stop, first + len(entries)), max(left, first)
            if top < bottom and column < right:
                there = entries[top - first : bottom - first, column - first : right - first]
                block[top - start : bottom - start, column - left :] = there
        return np.triu(block) + np.triu(block, 1).T if left == start else block


def computed_kernels(engine: Engine, X: np.ndarray, training: np.ndarray) -> Iterator[ArrayKernel]:
    """
    K(X, training) with the prior variances of X, some rows at a time.

    :raises UserError: where an entry isn't finite; it names the images and the layer.
    """
    with Progress(len(X) * len(training), "kernel entries") as progress:
        for start in range(0, len(X), ROWS):
            images = X[start : start + ROWS]
            entries = engine.matrix(images, training, progress)
            _check_finite(engine, entries, images, training)
            yield ArrayKernel(entries, engine.diag(images), ROWS)


def _check_finite(engine: Engine, entries: np.ndarray, X: np.ndarray, X2: np.ndarray) -> None:
    if np.isfinite(entries).all():
        return
    i, j = np.argwhere(~np.isfinite(entries))[0]
    raise UserError(
        f"The kernel isn't finite at images whose values are from {X[i].min():.3g} to {X[i].max():.3g} and from "
        f"{X2[j].min():.3g} to {X2[j].max():.3g}, first in {engine.first_non_finite(X[i], X2[j])}: scale the images."
    )
