"""The memory that the solve takes, here or on a cluster, asked before it is taken."""

import math
from typing import TYPE_CHECKING

from .. import memory
from ..cluster import workers_of
from ..errors import UserError
from .gram_matrix import GramMatrix
from .lower_triangle import LowerTriangle, largest

if TYPE_CHECKING:
    from distributed import Client


def n_bytes(N: int, n_max: int, n_stored: int) -> int:
    """The memory that solving takes: the blocks, and a row of tiles with its copy in float64."""
    return LowerTriangle.n_bytes(N) + 20 * n_max * n_stored


def n_bytes_of_cluster(N: int) -> int:
    """The memory of a cluster that solving takes: each block below the diagonal and, for a while, its transpose."""
    return 2 * LowerTriangle.n_bytes(N)


def memory_of_cluster(client: "Client") -> float:
    """Bytes that its workers may take together; infinite where one of them has no limit."""
    limits = [worker["memory_limit"] for worker in workers_of(client).values()]
    return sum(limits) if all(limits) else math.inf


def has_memory(gram: GramMatrix, N: int, limit: float = math.inf, client: "Client | None" = None) -> bool:
    """Whether this machine, within a limit in bytes, or a cluster has the memory for the leading N images now."""
    if client is not None:
        return n_bytes_of_cluster(N) <= memory_of_cluster(client)
    return n_bytes(N, gram.n_max, gram.N) <= min(limit, memory.available())


def check_memory(gram: GramMatrix, N: int, client: "Client | None" = None) -> int:
    """
    The memory that solving will take, here or in a cluster's workers.

    :raises UserError: where there isn't as much; it says what fits.
    """
    if client is not None:
        needed, there = n_bytes_of_cluster(N), memory_of_cluster(client)
        if needed > there:
            raise UserError(
                f"The Gram matrix of {N:,} images needs {needed / 1e9:.1f} GB of memory and the cluster's "
                f"{len(workers_of(client))} workers have {there / 1e9:.1f} GB: give --solver=cg, --N_train="
                f"{largest(there / 2)} or less, or start more workers."
            )
        return needed
    needed = n_bytes(N, gram.n_max, gram.N)
    fitting = largest(max(0, memory.available() - (needed - LowerTriangle.n_bytes(N))))
    fewer = f"give --N_train={fitting} or less, " if fitting else ""
    memory.check(
        needed,
        f"The Gram matrix of {N:,} images",
        f"{fewer}solve by conjugate gradients (--solver=cg), or take a machine with more, or a cluster (--scheduler)",
    )
    return needed
