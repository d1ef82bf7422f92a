"""A kernel from its description: what a working directory holds is enough to compute it for new images."""

from typing import Any

from .layer import layer_from_description
from .nngp import NNGPKernel


def kernel_from_description(description: dict[str, Any]) -> NNGPKernel:
    """
    The kernel that :meth:`~cnn_gp.kernels.nngp.NNGPKernel.describe` described.

    :raises UserError: where a layer isn't one of this package's.
    """
    kernel = NNGPKernel(layer_from_description(description["network"]), description["input_shape"])
    assert kernel.describe() == description
    return kernel
