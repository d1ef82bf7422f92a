"""Processes of this host: which are still there."""

import math
import socket
from pathlib import Path

import psutil


def host_id() -> str:
    """This host and its process numbering: containers can share a host's name and count processes on their own."""
    try:
        return f"{socket.gethostname()}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def started(pid: int) -> float | None:
    """
    When a process of this host began, in seconds since the system's start; None where there is none, or a zombie.

    NaN where the system doesn't tell: of other users' processes, where /proc is mounted so.
    """
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        # Not since the epoch: that changes where the system's clock is set.
        return process.create_time() - psutil.boot_time()
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        # ValueError, OverflowError: the number can't be a process's.
        return None
    except psutil.AccessDenied:
        return math.nan


def is_same_process(pid: int, since: object) -> bool:
    """Whether the process of this host that :func:`started` at some time is still there, or may be."""
    now = started(pid)
    # The system's start is rounded, and may be set between two looks at it; no number is used again so soon.
    return now is not None and isinstance(since, int | float) and (math.isnan(now) or abs(now - since) < 2.5)
