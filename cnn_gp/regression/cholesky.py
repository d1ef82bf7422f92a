"""
The Cholesky factorisation of a large symmetric matrix in half its memory, in float64, by LAPACK and BLAS.

The lower triangle is kept as square blocks, each an array of its own in Fortran's order. So every operation is a full
``potrf``, ``trsm``, ``syrk`` or ``gemm`` in place, nothing is copied, no index comes near 2^31, and the factor of a
leading part of the matrix is the leading part of the factor. (LAPACK's own half storage, ``pftrf``, is as fast, but its
integers overflow from N = 46,341 on.)
"""

import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from scipy.linalg import blas, lapack

from ..errors import UserError

#: Rows and columns of a block: large enough for BLAS to run at full speed.
BLOCK = 2500

#: Columns of the inverse at a time.
_COLUMNS = 500


class NotPositiveDefinite(Exception):
    """The leading ``order`` rows and columns aren't positive definite in float64."""

    def __init__(self, order: int) -> None:
        super().__init__(f"the leading {order} rows and columns aren't positive definite")
        self.order = order


class Factor(Protocol):
    """What is asked of a Cholesky factor L of a matrix [N, N], here or on a cluster."""

    N: int
    bounds: list[tuple[int, int]]
    """First and last + 1 row of its blocks."""

    def log_determinant(self, n: int | None = None) -> float:
        """Of the matrix, or its leading n rows and columns."""

    def forward(self, B: np.ndarray) -> np.ndarray:
        """L^-1 B, for B [N, m]."""

    def solve(self, B: np.ndarray, n: int | None = None) -> np.ndarray:
        """The matrix's (or its leading n rows' and columns') inverse times B [n, m]."""

    def times(self, B: np.ndarray) -> np.ndarray:
        """The matrix times B [N, m]."""

    def inverse_diagonal(self, progress: Callable[[int], None]) -> np.ndarray:
        """The diagonal of the matrix's inverse, [N]."""

    def make_room(self, folder: Path) -> None:
        """Give the memory back, for another factor, and go on from files in a folder that has room for them."""


class LowerBlocks:
    """
    The lower triangle of a symmetric [N, N] matrix in blocks; after :meth:`factorise`, that of its Cholesky factor L.

    :param N: rows and columns.
    :param block: rows and columns of a block.
    """

    def __init__(self, N: int, block: int = BLOCK) -> None:
        self.N = N
        self.bounds = [(start, min(start + block, N)) for start in range(0, N, block)]
        self._blocks = [
            [np.zeros((stop - start, right - left), order="F") for left, right in self.bounds[: i + 1]]
            for i, (start, stop) in enumerate(self.bounds)
        ]

    @staticmethod
    def n_bytes(N: int, block: int = BLOCK) -> int:
        """The memory that the blocks take: half a matrix, and half of the blocks on the diagonal too much."""
        return 8 * sum((min(start + block, N) - start) * min(start + block, N) for start in range(0, N, block))

    def fill(self, first: int, columns: np.ndarray) -> None:
        """
        Set columns ``first`` to ``first + width`` from row ``first`` on.

        :param columns: [N - first, width] in any dtype, whose top [width, width] is symmetric.
        """
        last = first + columns.shape[1]
        for j, (left, right) in enumerate(self.bounds):
            a, b = max(first, left), min(last, right)
            if a >= b:
                continue
            for i in range(j, len(self.bounds)):
                start, stop = self.bounds[i]
                top = max(start, first)
                if top < stop:
                    piece = columns[top - first : stop - first, a - first : b - first]
                    self._blocks[i][j][top - start :, a - left : b - left] = piece

    def matrix(self) -> np.ndarray:
        """The whole symmetric matrix [N, N], before the factorisation; for small ones."""
        whole = np.empty((self.N, self.N))
        for (start, stop), row in zip(self.bounds, self._blocks, strict=True):
            for (left, right), block in zip(self.bounds, row, strict=False):
                whole[start:stop, left:right] = block
        return np.tril(whole) + np.tril(whole, -1).T

    def diagonal(self) -> np.ndarray:
        """[N], a copy."""
        return np.concatenate([np.diagonal(row[-1]) for row in self._blocks])

    def add_to_diagonal(self, value: float) -> None:
        """Before the factorisation."""
        for row in self._blocks:
            index = np.arange(len(row[-1]))
            row[-1][index, index] += value

    @property
    def n_steps(self) -> int:
        """How often :meth:`factorise` reports progress."""
        n = len(self.bounds)
        return n * (n + 1) * (n + 2) // 6

    def factorise(self, progress: Callable[[int], None] = lambda steps: None) -> None:
        """
        Replace the matrix by its factor.

        :param progress: called with the number of block operations done since the last call.
        :raises NotPositiveDefinite: the contents are lost then.
        """
        n = len(self.bounds)
        for j in range(n):
            factor, info = lapack.dpotrf(self._blocks[j][j], lower=1, clean=0, overwrite_a=1)
            if info > 0:
                raise NotPositiveDefinite(self.bounds[j][0] + info)
            self._in_place(j, j, factor)
            progress(1)
            for i in range(j + 1, n):
                below = blas.dtrsm(1.0, factor, self._blocks[i][j], side=1, lower=1, trans_a=1, overwrite_b=1)
                self._in_place(i, j, below)
                progress(1)
            for k in range(j + 1, n):
                right = self._blocks[k][j]
                self._in_place(k, k, blas.dsyrk(-1.0, right, beta=1.0, c=self._blocks[k][k], lower=1, overwrite_c=1))
                progress(1)
                for i in range(k + 1, n):
                    below = self._blocks[i][j]
                    product = blas.dgemm(-1.0, below, right, beta=1.0, c=self._blocks[i][k], trans_b=1, overwrite_c=1)
                    self._in_place(i, k, product)
                    progress(1)

    def make_room(self, folder: Path) -> None:
        """
        Move the factor to a file without a name, which goes with this object or its process; it is read as needed.

        :raises UserError: where the folder's disk hasn't the room.
        """
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                for row in self._blocks:
                    for j, block in enumerate(row):
                        offset = file.tell()
                        block.T.tofile(file)
                        file.flush()
                        row[j] = np.memmap(file, np.float64, "r", offset, block.shape, "F")
        except OSError as error:
            raise UserError(
                f"The factor can't be put aside in {folder} ({error}): free {self.n_bytes(self.N) / 1e9:.1f} GB there, "
                "or give one --noise at a time."
            ) from error

    def _in_place(self, i: int, j: int, result: np.ndarray) -> None:
        # SciPy copies, silently, what isn't as BLAS wants it.
        assert result.ctypes.data == self._blocks[i][j].ctypes.data

    def log_determinant(self, n: int | None = None) -> float:
        """Of the matrix, or its leading n rows and columns, from the factor."""
        return 2 * float(np.log(self.diagonal()[:n]).sum())

    def forward(self, B: np.ndarray, n: int | None = None, first: int = 0) -> np.ndarray:
        """
        L^-1 B with the factor, for B [N, m]; with ``n`` that of the leading n rows and columns, for B [n, m].

        :param first: rows of B before this one are 0, a block's first row; they are skipped.
        """
        leading = list(self._leading(n))
        X = self._right_sides(B, n)
        for j, (_, right) in leading:
            if right <= first:
                continue
            X[j] = self._triangular(j, X[j], transposed=False)
            for i, _ in leading[j + 1 :]:
                X[i] = blas.dgemm(-1.0, self._block(i, j, X), X[j], beta=1.0, c=X[i], overwrite_c=1)
        return np.concatenate(X)

    def backward(self, B: np.ndarray, n: int | None = None) -> np.ndarray:
        """L^-T B, as :meth:`forward`."""
        leading = list(self._leading(n))
        X = self._right_sides(B, n)
        for j, _ in reversed(leading):
            for i, _ in leading[j + 1 :]:
                X[j] = blas.dgemm(-1.0, self._block(i, j, X), X[i], beta=1.0, c=X[j], trans_a=1, overwrite_c=1)
            X[j] = self._triangular(j, X[j], transposed=True)
        return np.concatenate(X)

    def solve(self, B: np.ndarray, n: int | None = None) -> np.ndarray:
        """The matrix's (or its leading n rows' and columns') inverse times B, with the factor."""
        return self.backward(self.forward(B, n), n)

    def times(self, B: np.ndarray) -> np.ndarray:
        """L L^T B: the matrix that was factorised, times B."""
        product = np.zeros_like(B)
        for j, (left, right) in self._leading(None):
            upper = np.zeros_like(B[left:right])
            for i, (start, stop) in self._leading(None):
                if i >= j:
                    upper += self._lower(i, j).T @ B[start:stop]
            for i, (start, stop) in self._leading(None):
                if i >= j:
                    product[start:stop] += self._lower(i, j) @ upper
        return product

    def _lower(self, i: int, j: int) -> np.ndarray:
        return np.tril(self._blocks[i][j]) if i == j else self._blocks[i][j]

    def inverse_diagonal(self, progress: Callable[[int], None] = lambda steps: None) -> np.ndarray:
        """
        The diagonal of the matrix's inverse, [N]: the squared norms of the columns of L^-1, N^3 / 3 operations.

        :param progress: called once for every block of columns.
        """
        result = np.empty(self.N)
        for first, end in self.bounds:
            # A few hundred columns at a time, which BLAS does as fast: little memory beside the factor's.
            for left in range(first, end, _COLUMNS):
                right = min(left + _COLUMNS, end)
                identity = np.zeros((self.N, right - left), order="F")
                identity[np.arange(left, right), np.arange(right - left)] = 1
                columns = self.forward(identity, first=first)
                result[left:right] = np.einsum("ij,ij->j", columns[left:], columns[left:])
            progress(1)
        return result

    def _block(self, i: int, j: int, X: list[np.ndarray]) -> np.ndarray:
        """The factor's block, of which the last one may be cut to a leading part."""
        return self._blocks[i][j][: len(X[i]), : len(X[j])]

    def _triangular(self, j: int, B: np.ndarray, *, transposed: bool) -> np.ndarray:
        factor = self._blocks[j][j][: len(B), : len(B)]
        return blas.dtrsm(1.0, factor, B, lower=1, trans_a=int(transposed), overwrite_b=1)

    def _leading(self, n: int | None) -> Iterator[tuple[int, tuple[int, int]]]:
        n = self.N if n is None else n
        for i, (start, stop) in enumerate(self.bounds):
            if start < n:
                yield i, (start, min(stop, n))

    def _right_sides(self, B: np.ndarray, n: int | None) -> list[np.ndarray]:
        """Copies of the rows of B at each block, in Fortran's order, so that BLAS works in place."""
        expected = self.N if n is None else n
        if len(B) != expected:
            raise ValueError(f"The right side has {len(B)} rows; expected {expected}.")
        return [np.array(B[start:stop], np.float64, order="F") for _, (start, stop) in self._leading(n)]


def n_operations(N: int) -> float:
    """Floating-point operations of a Cholesky factorisation."""
    return N**3 / 3


def largest(n_bytes: float) -> int:
    """The largest N whose blocks fit in so many bytes."""
    N = int(math.sqrt(n_bytes / 4))
    while N > 0 and LowerBlocks.n_bytes(N) > n_bytes:
        N -= max(1, N // 1000)
    return N
