"""Files in the format of MNIST."""

import struct

import numpy as np


def idx(array: np.ndarray) -> bytes:
    """The bytes of an IDX file."""
    return struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()
