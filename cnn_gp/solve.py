"""
The linear system of Gaussian process regression, in float64: (K + jitter I) alpha = Y.

The Gram matrix is assembled from the stored tiles and factorised in place by LAPACK.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy.linalg import lapack

from .errors import UserError
from .store import RunDirectory

#: Jitters tried where a smaller one fails, relative to the mean of the kernel's diagonal.
JITTER_LADDER = tuple(10.0**k for k in range(-10, -2))


@dataclass
class Solution:
    """The solution of (K + jitter I) alpha = Y and its diagnostics."""

    alpha: np.ndarray
    """[N, n_classes], float64."""
    jitter: float
    """Relative to the mean of the kernel's diagonal."""
    jitter_absolute: float
    log_determinant: float
    """Of K + jitter I."""
    log_marginal_likelihood: float
    """Of all columns of Y, independent given the kernel."""
    times: dict[str, float] = field(default_factory=dict)
    """Seconds for "read", "factorise" and "solve"."""


def targets(labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Class numbers [N] as regression targets [N, n_classes]: 1 for the class, -1 for the others."""
    Y = -np.ones((len(labels), n_classes), order="F")
    Y[np.arange(len(labels)), labels] = 1
    return Y


def read_gram(run: RunDirectory, N: int) -> np.ndarray:
    """The leading N rows and columns of the run's Gram matrix, symmetric, float64 in Fortran's order."""
    try:
        K = np.empty((N, N), np.float64, order="F")
    except MemoryError as error:
        raise UserError(
            f"The Gram matrix of {N} images needs {8 * N * N / 1e9:.1f} GB of memory: give a smaller --N_train, "
            "or take a machine with more."
        ) from error
    for row, entries in run.read_rows("Kxx"):
        if row.start >= N:
            break
        block = entries[: N - row.start, : N - row.first_column]
        stop = row.start + len(block)
        K[row.first_column :, row.start : stop] = block.T
        K[row.start : stop, stop:] = block[:, stop - row.first_column :]
    return K


def solve(
    run: RunDirectory, Y: np.ndarray, jitter: float = 0.0, say: Callable[[str], None] = lambda line: None
) -> Solution:
    """
    Solve for the leading images of a run.

    Where the matrix isn't positive definite in float64, the jitters of :data:`JITTER_LADDER` above ``jitter`` are
    tried in turn.

    :param Y: [N, C] targets of the first N training images.
    :param jitter: added to the diagonal, relative to the kernel's mean variance.
    :param say: called with a line of text for every jitter that fails.
    :raises UserError: where the largest jitter fails too, or the memory doesn't suffice.
    """
    N, n_columns = Y.shape
    start = time.perf_counter()
    K = read_gram(run, N)
    read = time.perf_counter()
    diagonal = np.diagonal(K).copy()
    scale = float(diagonal.mean())
    for attempt in [jitter, *(j for j in JITTER_LADDER if j > jitter)]:
        np.fill_diagonal(K, diagonal + attempt * scale)
        factor, info = lapack.dpotrf(K, lower=1, clean=0, overwrite_a=1)
        if info < 0:
            raise RuntimeError(f"dpotrf refused its argument {-info}")
        if info == 0:
            break
        say(f"The Gram matrix isn't positive definite at relative jitter {attempt:g} (leading {info} of {N} rows).")
        _restore_lower(K)
    else:
        raise UserError(
            f"The Gram matrix of {N} images isn't positive definite even at relative jitter {attempt:g}: look for "
            "wrong pixels, compute the kernels with --float_type=float64, or give a larger --jitter."
        )
    factorised = time.perf_counter()
    alpha, info = lapack.dpotrs(factor, Y, lower=1)
    if info != 0:
        raise RuntimeError(f"dpotrs refused its argument {-info}")
    log_determinant = 2 * float(np.log(np.diagonal(factor)).sum())
    log_likelihood = -0.5 * float(np.vdot(Y, alpha)) - 0.5 * n_columns * (log_determinant + N * math.log(2 * math.pi))
    return Solution(
        alpha=alpha,
        jitter=attempt,
        jitter_absolute=attempt * scale,
        log_determinant=log_determinant,
        log_marginal_likelihood=log_likelihood,
        times={
            "read": read - start,
            "factorise": factorised - read,
            "solve": time.perf_counter() - factorised,
        },
    )


def _restore_lower(K: np.ndarray, block: int = 1000) -> None:
    """Copy the strictly upper triangle, which the factorisation leaves alone, over the lower one."""
    for start in range(0, len(K), block):
        stop = start + block
        square = K[start:stop, start:stop]
        below = np.tril_indices(len(square), -1)
        square[below] = square.T[below]
        K[stop:, start:stop] = K[start:stop, stop:].T
