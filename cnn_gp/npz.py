"""Reading .npz files, whatever is wrong with them."""

import os
import zipfile
import zlib

import numpy as np

from .errors import UserError

#: What NumPy raises for a file that is cut short, damaged, something else or not there.
ERRORS = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error)


def read_npz(path: str | os.PathLike, remedy: str) -> dict[str, np.ndarray]:
    """
    All arrays of a file; objects aren't read.

    :param remedy: what to do where it can't be read.
    :raises UserError: where it can't.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except ERRORS as error:
        raise UserError(f"{path} can't be read as an .npz file ({error}): {remedy}.") from error
