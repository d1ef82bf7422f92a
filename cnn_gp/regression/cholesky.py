"""
The Cholesky factorisation of a large symmetric matrix in place, in float64, by LAPACK and BLAS.

    factor = factorise(LowerTriangle.of(K))
    alpha = factor.solve(Y)

On square blocks every operation is a full ``potrf``, ``trsm``, ``syrk`` or ``gemm``, nothing is copied, and the factor
of a leading part of the matrix is the leading part of the factor.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from scipy.linalg import blas, lapack

from ..errors import UserError
from .lower_triangle import LowerTriangle

#: Columns of the inverse at a time.
_COLUMNS = 500


class NotPositiveDefinite(Exception):
    """The leading ``order`` rows and columns aren't positive definite in float64."""

    def __init__(self, order: int) -> None:
        super().__init__(f"the leading {order} rows and columns aren't positive definite")
        self.order = order


class Factor(Protocol):
    """What is asked of a Cholesky factor of a matrix [N, N], here or on a cluster, or of what stands in for one."""

    N: int
    bounds: list[tuple[int, int]]
    """First and last + 1 row of its blocks, after each of which ``inverse_diagonal`` reports."""

    def log_determinant(self, n: int | None = None) -> float:
        """Of the matrix, or its leading n rows and columns."""

    def quadratic_forms(self, B: np.ndarray) -> np.ndarray:
        """b^T A^-1 b [m] for each column b of B [N, m], A being the matrix."""

    def solve(self, B: np.ndarray, n: int | None = None) -> np.ndarray:
        """The matrix's (or its leading n rows' and columns') inverse times B [n, m]."""

    def times(self, B: np.ndarray) -> np.ndarray:
        """The matrix times B [N, m]."""

    def inverse_diagonal(self, progress: Callable[[int], None]) -> np.ndarray:
        """The diagonal of the matrix's inverse, [N]."""

    def make_room(self, folder: Path) -> None:
        """Move the factor from memory to files in a folder, so that another one fits into memory."""


def factorise(lower: LowerTriangle, progress: Callable[[int], None] = lambda steps: None) -> "CholeskyFactor":
    """
    The Cholesky factor, in the place of the matrix: it takes no further memory, and ``lower`` can't be used afterwards.

    :param progress: called with the number of block operations done since the last call, of :func:`n_steps` in all.
    :raises NotPositiveDefinite: the entries are lost then too.
    """
    bounds, blocks = lower.bounds, lower.release()
    n = len(bounds)
    for j in range(n):
        factor, info = lapack.dpotrf(blocks[j][j], lower=1, clean=0, overwrite_a=1)
        if info > 0:
            raise NotPositiveDefinite(bounds[j][0] + info)
        _check_in_place(factor, blocks[j][j])
        progress(1)
        for i in range(j + 1, n):
            below = blas.dtrsm(1.0, factor, blocks[i][j], side=1, lower=1, trans_a=1, overwrite_b=1)
            _check_in_place(below, blocks[i][j])
            progress(1)
        for k in range(j + 1, n):
            right = blocks[k][j]
            square = blas.dsyrk(-1.0, right, beta=1.0, c=blocks[k][k], lower=1, overwrite_c=1)
            _check_in_place(square, blocks[k][k])
            progress(1)
            for i in range(k + 1, n):
                product = blas.dgemm(-1.0, blocks[i][j], right, beta=1.0, c=blocks[i][k], trans_b=1, overwrite_c=1)
                _check_in_place(product, blocks[i][k])
                progress(1)
    return CholeskyFactor(bounds, blocks)


def _check_in_place(result: np.ndarray, block: np.ndarray) -> None:
    # SciPy copies, silently, what isn't as BLAS wants it.
    assert result.ctypes.data == block.ctypes.data


def n_steps(lower: LowerTriangle) -> int:
    """Block operations of :func:`factorise`."""
    n = len(lower.bounds)
    return n * (n + 1) * (n + 2) // 6


def n_operations(N: int) -> float:
    """Floating-point operations of a Cholesky factorisation."""
    return N**3 / 3


class CholeskyFactor:
    """
    The lower triangular L with L L^T a symmetric positive definite matrix [N, N], which :func:`factorise` makes.

    :param bounds: first and last + 1 row of its blocks.
    :param blocks: ``blocks[i][j]``, j <= i; of those on the diagonal the lower triangle counts.
    """

    def __init__(self, bounds: list[tuple[int, int]], blocks: list[list[np.ndarray]]) -> None:
        self.N = bounds[-1][1]
        self.bounds = bounds
        self._blocks = blocks

    def make_room(self, folder: Path) -> None:
        """
        Move the factor to a temporary file that is deleted with this object or its process; blocks are read as needed.

        :raises UserError: where the folder's disk is too full.
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
            n_bytes = sum(block.nbytes for row in self._blocks for block in row)
            raise UserError(
                f"The factor can't be moved to a file in {folder} ({error}): free {n_bytes / 1e9:.1f} GB there, "
                "or give one --noise at a time."
            ) from error

    def log_determinant(self, n: int | None = None) -> float:
        """Of the matrix, or its leading n rows and columns."""
        diagonal = np.concatenate([np.diagonal(row[-1]) for row in self._blocks])
        return 2 * float(np.log(diagonal[:n]).sum())

    def forward(self, B: np.ndarray, n: int | None = None, first: int = 0) -> np.ndarray:
        """
        L^-1 B, for B [N, m]; with ``n`` that of the leading n rows and columns, for B [n, m].

        :param first: rows of B before this one are 0, a block's first row; they are skipped.
        """
        leading = list(self._leading(n))
        X = self._right_sides(B, n)
        for j, (_, right) in leading:
            if right <= first:
                continue
            X[j] = self._triangular(j, X[j], transposed=False)
            for i, _ in leading[j + 1 :]:
                X[i] = blas.dgemm(-1.0, self._leading_block(i, j, X), X[j], beta=1.0, c=X[i], overwrite_c=1)
        return np.concatenate(X)

    def backward(self, B: np.ndarray, n: int | None = None) -> np.ndarray:
        """L^-T B, as :meth:`forward`."""
        leading = list(self._leading(n))
        X = self._right_sides(B, n)
        for j, _ in reversed(leading):
            for i, _ in leading[j + 1 :]:
                X[j] = blas.dgemm(-1.0, self._leading_block(i, j, X), X[i], beta=1.0, c=X[j], trans_a=1, overwrite_c=1)
            X[j] = self._triangular(j, X[j], transposed=True)
        return np.concatenate(X)

    def solve(self, B: np.ndarray, n: int | None = None) -> np.ndarray:
        """The matrix's (or its leading n rows' and columns') inverse times B [n, m]."""
        return self.backward(self.forward(B, n), n)

    def times(self, B: np.ndarray) -> np.ndarray:
        """L L^T B: the matrix that was factorised, times B."""
        product = np.zeros_like(B)
        for j, (left, right) in self._leading(None):
            upper = np.zeros_like(B[left:right])
            for i, (start, stop) in self._leading(None):
                if i >= j:
                    upper += self._tril(i, j).T @ B[start:stop]
            for i, (start, stop) in self._leading(None):
                if i >= j:
                    product[start:stop] += self._tril(i, j) @ upper
        return product

    def quadratic_forms(self, B: np.ndarray) -> np.ndarray:
        """b^T (L L^T)^-1 b [m] for each column b of B [N, m]."""
        columns = self.forward(B)
        return np.einsum("ij,ij->j", columns, columns)

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

    def _tril(self, i: int, j: int) -> np.ndarray:
        return np.tril(self._blocks[i][j]) if i == j else self._blocks[i][j]

    def _leading_block(self, i: int, j: int, X: list[np.ndarray]) -> np.ndarray:
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
