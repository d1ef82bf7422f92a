r"""
Networks of finite width, drawn from the prior whose limit is the kernel.

A weight of a layer with C input channels is drawn from :math:`\mathcal{N}(0, \sigma_w^2 / C)`, so that a sum over the
channels has the covariance that the layer's :meth:`~.layers.Layer.propagate` gives to one channel, up to O(1/C):
Garriga-Alonso, Aitchison & Rasmussen (ICLR 2019), equations 3 to 5.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from ..errors import UserError
from .geometry import Window, checked_input_shape
from .layers import (
    ChannelMix,
    Conv,
    Dense,
    Layer,
    Nonlinearity,
    Positions,
    Sequential,
    Sum,
)

#: Maps [draws or 1, N, *positions, channels] to [draws, N, *positions, channels].
Forward = Callable[[tf.Tensor], tf.Tensor]


class Weight(NamedTuple):
    """A variable [draws, ...] and the variance of its prior."""

    variable: tf.Variable
    variance: float


class FiniteNetwork(tf.Module):
    """
    Finite networks of an architecture: ``draws`` of them, independent, evaluated together.

    Every map has ``width`` channels, and the last layer with weights has ``outputs``. The weights are trainable
    variables; with :meth:`l2_penalty` added to a loss, training is maximum a posteriori.

    :param network: the layers; their hyperparameters are read once, here.
    :param width: channels of every hidden map.
    :param input_shape: [C, *positions].
    :param draws: how many networks.
    :param outputs: outputs of each network, independent in the limit.
    :param seed: decides the weights, together with the arguments above.
    :param dtype: float32 or float64.
    :raises UserError: for sizes below 1, for a sum whose branches have different numbers of channels or map sizes, and
        for a network that doesn't end in a readout.
    :raises ShrunkMapError: where a map of the network has less than one pixel.

    >>> from cnn_gp import Conv, Dense, ExReLU, Sequential
    >>> network = Sequential(Conv(3, var_weight=2.0), ExReLU(), Dense())
    >>> network.finite(width=10, input_shape=[1, 8, 8], draws=5)(tf.zeros([2, 64])).shape
    TensorShape([5, 2, 1])
    """

    def __init__(
        self,
        network: Layer,
        width: int,
        input_shape: Sequence[int],
        *,
        draws: int = 1,
        outputs: int = 1,
        seed: int = 0,
        dtype: tf.DType = tf.float32,
    ) -> None:
        super().__init__(name="finite_network")
        for name, value in (("width", width), ("draws", draws), ("outputs", outputs)):
            if value < 1:
                raise UserError(f"{name} is {value}; expected a whole number of at least 1.")
        self.input_shape = checked_input_shape(input_shape)
        self.width, self.draws, self.outputs = width, draws, outputs
        self._seed, self._dtype = seed, tf.as_dtype(dtype)
        self.weights: list[Weight] = []
        channels, *positions = self.input_shape
        built = self._build(network, channels, tuple(positions), outputs)
        if not self.weights:
            raise UserError("The network has no weights; expected at least a Dense() readout.")
        if built.positions != () or built.channels != outputs:
            raise UserError(
                f"The network ends in {built.channels} channels on a map of {built.positions}; expected a Dense() "
                "readout after the last map."
            )
        # It must not refer to this object: in a cycle gigabytes of weights would wait for the garbage collector.
        self._forward = built.forward

    def __call__(self, X: tf.Tensor) -> tf.Tensor:
        """
        The outputs of all networks.

        :param X: [N, D] images, flattened channel first, or [N, C, *positions].
        :return: [draws, N, outputs], of the network's dtype, whatever that of X.
        :raises UserError: for images of another shape.
        """
        X = tf.cast(tf.convert_to_tensor(X), self._dtype)
        flat, shaped = [math.prod(self.input_shape)], list(self.input_shape)
        if X.shape.rank == 0 or list(X.shape[1:]) not in (flat, shaped):
            raise UserError(
                f"X has shape {list(X.shape)}; expected N images of shape {shaped}, or flat, of {flat}: "
                "move the channels first."
            )
        images = tf.reshape(X, [1, -1, *self.input_shape])
        rank = len(self.input_shape) - 1
        return self._forward(tf.transpose(images, [0, 1, *range(3, 3 + rank), 2]))

    def l2_penalty(self) -> tf.Tensor:
        """The negative log prior of each network, up to a constant: the sum of w^2 / (2 variance), [draws]."""
        penalty = tf.zeros([self.draws], self._dtype)
        for weight in self.weights:
            if weight.variance > 0:
                squares = tf.square(weight.variable)
                penalty += tf.reduce_sum(squares, axis=range(1, squares.shape.rank)) / (2 * weight.variance)
        return penalty

    def _build(self, layer: Layer, channels: int, positions: Positions, outputs: int) -> "_Built":
        """The finite version of a layer, whose last weights have so many ``outputs``."""
        match layer:
            case Sequential():
                return self._build_sequential(layer, channels, positions, outputs)
            case Sum():
                return self._build_sum(layer, channels, positions, outputs)
            case Nonlinearity():
                return _Built(layer.apply, channels, positions)
            case Conv():
                return self._build_conv(layer, channels, positions, outputs)
            case ChannelMix():
                mix = self._draw("mix", [channels, outputs], 1 / channels)
                return _Built(lambda x: _matmul(x, mix), outputs, positions)
            case Dense():
                return self._build_dense(layer, channels, positions, outputs)
        raise UserError(f"{type(layer).__name__} has no finite version; expected the layers of cnn_gp.kernels.layers.")

    def _build_sequential(self, layer: Sequential, channels: int, positions: Positions, outputs: int) -> "_Built":
        last_weighted = max((i for i, child in enumerate(layer.layers) if _has_weights(child)), default=-1)
        built = _Built(lambda x: x, channels, positions)
        steps: list[Forward] = []
        for i, child in enumerate(layer.layers):
            built = self._build(child, built.channels, built.positions, self.width if i < last_weighted else outputs)
            steps.append(built.forward)
        return built._replace(forward=lambda x: functools.reduce(lambda x, step: step(x), steps, x))

    def _build_sum(self, layer: Sum, channels: int, positions: Positions, outputs: int) -> "_Built":
        left = layer.output_positions(positions)  # refuses maps of different sizes
        branches = [self._build(branch, channels, positions, outputs) for branch in layer.branches]
        counts = [branch.channels for branch in branches]
        if len(set(counts)) > 1:
            raise UserError(
                f"A sum adds maps of {' and '.join(map(str, counts))} channels; expected equal numbers: put a "
                "ChannelMix() or a convolution before the first skip connection."
            )
        return _Built(lambda x: functools.reduce(tf.add, [b.forward(x) for b in branches]), counts[0], left)

    def _build_conv(self, layer: Conv, channels: int, positions: Positions, outputs: int) -> "_Built":
        windows = layer.windows(positions)
        sizes = [window.size for window in windows]
        variance = float(layer.scale(positions).numpy()) / channels
        filters = self._draw("filter", [*sizes, channels, outputs], variance)
        add_bias = self._bias(layer, outputs)
        forward = functools.partial(_convolve, filters=filters, windows=windows)
        return _Built(lambda x: add_bias(forward(x)), outputs, layer.output_positions(positions))

    def _build_dense(self, layer: Dense, channels: int, positions: Positions, outputs: int) -> "_Built":
        pixels = math.prod(positions)
        inputs = pixels * channels
        draws = self.draws
        weight = self._draw("dense", [pixels, channels, outputs], float(layer.var_weight.numpy()) / inputs)
        add_bias = self._bias(layer, outputs)

        def forward(x: tf.Tensor) -> tf.Tensor:
            flat = tf.reshape(x, [x.shape[0], -1, inputs])
            return add_bias(_matmul(flat, tf.reshape(weight, [draws, inputs, outputs])))

        return _Built(forward, outputs, ())

    def _bias(self, layer: Conv | Dense, outputs: int) -> Forward:
        variance = float(layer.var_bias.numpy())
        if variance == 0:
            return lambda x: x
        draws, bias = self.draws, self._draw("bias", [outputs], variance)
        return lambda x: x + tf.reshape(bias, [draws, *[1] * (x.shape.rank - 2), outputs])

    def _draw(self, name: str, shape: Sequence[int], variance: float) -> tf.Variable:
        seed = [self._seed, len(self.weights)]
        values = tf.random.stateless_normal([self.draws, *shape], seed, dtype=self._dtype)
        # Weights that the prior fixes at 0 stay there.
        variable = tf.Variable(math.sqrt(variance) * values, trainable=variance > 0, name=f"{name}_{len(self.weights)}")
        self.weights.append(Weight(variable, variance))
        return variable


class _Built(NamedTuple):
    forward: Forward
    channels: int
    positions: Positions


def _has_weights(layer: Layer) -> bool:
    return isinstance(layer, (Conv, Dense, ChannelMix)) or any(map(_has_weights, layer.children))


def _matmul(x: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
    """[draws or 1, ..., C] times [draws, C, outputs]."""
    shape = tf.shape(x)
    flat = tf.reshape(x, [x.shape[0], -1, x.shape[-1]])
    product = tf.matmul(flat, matrix)
    result = tf.reshape(product, tf.concat([[matrix.shape[0]], shape[1:-1], [matrix.shape[-1]]], 0))
    result.set_shape([matrix.shape[0], *x.shape[1:-1], matrix.shape[-1]])
    return result


def _convolve(x: tf.Tensor, filters: tf.Tensor, windows: Sequence[Window]) -> tf.Tensor:
    """
    A convolution that is batched over draws: [draws or 1, N, *positions, C] with [draws, *sizes, C, outputs].

    On up to two axes it is TensorFlow's own, with the draws as its groups; that has no gradients in float64 on the CPU.
    Elsewhere it is a matrix product for each offset in the filter.
    """
    after = [max((w.outputs - 1) * w.stride + w.size - w.before - w.inputs, 0) for w in windows]
    padded = tf.pad(x, [[0, 0], [0, 0], *([w.before, a] for w, a in zip(windows, after, strict=True)), [0, 0]])
    if x.dtype == tf.float32 and 1 <= len(windows) <= 2:
        return _convolve_in_groups(padded, filters, windows)
    offsets = itertools.product(*(range(w.size) for w in windows))
    terms = (_matmul(_shifted(padded, windows, offset), filters[(slice(None), *offset)]) for offset in offsets)
    return functools.reduce(tf.add, terms)


def _convolve_in_groups(padded: tf.Tensor, filters: tf.Tensor, windows: Sequence[Window]) -> tf.Tensor:
    draws, outputs = filters.shape[0], filters.shape[-1]
    # One axis is two of which the first has one pixel.
    ones = [1] * (2 - len(windows))
    sizes = [*ones, *(w.size for w in windows)]
    images = tf.reshape(padded, [padded.shape[0], -1, *ones, *padded.shape[2:]])
    # Images that all draws share, [1, N, ...], are a single group.
    groups = images.shape[0]
    images = tf.reshape(tf.transpose(images, [1, 2, 3, 0, 4]), [-1, *images.shape[2:4], groups * images.shape[-1]])
    filters = tf.transpose(tf.reshape(filters, [draws, *sizes, -1, outputs]), [1, 2, 3, 0, 4])
    filters = tf.reshape(filters, [*filters.shape[:3], draws * outputs])
    strides = [*ones, *(w.stride for w in windows)]
    maps = tf.nn.conv2d(images, filters, strides, "VALID")
    maps = tf.transpose(tf.reshape(maps, [-1, *maps.shape[1:3], draws, outputs]), [3, 0, 1, 2, 4])
    return tf.reshape(maps, [draws, -1, *(w.outputs for w in windows), outputs])


def _shifted(padded: tf.Tensor, windows: Sequence[Window], offset: Sequence[int]) -> tf.Tensor:
    """The input pixel at one place of every patch: [draws or 1, N, *outputs, C]."""
    slices = [slice(o, o + (w.outputs - 1) * w.stride + 1, w.stride) for w, o in zip(windows, offset, strict=True)]
    return padded[(slice(None), slice(None), *slices)]
