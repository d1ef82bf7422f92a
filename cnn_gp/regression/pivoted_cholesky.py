"""
Randomly pivoted Cholesky, and the preconditioner that its factor makes.

Chen, Epperly, Tropp, Webber (2022), arXiv:2207.06503: column i of a positive semidefinite matrix is a pivot with a
probability proportional to what is left of its diagonal. In the form of Epperly, Tropp, Webber (2024),
arXiv:2410.03969, a few hundred are proposed at a time, whose columns are read in one pass over the tiles, and accepted
or rejected so that the pivots have the distribution that they have one by one.
"""

import math

import numpy as np
from scipy.linalg import LinAlgError, cholesky, eigh, qr, solve_triangular
from scipy.linalg.blas import dgemm, dsyrk, dtrsm

from ..progress import Progress
from .tile_products import Products

#: Passes over the tiles for all pivots, about; and at most, where few proposals are accepted.
_PASSES, _MOST_PASSES = 10, 40

#: The approximation ends where this share of the trace is left: float32's rounding of the entries is all there is.
_ROUNDING = 1e-9


#: Memory of the factor's [N, rank] numbers while it is made: them in float64, and some columns more.
BYTES = 12


def default_rank(N: int, n_columns: int, limit: float) -> int:
    """
    The rank whose factor takes about as long to make as 50 products of the matrix with the right sides.

    :param limit: bytes that it may take.
    """
    return int(max(0, min(math.sqrt(12.5 * N * n_columns), limit / (BYTES * N), N / 4)))


def randomly_pivoted_cholesky(
    products: Products, n: int, rank: int, seed: int = 0, *, greedy: bool = False
) -> np.ndarray:
    """
    F [n, at most rank], float64, with F F^T near the leading n rows and columns; the same for the same seed.

    The rank is smaller where rounding is all that is left, or many passes haven't found as many pivots.

    :param greedy: pivoted Cholesky in place of it, for comparison: the largest diagonals are proposed, and all accepted
        that are left above half of the largest.
    """
    rng = np.random.default_rng(seed)
    left = products.diagonal()[:n]
    trace = left.sum()
    F = np.zeros((n, rank), order="F")
    done = 0
    at_a_time = max(1, -(-rank // _PASSES))
    with Progress(rank, "columns of the preconditioner") as progress:
        for _ in range(_MOST_PASSES):
            if done == rank or left.sum() <= _ROUNDING * trace:
                break
            b = min(at_a_time, rank - done)
            proposed = np.argsort(-left)[:b] if greedy else rng.choice(n, b, p=left / left.sum())
            proposed, first = np.unique(proposed, return_index=True)
            proposed = proposed[np.argsort(first)]
            columns = products.columns(proposed, n)
            columns = dgemm(-1.0, F[:, :done], F[proposed, :done], trans_b=1, beta=1.0, c=columns, overwrite_c=1)
            accepted, triangle = _accept(columns[proposed], rng, greedy=greedy)
            new = solve_triangular(triangle, columns[:, accepted].T, lower=True).T
            F[:, done : done + len(accepted)] = new
            left = np.maximum(left - np.einsum("ij,ij->i", new, new), 0)
            left[proposed[accepted]] = 0
            done += len(accepted)
            progress(len(accepted))
            if len(accepted) == 0:
                break
    return F[:, :done]


def _accept(H: np.ndarray, rng: np.random.Generator, *, greedy: bool) -> tuple[np.ndarray, np.ndarray]:
    """
    The proposals that are accepted, and the Cholesky factor of their rows and columns of H.

    :param H: [b, b], what is left of the matrix at the proposals, which were drawn by its diagonal.
    """
    H = H.copy()
    drawn_by = np.diag(H).copy()
    threshold = 0.5 * drawn_by.max() if greedy else 0.0
    accepted: list[int] = []
    columns: list[np.ndarray] = []
    for i in range(len(H)):
        now = H[i, i]
        # Below this it is rounding.
        if now <= 1e-6 * drawn_by[i] or now <= threshold or (not greedy and rng.random() * drawn_by[i] >= now):
            continue
        column = H[:, i] / math.sqrt(now)
        H -= np.outer(column, column)
        accepted.append(i)
        columns.append(column)
    chosen = np.array(accepted, int)
    triangle = np.tril(np.array(columns)[:, chosen].T) if accepted else np.zeros((0, 0))
    return chosen, triangle


class LowRank:
    """
    F F^T by its eigenvectors, an approximation of a matrix from below.

    :param F: [N, rank], which is written over.
    :param trace: of the matrix.
    """

    def __init__(self, F: np.ndarray, trace: float) -> None:
        self.N, self.rank = F.shape
        self.trace = trace
        self.left = max(0.0, trace - float(np.einsum("ij,ij->", F, F)))
        """Of the trace, what the approximation leaves."""
        if self.rank == 0:
            self.Q, self.eigenvalues, self.V = F, np.zeros(0), np.zeros((0, 0))
            return
        self.Q, R = _orthonormal(F)
        eigenvalues, self.V = eigh(R @ R.T)
        self.eigenvalues = np.maximum(eigenvalues, 0)
        """[rank], of the eigenvectors Q V."""


def _orthonormal(F: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Q [N, rank] with orthonormal columns, in the place of F where it is Fortran-ordered, and R with F = Q R.

    By Cholesky QR, twice (Yamamoto et al. 2015): with products of matrices alone it is many times as fast as
    Householder's reflections, and as good where the condition number of F is below 1e8.
    """
    R = np.eye(F.shape[1])
    for _ in range(2):
        try:
            factor = cholesky(dsyrk(1.0, F, trans=1), check_finite=False)
        except LinAlgError:
            Q, rest = qr(F, mode="economic", overwrite_a=True, check_finite=False)
            return Q, rest @ R
        F, R = dtrsm(1.0, factor, F, side=1, overwrite_b=1), factor @ R
    return F, R


class Preconditioner:
    """
    M = F F^T + mu I, of which M^-1/2 and the determinant are needed.

    mu is what is added to the diagonal, and the mean of what the approximation leaves of it.

    :param low_rank: F F^T, which any number of preconditioners share: of a matrix [rank, rank] each has its own.
    """

    def __init__(self, low_rank: LowRank, added: float) -> None:
        self.N, self.rank = low_rank.N, low_rank.rank
        self.mu = added + low_rank.left / self.N
        if not self.mu > 0:
            self.mu = 1e-12 * low_rank.trace / self.N
        self._Q, self._eigenvalues, V = low_rank.Q, low_rank.eigenvalues, low_rank.V
        self._inner = (V * (1 / np.sqrt(self._eigenvalues + self.mu) - 1 / math.sqrt(self.mu))) @ V.T

    def inverse_root_times(self, B: np.ndarray) -> np.ndarray:
        """M^-1/2 B, for B [N, m]."""
        if self.rank == 0:
            return B / math.sqrt(self.mu)
        # SciPy's BLAS: NumPy's may be older and slow on a processor that it doesn't know.
        inside = self._inner @ dgemm(1.0, self._Q, B, trans_a=1)
        return dgemm(1.0, self._Q, inside, beta=1.0, c=np.asfortranarray(B / math.sqrt(self.mu)), overwrite_c=1)

    @property
    def log_determinant(self) -> float:
        """The logarithm of the determinant of M."""
        return float(np.log(self._eigenvalues + self.mu).sum()) + (self.N - self.rank) * math.log(self.mu)

    @property
    def largest(self) -> float:
        """The largest eigenvalue of M."""
        return self.mu + float(self._eigenvalues.max(initial=0.0))

    @property
    def signature(self) -> np.ndarray:
        """Numbers that differ in some bits where the preconditioner does."""
        return np.concatenate([[self.mu, self._Q.sum()], self._eigenvalues])
