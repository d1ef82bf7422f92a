"""All eigenvalues of a Gram matrix: unlike the factorisation it takes a whole matrix, and four times as long."""

import math

import numpy as np
from scipy.linalg import eigvalsh

from .. import memory
from .gram_matrix import GramMatrix, leading_rows


def n_bytes(N: int) -> int:
    """The memory that the eigenvalues take: a matrix in float64."""
    # And LAPACK's work space, some vectors.
    return 8 * N**2 + 1000 * N


def check_memory(N: int) -> None:
    """:raises UserError: where the memory for N images isn't available; it says how many fit."""
    fitting = int(math.sqrt(max(0, memory.available()) / 8)) - 100
    memory.check(
        n_bytes(N),
        f"The spectrum of {N:,} images",
        f"leave --spectrum out, or give --N_train={max(1, fitting)} or less",
    )


def eigenvalues(gram: GramMatrix, N: int) -> np.ndarray:
    """
    All eigenvalues [N] of the leading [N, N] of a Gram matrix, float64, the smallest first; nothing is added to the
    diagonal.

    :raises UserError: where the memory isn't available.
    """
    check_memory(N)
    # Fortran's order, so that LAPACK works in place. Of the matrix the upper triangle is read.
    K = np.zeros((N, N), order="F")
    for start, entries in leading_rows(gram, N):
        K[start : start + len(entries), start:] = entries[:, : N - start]
    return eigvalsh(K, lower=False, overwrite_a=True, check_finite=False)
