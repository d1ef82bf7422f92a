"""
Products past one machine's memory: each row of tiles stays with a worker of a Dask cluster, as it is stored.

For a product the vectors are sent to all workers, and the sum of what each makes of its rows comes back. The rows are
futures: those of a worker that is lost are read again by others, by Dask itself.
"""

import itertools
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ..cluster import aligned, as_completed, workers_of
from ..progress import Progress
from .gram_matrix import GramMatrix
from .row_product import row_product
from .tile_products import pieces_of_columns
from .tree_sum import add_at_end, halves, tree_sum

if TYPE_CHECKING:
    from distributed import Client, Future

#: Ranges of rows for each worker, at least: those of a lost one are shared out among others.
_RANGES = 4

#: Times that a product is begun again because a worker was lost with the vectors, and the seconds between them.
_ATTEMPTS, _PAUSE = 10, 1.0

_Found = TypeVar("_Found")
_Rows = Iterable[tuple[int, np.ndarray]]


@dataclass(frozen=True)
class _StoredRows:
    """Rows of tiles ``start`` to ``stop`` of the leading rows and columns, read from their files whenever they come."""

    gram: GramMatrix
    n_rows: int
    n_columns: int
    start: int
    stop: int

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        for start, entries in self.gram.rows(self.start, self.stop):
            yield start, np.ascontiguousarray(entries[: self.n_rows - start, : self.n_columns - start])


class ClusterProducts:
    """
    :class:`~cnn_gp.regression.tile_products.Products` by a cluster's workers, which see the run's files.

    A product has the same bits as one machine's of the same kind, whatever the number of workers.

    :param limit: bytes of rows that stay in the workers' memory, from the last row upwards; the others are read for
        each product.
    :raises CancelledError: where the client has lost its scheduler; so do the methods.
    """

    def __init__(self, client: "Client", gram: GramMatrix, N: int, limit: float) -> None:
        self._client, self.gram, self.N = client, gram, N
        threads = {address: worker["nthreads"] for address, worker in workers_of(client).items()}
        starts = np.arange(0, N, gram.n_max)
        sizes = gram.diagonal().dtype.itemsize * np.minimum(gram.n_max, N - starts) * (N - starts)
        self._ranges = _ranges(sizes, sum(max(_RANGES, n) for n in threads.values()))
        of_ranges = np.array([sizes[slice(*bounds)].sum() for bounds in self._ranges])
        kept = np.cumsum(of_ranges[::-1])[::-1] <= limit
        self.share_in_memory = float(of_ranges[kept].sum() / of_ranges.sum())
        self._places = np.empty(len(kept), object)
        for chosen in (kept, ~kept):
            self._places[chosen] = _shared_out(of_ranges[chosen], threads)
        self._rows: list[_Rows | Future] = [self._stored_rows(i, N) for i in range(len(kept))]
        pinned: list[Future] = []
        for i in np.flatnonzero(kept):
            future = self._submit(list, self._rows[i], place=self._places[i])
            self._rows[i] = future
            pinned.append(future)
        with Progress(len(pinned), "ranges of rows read by the cluster") as progress:
            for future in as_completed(client, pinned):
                if future.status == "error":
                    future.result()
                progress(1)

    def diagonal(self) -> np.ndarray:
        """:meth:`~cnn_gp.regression.tile_products.Products.diagonal`"""
        return self.gram.diagonal()[: self.N].astype(np.float64)

    def times(self, B: np.ndarray) -> np.ndarray:
        """:meth:`~cnn_gp.regression.tile_products.Products.times`"""
        return self._sum_of_products(self._rows, B, len(B))

    def stored_times(self, B: np.ndarray) -> np.ndarray:
        """:meth:`~cnn_gp.regression.tile_products.Products.stored_times`"""
        if self.gram.N == self.N and self.share_in_memory == 1:
            # The workers have verified what they have read.
            return self.times(B)
        rows = [self._stored_rows(i, self.gram.N) for i in range(len(self._ranges))]
        return self._sum_of_products(rows, B, self.gram.N)

    def columns(self, indices: np.ndarray, n: int) -> np.ndarray:
        """:meth:`~cnn_gp.regression.tile_products.Products.columns`"""

        def work() -> np.ndarray:
            futures = [self._submit(_pieces, self._rows[i], indices, n, place=self._places[i]) for i in self._within(n)]
            found = np.empty((n, len(indices)), order="F")
            for future in as_completed(self._client, futures):
                for rows, columns, values in future.result():
                    found[rows, columns] = values
                future.release()
            return found

        return self._again_after_a_loss(work)

    def _sum_of_products(self, rows: "Sequence[_Rows | Future]", B: np.ndarray, M: int) -> np.ndarray:
        """The products of the ranges' rows, cut to len(B) rows and M columns, [M, m]."""
        n_leaves = -(-len(B) // self.gram.n_max)

        def work() -> np.ndarray:
            vectors = self._client.scatter(np.ascontiguousarray(B), broadcast=True, hash=False)
            products = {}
            for i in self._within(len(B)):
                first, stop = self._ranges[i]
                stop = min(stop, n_leaves)
                arguments = rows[i], (stop - first, self.gram.n_max), vectors, M
                products[first, stop] = self._submit(_product, *arguments, place=self._places[i])

            (found,) = as_completed(self._client, [self._sum_of(products, 0, n_leaves)])
            return aligned(found.result())

        return self._again_after_a_loss(work)

    def _sum_of(self, products: "dict[tuple[int, int], Future]", first: int, stop: int) -> "Future":
        """Of the branch of the tree with these rows, from the products of its branches."""
        if (first, stop) in products:
            return products[first, stop]
        return self._submit(_sum, *(self._sum_of(products, *half) for half in halves(first, stop)))

    def _stored_rows(self, i: int, n_columns: int) -> _StoredRows:
        """The rows of a range."""
        start, stop = (self.gram.n_max * leaf for leaf in self._ranges[i])
        return _StoredRows(self.gram, self.N, n_columns, start, min(stop, self.N))

    def _within(self, n: int) -> list[int]:
        """The ranges that have some of the leading n rows."""
        return [i for i, (first, _) in enumerate(self._ranges) if first * self.gram.n_max < n]

    def _submit(self, function: Callable[..., object], *arguments: object, place: str | None = None) -> "Future":
        """:param place: the worker that is to do it, as long as it is there."""
        options = {} if place is None else {"workers": [place], "allow_other_workers": True}
        return self._client.submit(function, *arguments, pure=False, **options)

    def _again_after_a_loss(self, work: Callable[[], _Found]) -> _Found:
        """What the work finds. Rows Dask reads again by itself; vectors have to be sent again."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return work()
            except (CancelledError, OSError) as error:
                if self._client.status != "running":
                    raise CancelledError("the connection to the scheduler is lost") from error
                if attempt == _ATTEMPTS:
                    raise
                # A future that holds this error is held by its traceback: both would stay, and the cluster's memory.
                traceback.clear_frames(error.__traceback__)
            time.sleep(_PAUSE)
        raise AssertionError("unreachable")


def _ranges(sizes: np.ndarray, most: int) -> list[tuple[int, int]]:
    """Branches of the tree of rows of these sizes (:func:`halves`): at most so many, the largest as small as can be."""
    found = [(0, len(sizes))]
    while len(found) < most:
        largest = max(range(len(found)), key=lambda i: (found[i][1] - found[i][0] > 1) * sizes[slice(*found[i])].sum())
        if found[largest][1] - found[largest][0] == 1:
            break
        found[largest : largest + 1] = halves(*found[largest])
    return found


def _shared_out(sizes: np.ndarray, threads: dict[str, int]) -> list[str]:
    """For each range a worker: each gets neighbours, whose products it adds up, of about as much for each thread."""
    addresses = sorted(threads)
    ends = np.cumsum([threads[address] for address in addresses]) / sum(threads.values())
    middles = (np.cumsum(sizes) - sizes / 2) / max(sizes.sum(), 1)
    return [addresses[i] for i in np.searchsorted(ends, middles)]


# On a worker ---------------------------------------------------------------------------------------------------------


def _product(rows: _Rows, tiles: tuple[int, int], B: np.ndarray, M: int) -> np.ndarray:
    """
    What the first rows, cut to len(B) rows and M columns, and their transpose add to the product: its end.

    :param tiles: rows of tiles, and the tiles' width.
    """
    n_rows, n_max = tiles
    products = (
        (i, row_product(B[start:], entries[: len(B) - start, : M - start], n_max))
        for i, (start, entries) in enumerate(itertools.islice(rows, n_rows))
    )
    return tree_sum(products, n_rows)


def _sum(total: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Of products that end at one row. What another task may be given isn't written over."""
    return add_at_end(total.copy(), part)


def _pieces(rows: _Rows, indices: np.ndarray, n: int) -> list[tuple[slice, np.ndarray, np.ndarray]]:
    """What some rows have of the columns of these indices of the leading n rows and columns."""
    return [
        piece
        for start, entries in rows
        if start < n
        for piece in pieces_of_columns(indices, start, entries[: n - start, : n - start])
    ]
