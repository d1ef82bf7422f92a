"""What computed something: versions, the commit, the machine. Recorded and reported, but not part of a fingerprint."""

import functools
import platform
import socket
import subprocess
from importlib import metadata
from pathlib import Path

_PACKAGES = ("cnn_gp", "tensorflow", "gpflow", "numpy", "scipy", "h5py", "numba")


@functools.cache
def software() -> dict[str, str]:
    """The versions of what computes, this package's commit where it runs from a checkout, and the machine."""
    return {
        **{package: _version(package) for package in _PACKAGES},
        "commit": _commit(),
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "machine": platform.machine(),
        "processor": processor(),
    }


def processor() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """The checkout's commit, with "-dirty" where files differ from it; "unknown" outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        # Installed, or an archive: the repository around it, if there is one, is another's.
        return "unknown"
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return described.stdout.strip()
