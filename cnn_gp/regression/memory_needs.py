"""The memory that the solve takes, here or on a cluster, asked before it is taken."""

import math
from typing import TYPE_CHECKING

from .. import memory
from ..errors import UserError
from .gram_matrix import GramMatrix
from .lower_triangle import LowerTriangle, largest

if TYPE_CHECKING:
    from distributed import Client


def n_bytes(N: int, n_max: int, n_stored: int) -> int:
    """The memory that solving takes: the blocks, and a row of tiles with its copy in float64."""
    return LowerTriangle.n_bytes(N) + 20 * n_max * n_stored


def has_memory(gram: GramMatrix, N: int, limit: float = math.inf) -> bool:
    """Whether this machine has the memory for the leading N images now, within a limit in bytes."""
    return n_bytes(N, gram.n_max, gram.N) <= min(limit, memory.available())


def check_memory(gram: GramMatrix, N: int, client: "Client | None" = None) -> int:
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
    needed = n_bytes(N, gram.n_max, gram.N)
    rest = memory.available() - (needed - LowerTriangle.n_bytes(N))
    memory.check(
        needed,
        f"The Gram matrix of {N:,} images",
        f"give --N_train={largest(rest)} or less, or take a machine with more, or a cluster (--scheduler)",
    )
    return needed
