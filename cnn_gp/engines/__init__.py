"""
How blocks of kernel entries are computed.

An engine takes a kernel and arrays of images and returns arrays of entries. It knows nothing of files.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..errors import UserError

if TYPE_CHECKING:
    from ..kernels import NNGPKernel

#: The engines of the command line; "auto" takes the best one there is.
ENGINES = ("auto", "tensorflow")

Progress = Callable[[int], None]
"""Called with the number of kernel entries that were finished since the last call, from any thread."""


class Engine(Protocol):
    """A way to compute a kernel's entries."""

    name: str

    def matrix(self, X: np.ndarray, X2: np.ndarray | None = None, progress: Progress | None = None) -> np.ndarray:
        """K(X, X2) [N, M]; without X2 the symmetric K(X) [N, N], whose diagonal is :meth:`diag`'s to the bit."""

    def diag(self, X: np.ndarray) -> np.ndarray:
        """The variances of the images, [N]."""

    def first_non_finite(self, x: np.ndarray, x2: np.ndarray) -> str:
        """For an error message: the layer in which the kernel of two images [D] first isn't finite."""


def make_engine(name: str, kernel: "NNGPKernel", *, n_gpus: int = 0, n_max: int = 200) -> Engine:
    """The engine of a name, for a kernel. :param n_max: the largest block given to a GPU at a time."""
    if name not in ENGINES:
        raise UserError(f"The engine is {name!r}; expected one of {', '.join(ENGINES)}.")
    from .tensorflow import TensorFlowEngine

    return TensorFlowEngine(kernel, n_gpus=n_gpus, n_max=n_max)
