"""Which engine computes a kernel, and that engine, in this process or in a worker."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import UserError
from .engine import Engine

if TYPE_CHECKING:
    from ..kernels.network_kernel import NetworkKernel
    from .fused.program import Program

#: The engines of the command line; "auto" takes the best one there is.
ENGINES = ("auto", "tensorflow", "fused")


class Choice(NamedTuple):
    """Which engine computes a kernel, and what it needs. It pickles."""

    name: str
    program: "Program | None" = None
    """The fused engine's."""
    asked: bool = False
    """Whether it was asked for by name."""
    reason: str = ""
    """Where "auto" passed the fused engine over on the CPU: why."""


def choose_engine(name: str, kernel: "NetworkKernel", *, n_gpus: int = 0, float_type: str = "float32") -> Choice:
    """
    The engine for a kernel: "auto" is the fused one on the CPU where it has all layers, else the tensorflow one.

    :raises NotLowered: where "fused" can't compute the kernel; it gives the reason.
    :raises UserError: where there is no engine of that name.
    """
    if name not in ENGINES:
        raise UserError(f"The engine is {name!r}; expected one of {', '.join(ENGINES)}.")
    check_is_network_kernel(kernel)
    if name == "tensorflow" or (name == "auto" and n_gpus):
        return Choice("tensorflow", asked=name == "tensorflow")
    from .fused.lowering import NotLowered, lower

    try:
        if n_gpus:
            raise NotLowered(f"The fused engine computes on the CPU, and --n_gpus is {n_gpus}")
        if float_type != "float32":
            raise NotLowered(f"The fused engine computes in float32, not in {float_type}")
        return Choice("fused", lower(kernel), asked=name == "fused")
    except NotLowered as error:
        if name == "fused":
            raise
        return Choice("tensorflow", reason=error.reason)


def check_is_network_kernel(kernel: Any) -> None:
    """:raises UserError: where it is another of GPflow's kernels, or a combination."""
    from ..kernels.network_kernel import NetworkKernel

    if not isinstance(kernel, NetworkKernel):
        raise UserError(
            f"The kernel is a {type(kernel).__name__}; expected an NNGPKernel or an NTKKernel (for cnn_gp.gram also "
            "one of them Scaled): add or multiply the matrices of several kernels afterwards."
        )


def work_per_entry(choice: Choice, kernel: "NetworkKernel") -> int:
    """
    What an entry's time is proportional to, in the engine that computes the kernel.

    The fused engine's maps at displacements are smaller than the whole map, which the tensorflow engine computes.
    """
    if choice.program is None:
        return kernel.n_covariances
    from .fused.engine import positions_per_entry

    return positions_per_entry(choice.program)


def engine_on_device(
    device: str,
    *,
    choice: Choice,
    kernel: dict[str, Any],
    n_max: int,
    batch_size: int | None = None,
    n_threads: int | None = None,
    float_type: str = "float32",
) -> Engine:
    """
    In a worker: the engine that was chosen, on a device. TensorFlow is imported only where it computes.

    :param device: "cpu", "gpu:i" (a process that sees that GPU only), or "cluster": there "auto" takes a GPU where the
        worker's machine has one.
    :param kernel: the kernel's description.
    :param n_max: images on a side of the run's tiles; no larger batch is given to a GPU unasked.
    :param batch_size: of the tensorflow engine, in place of the default for the device.
    :param n_threads: of the fused engine; by default one a core.
    :param float_type: of the images.
    """
    on_gpu = device == "cluster" and not choice.asked and Path("/dev/nvidiactl").exists() and _sees_gpus()
    if choice.program is not None and not on_gpu:
        from .fused.engine import FusedEngine

        return FusedEngine(choice.program, n_threads=n_threads)
    from ..kernels.description import kernel_from_description
    from .tensorflow import TensorFlowEngine, configure, default_batch_size, n_gpus_seen

    n_gpus = min(n_gpus_seen(), 1) if device == "cluster" else int(device.startswith("gpu"))
    configure(n_gpus)
    made = kernel_from_description(kernel)
    batch_size = batch_size or default_batch_size(made, n_gpus, n_max, np.dtype(float_type).itemsize)
    return TensorFlowEngine(made, n_gpus=n_gpus, batch_size=batch_size)


def _sees_gpus() -> bool:
    """Whether TensorFlow does: there may be a device without its libraries, or hidden from this process."""
    from .tensorflow import n_gpus_seen

    return n_gpus_seen() > 0


def make_engine(
    name: str,
    kernel: "NetworkKernel",
    *,
    n_gpus: int = 0,
    batch_size: int | None = None,
    float_type: str = "float32",
    n_threads: int | None = None,
) -> Engine:
    """
    In this process: the engine of a name, for a kernel.

    :param batch_size: of the tensorflow engine, in place of the default for the device.
    :param float_type: the dtype of the images that it will be given.
    :param n_threads: of the fused engine; by default one a core.
    """
    choice = choose_engine(name, kernel, n_gpus=n_gpus, float_type=float_type)
    if choice.program is not None:
        from .fused.engine import FusedEngine

        return FusedEngine(choice.program, n_threads=n_threads)
    from .tensorflow import TensorFlowEngine, default_batch_size

    batch_size = batch_size or default_batch_size(kernel, n_gpus, itemsize=np.dtype(float_type).itemsize)
    return TensorFlowEngine(kernel, n_gpus=n_gpus, batch_size=batch_size)
