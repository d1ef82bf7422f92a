"""
How blocks of kernel entries are computed.

An engine takes a kernel and arrays of images and returns arrays of entries. It knows nothing of files.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from ..errors import UserError

if TYPE_CHECKING:
    from ..kernels.nngp import NNGPKernel
    from .fused.program import Program

#: The engines of the command line; "auto" takes the best one there is.
ENGINES = ("auto", "tensorflow", "fused")

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


class Choice(NamedTuple):
    """Which engine computes a kernel, and what it needs."""

    name: str
    program: "Program | None" = None
    """The fused engine's."""
    asked: bool = False
    """Whether it was asked for by name."""
    reason: str = ""
    """Where "auto" passed the fused engine over on the CPU: why."""


def choose_engine(name: str, kernel: "NNGPKernel", *, n_gpus: int = 0, float_type: str = "float32") -> Choice:
    """
    The engine for a kernel: "auto" is the fused one on the CPU where it has all layers, else the tensorflow one.

    :raises UserError: where "fused" can't compute the kernel; it names the layer.
    """
    if name not in ENGINES:
        raise UserError(f"The engine is {name!r}; expected one of {', '.join(ENGINES)}.")
    if name == "tensorflow" or (name == "auto" and n_gpus):
        return Choice("tensorflow", asked=name == "tensorflow")
    from .fused.lowering import NotLowered, lower

    try:
        if n_gpus:
            raise NotLowered(f"The fused engine computes on the CPU, and --n_gpus is {n_gpus}: leave one of them out.")
        if float_type != "float32":
            raise NotLowered(f"The fused engine computes in float32, not in {float_type}: take --engine=tensorflow.")
        return Choice("fused", lower(kernel), asked=name == "fused")
    except NotLowered as reason:
        if name == "fused":
            raise
        return Choice("tensorflow", reason=str(reason).split(": take")[0])


def worker_engine(
    device: str,
    *,
    choice: Choice,
    model_arguments: dict[str, Any],
    n_max: int = 200,
    n_threads: int | None = None,
) -> Engine:
    """
    In a worker: the engine that was chosen, on a device. TensorFlow is imported only where it computes.

    :param device: "cpu", "gpu:i", or "cluster": there "auto" takes a GPU where the worker's machine has one.
    :param model_arguments: of :func:`cnn_gp.kernels.architectures.build_kernel`.
    """
    on_gpu = device == "cluster" and not choice.asked and Path("/dev/nvidiactl").exists()
    if choice.program is not None and not on_gpu:
        from .fused.engine import FusedEngine

        return FusedEngine(choice.program, n_threads=n_threads)
    from .tensorflow import worker_engine as tensorflow_worker_engine

    return tensorflow_worker_engine(device, model_arguments=model_arguments, n_max=n_max)


def make_engine(
    name: str,
    kernel: "NNGPKernel",
    *,
    n_gpus: int = 0,
    n_max: int = 200,
    float_type: str = "float32",
    n_threads: int | None = None,
) -> Engine:
    """
    The engine of a name, for a kernel.

    :param n_max: the largest block given to a GPU at a time.
    :param float_type: the dtype of the images that it will be given.
    :param n_threads: of the fused engine; by default one a core.
    """
    choice = choose_engine(name, kernel, n_gpus=n_gpus, float_type=float_type)
    if choice.program is not None:
        from .fused.engine import FusedEngine

        return FusedEngine(choice.program, n_threads=n_threads)
    from .tensorflow import TensorFlowEngine

    return TensorFlowEngine(kernel, n_gpus=n_gpus, n_max=n_max)
