"""
Machine code that is kept on disk, and compiled again when anything that it was made from has changed.

Numba keeps the machine code of a function until the function's own file changes, however much of it comes from other
files. So here a digest of all of the fused engine's sources, and of the processor that Numba compiles for, is part of
the function's name, after which Numba names the files of its cache. The digest is that of the sources when this module
is imported.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core.registry import cpu_target

from ...kernels import polynomials
from .simd import WIDTH


def _digest() -> str:
    """Of everything that the machine code depends on; the whole folder's sources, so that no file is forgotten."""
    digest = hashlib.sha256(
        repr((WIDTH, numba.__version__, cpu_target.target_context.codegen().magic_tuple())).encode()
    )
    for path in [Path(polynomials.__file__), *sorted(Path(__file__).parent.glob("*.py"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


_DIGEST = _digest()


def kept(function: Callable) -> Any:
    """Compile with Numba at the first call, without Python's lock, and keep the machine code on disk."""
    function.__qualname__ += f"_{_DIGEST}"
    return numba.njit(nogil=True, cache=True)(function)


def is_kept(function: Any) -> bool:
    """Whether the machine code of a function that :func:`kept` returned is on disk."""
    folder = Path(function.stats.cache_path)
    return any(folder.glob(f"*.{function.py_func.__qualname__}-*.nbc"))
