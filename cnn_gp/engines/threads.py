"""What the engines on the CPU share: how many cores there are, and work dealt to a pool of threads."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def n_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def each(pool: Executor, compute: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Compute all items; after the first error no further one is begun, and that error is raised."""
    futures = [pool.submit(compute, item) for item in items]
    try:
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()
