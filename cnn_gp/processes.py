"""Processes of this host and of others: who is still there."""

import os
import socket
from pathlib import Path


def is_alive(host: str, pid: int) -> bool:
    """Whether a process may still be there: True for those of other hosts, of which nothing is known."""
    return host != socket.gethostname() or started(pid) is not None


def host_id() -> str:
    """This host and its process numbering: containers can share a host's name and count processes on their own."""
    try:
        return f"{socket.gethostname()}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def started(pid: int) -> str | None:
    """When a process of this host began, in the kernel's ticks; None where there is no such process."""
    try:
        # The second field, the program's name, can hold spaces and brackets.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    # No /proc, as on macOS: the process lives, its start isn't known.
    return "unknown" if not Path("/proc/self/stat").exists() else None
