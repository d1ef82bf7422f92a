"""
The linear system of Gaussian process regression, in float64: (K + (noise + jitter) scale I) alpha = Y.

The Gram matrix is assembled from the stored tiles in half its memory and factorised there (:mod:`.cholesky`).
Noise and jitter are relative to ``scale``, the mean of the kernel's diagonal. Noise is the model's, jitter is added for
numerical reasons only, where the factorisation fails.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

from .. import memory
from ..errors import UserError
from ..progress import Progress
from ..store.run_directory import RunDirectory
from .cholesky import Factor, NotPositiveDefinite, factorise, n_steps
from .lower_triangle import LowerTriangle, largest

if TYPE_CHECKING:
    from distributed import Client

#: Jitters tried where a smaller one fails, relative to the mean of the kernel's diagonal.
JITTER_LADDER = tuple(10.0**k for k in range(-10, -2))

#: Relative residuals above this are refined.
RESIDUAL = 1e-9

_REFINEMENTS = 3


@dataclass
class Solution:
    """The solution of (K + (noise + jitter) scale I) alpha = Y and its diagnostics."""

    alpha: np.ndarray
    """[N, n_classes], float64."""
    products: np.ndarray
    """[N_train stored, n_classes], float64: Kxx[:, :N] alpha, the means at all stored training images."""
    factor: Factor
    """The Cholesky factor of the system's matrix."""
    jitter: float
    """Relative to ``scale``, as ``noise`` is."""
    noise: float
    scale: float
    """The mean of the kernel's diagonal."""
    log_marginal_likelihoods: np.ndarray
    """[n_classes], of each column of Y."""
    relative_residual: float
    """|Y - (K + (noise + jitter) scale I) alpha| / |Y| in Frobenius norms, with K as it is stored."""
    refinements: int
    """How often alpha was refined for its residual's sake."""
    extreme_eigenvalues: tuple[float, float]
    """Estimates of the smallest and the largest of the system's matrix; not a number where they weren't found."""
    times: dict[str, float] = field(default_factory=dict)
    """Seconds for "read", "factorise", "solve" and "spectrum"."""

    @property
    def added(self) -> float:
        """What was added to the kernel's diagonal."""
        return (self.noise + self.jitter) * self.scale

    @property
    def log_determinant(self) -> float:
        """Of the system's matrix."""
        return self.factor.log_determinant()

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


def n_bytes(N: int, n_max: int, n_stored: int) -> int:
    """The memory that solving takes: the blocks, and a row of tiles with its copy in float64."""
    return LowerTriangle.n_bytes(N) + 20 * n_max * n_stored


def has_memory(run: RunDirectory, N: int) -> bool:
    """Whether this machine has the memory for the leading N images now."""
    description = run.description()
    return n_bytes(N, description.n_max, description.N_train) <= memory.available()


def check_memory(run: RunDirectory, N: int, client: "Client | None" = None) -> int:
    """
    The memory that solving will take, here or in a cluster's workers.

    :raises UserError: where there isn't as much; it says what fits.
    """
    if client is not None:
        # Each block below the diagonal and, for a while, its transpose.
        needed = 2 * LowerTriangle.n_bytes(N)
        limits = [worker["memory_limit"] for worker in client.scheduler_info(n_workers=-1)["workers"].values()]
        if all(limits) and needed > sum(limits):
            raise UserError(
                f"The Gram matrix of {N:,} images needs {needed / 1e9:.1f} GB of memory and the cluster's "
                f"{len(limits)} workers have {sum(limits) / 1e9:.1f} GB: give --N_train={largest(sum(limits) / 2)} or "
                "less, or start more workers."
            )
        return needed
    description = run.description()
    needed = n_bytes(N, description.n_max, description.N_train)
    rest = memory.available() - (needed - LowerTriangle.n_bytes(N))
    memory.check(
        needed,
        f"The Gram matrix of {N:,} images",
        f"give --N_train={largest(rest)} or less, or take a machine with more, or a cluster (--scheduler)",
    )
    return needed


def read_lower(run: RunDirectory, N: int) -> LowerTriangle:
    """The leading N rows and columns of the run's Gram matrix, float64."""
    lower = LowerTriangle(N)
    rows = [row for row in run.description().tiling.rows("Kxx") if row.start < N]
    with Progress(len(rows), "rows of tiles read") as progress:
        for row, entries in run.read_rows("Kxx"):
            if row.start >= N:
                break
            lower.fill(row.start, entries[: N - row.start, : N - row.first_column].T)
            progress(1)
    return lower


def solve(
    run: RunDirectory,
    Y: np.ndarray,
    jitter: float = 0.0,
    noise: float = 0.0,
    say: Callable[[str], None] = lambda line: None,
    client: "Client | None" = None,
) -> Solution:
    """
    Solve for the leading images of a run.

    Where the matrix isn't positive definite in float64, the jitters of :data:`JITTER_LADDER` above ``jitter`` are
    tried in turn. A solution whose residual is above :data:`RESIDUAL` is refined with the same factor.

    :param Y: [N, C] targets of the first N training images.
    :param jitter: added to the diagonal, relative to the kernel's mean variance.
    :param noise: the same, of the observations.
    :param say: called with a line of text for every jitter that fails.
    :param client: of a Dask cluster that factorises in its workers' memory in place of this machine's.
    :raises UserError: where the largest jitter fails too, or the memory doesn't suffice.
    """
    N, _ = Y.shape
    scale = float(run.read_diagonal("Kxx")[:N].mean(dtype=np.float64))
    times = dict.fromkeys(("read", "factorise", "solve", "spectrum"), 0.0)
    for attempt in [jitter, *(j for j in JITTER_LADDER if j > jitter)]:
        try:
            factor = _factor(run, N, (attempt + noise) * scale, times, client)
            break
        except NotPositiveDefinite as failure:
            say(
                f"The Gram matrix isn't positive definite at relative jitter {attempt:g} (leading {failure.order} of "
                f"{N} rows)." + _said_of_duplicates(run, failure.order)
            )
    else:
        raise UserError(
            f"The Gram matrix of {N} images isn't positive definite even at relative jitter {attempt:g}: look for "
            "wrong pixels, compute the kernels with --float_type=float64, or give a larger --jitter."
        )
    with _timed(times, "solve"):
        alpha = factor.solve(Y)
        added = (attempt + noise) * scale
        products = gram_times(run, alpha)
        residual = Y - products[:N] - added * alpha
        refinements = 0
        while np.linalg.norm(residual) > RESIDUAL * np.linalg.norm(Y) and refinements < _REFINEMENTS:
            better = alpha + factor.solve(residual)
            better_products = gram_times(run, better)
            new = Y - better_products[:N] - added * better
            if np.linalg.norm(new) >= np.linalg.norm(residual):
                break
            alpha, products, residual, refinements = better, better_products, new, refinements + 1
        fits = np.einsum("nc,nc->c", Y, alpha)
    with _timed(times, "spectrum"):
        extremes = extreme_eigenvalues(factor)
    return Solution(
        alpha=alpha,
        products=products,
        factor=factor,
        jitter=attempt,
        noise=noise,
        scale=scale,
        log_marginal_likelihoods=-0.5 * (fits + factor.log_determinant() + N * math.log(2 * math.pi)),
        relative_residual=float(np.linalg.norm(residual) / np.linalg.norm(Y)),
        refinements=refinements,
        extreme_eigenvalues=extremes,
        times=times,
    )


def _factor(run: RunDirectory, N: int, added: float, times: dict[str, float], client: "Client | None") -> Factor:
    """The factor of the leading [N, N] of Kxx plus ``added`` on the diagonal. :raises NotPositiveDefinite:"""
    if client is not None:
        from .dask_cholesky import ClusterFactor

        # The workers read the tiles as they need them.
        with _timed(times, "factorise"):
            return ClusterFactor(client, run, N, added)
    check_memory(run, N)
    with _timed(times, "read"):
        lower = read_lower(run, N)
        lower.add_to_diagonal(added)
    with _timed(times, "factorise"), Progress(n_steps(lower), "blocks factorised") as progress:
        return factorise(lower, progress)


def gram_times(run: RunDirectory, alpha: np.ndarray) -> np.ndarray:
    """Kxx[:, :N] alpha for all stored training images, from the upper triangle of blocks; alpha [N, C]."""
    N = len(alpha)
    product = np.zeros((run.description().N_train, alpha.shape[1]))
    with Progress(N, "rows of Kxx multiplied") as progress:
        for row, entries in run.read_rows("Kxx"):
            if row.start >= N:
                break
            block = entries[: N - row.start].astype(np.float64)
            stop = row.start + len(block)
            product[row.start : stop] += block[:, : N - row.first_column] @ alpha[row.first_column :]
            product[stop:] += block[:, stop - row.first_column :].T @ alpha[row.start : stop]
            progress(len(block))
    return product


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


def _said_of_duplicates(run: RunDirectory, order: int) -> str:
    """A sentence that names equal training images, of which the last is the one at which it failed or before."""
    try:
        images = run.images()["X"][:order]
    except UserError:
        return ""
    first: dict[bytes, int] = {}
    for index, image in enumerate(images):
        earlier = first.setdefault(image.tobytes(), index)
        if earlier != index:
            return f" Training images {earlier} and {index} are equal: without noise or jitter it can't be."
    return ""


class _timed:
    """Adds the seconds that its block took."""

    def __init__(self, times: dict[str, float], name: str) -> None:
        self._times, self._name = times, name

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self._times[self._name] += time.perf_counter() - self._start
