"""GPflow kernels of infinitely wide networks: any network of layers, and the two families of the paper."""

import math
from collections.abc import Sequence
from typing import Any

import gpflow
import tensorflow as tf
from check_shapes import check_shapes
from gpflow.base import Parameter, TensorType
from gpflow.kernels.base import ActiveDims

from .errors import UserError
from .layers import (
    ChannelMix,
    Conv,
    Dense,
    Layer,
    Nonlinearity,
    Sequential,
    State,
    Sum,
    input_state,
    variance_parameter,
)

_DATA_FORMATS = {0: "NC", 1: "NCW", 2: "NCHW", 3: "NCDHW"}


class NNGPKernel(gpflow.kernels.Kernel):
    r"""
    The kernel of the Gaussian process that an infinitely wide network is.

    The recursion of the covariances is the layers' (:mod:`cnn_gp.layers`); it starts from

    .. math:: K_0(x, x')(p) = \frac{1}{C} \sum_{c=1}^{C} x_{c,p} \, x'_{c,p}

    and ends in a :class:`~cnn_gp.layers.Dense` readout, which leaves one number per pair of images. See
    Garriga-Alonso, Aitchison & Rasmussen, ICLR 2019 (arXiv:1808.05587).

    The dtype of the inputs, float32 or float64, decides the precision.

    :param network: the layers.
    :param input_shape: [C, *positions] with 0, 1, 2 or 3 spatial axes; the inputs are [N, D], flattened channel first.
    :param active_dims: the columns of X that are the image.
    :raises ShrunkMapError: where a map of the network has less than one pixel.
    """

    def __init__(
        self,
        network: Layer,
        input_shape: Sequence[int],
        *,
        active_dims: ActiveDims | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(active_dims=active_dims, name=name)
        self.input_shape = checked_input_shape(input_shape)
        left = network.output_positions(self.input_shape[1:])
        if left != ():
            raise UserError(
                f"The network ends in a map of {left}; expected one pixel: let it end in a Dense() readout."
            )
        self.network = network

    @property
    def input_size(self) -> int:
        """D: the number of columns of X that make up an image."""
        return math.prod(self.input_shape)

    def check_inputs(self, X: TensorType) -> None:
        """:raises UserError: where X [N, D] isn't float32 or float64, or D isn't :attr:`input_size`."""
        dtype = tf.as_dtype(X.dtype)
        if dtype not in (tf.float32, tf.float64):
            raise UserError(
                f"The images have dtype {dtype.name}; expected float32 or float64, which decides the precision: "
                "scale the pixels to [0, 1] and cast them."
            )
        if X.shape[-1] != self.input_size:
            raise UserError(
                f"The images have {X.shape[-1]} columns; expected {self.input_size} for input_shape "
                f"{list(self.input_shape)}: flatten them channel first, or make a kernel of their shape."
            )

    def _checked_inputs(self, X: TensorType) -> tf.Tensor:
        X = tf.convert_to_tensor(X)
        self.check_inputs(X)
        return X

    @check_shapes(
        "X: [N, D]",
        "X2: [N2, D]",
        "return: [N, N2] if X2 is not None",
        "return: [N, N] if X2 is None",
    )
    def K(self, X: TensorType, X2: TensorType | None = None) -> tf.Tensor:
        """
        The kernel between two sets of images.

        ``K(X)`` is exactly symmetric and has exactly ``K_diag(X)`` on its diagonal.
        """
        X = self._checked_inputs(X)
        if X2 is not None:
            return self._propagate(X, tf.cast(self._checked_inputs(X2), X.dtype)).cross
        state = self._propagate(X, X)
        upper = tf.linalg.band_part(state.cross, 0, -1)
        symmetric = upper + tf.linalg.matrix_transpose(upper)
        return tf.linalg.set_diag(symmetric, state.var1[:, 0])

    @check_shapes("X: [N, D]", "return: [N]")
    def K_diag(self, X: TensorType) -> tf.Tensor:
        """The variance of each image, all layers included."""
        return self._propagate(self._checked_inputs(X), None).var1[:, 0]

    def _propagate(self, X: tf.Tensor, X2: tf.Tensor | None) -> State:
        return self.network.propagate(input_state(X, X2, self.input_shape, self.network.sum_dtype(X.dtype)))

    def first_non_finite(self, X: TensorType, X2: TensorType) -> str | None:
        """
        The first layer after which a covariance or variance of X [N, D] and X2 [M, D] isn't finite, or None.

        Named by its place in the network: "layers[2].branches[1].layers[0] (Conv)".
        """
        X, X2 = self._checked_inputs(X), self._checked_inputs(X2)
        state = input_state(X, X2, self.input_shape, self.network.sum_dtype(X.dtype))
        return "the images" if not _is_finite(state) else _first_non_finite(self.network, state, "")

    def describe(self) -> dict[str, Any]:
        """What decides the kernel's numbers, in JSON's types: equal descriptions mean equal kernels."""
        return {"input_shape": list(self.input_shape), "network": self.network.describe()}


class DeepKernel(NNGPKernel):
    """
    The paper's random-search family: convolutions, each followed by one nonlinearity, then a dense readout.

    A convolution's sum over the patch is multiplied by ``var_weight`` and not divided by the size of the patch.

    With skip connections, before each convolution named by ``skip_freq`` the map at the previous such point, or the
    input, is added. These maps come after a nonlinearity, so the sum of covariances is that of a network only with an
    infinite 1x1 convolution after each of them and on the input (:class:`~cnn_gp.layers.ChannelMix`).

    :param input_shape: [C, *positions].
    :param filter_sizes: one entry per convolution: a whole number, or one per axis ([] without spatial axes).
    :param recurse_kern: the nonlinearity, :class:`~cnn_gp.layers.ExReLU` or :class:`~cnn_gp.layers.ExErf`.
    :param var_weight: weight variance times fan-in channels, shared by all layers.
    :param var_bias: bias variance, shared by all layers.
    :param padding: "SAME" or "VALID" (or "FIXED"), or one per convolution.
    :param strides: one entry per convolution; None means 1.
    :param data_format: "NC", "NCW", "NCHW" or "NCDHW"; None infers it from ``input_shape``, one that contradicts it
        is an error.
    :param skip_freq: a skip connection before each ``skip_freq``-th convolution; a list names their 0-based indices
        (0 is ignored); 0 or less means none.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        filter_sizes: Sequence["int | Sequence[int]"],
        recurse_kern: Nonlinearity,
        var_weight: "float | Parameter" = 1.0,
        var_bias: "float | Parameter" = 1.0,
        padding: "str | Sequence[str]" = "SAME",
        strides: "Sequence[int | Sequence[int]] | None" = None,
        data_format: str | None = None,
        active_dims: ActiveDims | None = None,
        skip_freq: "int | Sequence[int]" = -1,
        name: str | None = None,
    ) -> None:
        check_data_format(data_format, input_shape)
        var_weight, var_bias = variance_parameter(var_weight), variance_parameter(var_bias)
        n_convs = len(filter_sizes)
        paddings = [padding] * n_convs if isinstance(padding, str) else list(padding)
        strides = [1] * n_convs if strides is None else list(strides)
        for what, values in (("padding", paddings), ("strides", strides)):
            if len(values) != n_convs:
                raise UserError(f"{what} has {len(values)} entries; expected {n_convs}, one per filter size.")

        layers: list[list[Layer]] = [
            [Conv(size, stride, pad, var_weight, var_bias), recurse_kern]
            for size, stride, pad in zip(filter_sizes, strides, paddings, strict=True)
        ]
        skips = _skip_indices(skip_freq, n_convs)
        network: list[Layer] = [ChannelMix()] if skips else []
        for start, end in zip([0, *skips], [*skips, n_convs], strict=True):
            block = [layer for pair in layers[start:end] for layer in pair]
            network += block if end == n_convs else [Sum(Sequential(), Sequential(*block, ChannelMix()))]
        readout = Dense(var_weight, var_bias)
        super().__init__(Sequential(*network, readout), input_shape, active_dims=active_dims, name=name)
        self.var_weight, self.var_bias = var_weight, var_bias


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


def _is_finite(state: State) -> bool:
    return all(bool(tf.reduce_all(tf.math.is_finite(t))) for t in state[:3] if t is not None)


def _first_non_finite(layer: Layer, state: State, path: str) -> str | None:
    """As :meth:`NNGPKernel.first_non_finite`, for a finite state before the layer."""
    kind = "layers" if isinstance(layer, Sequential) else "branches"
    for i, child in enumerate(layer.children):
        found = _first_non_finite(child, state, f"{path}.{kind}[{i}]" if path else f"{kind}[{i}]")
        if found is not None:
            return found
        if isinstance(layer, Sequential):
            state = child.propagate(state)
    if isinstance(layer, Sequential) or _is_finite(layer.propagate(state)):
        return None
    return f"{path} ({type(layer).__name__})"


def _skip_indices(skip_freq: "int | Sequence[int]", n_convs: int) -> list[int]:
    """The 0-based indices of the convolutions that have a skip connection before them."""
    if isinstance(skip_freq, int):
        return list(range(skip_freq, n_convs, skip_freq)) if skip_freq > 0 else []
    if any(not 0 <= index < n_convs for index in skip_freq):
        raise UserError(f"skip_freq is {list(skip_freq)}; expected indices of the {n_convs} convolutions, from 0.")
    return sorted(set(skip_freq) - {0})


def checked_input_shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    """[C, *positions] as a tuple. :raises UserError: where it isn't one of 0 to 3 spatial axes."""
    shape = tuple(int(n) for n in input_shape)
    if len(shape) - 1 not in _DATA_FORMATS or any(n < 1 for n in shape):
        raise UserError(
            f"input_shape is {list(input_shape)}; expected [channels, *positions] with 0 to 3 spatial axes, "
            "all at least 1: for one 28x28 channel, [1, 28, 28]."
        )
    return shape


def check_data_format(data_format: str | None, input_shape: Sequence[int]) -> None:
    """:raises UserError: where a data format is given that isn't the one of ``input_shape``."""
    expected = _DATA_FORMATS[len(checked_input_shape(input_shape)) - 1]
    if data_format is not None and data_format != expected:
        raise UserError(
            f"data_format is {data_format!r} with input_shape {list(input_shape)}; expected {expected!r}, "
            "channels first: leave it out, or move the channels."
        )
