"""
The kernel's matrices as the regression reads them, from a run's tiles or from arrays in memory.

A matrix comes in rows of tiles from the first to the last, each once a pass, so that no more than one has to be in
memory. :class:`~cnn_gp.store.stored_matrix.StoredGram` reads a run's, :class:`ArrayGram` an array.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from ..progress import Progress
from .row_product import row_product


class KernelMatrix(Protocol):
    """K(X', X) [M, N] between images X' and the training images X."""

    def rows(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, entries [rows, N]) of each row of tiles, float32 or float64."""

    def diagonal(self) -> np.ndarray:
        """K(x', x') [M]: the prior variances of the images X'."""


class GramMatrix(Protocol):
    """K(X, X) [N, N] of the training images, of which the upper triangle is read."""

    @property
    def N(self) -> int:
        """Training images."""

    @property
    def n_max(self) -> int:
        """The largest number of rows that come at a time."""

    @property
    def is_in_memory(self) -> bool:
        """Whether nothing is read for its entries."""

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """
        (first row, entries [rows, N - first row] from the diagonal on) of each row of tiles, float32 or float64.

        :param start, stop: of those whose first row is from ``start`` on and before ``stop``.
        """

    def pieces(self, start: int, width: int) -> Iterator[tuple[int, np.ndarray]]:
        """
        (first column from the diagonal on, entries [rows, at most width]) of the pieces of one row of tiles, in order.

        For products, which read the matrix many times, in any thread: only the first reading verifies a file. An array
        is valid until the next one is asked for.

        :param start: the row's first row.
        :param width: a multiple of ``n_max``.
        """

    def diagonal(self) -> np.ndarray:
        """K(x, x) [N]."""

    def block(self, start: int, stop: int, left: int, right: int) -> np.ndarray:
        """
        Rows ``start`` to ``stop`` and columns ``left`` to ``right``, from on or above the diagonal; on a worker of a
        cluster too, for which the object is pickled.

        :param left: ``start``, and then ``right`` is ``stop``: a whole symmetric block; or at least ``stop``.
        """


@dataclass(frozen=True)
class ArrayKernel:
    """A :class:`KernelMatrix` in memory. :raises ValueError: where the shapes don't fit."""

    K: np.ndarray
    """[M, N]"""
    prior_variances: np.ndarray
    """[M]"""
    n_max: int = 500

    def __post_init__(self) -> None:
        if self.K.ndim != 2 or self.prior_variances.shape != self.K.shape[:1]:
            raise ValueError(
                f"K has shape {self.K.shape} and prior_variances {self.prior_variances.shape}; expected [M, N] and [M]."
            )

    def rows(self) -> Iterator[tuple[int, np.ndarray]]:
        """:meth:`KernelMatrix.rows`"""
        for start in range(0, len(self.K), self.n_max):
            yield start, self.K[start : start + self.n_max]

    def diagonal(self) -> np.ndarray:
        """:meth:`KernelMatrix.diagonal`"""
        return self.prior_variances


@dataclass(frozen=True)
class ArrayGram:
    """
    A :class:`GramMatrix` in memory. A cluster's workers are sent the whole of it.

    :raises ValueError: where K isn't square.
    """

    K: np.ndarray
    """[N, N]"""
    n_max: int = 500
    is_in_memory: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.K.ndim != 2 or self.K.shape[0] != self.K.shape[1]:
            raise ValueError(f"K has shape {self.K.shape}; expected a square matrix [N, N].")

    @property
    def N(self) -> int:
        """:attr:`GramMatrix.N`"""
        return len(self.K)

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """:meth:`GramMatrix.rows`"""
        for first in range(0, self.N, self.n_max):
            if start <= first < (self.N if stop is None else stop):
                yield first, self.K[first : first + self.n_max, first:]

    def pieces(self, start: int, width: int) -> Iterator[tuple[int, np.ndarray]]:
        """:meth:`GramMatrix.pieces`"""
        yield from in_pieces(self.K[start : start + self.n_max, start:], width)

    def diagonal(self) -> np.ndarray:
        """:meth:`GramMatrix.diagonal`"""
        return np.diagonal(self.K)

    def block(self, start: int, stop: int, left: int, right: int) -> np.ndarray:
        """:meth:`GramMatrix.block`"""
        return self.K[start:stop, left:right]


def in_pieces(entries: np.ndarray, width: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first column, entries) of pieces of a row that is in memory."""
    for left in range(0, entries.shape[1], width):
        yield left, entries[:, left : left + width]


def leading_rows(matrix: KernelMatrix | GramMatrix, n_rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """The first ``n_rows`` of a matrix's rows, as its ``rows()``, without reading on after them."""
    if n_rows <= 0:
        return
    for start, entries in matrix.rows():
        yield start, entries[: n_rows - start]
        if start + len(entries) >= n_rows:
            return


def gram_times(gram: GramMatrix, alpha: np.ndarray) -> np.ndarray:
    """K[:, :N] alpha for all training images in one pass over the upper triangle; alpha [N, C] for the first N."""
    # The order of a product's other vectors: another one is copied for every piece of the matrix.
    N, alpha = len(alpha), np.ascontiguousarray(alpha)
    product = np.zeros((gram.N, alpha.shape[1]))
    with Progress(N, "rows of Kxx multiplied") as progress:
        for start, entries in leading_rows(gram, N):
            product[start:] += row_product(alpha[start:], entries, gram.n_max)
            progress(len(entries))
    return product
