"""Reading .npz files, whatever is wrong with them, and writing them."""

import io
import lzma
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping

import numpy as np

from .errors import UserError

#: What NumPy and zipfile raise for a file that is cut short, damaged, something else or not there.
ERRORS = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    # With NotImplementedError.
    RuntimeError,
    # A damaged shape.
    MemoryError,
    OverflowError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    # A damaged header of an array.
    SyntaxError,
    tokenize.TokenError,
)


def read_npz(path: str | os.PathLike, remedy: str) -> dict[str, np.ndarray]:
    """
    All arrays of a file; objects aren't read.

    :param remedy: what to do where it can't be read.
    :raises UserError: where it can't.
    """
    try:
        with open(path, "rb") as content:
            # numpy.load takes other kinds of file too.
            if not zipfile.is_zipfile(content):
                raise ValueError("it isn't a zip archive, or is cut short")
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except ERRORS as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} can't be read as an .npz file ({reason}): {remedy}.") from error


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The content of an .npz file with these arrays."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()
