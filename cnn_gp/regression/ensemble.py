"""
The variance of an ensemble of infinitely wide networks, each trained by gradient descent to convergence.

With T the neural tangent kernel of the network and K the kernel of its Gaussian process (Lee et al. 2019,
arXiv:1902.06720, equation 16 at t -> infinity), at a test image t and for training images x,

    K_tt - 2 T_tx A^-1 K_xt + T_tx A^-1 K_xx A^-1 T_xt

where A is the system's matrix, T_xx plus noise and jitter, whose factor the solution holds.
"""

from collections.abc import Iterator

import numpy as np

from .. import memory
from ..progress import Progress
from .gram_matrix import GramMatrix, KernelMatrix, leading_rows
from .lower_triangle import LowerTriangle
from .predict import GATHERED
from .solve import Solution


def ensemble_variances(
    T: KernelMatrix, K: KernelMatrix, K_train: GramMatrix, solution: Solution, n_rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """
    The variances [n_rows] at the images of the first rows of two matrices, the same for every class; and those of the
    Gaussian process with the neural tangent kernel for its covariance, T_tt - T_tx A^-1 T_xt, from the same weights.

    The weights A^-1 T_xt of as many images as memory allows are kept at a time; for each such group K_train is read
    once.

    :param T: the neural tangent kernel between these images and the training images; its rows are read in order.
    :param K: the Gaussian process's kernel between the same images.
    :param K_train: the same kernel of the training images.
    :param solution: of the neural tangent kernel, for the first N training images.
    """
    N = len(solution.alpha)
    variances = K.diagonal()[:n_rows].astype(np.float64)
    of_process = T.diagonal()[:n_rows].astype(np.float64)
    at_a_time = images_at_a_time(N, K_train.n_max)
    with Progress(n_rows, "variances of the ensemble") as progress:
        for first in range(0, n_rows, at_a_time):
            last = min(first + at_a_time, n_rows)
            weights = np.empty((N, last - first), order="F")
            for start, rows in _rows_between(T, first, last, N):
                columns = solution.factor.solve(rows.T)
                weights[:, start - first : start - first + len(rows)] = columns
                of_process[start : start + len(rows)] -= np.einsum("ij,ji->i", rows, columns)
                progress(len(rows))
            for start, rows in _rows_between(K, first, last, N):
                columns = weights[:, start - first : start - first + len(rows)]
                variances[start : start + len(rows)] -= 2 * np.einsum("ij,ji->i", rows, columns)
            variances[first:last] += quadratic_forms(K_train, weights)
    # At a training image, without noise, the variance is 0 up to rounding.
    return np.maximum(variances, 0), np.maximum(of_process, 0)


def n_operations(N: int, n_images: int) -> float:
    """Floating-point operations of :func:`ensemble_variances`: two triangular systems and half a matrix product."""
    return 3.0 * float(N) ** 2 * n_images


def check_memory(gram: GramMatrix, N: int, *, has_factor: bool) -> None:
    """
    :param gram: of the training images.
    :param has_factor: whether a Cholesky factor is in this machine's memory.
    :raises UserError: where the memory for the variances, and the factor beside them, isn't available.
    """
    factor = LowerTriangle.n_bytes(N) if has_factor else 0
    memory.check(
        factor + _n_bytes(N, gram.n_max, gram.n_max) + 20 * gram.n_max * gram.N,
        f"The ensemble's variance with {N:,} training images",
        "leave --ensemble out, or give a smaller --N_train",
    )


def images_at_a_time(N: int, n_max: int) -> int:
    """How many images' weights half of the memory that is available holds: at least as many as a row of tiles has."""
    fixed = _n_bytes(N, n_max, 0)
    return max(n_max, int(memory.available() / 2 - fixed) // (_n_bytes(N, n_max, 1) - fixed))


def quadratic_forms(gram: GramMatrix, B: np.ndarray) -> np.ndarray:
    """b^T K b for each column b of B [N, m], with the leading [N, N] of K, of which the upper triangle is read."""
    N = len(B)
    result = np.zeros(B.shape[1])
    for start, entries in leading_rows(gram, N):
        rows = entries[:, : N - start].astype(np.float64)
        n = len(rows)
        own = B[start : start + n]
        # The entries right of the square on the diagonal stand for those below it too.
        products = rows[:, :n] @ own + 2 * (rows[:, n:] @ B[start + n :])
        result += np.einsum("ij,ij->j", own, products)
    return result


def _n_bytes(N: int, n_max: int, n_images: int) -> int:
    """The memory for the weights of so many images: with the copies of a row of tiles that solving makes."""
    return 8 * N * n_images + 8 * n_max * n_images + 5 * 8 * N * max(n_max, GATHERED)


def _rows_between(kernel: KernelMatrix, first: int, last: int, N: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, rows [b, N] in float64) of the rows ``first`` to ``last``."""
    for start, entries in leading_rows(kernel, last):
        skipped = max(0, first - start)
        if skipped < len(entries):
            yield start + skipped, entries[skipped:, :N].astype(np.float64)
