"""How much memory there is, asked before it is taken."""

import contextlib
from pathlib import Path

from .errors import UserError


def available() -> int:
    """Bytes that this process can still take without swapping: the machine's, or its control group's if less."""
    free = [_meminfo()]
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        cache = sum(
            int(line.split()[1])
            for line in (group / "memory.stat").read_text().splitlines()
            if line.startswith(("inactive_file ", "active_file "))
        )
        free.append(int(limit) - int(used) + cache)
    return max(0, min(free))


def _meminfo() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        # Not Linux: the system must refuse by itself.
        return 2**62


def check(n_bytes: int, what: str, remedy: str) -> None:
    """:raises UserError: where so many bytes aren't available."""
    there = available()
    if n_bytes > there:
        raise UserError(
            f"{what} needs {n_bytes / 1e9:.1f} GB of memory and {there / 1e9:.1f} GB are available: {remedy}."
        )
