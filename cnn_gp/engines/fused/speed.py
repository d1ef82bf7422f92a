"""What a kernel entry takes in the fused engine on this machine, measured in a fraction of a second."""

import math
import time

import numpy as np

from .engine import FusedEngine, positions_per_entry

#: What a position takes on a core of the machines that were measured (benchmarks/README.md), to choose the sample by.
_SECONDS_PER_POSITION = 5e-10

#: About what the measurement takes, and the images on its side.
_SECONDS, _LEAST_IMAGES, _MOST_IMAGES = 0.2, 32, 256


def seconds_per_entry(engine: FusedEngine, X: np.ndarray) -> float:
    """
    Measure the kernel of some images with some others.

    Compile first (:func:`.engine.is_compiled`). What else runs on the machine meanwhile makes the result larger, and an
    entry of a kernel without pooling takes up to a tenth less in a long run, where an image's own layers count less.

    :param X: [N, D] float32, any of the images; they are repeated where they are too few.
    """
    entries = _SECONDS * engine.n_threads / (_SECONDS_PER_POSITION * positions_per_entry(engine.program))
    side = min(max(math.isqrt(int(entries)), _LEAST_IMAGES), _MOST_IMAGES)
    sample = np.resize(X, (side, X.shape[1]))
    # Also fetches the machine code from its cache.
    engine.matrix(sample[:1], sample[:1])
    start = time.perf_counter()
    engine.matrix(sample, sample.copy())
    return (time.perf_counter() - start) / side**2
