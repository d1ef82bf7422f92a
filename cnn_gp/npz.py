"""Reading .npz files, whatever is wrong with them, and writing them."""

import io
import lzma
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Mapping

import numpy as np

from . import memory
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


def read_npz(path: str | os.PathLike, remedy: str, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """
    The arrays of a file; one that holds Python objects is refused.

    :param remedy: what to do where it can't be read.
    :param names: of the arrays that are wanted; those that aren't there are left out. By default all.
    :raises UserError: where it can't be read, or needs more memory than there is.
    """
    try:
        with open(path, "rb") as content:
            # numpy.load takes other kinds of file too.
            if content.read(6) == b"\x93NUMPY":
                raise ValueError("it is one array without a name, as numpy.save writes it")
            if not zipfile.is_zipfile(content):
                raise ValueError("it isn't a zip archive, or is cut short")
            with zipfile.ZipFile(content) as archive:
                members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
                wanted = [name for name in members if names is None or name in names]
                return {name: _array(archive, members[name]) for name in wanted}
    except ERRORS as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} can't be read as an .npz file ({reason}): {remedy}.") from error


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """An array of an archive. :raises ValueError: before any memory is taken, where its header can't be true."""
    with archive.open(member) as file:
        is_first = np.lib.format.read_magic(file) == (1, 0)
        header = np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(file)
        n_bytes = math.prod(shape) * dtype.itemsize
        if dtype.hasobject:
            raise ValueError(f"{member.filename} holds Python objects")
        if file.tell() + n_bytes != member.file_size:
            raise ValueError(f"{member.filename} has {member.file_size:,} bytes, but {n_bytes:,} by its header")
    memory.check(n_bytes, f"{member.filename} of {archive.filename}", "make it smaller")
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The content of an .npz file with these arrays."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()
