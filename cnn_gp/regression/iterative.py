"""
The linear system without a factorisation: what is asked of a factor, found by conjugate gradients from stored tiles.

It takes the memory of a preconditioner [N, rank] and of as many tiles as there is room for, and gives as good a
solution as its residual says; what the factorisation has for nothing, the log determinant, is an estimate.
"""

import math
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import memory
from ..errors import UserError
from .conjugate_gradients import Converged, conjugate_gradients
from .gram_matrix import GramMatrix
from .kept import Kept
from .log_determinant import VECTORS, log_determinant
from .memory_needs import memory_of_cluster
from .pivoted_cholesky import BYTES, LowRank, Preconditioner, default_rank, randomly_pivoted_cholesky
from .tile_products import THREADS, Products, TileProducts

if TYPE_CHECKING:
    from distributed import Client

#: The relative residual that is aimed at.
TOLERANCE = 1e-8

#: Right sides of variances and leave-one-out at a time.
AT_A_TIME = 200

#: Of the memory that is available, what is taken where no limit is given.
_SHARE = 0.7

#: Of the memory of a cluster's workers, what is taken for tiles: past 0.6 Dask moves what it holds to the disk.
PINNED = 0.5

#: Arrays of the right sides' shape that conjugate gradients and a product have at a time.
_VECTORS = 20

#: Rows of tiles that are in memory at a time besides those that are kept: one in each thread's hands while it is first
#: read whole, and those that a pass over all stored rows reads ahead.
_ROWS_AT_A_TIME = THREADS + 4

#: Of the memory that isn't needed in any case, what is for right sides besides the classes', where such follow.
_FOR_RIGHT_SIDES = 0.2


@dataclass(frozen=True)
class Plan:
    """What the memory of a solve by conjugate gradients is for."""

    rank: int
    """Of the preconditioner."""
    of_preconditioner: int
    """Bytes that it takes while it is made."""
    room: float
    """Bytes for tiles, here or in the cluster."""
    at_a_time: int
    """Right sides that are solved for at a time."""


@dataclass
class Iterative:
    """How to solve by conjugate gradients; solves of one matrix that follow each other share what they can."""

    memory: int | None = None
    """Bytes for the preconditioner, the vectors and the tiles that are kept; by default most of what is available."""
    kept: Callable[[str], Kept] | None = None
    """Where the state of a solve or of a log determinant is kept, by its name; None: nowhere."""
    client: "Client | None" = None
    """Of a Dask cluster, whose workers keep the tiles in place of this machine and multiply them."""
    many_right_sides: bool = False
    """Whether more right sides than the classes' follow, as for variances: some memory is left for them."""

    def __post_init__(self) -> None:
        self._prepared: weakref.ref[Prepared] | None = None
        self._states: dict[str, Kept] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Files, connections and matrices in memory are this process's.
        return {**vars(self), "kept": None, "client": None, "_prepared": None, "_states": {}}

    def state(self, name: str) -> Kept | None:
        """Where the state of the computation of this name is kept, until :meth:`remove_states`."""
        if self.kept is None:
            return None
        return self._states.setdefault(name, self.kept(name))

    def remove_states(self) -> None:
        """Remove what was kept: all that was computed is written."""
        for kept in self._states.values():
            kept.remove()
        self._states.clear()

    def prepared(self, gram: GramMatrix, N: int, n_columns: int) -> "Prepared":
        """
        Products and preconditioner, shared by solves that differ in noise or jitter alone.

        They are made anew for another matrix or size, or where no solve holds the last ones any longer.
        """
        there = None if self._prepared is None else self._prepared()
        if there is None or there.gram is not gram or (there.N, there.n_columns) != (N, n_columns):
            plan = self.plan(gram, N, n_columns)
            there = Prepared(self._products(gram, N, plan.room), n_columns, plan)
            self._prepared = weakref.ref(there)
        return there

    def plan(self, gram: GramMatrix, N: int, n_columns: int) -> "Plan":
        """
        What the memory is for.

        :raises UserError: where it doesn't suffice even without a preconditioner and tiles that are kept.
        """
        total = int(_SHARE * memory.available()) if self.memory is None else self.memory
        # A cluster's workers read the tiles.
        itemsize = gram.diagonal().dtype.itemsize if self.client is None else 0
        fixed = least_bytes(N, n_columns, gram.n_max, gram.N, itemsize)
        if total < fixed:
            raise UserError(
                f"Conjugate gradients with {N:,} images need {fixed / 1e9:.2f} GB of memory and have "
                f"{total / 1e9:.2f} GB: give a larger --memory."
            )
        at_a_time = max(n_columns, VECTORS)
        if self.many_right_sides:
            more = int(_FOR_RIGHT_SIDES * (total - fixed) / (8 * _VECTORS * N))
            at_a_time = min(at_a_time + more, max(at_a_time, AT_A_TIME))
            fixed = least_bytes(N, at_a_time, gram.n_max, gram.N, itemsize)
        rank = default_rank(N, n_columns, 0.4 * (total - fixed))
        of_preconditioner = BYTES * N * rank
        room = total - fixed - of_preconditioner if self.client is None else PINNED * memory_of_cluster(self.client)
        return Plan(rank, of_preconditioner, room, at_a_time)

    def _products(self, gram: GramMatrix, N: int, room: float) -> Products:
        if self.client is None:
            return TileProducts(gram, N, room)
        from .dask_products import ClusterProducts

        return ClusterProducts(self.client, gram, N, room)


def least_bytes(N: int, n_columns: int, n_max: int, n_stored: int, itemsize: int) -> int:
    """The memory without preconditioner and kept tiles: vectors, and some rows of tiles of so many bytes an entry."""
    return 8 * _VECTORS * N * max(n_columns, VECTORS) + _ROWS_AT_A_TIME * itemsize * n_max * n_stored


class Prepared:
    """
    What all solves for the leading [N, N] of a Gram matrix share, whatever is added to its diagonal.

    :param n_columns: of the right sides.
    :param plan: with the preconditioner's rank, at most.
    """

    def __init__(self, products: Products, n_columns: int, plan: Plan) -> None:
        self.products, self.n_columns, self.plan = products, n_columns, plan
        self.gram, self.N = products.gram, products.N
        self._leading: tuple[int, LowRank] | None = None

    def low_rank(self, n: int, say: Callable[[str], None] = lambda line: None) -> LowRank:
        """An approximation of the leading n rows and columns: the last one is kept."""
        if self._leading is None or self._leading[0] != n:
            self._leading = None
            start = time.perf_counter()
            rank = min(self.plan.rank, default_rank(n, self.n_columns, math.inf))
            trace = float(self.products.diagonal()[:n].sum())
            self._leading = n, LowRank(randomly_pivoted_cholesky(self.products, n, rank), trace)
            say(
                f"Preconditioner of rank {self._leading[1].rank:,} in {time.perf_counter() - start:.0f} s; "
                f"{self.products.share_in_memory:.0%} of the tiles stay in memory."
            )
        return self._leading[1]


class IterativeFactor:
    """
    What a :class:`~cnn_gp.regression.cholesky.Factor` is asked for, without a factor.

    :param added: to the diagonal.
    :param state: where the state of the computation of a name is kept.
    :param name: of the solve, with which the names of its computations begin.
    :param say: called with lines of text on the way.
    """

    def __init__(
        self,
        prepared: Prepared,
        added: float,
        state: Callable[[str], Kept | None],
        name: str,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.N, self._prepared, self._added, self._say = prepared.N, prepared, added, say
        self._state, self._name = state, name
        self.bounds = [(start, min(start + AT_A_TIME, self.N)) for start in range(0, self.N, AT_A_TIME)]
        self._log_determinants: dict[int, tuple[float, float]] = {}
        self.iterations = 0
        """Of the first solve."""
        self.seconds_before = 0.0
        """That the first solve took in programs that were stopped, and went on in this one."""
        self._preconditioned: tuple[LowRank, Preconditioner] | None = None
        self.rank = prepared.low_rank(self.N, say).rank

    def solve(self, B: np.ndarray, n: int | None = None) -> np.ndarray:
        """The matrix's (or its leading n rows' and columns') inverse times B [n, m]."""
        n = self.N if n is None else n
        if len(B) != n:
            raise ValueError(f"The right side has {len(B)} rows; expected {n}.")
        width = self._prepared.plan.at_a_time
        if B.shape[1] > width:
            return np.hstack([self.solve(B[:, left : left + width], n) for left in range(0, B.shape[1], width)])
        is_for_classes = B.shape[1] == self._prepared.n_columns and (n < self.N or self.iterations == 0)
        # Of many right sides the solutions take more memory than is worth keeping.
        kept = self._state(self._name_of(n)) if is_for_classes else None
        found = conjugate_gradients(self.times, self._preconditioner(n), np.array(B, np.float64), TOLERANCE, kept)
        if self.iterations == 0:
            self.iterations, self.seconds_before = found.iterations, found.seconds_before
        if found.is_stagnant:
            self._say(_stagnant(found, n))
        return found.X

    def times(self, B: np.ndarray) -> np.ndarray:
        """The matrix (or its leading n rows and columns) times B [n, m]."""
        return self._prepared.products.times(B) + self._added * B

    def quadratic_forms(self, B: np.ndarray) -> np.ndarray:
        """b^T A^-1 b for each column b of B [N, m]."""
        return np.einsum("ij,ij->j", B, self.solve(B))

    def inverse_diagonal(self, progress: Callable[[int], None] = lambda steps: None) -> np.ndarray:
        """The diagonal of the matrix's inverse, [N], from N right sides."""
        result = np.empty(self.N)
        for left, right in self.bounds:
            identity = np.zeros((self.N, right - left))
            identity[np.arange(left, right), np.arange(right - left)] = 1
            result[left:right] = np.diagonal(self.solve(identity)[left:right])
            progress(1)
        return result

    def log_determinant(self, n: int | None = None) -> float:
        """An estimate, of the matrix's or its leading n rows and columns."""
        return self._estimate(n)[0]

    def log_determinant_error(self, n: int | None = None) -> float:
        """The estimate's standard error."""
        return self._estimate(n)[1]

    def extreme_eigenvalues(self) -> tuple[float, float]:
        """Of the smallest nothing is known; the preconditioner's largest is near the matrix's."""
        return math.nan, self._preconditioner(self.N).largest

    def make_room(self, folder: Path) -> None:
        """Nothing to do here: a solve that follows shares what is in memory."""

    def _estimate(self, n: int | None) -> tuple[float, float]:
        n = self.N if n is None else n
        if n not in self._log_determinants:
            kept = self._state(f"{self._name_of(n)}_log_determinant")
            self._log_determinants[n] = log_determinant(self.times, self._preconditioner(n), kept=kept)
        return self._log_determinants[n]

    def _name_of(self, n: int) -> str:
        """Of what is computed for the leading n rows and columns."""
        return self._name if n == self.N else f"{self._name}_leading_{n}"

    def _preconditioner(self, n: int) -> Preconditioner:
        """Of the leading n rows and columns."""
        if self._preconditioned is not None and n != self._preconditioned[0].N:
            # Before the other one is made: they take the more memory of the two.
            self._preconditioned = None
        low_rank = self._prepared.low_rank(n)
        if self._preconditioned is None or self._preconditioned[0] is not low_rank:
            self._preconditioned = low_rank, Preconditioner(low_rank, self._added)
        return self._preconditioned[1]


def _stagnant(found: Converged, n: int) -> str:
    return (
        f"Conjugate gradients for {n:,} images stopped after {found.iterations:,} iterations at a relative residual of "
        f"{found.relative_residual:.1e}, which no longer falls; expected {TOLERANCE:g}: give a larger --noise, more "
        "--memory for a better preconditioner, or --solver=cholesky."
    )
