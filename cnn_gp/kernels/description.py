"""A kernel from its description: what a working directory holds is enough to compute it for new images."""

from typing import Any

from . import layers, nonlinearities, pooling  # noqa: F401 (defining a layer registers its name)
from .layer import layer_from_description
from .network_kernel import NetworkKernel
from .nngp import NNGPKernel
from .ntk import NTKKernel


def kernel_from_description(description: dict[str, Any]) -> NetworkKernel:
    """
    The kernel that :meth:`~cnn_gp.kernels.network_kernel.NetworkKernel.describe` described.

    :raises UserError: where a layer isn't one of this package's.
    """
    kind = NTKKernel if description.get("kernel") == "ntk" else NNGPKernel
    kernel = kind(layer_from_description(description["network"]), description["input_shape"])
    assert kernel.describe() == description
    return kernel
