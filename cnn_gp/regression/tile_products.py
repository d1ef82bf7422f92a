"""
Products of a symmetric matrix with a few vectors, from its stored tiles: the matrix needn't be in memory.

Each row of tiles is read once a product and used twice, as it is and transposed. As many rows as a limit allows stay in
memory, in the precision that they are stored in; the others are read each time, the next ones by another thread.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from .gram_matrix import GramMatrix, gram_times, leading_rows
from .row_product import MANY, row_product

#: Threads that multiply, and rows that are multiplied or wait to be added up, besides the newest.
_THREADS, _WAITING = 4, 3

#: Rows of tiles that are in memory at a time, with files that are being read, besides those that are kept.
ROWS_AT_A_TIME = 10


class Products(Protocol):
    """Products with the leading N rows and columns of a Gram matrix, and its columns, wherever its tiles are."""

    gram: GramMatrix
    N: int

    @property
    def share_in_memory(self) -> float:
        """Of the entries, what needn't be read for every product."""

    def diagonal(self) -> np.ndarray:
        """[N], float64."""

    def times(self, B: np.ndarray) -> np.ndarray:
        """The leading n rows and columns times B [n, m], n at most N, in float64."""

    def stored_times(self, B: np.ndarray) -> np.ndarray:
        """The first N columns of all rows that are stored, times B [N, m]; from the stored tiles."""

    def columns(self, indices: np.ndarray, n: int) -> np.ndarray:
        """The columns of these indices of the leading n rows and columns, [n, len(indices)], in one pass."""


class TileProducts:
    """
    :class:`Products` by this machine.

    :param N: leading rows and columns that are used.
    :param limit: bytes of rows that are kept in memory, from the last row upwards.
    """

    def __init__(self, gram: GramMatrix, N: int, limit: float) -> None:
        self.gram, self.N = gram, N
        self._kept: dict[int, np.ndarray] | None = None
        self._first_kept = N
        itemsize = gram.diagonal().dtype.itemsize
        total = 0
        for start in reversed(range(0, N, gram.n_max)):
            total += itemsize * gram.n_max * (N - start)
            if total > limit:
                break
            self._first_kept = start

    def __getstate__(self) -> dict[str, Any]:
        # The rows are read again.
        return {**vars(self), "_kept": None}

    @property
    def share_in_memory(self) -> float:
        """:attr:`Products.share_in_memory`"""
        left_out = self._first_kept / self.N
        return (1 - left_out) ** 2

    def diagonal(self) -> np.ndarray:
        """:meth:`Products.diagonal`"""
        return self.gram.diagonal()[: self.N].astype(np.float64)

    def times(self, B: np.ndarray) -> np.ndarray:
        """:meth:`Products.times`"""
        n, m = B.shape
        B = np.ascontiguousarray(B)
        if m >= MANY:
            # In BLAS's own threads.
            return sum_in_pairs(row_product(B[start:], entries) for start, entries in self._rows(n))
        return sum_in_pairs(_in_threads(lambda start, entries: row_product(B[start:], entries), self._rows(n)))

    def stored_times(self, B: np.ndarray) -> np.ndarray:
        """:meth:`Products.stored_times`"""
        return gram_times(self.gram, B)

    def columns(self, indices: np.ndarray, n: int) -> np.ndarray:
        """:meth:`Products.columns`"""
        found = np.empty((n, len(indices)), order="F")
        for start, entries in self._rows(n):
            for rows, columns, values in pieces_of_columns(indices, start, entries):
                found[rows, columns] = values
        return found

    def _rows(self, n: int) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, entries from the diagonal on) of the leading [n, n], those that are kept last."""
        if self._kept is None:
            kept = {}
            for start, entries in leading_rows(self.gram, self.N):
                if start >= self._first_kept:
                    kept[start] = entries = np.ascontiguousarray(entries[:, : self.N - start])
                if start < n:
                    yield start, entries[: n - start, : n - start]
            # Only now: after an error in the middle all are read again.
            self._kept = kept
            return
        for start, entries in self.gram.rows(0, min(n, self._first_kept), again=True):
            yield start, entries[: n - start, : n - start]
        for start, entries in self._kept.items():
            if start < n:
                yield start, entries[: n - start, : n - start]


def sum_in_pairs(parts: Iterable[np.ndarray]) -> np.ndarray:
    """
    The sum of arrays that end at the same row, the first the longest, which are written over.

    They are the leaves of a binary tree, :func:`halves`, so that a sum's bits depend neither on threads nor on where
    a branch is summed.
    """
    branches: list[tuple[int, np.ndarray]] = []
    for part in parts:
        size, total = 1, part
        while branches and branches[-1][0] == size:
            total, size = add_at_end(branches.pop()[1], total), 2 * size
        branches.append((size, total))
    total = branches.pop()[1]
    while branches:
        total = add_at_end(branches.pop()[1], total)
    return total


def halves(first: int, stop: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The two branches of the tree's branch with the leaves from ``first`` to ``stop``, two or more."""
    middle = first + 2 ** ((stop - first - 1).bit_length() - 1)
    return (first, middle), (middle, stop)


def add_at_end(total: np.ndarray, part: np.ndarray) -> np.ndarray:
    """``total``, to which a shorter array that ends at the same row is added."""
    total[len(total) - len(part) :] += part
    return total


def pieces_of_columns(
    indices: np.ndarray, start: int, entries: np.ndarray
) -> list[tuple[slice, np.ndarray, np.ndarray]]:
    """
    What one row of tiles has of the columns of these indices: (rows, which of the columns, entries).

    :param entries: [rows, n - start], from the diagonal on.
    """
    stop = start + len(entries)
    right = np.flatnonzero(indices >= start)
    # Those whose rows these are go on to the right of the diagonal.
    own = right[indices[right] < stop]
    return [
        (slice(start, stop), right, entries[:, indices[right] - start]),
        (slice(stop, None), own, entries[indices[own] - start, stop - start :].T),
    ]


def _in_threads(
    work: Callable[[int, np.ndarray], np.ndarray], rows: Iterator[tuple[int, np.ndarray]]
) -> Iterator[np.ndarray]:
    """What threads make of rows, in order; few wait at a time."""
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="tile products")
    waiting: deque[Future[np.ndarray]] = deque()
    try:
        for start, entries in rows:
            waiting.append(pool.submit(work, start, entries))
            if len(waiting) > _WAITING:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
