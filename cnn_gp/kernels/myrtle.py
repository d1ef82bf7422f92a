"""The Myrtle networks, which are convolutions and average pools alone."""

from collections.abc import Sequence

from ..errors import UserError
from .composition import Sequential
from .layer import Layer, variance_parameter
from .layers import Conv, Dense
from .nngp import NNGPKernel
from .nonlinearities import ExReLU
from .pooling import AvgPool, GlobalAvgPool


def myrtle_kernel(
    stages: Sequence[int],
    input_shape: Sequence[int],
    var_weight: float | None = None,
    var_bias: float | None = None,
    multiply_by_sqrt2: bool = False,
    name: str | None = None,
) -> NNGPKernel:
    """
    The kernel of a Myrtle network: Shankar et al., "Neural kernels without tangents" (2020, arXiv:2003.02237).

    Stages of 3x3 convolutions, each followed by a ReLU, with a 2x2 average pool between stages; then the average over
    the whole map and a dense readout.

    :param stages: the number of convolutions in each of the three stages: (2, 1, 1) for Myrtle5, (2, 2, 2) for Myrtle7.
    :param input_shape: [C, height, width], of at least 8 pixels on a side.
    :param var_weight: weight variance times fan-in; by default 2, which keeps the variance from layer to layer.
    :param var_bias: bias variance; by default 0.
    :raises UserError: for images of another shape.
    """
    if len(input_shape) != 3 or min(input_shape[1:]) < 8:
        raise UserError(
            f"The images of a Myrtle network have shape {list(input_shape)}; expected [channels, height, width] with "
            "at least 8 pixels on a side, which two pools of 2x2 leave two of."
        )
    weight = variance_parameter(2.0 if var_weight is None else var_weight)
    bias = variance_parameter(0.0 if var_bias is None else var_bias)
    layers: list[Layer] = []
    for n in stages:
        for _ in range(n):
            conv = Conv(3, var_weight=weight, var_bias=bias, divide_by_patch=True)
            layers += [conv, ExReLU(multiply_by_sqrt2=multiply_by_sqrt2)]
        layers.append(AvgPool(2))
    return NNGPKernel(Sequential(*layers[:-1], GlobalAvgPool(), Dense(weight, bias)), input_shape, name=name)
