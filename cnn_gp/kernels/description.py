"""A kernel from its description: what a working directory holds is enough to compute it for new images."""

from typing import Any

from ..errors import UserError
from .layers import (
    ChannelMix,
    Conv,
    Dense,
    ExErf,
    ExReLU,
    Layer,
    Sequential,
    Sum,
)
from .nngp import NNGPKernel


def kernel_from_description(description: dict[str, Any]) -> NNGPKernel:
    """
    The kernel that :meth:`~cnn_gp.kernels.nngp.NNGPKernel.describe` described.

    :raises UserError: where a layer isn't one of this package's.
    """
    kernel = NNGPKernel(_layer(description["network"]), description["input_shape"])
    assert kernel.describe() == description
    return kernel


def _layer(description: dict[str, Any]) -> Layer:
    arguments = {key: value for key, value in description.items() if key != "layer"}
    kind = description["layer"]
    if kind == "Sequential":
        return Sequential(*map(_layer, arguments["layers"]))
    if kind == "Sum":
        return Sum(*map(_layer, arguments["branches"]))
    simple = {"ChannelMix": ChannelMix, "Conv": Conv, "Dense": Dense, "ExErf": ExErf, "ExReLU": ExReLU}
    if kind not in simple:
        raise UserError(
            f"The stored kernel has a layer {kind}; expected one of {', '.join(sorted(simple))}: make the kernel in "
            "a program of your own, and multiply it by the alpha in the result's _predictions.npz."
        )
    return simple[kind](**arguments)
