"""How much memory there is, asked before it is taken."""

import contextlib
from pathlib import Path

import psutil

from .errors import UserError

#: Of this process in a container or a batch job; psutil knows the whole machine only.
_CONTROL_GROUP = Path("/sys/fs/cgroup")


def available() -> int:
    """Bytes that this process can still take without swapping: the machine's, or its control group's if less."""
    free = [psutil.virtual_memory().available]
    # There is no control group, or it is without a limit ("max").
    with contextlib.suppress(OSError, ValueError):
        limit, used = (int((_CONTROL_GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        cache = sum(
            int(line.split()[1])
            for line in (_CONTROL_GROUP / "memory.stat").read_text().splitlines()
            if line.startswith(("inactive_file ", "active_file "))
        )
        free.append(limit - used + cache)
    return max(0, min(free))


def check(n_bytes: int, what: str, remedy: str) -> None:
    """:raises UserError: where so many bytes aren't available."""
    there = available()
    if n_bytes > there:
        raise UserError(
            f"{what} needs {n_bytes / 1e9:.1f} GB of memory and {there / 1e9:.1f} GB are available: {remedy}."
        )
