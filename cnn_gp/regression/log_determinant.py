"""
The logarithm of a determinant from products alone: stochastic Lanczos quadrature.

log det A = log det M + tr log(M^-1/2 A M^-1/2), and the trace is N times the mean of v^T log(.) v over random unit
vectors v (Ubaru, Chen, Saad 2017). The better the preconditioner M, the smaller what is left to be estimated (Wenger et
al. 2022, arXiv:2107.00243).
"""

import math
from collections.abc import Callable

import numpy as np
from scipy.linalg import eigh_tridiagonal

from ..progress import Progress
from .pivoted_cholesky import Preconditioner

#: Random vectors, and the largest number of steps with each.
_VECTORS, _STEPS = 16, 200

#: Steps end where the estimate changes by less than this part of its standard error.
_PART = 0.02


def log_determinant(
    times: Callable[[np.ndarray], np.ndarray], preconditioner: Preconditioner, seed: int = 0
) -> tuple[float, float]:
    """
    An estimate of log det A and its standard error; the same for the same seed.

    :param times: A times [N, k]; A is symmetric positive definite.
    """
    N = preconditioner.N
    V = np.random.default_rng(seed).choice([-1.0, 1.0], (N, _VECTORS)) / math.sqrt(N)
    before, beta = np.zeros_like(V), np.zeros(_VECTORS)
    diagonals: list[np.ndarray] = []
    offs: list[np.ndarray] = []
    last = np.full(_VECTORS, np.inf)
    with Progress(_STEPS, "steps to the log determinant at most") as progress:
        for _ in range(min(_STEPS, N)):
            W = preconditioner.inverse_root_times(times(preconditioner.inverse_root_times(V))) - beta * before
            alpha = np.einsum("ij,ij->j", V, W)
            W -= alpha * V
            beta = np.linalg.norm(W, axis=0)
            diagonals.append(alpha)
            values = N * _quadratures(np.array(diagonals), np.array(offs))
            error = float(values.std(ddof=1)) / math.sqrt(_VECTORS)
            # Of a good preconditioner nothing may be left, and then there is rounding only.
            small = _PART * error + 1e-12 * N
            if abs(float(values.mean() - last.mean())) <= small or beta.min() <= 1e-12:
                break
            last = values
            offs.append(beta)
            before, V = V, W / beta
            progress(1)
    return preconditioner.log_determinant + float(values.mean()), error


def _quadratures(diagonals: np.ndarray, offs: np.ndarray) -> np.ndarray:
    """v^T log(A) v of each vector, from its coefficients [steps, vectors] and [steps - 1, vectors]."""
    result = np.empty(diagonals.shape[1])
    for j in range(len(result)):
        if len(offs):
            # Where eigenvalues repeat, as Lanczos' do, the faster drivers (stevd, stemr) may not converge.
            nodes, vectors = eigh_tridiagonal(diagonals[:, j], offs[:, j], lapack_driver="stev")
            weights = vectors[0] ** 2
        else:
            nodes, weights = diagonals[:, j], np.ones(1)
        # A node below 0 is rounding's.
        result[j] = weights @ np.log(np.maximum(nodes, 1e-300))
    return result
