"""How much memory there is, asked before it is taken."""

import contextlib
from pathlib import Path

import psutil

from .errors import UserError

#: The control groups (version 2), which limit a container or a batch job; psutil knows the whole machine only.
_CONTROL_GROUPS = Path("/sys/fs/cgroup")

#: Has a line "0::/PATH" with this process's own; a container may see it as the root "/".
_OWN_GROUP = Path("/proc/self/cgroup")


def available() -> int:
    """Bytes that this process can still take without swapping: the machine's, or those of a control group if fewer."""
    free = [psutil.virtual_memory().available]
    for group in _control_groups():
        # There is no such group, or it is without a limit ("max").
        with contextlib.suppress(OSError, ValueError):
            free.append(_left_in(group))
    return max(0, min(free))


def _control_groups() -> list[Path]:
    """The folders of all control groups that this process is in, from the root on: each limits those below it."""
    with contextlib.suppress(OSError):
        for line in _OWN_GROUP.read_text().splitlines():
            if line.startswith("0::/"):
                names = [name for name in line[4:].split("/") if name not in ("", "..")]
                return [_CONTROL_GROUPS.joinpath(*names[:n]) for n in range(len(names) + 1)]
    return [_CONTROL_GROUPS]


def _left_in(group: Path) -> int:
    """Bytes below a control group's limit; the cache of files gives way. :raises ValueError: where it has no limit."""
    limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
    cache = sum(
        int(line.split()[1])
        for line in (group / "memory.stat").read_text().splitlines()
        if line.startswith(("inactive_file ", "active_file "))
    )
    return limit - used + cache


def check(n_bytes: int, what: str, remedy: str) -> None:
    """:raises UserError: where so many bytes aren't available."""
    there = available()
    if n_bytes > there:
        raise UserError(
            f"{what} needs {n_bytes / 1e9:.1f} GB of memory and {there / 1e9:.1f} GB are available: {remedy}."
        )
