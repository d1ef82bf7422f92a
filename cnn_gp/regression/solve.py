"""
The linear system of Gaussian process regression, in float64: (K + (noise + jitter) mean_diagonal I) alpha = Y.

The Gram matrix is assembled in half its memory (:mod:`.lower_triangle`) and factorised there (:mod:`.cholesky`).
Noise and jitter are relative to ``mean_diagonal``, the mean of K(x, x) over the training images. Noise is the model's,
jitter is added for numerical reasons only, where the factorisation fails.
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

from ..errors import UserError
from ..progress import Progress
from .cholesky import Factor, NotPositiveDefinite, factorise, n_steps
from .gram_matrix import GramMatrix, gram_times
from .iterative import Iterative, IterativeFactor
from .lower_triangle import assemble
from .memory_needs import check_memory

if TYPE_CHECKING:
    from distributed import Client

#: Jitters tried where a smaller one fails, relative to the mean diagonal.
JITTER_LADDER = tuple(10.0**k for k in range(-10, -2))

#: Relative residuals above this are refined.
RESIDUAL = 1e-9

_REFINEMENTS = 3

_Solved = TypeVar("_Solved")


@dataclass
class Solution:
    """The solution of (K + (noise + jitter) mean_diagonal I) alpha = Y and its diagnostics."""

    alpha: np.ndarray
    """[N, n_classes], float64."""
    products: np.ndarray
    """[training images stored, n_classes], float64: Kxx[:, :N] alpha, the means at all stored training images."""
    factor: Factor
    """The Cholesky factor of the system's matrix, or what stands in for it where it is solved iteratively."""
    jitter: float
    """Relative to ``mean_diagonal``, as ``noise`` is."""
    noise: float
    mean_diagonal: float
    """Of the kernel, over the N training images."""
    fits: np.ndarray
    """[n_classes], y^T alpha for each column y of Y."""
    relative_residual: float
    """|Y - (K + (noise + jitter) mean_diagonal I) alpha| / |Y| in Frobenius norms, with K as it is stored."""
    refinements: int
    """How often alpha was refined for its residual's sake."""
    extreme_eigenvalues: tuple[float, float]
    """Estimates of the smallest and the largest of the system's matrix; not a number where they weren't found."""
    times: dict[str, float] = field(default_factory=dict)
    """Seconds for "read", "factorise", "solve" and "spectrum"."""

    @property
    def added(self) -> float:
        """What was added to the kernel's diagonal."""
        return (self.noise + self.jitter) * self.mean_diagonal

    @property
    def noise_variance(self) -> float:
        """Of the observations, at the kernel's scale."""
        return self.noise * self.mean_diagonal

    @property
    def log_determinant(self) -> float:
        """Of the system's matrix; without a factor an estimate, which takes many products when it is first needed."""
        return self.factor.log_determinant()

    @property
    def log_marginal_likelihoods(self) -> np.ndarray:
        """[n_classes], of each column of Y (Rasmussen & Williams 2006, equation 2.30); without a factor an estimate."""
        return -0.5 * (self.fits + self.log_determinant + len(self.alpha) * math.log(2 * math.pi))

    @property
    def log_marginal_likelihood_error(self) -> float | None:
        """The standard error of the log marginal likelihood where it is an estimate, else None."""
        if not isinstance(self.factor, IterativeFactor):
            return None
        return 0.5 * len(self.fits) * self.factor.log_determinant_error()

    @property
    def log_marginal_likelihood(self) -> float:
        """Of all columns of Y, independent given the kernel."""
        return float(self.log_marginal_likelihoods.sum())

    @property
    def condition_number(self) -> float:
        """The estimated ratio of the extreme eigenvalues."""
        return self.extreme_eigenvalues[1] / self.extreme_eigenvalues[0]


def targets(labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Class numbers [N] as regression targets [N, n_classes]: 1 for the class, -1 for the others."""
    Y = -np.ones((len(labels), n_classes), order="F")
    Y[np.arange(len(labels)), labels] = 1
    return Y


def solve(
    gram: GramMatrix,
    Y: np.ndarray,
    jitter: float = 0.0,
    noise: float = 0.0,
    say: Callable[[str], None] = lambda line: None,
    client: "Client | None" = None,
    images: Callable[[], np.ndarray] | None = None,
    iterative: Iterative | None = None,
) -> Solution:
    """
    Solve for the leading images of a Gram matrix.

    Where the matrix isn't positive definite in float64, the jitters of :data:`JITTER_LADDER` above ``jitter`` are
    tried in turn. A solution whose residual is above :data:`RESIDUAL` is refined with the same factor.

    :param Y: [N, C] targets of the first N training images.
    :param jitter: added to the diagonal, relative to the kernel's mean diagonal.
    :param noise: the same, of the observations.
    :param say: called with a line of text for every jitter that fails.
    :param client: of a Dask cluster that factorises in its workers' memory in place of this machine's.
    :param images: returns the training images [N or more, D], among which equal ones are looked for after a failure.
    :param iterative: to solve by conjugate gradients in place of a factorisation, here or on its own cluster.
    :raises UserError: where the kernel is 0, the largest jitter fails too, or the memory doesn't suffice.
    """
    N = len(Y)
    mean_diagonal = float(gram.diagonal()[:N].mean(dtype=np.float64))
    if not mean_diagonal > 0:
        raise UserError(
            f"The kernel's mean diagonal over {N} images is {mean_diagonal:g}, to which jitter and noise are relative: "
            "look for images that are 0, or give a bias variance."
        )
    times = dict.fromkeys(("read", "factorise", "solve", "spectrum"), 0.0)
    # Held, so that attempts at several jitters share it.
    prepared = None if iterative is None else iterative.prepared(gram, N, Y.shape[1])

    def solved_at(jitter: float) -> tuple[Factor, _Approximation, int]:
        added = (jitter + noise) * mean_diagonal
        factor: Factor
        if iterative is None or prepared is None:
            factor = _assemble_and_factorise(gram, N, added, times, client)
        else:
            with _timed(times, "factorise"):
                name = f"solve_{N}_{jitter!r}_{noise!r}"
                factor = IterativeFactor(prepared, added, iterative.state, name, say)
        with _timed(times, "solve"):
            stored_times = functools.partial(gram_times, gram) if prepared is None else prepared.products.stored_times
            solved = _solve_refined(stored_times, factor, Y, added, _REFINEMENTS if prepared is None else 0)
        if isinstance(factor, IterativeFactor):
            times["solve"] += factor.seconds_before
        return factor, *solved

    (factor, found, refinements), jitter = _climb_jitter_ladder(solved_at, jitter, N, say, images)
    with _timed(times, "spectrum"):
        extremes = factor.extreme_eigenvalues() if isinstance(factor, IterativeFactor) else extreme_eigenvalues(factor)
    return Solution(
        alpha=found.alpha,
        products=found.products,
        factor=factor,
        jitter=jitter,
        noise=noise,
        mean_diagonal=mean_diagonal,
        fits=np.einsum("nc,nc->c", Y, found.alpha),
        relative_residual=found.error / (float(np.linalg.norm(Y)) or 1.0),
        refinements=refinements,
        extreme_eigenvalues=extremes,
        times=times,
    )


def _assemble_and_factorise(
    gram: GramMatrix, N: int, added: float, times: dict[str, float], client: "Client | None"
) -> Factor:
    """The factor of the leading [N, N] of K plus ``added`` on the diagonal. :raises NotPositiveDefinite:"""
    if client is not None:
        from .dask_cholesky import ClusterFactor

        # The workers read the tiles as they need them.
        with _timed(times, "factorise"):
            return ClusterFactor(client, gram, N, added)
    check_memory(gram, N)
    with _timed(times, "read"):
        lower = assemble(gram, N)
        lower.add_to_diagonal(added)
    with _timed(times, "factorise"), Progress(n_steps(lower), "blocks factorised") as progress:
        return factorise(lower, progress)


def _climb_jitter_ladder(
    solved_at: Callable[[float], _Solved],
    jitter: float,
    N: int,
    say: Callable[[str], None],
    images: Callable[[], np.ndarray] | None,
) -> tuple[_Solved, float]:
    """What is found at the smallest jitter that succeeds, ``jitter`` or one above it; and that jitter."""
    for attempt in [jitter, *(j for j in JITTER_LADDER if j > jitter)]:
        try:
            return solved_at(attempt), attempt
        except NotPositiveDefinite as failure:
            say(
                f"The Gram matrix isn't positive definite at relative jitter {attempt:g} (leading {failure.order} of "
                f"{N} rows)." + ("" if images is None else _describe_duplicates(images, failure.order))
            )
    raise UserError(
        f"The Gram matrix of {N} images isn't positive definite even at relative jitter {attempt:g}: look for "
        "wrong pixels, give a larger --jitter, or compute the kernels in float64 if they are float32 (--float_type)."
    )


@dataclass(frozen=True)
class _Approximation:
    """alpha [N, C], K[:, :N] alpha, and the residual Y - (K + added I) alpha [N, C]."""

    alpha: np.ndarray
    products: np.ndarray
    residual: np.ndarray

    @property
    def error(self) -> float:
        return float(np.linalg.norm(self.residual))


def _solve_refined(
    stored_times: Callable[[np.ndarray], np.ndarray], factor: Factor, Y: np.ndarray, added: float, most: int
) -> tuple[_Approximation, int]:
    """
    The solution of (K + added I) alpha = Y, and how often it was refined, at ``most`` (Higham 2002, chapter 12).

    :param stored_times: :func:`gram_times` of the matrix.
    """

    def approximation(alpha: np.ndarray) -> _Approximation:
        products = stored_times(alpha)
        return _Approximation(alpha, products, Y - products[: len(Y)] - added * alpha)

    found = approximation(factor.solve(Y))
    for refinements in range(most):
        if found.error <= RESIDUAL * np.linalg.norm(Y):
            return found, refinements
        better = approximation(found.alpha + factor.solve(found.residual))
        if better.error >= found.error:
            return found, refinements
        found = better
    return found, most


def extreme_eigenvalues(factor: Factor) -> tuple[float, float]:
    """The smallest and largest eigenvalue of the factorised matrix, to about 1 %, by Lanczos' method."""
    N = factor.N
    if N < 3:
        eigenvalues = np.linalg.eigvalsh(factor.times(np.eye(N)))
        return float(eigenvalues[0]), float(eigenvalues[-1])

    def extreme(product: Callable[[np.ndarray], np.ndarray]) -> float:
        operator = LinearOperator((N, N), lambda v: product(v.reshape(-1, 1)).ravel(), dtype=np.float64)
        start = np.random.default_rng(0).normal(size=N)
        try:
            return float(eigsh(operator, k=1, tol=1e-2, ncv=min(N, 12), v0=start, return_eigenvectors=False)[0])
        except ArpackError:
            return math.nan

    return 1 / extreme(factor.solve), extreme(factor.times)


def _describe_duplicates(images: Callable[[], np.ndarray], order: int) -> str:
    """A sentence that names two equal images among the first ``order``; empty where there are none."""
    try:
        leading = images()[:order]
    except UserError:
        return ""
    first: dict[bytes, int] = {}
    for index, image in enumerate(leading):
        earlier = first.setdefault(image.tobytes(), index)
        if earlier != index:
            return f" Training images {earlier} and {index} are equal: the matrix is singular without noise or jitter."
    return ""


@contextlib.contextmanager
def _timed(times: dict[str, float], name: str) -> Iterator[None]:
    """Adds the seconds that its block takes to ``times[name]``, also where it fails."""
    start = time.perf_counter()
    try:
        yield
    finally:
        times[name] += time.perf_counter() - start
