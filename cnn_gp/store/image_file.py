"""What the file of a run's images holds: the images as they were given, and whitened where the run whitens them."""

import io
from typing import TYPE_CHECKING

import h5py
import numpy as np

from ..data.datasets import Dataset
from .description import Description

if TYPE_CHECKING:
    from ..data.preprocessing import ZCA

_NAMES = ("X", "Xv", "Xt")
_WHITENED = "whitened"


def to_bytes(description: Description, data: Dataset) -> bytes:
    """The file's content."""
    content = io.BytesIO()
    zca = whitening(description, data.X)
    with h5py.File(content, "w", libver="latest") as file:
        for name in _NAMES:
            values = getattr(data, name)
            file.create_dataset(name, data=values, chunks=True)
            if zca is not None:
                file.create_dataset(f"{_WHITENED}/{name}", data=zca.transform(values), chunks=True)
    return content.getvalue()


def from_bytes(content: bytes, *, whitened: bool) -> dict[str, np.ndarray]:
    """
    The images "X" [N_train, D], "Xv" [N_vali, D] and "Xt" [N_test, D].

    :param whitened: True for the whitened images, False for them as they were given.
    :raises OSError, KeyError: where HDF5 can't read them.
    """
    with h5py.File(io.BytesIO(content), "r") as file:
        return {name: file[f"{_WHITENED}/{name}" if whitened else name][()] for name in _NAMES}


def whitening(description: Description, training: np.ndarray) -> "ZCA | None":
    """The run's whitening, fitted to its training images [N_train, D] before whitening, float32; None without one."""
    if "zca" not in description.preprocessing:
        return None
    # Only here: scikit-learn takes most of a second.
    from ..data.preprocessing import ZCA

    return ZCA(description.preprocessing["zca"]).fit(training)
