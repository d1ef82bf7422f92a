"""The Gram matrix in memory, for a few thousand images."""

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError
from .choice import make_engine
from .engine import Engine

if TYPE_CHECKING:
    from ..kernels.nngp import NNGPKernel


def gram(
    kernel: "NNGPKernel", X: Any, X2: Any | None = None, engine: str | Engine = "auto", n_max: int = 200
) -> np.ndarray:
    """
    The kernel between images, computed batch by batch, compiled and on all cores.

    :param kernel: an :class:`~cnn_gp.kernels.nngp.NNGPKernel`.
    :param X: [N, D] images, flattened channel first, float32 or float64, which decides the precision.
    :param X2: [M, D], or None for the symmetric K(X).
    :param engine: "auto", "tensorflow" or "fused" (float32 on the CPU); or one that
        :func:`cnn_gp.engines.choice.make_engine` made for this kernel, which for several matrices saves
        compiling the kernel for each.
    :param n_max: images on a side of the batch that a GPU computes at a time.
    :return: [N, M], or [N, N], of X's dtype. The diagonal of K(X) is ``K_diag(X)``.
    :raises UserError: images of another size or dtype.

    >>> import numpy as np
    >>> from cnn_gp import build_kernel, gram
    >>> kernel = build_kernel("convnet_gp", [1, 8, 8])
    >>> gram(kernel, np.random.default_rng(0).random((3, 64))).shape
    (3, 3)
    """
    import tensorflow as tf

    X = _checked(kernel, X)
    X2 = None if X2 is None else _checked(kernel, X2).astype(X.dtype, copy=False)
    if n_max < 1:
        raise UserError(f"n_max is {n_max}; expected a whole number of at least 1.")
    if isinstance(engine, str):
        n_gpus = len(tf.config.get_visible_devices("GPU"))
        batch_size = n_max if n_gpus else None
        engine = make_engine(engine, kernel, n_gpus=n_gpus, batch_size=batch_size, float_type=X.dtype.name)
    return engine.matrix(X, X2)


def _checked(kernel: "NNGPKernel", X: Any) -> np.ndarray:
    X = np.asarray(X)
    if X.ndim != 2 or not len(X):
        raise UserError(f"The images have shape {X.shape}; expected [N, {kernel.input_size}] with at least one image.")
    kernel.check_inputs(X)
    return X
