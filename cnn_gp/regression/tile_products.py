"""
Products of a symmetric matrix with a few vectors, from its stored tiles: the matrix needn't be in memory.

Each row of tiles is read once a product and used twice, as it is and transposed. As many rows as a limit allows stay in
memory, in the precision that they are stored in; the others are read each time, the next ones by another thread.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from .gram_matrix import GramMatrix, leading_rows

#: Partial sums, each by one thread in a fixed order: a product's bits don't depend on the threads' speed.
_SUMS = 4

#: Multiply-adds that OpenBLAS does in one thread; more it shares out, and both kinds of threads get in the way.
_IN_ONE_THREAD = 250_000

#: Columns of right sides from which on BLAS's own threads are the better ones.
_MANY = 32


class TileProducts:
    """
    Products with the leading rows and columns of a Gram matrix.

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

    @property
    def share_in_memory(self) -> float:
        """Of the entries, what needn't be read for every product."""
        left_out = self._first_kept / self.N
        return (1 - left_out) ** 2

    def diagonal(self) -> np.ndarray:
        """[N], float64."""
        return self.gram.diagonal()[: self.N].astype(np.float64)

    def times(self, B: np.ndarray) -> np.ndarray:
        """The leading n rows and columns times B [n, m], n at most N, in float64."""
        n, m = B.shape
        if m >= _MANY:
            return self._times_many(B)
        if m == 1:
            # BLAS shares out even small products with one vector.
            return self.times(np.repeat(B, 2, axis=1))[:, :1]
        sums = [np.zeros((n, m)) for _ in range(_SUMS)]
        B = np.ascontiguousarray(B)

        def add(i: int, start: int, entries: np.ndarray) -> None:
            _add_products(sums[i], B, start, entries)

        with _Lanes(add) as lanes:
            for start, entries in self._rows(n):
                lanes.submit(start, entries)
        return (sums[0] + sums[1]) + (sums[2] + sums[3])

    def columns(self, indices: np.ndarray, n: int) -> np.ndarray:
        """The columns of these indices of the leading n rows and columns, [n, len(indices)], in one pass."""
        found = np.empty((n, len(indices)), order="F")
        for start, entries in self._rows(n):
            stop = start + len(entries)
            right = np.flatnonzero(indices >= start)
            found[start:stop, right] = entries[:, indices[right] - start]
            # Those whose rows these are go on to the right of the diagonal.
            own = right[indices[right] < stop]
            found[stop:, own] = entries[indices[own] - start, stop - start :].T
        return found

    def _times_many(self, B: np.ndarray) -> np.ndarray:
        product = np.zeros(B.shape)
        for start, entries in self._rows(len(B)):
            rows, stop = entries.astype(np.float64), start + len(entries)
            product[start:stop] += rows @ B[start:]
            product[stop:] += rows[:, stop - start :].T @ B[start:stop]
        return product

    def _rows(self, n: int) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, entries from the diagonal on) of the leading [n, n], those that are kept last."""
        if self._kept is None:
            self._kept = {}
            for start, entries in leading_rows(self.gram, self.N):
                if start >= self._first_kept:
                    self._kept[start] = np.ascontiguousarray(entries[:, : self.N - start])
                if start < n:
                    yield start, entries[: n - start, : n - start]
            return
        for start, entries in leading_rows(self.gram, min(n, self._first_kept)):
            yield start, entries[: n - start, : n - start]
        for start, entries in self._kept.items():
            if start < n:
                yield start, entries[: n - start, : n - start]


def _add_products(total: np.ndarray, B: np.ndarray, start: int, entries: np.ndarray) -> None:
    """Add the products of one row of tiles, and of its transpose right of the diagonal, tile by tile in float64."""
    n, m = len(entries), B.shape[1]
    stop, N = start + n, len(B)
    width = max(16, _IN_ONE_THREAD // (n * m))
    own, tile = B[start:stop], np.empty((n, width))
    for left in range(start, N, width):
        right = min(left + width, N)
        converted = tile[:, : right - left]
        converted[...] = entries[:, left - start : right - start]
        total[start:stop] += converted @ B[left:right]
        first = max(left, stop)
        if first < right:
            total[first:right] += converted[:, first - left :].T @ own


class _Lanes:
    """Threads that take rows in turn, each in order; few rows wait at a time."""

    def __init__(self, work: Callable[[int, int, np.ndarray], None]) -> None:
        self._work = work
        self._pools = [ThreadPoolExecutor(1, thread_name_prefix="tile products") for _ in range(_SUMS)]
        self._waiting: deque[Future[None]] = deque()
        self._n = 0

    def submit(self, start: int, entries: np.ndarray) -> None:
        """The next row."""
        i = self._n % _SUMS
        self._n += 1
        self._waiting.append(self._pools[i].submit(self._work, i, start, entries))
        if len(self._waiting) > 2 * _SUMS:
            self._waiting.popleft().result()

    def __enter__(self) -> "_Lanes":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        for pool in self._pools:
            pool.shutdown(cancel_futures=kind is not None)
        if kind is None:
            for future in self._waiting:
                future.result()
