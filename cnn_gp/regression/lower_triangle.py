"""
A large symmetric matrix in half its memory, in float64: its lower triangle as square blocks.

Each block is an array of its own in Fortran's order, so that BLAS and LAPACK work on it in place and no index comes
near 2^31. (LAPACK's own half storage, ``pftrf``, is as fast, but its integers overflow from N = 46,341 on.)
"""

import math

import numpy as np

from ..progress import Progress
from .gram_matrix import GramMatrix, leading_rows

#: Rows and columns of a block: large enough for BLAS to run at full speed.
BLOCK = 2500


class LowerTriangle:
    """
    The lower triangle of a symmetric [N, N] matrix, 0 until it is filled.

    :param N: rows and columns.
    :param block: rows and columns of a block.
    """

    def __init__(self, N: int, block: int = BLOCK) -> None:
        self.N = N
        self.bounds = [(start, min(start + block, N)) for start in range(0, N, block)]
        """First and last + 1 row of each block."""
        self._blocks: list[list[np.ndarray]] | None = [
            [np.zeros((stop - start, right - left), order="F") for left, right in self.bounds[: i + 1]]
            for i, (start, stop) in enumerate(self.bounds)
        ]

    @classmethod
    def of(cls, K: np.ndarray, block: int = BLOCK) -> "LowerTriangle":
        """A copy of a symmetric matrix [N, N] of any dtype."""
        lower = cls(len(K), block)
        lower.fill(0, K)
        return lower

    @staticmethod
    def n_bytes(N: int, block: int = BLOCK) -> int:
        """The memory that the blocks take: half a matrix, and half of the blocks on the diagonal too much."""
        return 8 * sum((min(start + block, N) - start) * min(start + block, N) for start in range(0, N, block))

    @property
    def blocks(self) -> list[list[np.ndarray]]:
        """``blocks[i][j]``, j <= i. :raises ValueError: after :meth:`release`."""
        if self._blocks is None:
            raise ValueError("This LowerTriangle was factorised, which replaces its entries: assemble it again.")
        return self._blocks

    def release(self) -> list[list[np.ndarray]]:
        """The blocks, for an operation in place: they leave this object, which can't be used afterwards."""
        blocks, self._blocks = self.blocks, None
        return blocks

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
                    self.blocks[i][j][top - start :, a - left : b - left] = piece

    def add_to_diagonal(self, value: float) -> None:
        """Add a number to each entry on the diagonal, in place."""
        for row in self.blocks:
            index = np.arange(len(row[-1]))
            row[-1][index, index] += value

    def matrix(self) -> np.ndarray:
        """The whole symmetric matrix [N, N]; for small ones."""
        whole = np.empty((self.N, self.N))
        for (start, stop), row in zip(self.bounds, self.blocks, strict=True):
            for (left, right), block in zip(self.bounds, row, strict=False):
                whole[start:stop, left:right] = block
        return np.tril(whole) + np.tril(whole, -1).T


def assemble(gram: GramMatrix, N: int) -> LowerTriangle:
    """The leading N rows and columns of a Gram matrix."""
    lower = LowerTriangle(N)
    with Progress(N, "rows of Kxx read") as progress:
        for start, entries in leading_rows(gram, N):
            lower.fill(start, entries[:, : N - start].T)
            progress(len(entries))
    return lower


def largest(n_bytes: float) -> int:
    """The largest N whose blocks fit in so many bytes."""
    N = int(math.sqrt(n_bytes / 4))
    while N > 0 and LowerTriangle.n_bytes(N) > n_bytes:
        N -= max(1, N // 1000)
    return N
