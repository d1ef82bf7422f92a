"""
The Cholesky factorisation past one machine's memory: :mod:`dask.array.linalg` on a cluster, straight from the tiles.

A chunk of the matrix is some whole tiles on a side. Workers read the chunks that they need by themselves, so neither a
stored matrix nor its factor passes through the client.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
from distributed import futures_of

from ..cluster import aligned, as_completed
from ..progress import Progress
from .cholesky import NotPositiveDefinite
from .gram_matrix import GramMatrix

if TYPE_CHECKING:
    from distributed import Client

#: Rows and columns of a chunk, about: 50 MB, and a second or two of a worker's time for each product.
CHUNK = 2500


class ClusterFactor:
    """
    The Cholesky factor L of the leading [N, N] of a Gram matrix, in the memory of a cluster's workers.

    It is a :class:`~cnn_gp.regression.cholesky.Factor`, whose methods take and return arrays of the client.

    :param added: to the diagonal.
    :param chunk: rows and columns of a chunk; by default the multiple of ``gram.n_max`` next to :data:`CHUNK`.
    :raises NotPositiveDefinite: where the matrix isn't.
    :raises CancelledError: where the client has lost its scheduler; so do the methods.
    """

    def __init__(
        self, client: "Client", gram: GramMatrix, N: int, added: float = 0.0, chunk: int | None = None
    ) -> None:
        self._client = client
        self.N, self._chunk = N, chunk or gram.n_max * max(1, round(CHUNK / gram.n_max))
        n = -(-N // self._chunk)
        self.bounds = [(i * self._chunk, min((i + 1) * self._chunk, N)) for i in range(n)]
        read = functools.partial(_read_chunk, gram, N, added)
        # dask.array.linalg wants chunks of one size: the last ones are filled up by the identity. It reads the upper
        # triangle of chunks only.
        chunks = ((self._chunk,) * n,) * 2
        matrix = da.map_blocks(read, chunks=chunks, dtype=np.float64, meta=np.empty((0, 0)))
        factor = client.persist(da.linalg.cholesky(matrix, lower=True))
        futures = futures_of(factor)
        with Progress(len(futures), "blocks factorised") as progress:
            for future in as_completed(client, futures):
                if future.status == "error":
                    error = future.exception()
                    if isinstance(error, np.linalg.LinAlgError):
                        raise NotPositiveDefinite(N) from error
                    raise error
                progress(1)
        # The chunks above the diagonal are zeros, which needn't be kept.
        name = factor.name
        graph: dict[Any, Any] = {future.key: future for future in futures if future.key[1] >= future.key[2]}
        graph.update({(name, i, j): (np.zeros, (self._chunk,) * 2) for j in range(n) for i in range(j)})
        self._factor = da.Array(graph, name, chunks, dtype=np.float64)
        self._diagonal = self._compute(da.diagonal(self._factor))[:N]

    def log_determinant(self, n: int | None = None) -> float:
        """Of the matrix, or its leading n rows and columns."""
        return 2 * float(np.log(self._diagonal[:n]).sum())

    def forward(self, B: np.ndarray, n: int | None = None) -> np.ndarray:
        """L^-1 B, for B [N, m]; with ``n`` that of the leading n rows and columns, for B [n, m]."""
        factor, right = self._leading(B, n)
        return self._compute(da.linalg.solve_triangular(factor, right, lower=True))[: len(B)]

    def solve(self, B: np.ndarray, n: int | None = None) -> np.ndarray:
        """The matrix's (or its leading n rows' and columns') inverse times B."""
        # Between the two the rows beyond n are set to 0, which they then stay.
        factor, right = self._leading(self.forward(B, n), n)
        return self._compute(da.linalg.solve_triangular(factor.T, right, lower=False))[: len(B)]

    def times(self, B: np.ndarray) -> np.ndarray:
        """L L^T B: the matrix that was factorised, times B."""
        factor, right = self._leading(B, None)
        return self._compute(factor @ (factor.T @ right))[: self.N]

    def quadratic_forms(self, B: np.ndarray) -> np.ndarray:
        """b^T (L L^T)^-1 b [m] for each column b of B [N, m]."""
        columns = self.forward(B)
        return np.einsum("ij,ij->j", columns, columns)

    def inverse_diagonal(self, progress: Callable[[int], None] = lambda steps: None) -> np.ndarray:
        """The diagonal of the matrix's inverse, [N]: the squared norms of the columns of L^-1."""
        result = np.empty(self.N)
        for left, right in self.bounds:
            columns = da.eye(len(self._factor), chunks=self._chunk)[:, left:right].rechunk({1: -1})
            inverse = da.linalg.solve_triangular(self._factor, columns, lower=True)
            result[left:right] = self._compute((inverse**2).sum(axis=0))
            progress(1)
        return result

    def make_room(self, folder: Path) -> None:
        """Nothing to do here: Dask's workers move what they hold to their disks."""

    def _compute(self, array: da.Array) -> np.ndarray:
        """A small array, as the client's."""
        (future,) = as_completed(self._client, [self._client.compute(array)])
        return aligned(future.result())

    def _leading(self, B: np.ndarray, n: int | None) -> tuple[da.Array, da.Array]:
        """The chunks of the factor that hold its leading n rows and columns, and B filled up with zeros to fit."""
        expected = self.N if n is None else n
        if len(B) != expected:
            raise ValueError(f"The right side has {len(B)} rows; expected {expected}.")
        k = -(-expected // self._chunk)
        filled = np.concatenate([B, np.zeros((k * self._chunk - len(B), B.shape[1]))])
        return self._factor.blocks[:k, :k], da.from_array(filled, chunks=(self._chunk, B.shape[1]))


def _read_chunk(gram: GramMatrix, N: int, added: float, block_info: Any = None) -> np.ndarray:
    """On a worker: a chunk on or above the diagonal; beyond N the identity, below the diagonal nothing."""
    (start, stop), (left, right) = block_info[None]["array-location"]
    chunk = np.zeros((stop - start, right - left))
    if left < start:
        return chunk
    there = gram.block(start, min(stop, N), left, min(right, N))
    chunk[: len(there), : there.shape[1]] = there
    if left == start:
        diagonal = np.einsum("ii->i", chunk)
        diagonal[: len(there)] += added
        diagonal[len(there) :] = 1
    return chunk
