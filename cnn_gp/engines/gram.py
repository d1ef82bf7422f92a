"""The Gram matrix in memory, for a few thousand images."""

from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError
from .choice import check_is_network_kernel, choose_engine, make_engine
from .engine import Engine

if TYPE_CHECKING:
    from ..kernels.network_kernel import NetworkKernel
    from ..kernels.ntk import NTKKernel
    from ..kernels.scaled import Scaled
    from .tensorflow import TensorFlowEngine


def gram(
    kernel: "NetworkKernel | Scaled", X: Any, X2: Any | None = None, engine: str | Engine = "auto", n_max: int = 200
) -> np.ndarray:
    """
    The kernel between images, computed batch by batch, compiled and on all cores.

    :param kernel: an :class:`~cnn_gp.kernels.nngp.NNGPKernel` or :class:`~cnn_gp.kernels.ntk.NTKKernel`, or such a one
        :class:`~cnn_gp.kernels.scaled.Scaled`. A second call with the same kernel compiles nothing.
    :param X: [N, D] images, flattened channel first, float32 or float64, which decides the precision. Of a kernel with
        ``active_dims`` the image is in these columns.
    :param X2: [M, D], or None for the symmetric K(X).
    :param engine: "auto", "tensorflow" or "fused" (float32 on the CPU); or one that
        :func:`cnn_gp.engines.choice.make_engine` made for this kernel, which for several matrices saves
        lowering the kernel for each.
    :param n_max: the most images on a side of the batch that a GPU computes at a time.
    :return: [N, M], or [N, N], of X's dtype. The diagonal of K(X) is ``K_diag(X)``.
    :raises UserError: images of another size or dtype; an engine of another kernel, or from before a parameter changed.

    >>> import numpy as np
    >>> from cnn_gp import build_kernel, gram
    >>> kernel = build_kernel("convnet_gp", [1, 8, 8])
    >>> gram(kernel, np.random.default_rng(0).random((3, 64))).shape
    (3, 3)
    """
    from ..kernels.scaled import Scaled

    if isinstance(kernel, Scaled):
        entries = gram(kernel.kernel, X, X2, engine, n_max)
        return entries.dtype.type(kernel.factor.numpy()) * entries
    X = _checked(kernel, X)
    X2 = None if X2 is None else _checked(kernel, X2).astype(X.dtype, copy=False)
    if n_max < 1:
        raise UserError(f"n_max is {n_max}; expected a whole number of at least 1.")
    return _chosen(engine, kernel, n_max, X.dtype.name).matrix(X, X2)


def gram_both(
    kernel: "NTKKernel", X: Any, X2: Any | None = None, engine: str | Engine = "auto"
) -> tuple[np.ndarray, np.ndarray]:
    """
    The Gaussian process's kernel and the neural tangent kernel of one network, as an ensemble's variance needs them.

    The fused engine computes both in the time of the second; the tensorflow engine one after the other.

    :param kernel: the neural tangent kernel.
    :param X, X2, engine: as in :func:`gram`.
    :return: two of :func:`gram`'s: of ``NNGPKernel(kernel.network, kernel.input_shape)`` (from the fused engine up to
        float32's rounding) and of ``kernel``.
    :raises UserError: as :func:`gram`, and for a kernel that isn't a neural tangent kernel.

    >>> import numpy as np
    >>> from cnn_gp import build_kernel, gram_both
    >>> kernel = build_kernel("convnet_gp", [1, 8, 8], kernel="ntk")
    >>> [K.shape for K in gram_both(kernel, np.random.default_rng(0).random((3, 64), np.float32))]
    [(3, 3), (3, 3)]
    """
    from ..kernels.nngp import NNGPKernel
    from ..kernels.ntk import NTKKernel
    from .fused.engine import FusedEngine

    if not isinstance(kernel, NTKKernel):
        raise UserError(
            f"The kernel is a {type(kernel).__name__}; expected an NTKKernel, which both are computed from."
        )
    X = _checked(kernel, X)
    X2 = None if X2 is None else _checked(kernel, X2).astype(X.dtype, copy=False)
    of_tangents = _chosen(engine, kernel, 200, X.dtype.name)
    if isinstance(of_tangents, FusedEngine):
        return of_tangents.both(X, X2)
    # The one of an earlier call, whose program is compiled.
    known = (engine.kernel for _, engine in _COMPILED if isinstance(engine.kernel, NNGPKernel))
    same = (k for k in known if k.network is kernel.network and k.input_shape == kernel.input_shape)
    nngp = next(same, None) or NNGPKernel(kernel.network, kernel.input_shape)
    return _engine("tensorflow", nngp, 200, X.dtype.name).matrix(X, X2), of_tangents.matrix(X, X2)


def _chosen(engine: str | Engine, kernel: "NetworkKernel", n_max: int, float_type: str) -> Engine:
    """The engine that is asked for. :raises UserError: where it is one of another kernel."""
    if isinstance(engine, str):
        return _engine(engine, kernel, n_max, float_type)
    if not _computes(engine, kernel):
        raise UserError(
            "The engine was made for another kernel, or before a parameter of this one changed: make one with "
            "make_engine(name, kernel)."
        )
    return engine


def _checked(kernel: "NetworkKernel", X: Any) -> np.ndarray:
    """The columns of X that are images. :raises UserError: as :func:`gram`."""
    check_is_network_kernel(kernel)
    X = np.asarray(X)
    if X.ndim != 2 or not len(X):
        raise UserError(f"The images have shape {X.shape}; expected [N, {kernel.input_size}] with at least one image.")
    dims = kernel.active_dims
    try:
        X = X[:, dims if isinstance(dims, slice) else np.asarray(dims)]
    except IndexError as error:
        raise UserError(f"The images have {X.shape[1]} columns; the kernel's active_dims are {dims}.") from error
    kernel.check_inputs(X)
    return X


#: The engines of the last calls that TensorFlow compiled: its compiled programs stay in memory for good.
_COMPILED: "deque[tuple[tuple[int, int | None], TensorFlowEngine]]" = deque(maxlen=4)


def _engine(name: str, kernel: "NetworkKernel", n_max: int, float_type: str) -> Engine:
    import tensorflow as tf

    n_gpus = len(tf.config.get_visible_devices("GPU"))
    options = n_gpus, n_max if n_gpus else None
    if choose_engine(name, kernel, n_gpus=n_gpus, float_type=float_type).name != "tensorflow":
        return make_engine(name, kernel, n_gpus=n_gpus, float_type=float_type)
    for compiled_with, compiled in _COMPILED:
        if compiled_with == options and compiled.kernel is kernel:
            return compiled
    from .tensorflow import TensorFlowEngine, default_batch_size

    batch_size = default_batch_size(kernel, n_gpus, n_max, np.dtype(float_type).itemsize)
    engine = TensorFlowEngine(kernel, n_gpus=n_gpus, batch_size=batch_size)
    _COMPILED.append((options, engine))
    return engine


def _computes(engine: Engine, kernel: "NetworkKernel") -> bool:
    """Whether an engine that make_engine made computes this kernel as it is now."""
    from .fused.engine import FusedEngine
    from .tensorflow import TensorFlowEngine

    try:
        if isinstance(engine, TensorFlowEngine):
            return engine.kernel is kernel or engine.kernel.describe() == kernel.describe()
        return not isinstance(engine, FusedEngine) or engine.program == choose_engine("fused", kernel).program
    except UserError:
        # One of the two has no description, or this one no program: they aren't the same kernel.
        return False
