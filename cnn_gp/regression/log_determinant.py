"""
The logarithm of a determinant from products alone: stochastic Lanczos quadrature.

log det A = log det M + tr log(M^-1/2 A M^-1/2), and the trace is N times the mean of v^T log(.) v over random unit
vectors v (Ubaru, Chen, Saad 2017). The better the preconditioner M, the smaller what is left to be estimated (Wenger et
al. 2022, arXiv:2107.00243).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh_tridiagonal

from ..progress import Progress
from .kept import Kept, keeping
from .pivoted_cholesky import Preconditioner

#: Random vectors, and the largest number of steps with each.
VECTORS, _STEPS = 16, 200

#: Steps end where the estimate changes by less than this part of its standard error.
_PART = 0.02


def log_determinant(
    times: Callable[[np.ndarray], np.ndarray],
    preconditioner: Preconditioner,
    seed: int = 0,
    kept: Kept | None = None,
) -> tuple[float, float]:
    """
    An estimate of log det A and its standard error; the same for the same seed.

    :param times: A times [N, k]; A is symmetric positive definite.
    :param kept: the state goes there every few minutes, at the end and where the program is stopped, and is taken up
        from there where the preconditioner is the same to the bit.
    """
    N = preconditioner.N
    state = _first_state(preconditioner, seed, kept)
    with (
        keeping(kept, lambda: {**vars(state), "signature": preconditioner.signature}) as keep,
        Progress(_STEPS, "steps to the log determinant at most", len(state.diagonals)) as progress,
    ):
        while not state.is_done:
            W = preconditioner.inverse_root_times(times(preconditioner.inverse_root_times(state.V)))
            W -= state.beta * state.before
            alpha = np.einsum("ij,ij->j", state.V, W)
            W -= alpha * state.V
            beta = np.linalg.norm(W, axis=0)
            diagonals = np.vstack([state.diagonals, alpha])
            values = N * _quadratures(diagonals, state.offs)
            # Of a good preconditioner nothing may be left, and then there is rounding only.
            small = _PART * _standard_error(values) + 1e-12 * N
            is_done = abs(float(values.mean() - state.values.mean())) <= small or beta.min() <= 1e-12
            state = _State(
                V=W / np.maximum(beta, 1e-300),
                before=state.V,
                beta=beta,
                diagonals=diagonals,
                offs=np.vstack([state.offs, beta]),
                values=values,
                is_done=np.array(is_done or len(diagonals) == min(_STEPS, N)),
            )
            progress(1)
            keep()
    return preconditioner.log_determinant + float(state.values.mean()), _standard_error(state.values)


@dataclass(frozen=True)
class _State:
    V: np.ndarray
    """[N, vectors], those of the next step."""
    before: np.ndarray
    """[N, vectors], those of the last one."""
    beta: np.ndarray
    """[vectors]"""
    diagonals: np.ndarray
    """[steps, vectors], of Lanczos' tridiagonal matrices."""
    offs: np.ndarray
    """[steps, vectors], beside their diagonals; the last is for the next step."""
    values: np.ndarray
    """[vectors], each one's estimate of the trace."""
    is_done: np.ndarray
    """Whether they no longer change."""


def _first_state(preconditioner: Preconditioner, seed: int, kept: Kept | None) -> _State:
    there = None if kept is None else kept.load()
    if there is not None and np.array_equal(there.pop("signature"), preconditioner.signature):
        return _State(**there)
    N = preconditioner.N
    V = np.random.default_rng(seed).choice([-1.0, 1.0], (N, VECTORS)) / math.sqrt(N)
    nothing, none_yet = np.zeros((0, VECTORS)), np.full(VECTORS, np.inf)
    return _State(V, np.zeros_like(V), np.zeros(VECTORS), nothing, nothing, none_yet, np.array(False))


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) / math.sqrt(VECTORS)


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
