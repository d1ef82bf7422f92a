"""What computed something: versions, the commit, the machine. Recorded and reported, but not part of a fingerprint."""

import functools
import platform
import socket
import subprocess
from importlib import metadata
from pathlib import Path

from ._version import __version__

_PACKAGES = ("tensorflow", "gpflow", "numpy", "scipy", "h5py", "numba")


@functools.cache
def software() -> dict[str, str]:
    """The versions of what computes, this package's commit where it runs from a checkout, and the machine."""
    return {
        # The code's own: what is installed may be older than the checkout that runs.
        "cnn_gp": __version__,
        **{package: _version(package) for package in _PACKAGES},
        "commit": _commit(),
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "machine": platform.machine(),
        "processor": processor(),
    }


def processor() -> str:
    """The processor's name, family, model and vector instructions: on a virtual machine the name alone says little."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        about = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        wide = next(name for name in ("avx512f", "avx2", "avx", "sse2") if name in about["flags"].split())
        return f"{about['model name']}, family {about['cpu family']}, model {about['model']}, {wide}"
    except (OSError, KeyError, StopIteration):
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
