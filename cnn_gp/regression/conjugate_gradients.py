"""
Block conjugate gradients: A X = B for all columns of B at once, with A known by its products alone.

In the form of Dubrulle (2001), "Retooling the method of block conjugate gradients" (BCG-rQ): the residuals' columns are
kept orthonormal, so that columns that converge early, or depend on each other, do no harm. With a preconditioner M it
is applied to M^-1/2 A M^-1/2; the residual that counts is that of A.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve, qr

from ..progress import Progress
from .cholesky import NotPositiveDefinite
from .kept import Kept, keeping
from .pivoted_cholesky import Preconditioner

#: Iterations in which the residual has to fall by a tenth.
PATIENCE = 300


@dataclass(frozen=True)
class Converged:
    """The solution that :func:`conjugate_gradients` ended with, converged or stagnant."""

    X: np.ndarray
    """[N, m]"""
    relative_residual: float
    """|B - A X| / |B| in Frobenius norms, by a product at the end, not by the recursion."""
    iterations: int
    is_stagnant: bool
    """Whether it ended before the residual was as small as was asked for, because it no longer fell."""
    seconds_before: float
    """That earlier programs spent on this solve, whose state was gone on with here."""


@dataclass(frozen=True)
class _State:
    X: np.ndarray
    R: np.ndarray
    """B - A X by the recursion, [N, m]."""
    Q: np.ndarray
    """[N, k], orthonormal: M^-1/2 R is Q Phi."""
    S: np.ndarray
    """[N, k], the directions of the next step."""
    Phi: np.ndarray
    """[k, m]"""
    iterations: np.ndarray
    best: np.ndarray
    """The smallest relative residual so far, and the iteration in which it was last a tenth smaller."""
    true: np.ndarray
    """The relative residuals that were found by products, when the recursion was begun anew."""


def conjugate_gradients(
    times: Callable[[np.ndarray], np.ndarray],
    preconditioner: Preconditioner,
    B: np.ndarray,
    tolerance: float,
    kept: Kept | None = None,
    max_iterations: int = 100_000,
) -> Converged:
    """
    Solve until the relative residual is at most ``tolerance``, or no longer falls.

    :param times: A times [N, k]; A is symmetric positive definite.
    :param B: [N, m], float64.
    :param kept: the state goes there every few minutes, at the end and where the program is stopped, and is taken up
        from there, to the same bits where the preconditioner is the same to the bit.
    :param max_iterations: after which it ends, stagnant.
    :raises NotPositiveDefinite: where A isn't.
    """
    norm = float(np.linalg.norm(B)) or 1.0
    start = time.perf_counter()
    state, seconds_before = _first_state(times, preconditioner, B, kept)

    def arrays() -> dict[str, np.ndarray]:
        seconds = np.array(seconds_before + time.perf_counter() - start)
        return {**vars(state), "signature": _signature(preconditioner, B), "seconds": seconds}

    with keeping(kept, arrays) as keep, Progress(max_iterations, "iterations", int(state.iterations)) as progress:
        while True:
            residual, iterations = float(np.linalg.norm(state.R)) / norm, int(state.iterations)
            if residual < 0.9 * state.best[0]:
                state = replace(state, best=np.array([residual, iterations]))
            is_stagnant = iterations - state.best[1] > PATIENCE or iterations >= max_iterations
            if residual <= tolerance or is_stagnant:
                R = B - times(state.X)
                true = float(np.linalg.norm(R)) / norm
                # Where the recursion has drifted from the truth it begins anew, as long as that helps.
                helps = not len(state.true) or true < 0.5 * state.true[-1]
                if true <= tolerance or is_stagnant or not helps:
                    break
                state = _begin(preconditioner, state.X, R, iterations, np.append(state.true, true))
                continue
            state = _step(state, times, preconditioner)
            progress.total = _expected_iterations(iterations + 1, residual, tolerance)
            progress(1, f"residual {residual:.1e}")
            keep()
    return Converged(state.X, true, iterations, not true <= tolerance, seconds_before)


def _first_state(
    times: Callable[[np.ndarray], np.ndarray], preconditioner: Preconditioner, B: np.ndarray, kept: Kept | None
) -> tuple[_State, float]:
    """The state, and the seconds that it took before."""
    arrays = None if kept is None else kept.load()
    if arrays is None or arrays["X"].shape != B.shape:
        return _begin(preconditioner, np.zeros_like(B), B, 0, np.zeros(0)), 0.0
    signature, seconds = arrays.pop("signature"), float(arrays.pop("seconds", 0.0))
    if np.array_equal(signature, _signature(preconditioner, B)):
        return _State(**arrays), seconds
    # Another machine's rounding made another preconditioner, or B is another: the solution so far is the start.
    X = arrays["X"]
    return _begin(preconditioner, X, B - times(X), int(arrays["iterations"]), np.zeros(0)), seconds


def _signature(preconditioner: Preconditioner, B: np.ndarray) -> np.ndarray:
    """Numbers that differ where the system's solution isn't found by the same steps."""
    digest = np.frombuffer(hashlib.sha256(B.tobytes()).digest(), "<u4")
    return np.append(preconditioner.signature, digest)


def _begin(preconditioner: Preconditioner, X: np.ndarray, R: np.ndarray, iterations: int, true: np.ndarray) -> _State:
    """The state before the first step from X, with the residual R."""
    Q, Phi = _orthonormal(preconditioner.inverse_root_times(R))
    return _State(X, R, Q, Q, Phi, np.array(iterations), np.array([np.inf, iterations]), true)


def _step(state: _State, times: Callable[[np.ndarray], np.ndarray], preconditioner: Preconditioner) -> _State:
    """The state after a further iteration."""
    directions = preconditioner.inverse_root_times(state.S)
    products = times(directions)
    T = preconditioner.inverse_root_times(products)
    G = state.S.T @ T
    try:
        factor = cho_factor((G + G.T) / 2, lower=True)
    except LinAlgError as error:
        raise NotPositiveDefinite(len(state.X)) from error
    step = cho_solve(factor, state.Phi)
    Q, zeta = _orthonormal(state.Q - cho_solve(factor, T.T).T)
    return replace(
        state,
        X=state.X + directions @ step,
        R=state.R - products @ step,
        Q=Q,
        S=Q + state.S @ zeta.T,
        Phi=zeta @ state.Phi,
        iterations=state.iterations + 1,
    )


def _orthonormal(V: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Q and R of V = Q R, also where the columns of V depend on each other."""
    Q, R = qr(V, mode="economic", check_finite=False)
    return Q, R


def _expected_iterations(iterations: int, residual: float, tolerance: float) -> int:
    """In all, were the residual to go on falling at the mean rate so far."""
    done = np.log(max(residual, 1e-300)) / np.log(tolerance)
    return iterations + (int(iterations * (1 / done - 1)) if 0.01 < done < 1 else iterations)
