"""
What an engine is: a way to compute the entries of a kernel's matrices.

An engine takes a kernel and arrays of images and returns arrays of entries. It knows nothing of files.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np

Count = Callable[[int], None]
"""Called with the number of kernel entries that were finished since the last call, from any thread."""


class Engine(Protocol):
    """A way to compute a kernel's entries."""

    name: str

    def matrix(
        self,
        X: np.ndarray,
        X2: np.ndarray | None = None,
        progress: Count | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """
        K(X, X2) [N, M]; without X2 the symmetric K(X) [N, N], whose diagonal is :meth:`diag`'s to the bit.

        :param out: of the result's shape and X's dtype: entries are written there as they are finished, and it is what
            is returned. Where it isn't NaN it holds entries already, which aren't computed again.
        """

    def diag(self, X: np.ndarray) -> np.ndarray:
        """The kernel's diagonal K(x, x) at the images, [N]."""

    def first_non_finite(self, x: np.ndarray, x2: np.ndarray) -> str:
        """For an error message: the layer in which the kernel of two images [D] first isn't finite."""
