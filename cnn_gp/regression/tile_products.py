"""
Products of a symmetric matrix with a few vectors, from its stored tiles: the matrix needn't be in memory.

Each row of tiles is read once a product and used twice, as it is and transposed. As many rows as a limit allows stay in
memory, in the precision that they are stored in; the others are read each time, by the threads that multiply them.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import numpy as np

from .gram_matrix import GramMatrix, gram_times, in_pieces
from .row_product import add_piece, piece_width
from .tree_sum import tree_sum

#: Threads that read and multiply, each a row of tiles at a time; some of them wait for the disk meanwhile.
THREADS = 4

_Found = TypeVar("_Found")


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
        self._kept: dict[int, np.ndarray] = {}
        self._first_kept = N
        self._n_passes = 0
        if gram.is_in_memory:
            return
        itemsize = gram.diagonal().dtype.itemsize
        total = 0
        for start in reversed(range(0, N, gram.n_max)):
            total += itemsize * gram.n_max * (N - start)
            if total > limit:
                break
            self._first_kept = start

    def __getstate__(self) -> dict[str, Any]:
        # The rows are read again.
        return {**vars(self), "_kept": {}}

    @property
    def share_in_memory(self) -> float:
        """:attr:`Products.share_in_memory`"""
        if self.gram.is_in_memory:
            return 1.0
        left_out = self._first_kept / self.N
        return (1 - left_out) ** 2

    def diagonal(self) -> np.ndarray:
        """:meth:`Products.diagonal`"""
        return self.gram.diagonal()[: self.N].astype(np.float64)

    def times(self, B: np.ndarray) -> np.ndarray:
        """:meth:`Products.times`"""
        n, B = len(B), np.ascontiguousarray(B)

        def product(start: int) -> tuple[int, np.ndarray]:
            total = np.zeros((n - start, B.shape[1]))
            for left, entries in self._pieces(start, n):
                add_piece(B[start:], left, entries, total)
            return start // self.gram.n_max, total

        return tree_sum(in_threads(product, self._starts(n)), -(-n // self.gram.n_max))

    def stored_times(self, B: np.ndarray) -> np.ndarray:
        """:meth:`Products.stored_times`"""
        return gram_times(self.gram, B)

    def columns(self, indices: np.ndarray, n: int) -> np.ndarray:
        """:meth:`Products.columns`"""
        found = np.empty((n, len(indices)), order="F")

        def read(start: int) -> list[_PieceOfColumns]:
            return [
                piece
                for left, entries in self._pieces(start, n)
                for piece in pieces_of_columns(indices, start, entries, left)
            ]

        for pieces in in_threads(read, self._starts(n)):
            for rows, columns, values in pieces:
                found[rows, columns] = values
        return found

    def _starts(self, n: int) -> list[int]:
        """
        The first rows of the rows of tiles of the leading [n, n].

        Every other pass is backwards: what the system keeps of the files that were read last is used, not driven out.
        """
        self._n_passes += 1
        starts = list(range(0, n, self.gram.n_max))
        return starts[:: 1 if self._n_passes % 2 else -1]

    def _pieces(self, start: int, n: int) -> Iterator[tuple[int, np.ndarray]]:
        """(first column from the diagonal on, entries) of a row of the leading [n, n], from memory or its file."""
        width, keep = piece_width(self.gram.n_max), start >= self._first_kept
        whole = self._kept.get(start)
        if whole is None and keep:
            ((_, entries),) = self.gram.pieces(start, self.gram.n_max * -(-self.gram.N // self.gram.n_max))
            whole = self._kept[start] = entries[: self.N - start, : self.N - start].copy()
        pieces = self.gram.pieces(start, width) if whole is None else in_pieces(whole, width)
        for left, entries in pieces:
            if left >= n - start:
                return
            yield left, entries[: n - start, : n - start - left]


#: Some rows, which of the columns that are asked for, and their entries there.
_PieceOfColumns = tuple[slice, np.ndarray, np.ndarray]


def pieces_of_columns(indices: np.ndarray, start: int, entries: np.ndarray, left: int = 0) -> list[_PieceOfColumns]:
    """
    The entries of some of the matrix's columns in a piece of a row of tiles: (rows, positions in ``indices``, entries).

    :param entries: [rows, columns] from the column ``left`` on, counted from the diagonal.
    """
    n_rows, n_columns = entries.shape
    columns = indices - (start + left)
    right = np.flatnonzero((columns >= 0) & (columns < n_columns))
    found = [(slice(start, start + n_rows), right, entries[:, columns[right]])]
    # By symmetry, what is right of the diagonal is also in the columns of these rows' numbers.
    beyond = max(n_rows - left, 0)
    if beyond < n_columns:
        own = np.flatnonzero((indices >= start) & (indices < start + n_rows))
        rows = slice(start + left + beyond, start + left + n_columns)
        found.append((rows, own, entries[indices[own] - start, beyond:].T))
    return found


def in_threads(work: Callable[[int], _Found], given: Iterable[int]) -> Iterator[_Found]:
    """work(x) for each x, in order; at most THREADS + 1 are begun before they are asked for."""
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="tile products")
    waiting: deque[Future[_Found]] = deque()
    try:
        for one in given:
            waiting.append(pool.submit(work, one))
            if len(waiting) > THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
