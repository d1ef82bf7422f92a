"""Made images of ten classes, of any number: for tests and for trying things out."""

import numpy as np
from numpy.typing import NDArray

_SEED = 20190506


def draw_blobs(stream: int, n: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """
    The first n images of a stream: noisy blobs in an arrangement of their class, each displaced and of some strength.

    Image i depends on the seed, the stream and i only. RandomState's draws are frozen for good and no function of
    the maths library is used, so that every NumPy and machine gives the same images.
    """
    arrangements = np.random.RandomState(_SEED).uniform(6, 22, (10, 5, 2))
    X, Y = np.empty((n, 1, 28, 28), np.uint8), np.empty(n, np.int64)
    grid = np.arange(28)
    for i in range(n):
        rng = np.random.RandomState([_SEED, stream, i])
        Y[i] = rng.randint(10)
        centres = arrangements[Y[i]] + rng.uniform(-2, 2, 2) + rng.uniform(-3, 3, (5, 2))
        strengths = rng.uniform(80, 240, (5, 1, 1))
        squares = (grid - centres[:, :, None]) ** 2
        distances = squares[:, 0, :, None] + squares[:, 1, None, :]
        blobs = (strengths / (1 + distances / 8) ** 2).sum(axis=0)
        X[i, 0] = np.clip(blobs + rng.uniform(-60, 60, (28, 28)), 0, 255)
    return X, Y
