"""The residual network of the paper."""

from collections.abc import Sequence

from gpflow.base import Parameter
from gpflow.kernels.base import ActiveDims

from ..errors import UserError
from .composition import Sequential, Sum
from .geometry import check_data_format
from .layer import Layer, variance_parameter
from .layers import Conv, Dense
from .nngp import NNGPKernel
from .nonlinearities import Nonlinearity


class ResnetKernel(NNGPKernel):
    """
    The paper's residual network (ResNet v2, He et al. 2016), with one nonlinearity throughout.

    A convolution, then blocks of units, then a dense readout, the nonlinearity, and a last dense layer. With
    a = nonlinearity(z), a unit is z = conv3x3(nonlinearity(conv3x3(a, stride))) + shortcut, where the shortcut is
    conv1x1(a, stride) in a block's first unit and z itself in the others. A convolution's ``var_weight`` is divided by
    the size of its patch. Convolutions have no bias.

    :param input_shape: [C, *positions].
    :param block_sizes: units in each block.
    :param block_strides: the stride of each block's first unit.
    :param kernel_size: filter size of the initial convolution.
    :param recurse_kern: the nonlinearity.
    :param var_weight: weight variance times fan-in, shared by all layers.
    :param var_bias: bias variance of the two dense layers; the paper's is 0.
    :param conv_stride: stride of the initial convolution.
    :param data_format: as for :class:`DeepKernel`.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        block_sizes: Sequence[int],
        block_strides: Sequence[int],
        kernel_size: int,
        recurse_kern: Nonlinearity,
        var_weight: "float | Parameter" = 1.0,
        var_bias: "float | Parameter" = 1.0,
        conv_stride: int = 1,
        active_dims: ActiveDims | None = None,
        data_format: str | None = None,
        name: str | None = None,
    ) -> None:
        check_data_format(data_format, input_shape)
        if len(block_sizes) != len(block_strides) or any(size < 1 for size in block_sizes):
            raise UserError(
                f"block_sizes is {list(block_sizes)} and block_strides {list(block_strides)}; "
                "expected as many of one as of the other, and at least 1 unit in each block."
            )
        var_weight, var_bias, no_bias = map(variance_parameter, (var_weight, var_bias, 0.0))

        def conv(filter_size: int, stride: int = 1) -> Conv:
            return Conv(filter_size, stride, "FIXED", var_weight, no_bias, divide_by_patch=True)

        units: list[Layer] = []
        for size, stride in zip(block_sizes, block_strides, strict=True):
            units.append(recurse_kern)
            units.append(Sum(conv(1, stride), Sequential(conv(3, stride), recurse_kern, conv(3))))
            units += [
                Sum(Sequential(), Sequential(recurse_kern, conv(3), recurse_kern, conv(3))) for _ in range(size - 1)
            ]
        readout = [Dense(var_weight, var_bias), recurse_kern, Dense(var_weight, var_bias)]
        network = Sequential(conv(kernel_size, conv_stride), *units, *readout)
        super().__init__(network, input_shape, active_dims=active_dims, name=name)
        self.var_weight, self.var_bias = var_weight, var_bias
