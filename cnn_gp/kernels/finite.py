r"""
Networks of finite width, drawn from the prior whose limit is the kernel.

A weight of a layer with C input channels is drawn from :math:`\mathcal{N}(0, \sigma_w^2 / C)`, so that a sum over the
channels has the covariance that the layer's :meth:`~.layer.Layer.propagate` gives to one channel, up to O(1/C):
Garriga-Alonso, Rasmussen & Aitchison (ICLR 2019), equations 3 to 5. What a layer computes with its weights is in its
:meth:`~.layer.Layer.finite_map`; here are the draws from the prior, the convolution and the network as a module.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from ..errors import UserError
from .geometry import CircularWindow, Positions, Window, checked_input_shape

#: Maps [draws or 1, N, *positions, channels] to [draws, N, *positions, channels].
Forward = Callable[[tf.Tensor], tf.Tensor]


class Weight(NamedTuple):
    """A variable [draws, ...] and the variance of its prior."""

    variable: tf.Variable
    variance: float


class FiniteMap(NamedTuple):
    """A part of a finite network, and the shape of the map after it."""

    forward: Forward
    channels: int
    positions: Positions


class Prior:
    """
    Draws the weights of ``draws`` networks whose hidden maps have ``width`` channels.

    The seed and the number of weights drawn before decide the values of a weight.
    """

    def __init__(self, width: int, draws: int, seed: int, dtype: tf.DType) -> None:
        self.width, self.draws, self._seed, self._dtype = width, draws, seed, dtype
        self.weights: list[Weight] = []

    def weight(self, name: str, shape: Sequence[int], variance: float) -> tf.Variable:
        """A weight [draws, *shape] from N(0, variance), independent over its entries."""
        seed = [self._seed, len(self.weights)]
        values = tf.random.stateless_normal([self.draws, *shape], seed, dtype=self._dtype)
        # Weights that the prior fixes at 0 stay there.
        variable = tf.Variable(math.sqrt(variance) * values, trainable=variance > 0, name=f"{name}_{len(self.weights)}")
        self.weights.append(Weight(variable, variance))
        return variable

    def bias(self, outputs: int, variance: float) -> Forward:
        """Adds a bias [draws, outputs] to a map; nothing where the variance is 0."""
        if variance == 0:
            return lambda x: x
        bias = self.weight("bias", [outputs], variance)
        return lambda x: x + tf.reshape(bias, [bias.shape[0], *[1] * (x.shape.rank - 2), outputs])


class Finite(Protocol):
    """What has a finite version: the layers."""

    def finite_map(self, prior: Prior, channels: int, positions: Positions, outputs: int) -> FiniteMap:
        """
        The finite version on maps of so many ``channels`` and ``positions``, its weights drawn from ``prior``.

        :param outputs: channels after the last weights.
        """


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
        network: Finite,
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
        self._dtype = tf.as_dtype(dtype)
        prior = Prior(width, draws, seed, self._dtype)
        channels, *positions = self.input_shape
        last = network.finite_map(prior, channels, tuple(positions), outputs)
        if not prior.weights:
            raise UserError("The network has no weights; expected at least a Dense() readout.")
        if last.positions != () or last.channels != outputs:
            raise UserError(
                f"The network ends in {last.channels} channels on a map of {last.positions}; expected a Dense() "
                "readout after the last map."
            )
        self.weights = prior.weights
        # It must not refer to this object: in a cycle gigabytes of weights would wait for the garbage collector.
        self._forward = last.forward

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

    def ntk(self, X: tf.Tensor, X2: tf.Tensor | None = None) -> tf.Tensor:
        r"""
        The empirical neural tangent kernel of each network, a mean over its outputs.

        The sum over weights and biases, written as their prior's deviation times :math:`\theta_i`, of
        :math:`\partial f(x) / \partial \theta_i \; \partial f(x') / \partial \theta_i`. It converges to
        :class:`~cnn_gp.kernels.ntk.NTKKernel` as the width grows.

        :param X: N images, as for a call.
        :param X2: M images; None for X itself.
        :return: [draws, N, M], of the network's dtype.
        """
        rows = self._jacobians(X)
        columns = rows if X2 is None else self._jacobians(X2)
        terms = (
            weight.variance * tf.einsum("nodw,modw->dnm", row, column)
            for weight, row, column in zip(self.weights, rows, columns, strict=True)
        )
        return functools.reduce(tf.add, terms) / self.outputs

    def _jacobians(self, X: tf.Tensor) -> list[tf.Tensor]:
        """The derivatives of the outputs by each of the weights: [N, outputs, draws, size of the weight]."""
        variables = [weight.variable for weight in self.weights]
        # A loop over images, since vectorised gradients of a convolution in groups were wrong with TensorFlow 2.21.
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(variables)
            # No network depends on another's weights: one backward pass serves all draws.
            outputs = tf.reduce_sum(self(X), axis=0)
        jacobians = tape.jacobian(outputs, variables, experimental_use_pfor=False, unconnected_gradients="zero")
        return [tf.reshape(j, [*j.shape[:3], -1]) for j in jacobians]

    def l2_penalty(self) -> tf.Tensor:
        """The negative log prior of each network, up to a constant: the sum of w^2 / (2 variance), [draws]."""
        penalty = tf.zeros([self.draws], self._dtype)
        for weight in self.weights:
            if weight.variance > 0:
                squares = tf.square(weight.variable)
                penalty += tf.reduce_sum(squares, axis=range(1, squares.shape.rank)) / (2 * weight.variance)
        return penalty


def matmul(x: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
    """[draws or 1, ..., C] times [draws, C, outputs]."""
    shape = tf.shape(x)
    flat = tf.reshape(x, [x.shape[0], -1, x.shape[-1]])
    product = tf.matmul(flat, matrix)
    result = tf.reshape(product, tf.concat([[matrix.shape[0]], shape[1:-1], [matrix.shape[-1]]], 0))
    result.set_shape([matrix.shape[0], *x.shape[1:-1], matrix.shape[-1]])
    return result


def convolve(x: tf.Tensor, filters: tf.Tensor, windows: Sequence[Window]) -> tf.Tensor:
    """
    A convolution that is batched over draws: [draws or 1, N, *positions, C] with [draws, *sizes, C, outputs].

    On up to two axes it is TensorFlow's own, with the draws as its groups; that has no gradients in float64 on the CPU.
    Elsewhere it is a matrix product for each offset in the filter.
    """
    padded = _padded(x, windows)
    if x.dtype == tf.float32 and 1 <= len(windows) <= 2:
        return _convolve_in_groups(padded, filters, windows)
    offsets = itertools.product(*(range(w.size) for w in windows))
    terms = (matmul(_shifted(padded, windows, offset), filters[(slice(None), *offset)]) for offset in offsets)
    return functools.reduce(tf.add, terms)


def average(x: tf.Tensor, windows: Sequence[Window]) -> tf.Tensor:
    """Average pooling of [draws or 1, N, *positions, C], divided by the size of the window also at the edge."""
    padded, offsets = _padded(x, windows), list(itertools.product(*(range(w.size) for w in windows)))
    return functools.reduce(tf.add, (_shifted(padded, windows, offset) for offset in offsets)) / len(offsets)


def _padded(x: tf.Tensor, windows: Sequence[Window]) -> tf.Tensor:
    after = [max((w.outputs - 1) * w.stride + w.size - w.before - w.inputs, 0) for w in windows]
    for axis, (w, a) in enumerate(zip(windows, after, strict=True), start=2):
        if isinstance(w, CircularWindow):
            x = tf.gather(x, np.arange(-w.before, w.inputs + a) % w.inputs, axis=axis)
    zeros = [[0, 0] if isinstance(w, CircularWindow) else [w.before, a] for w, a in zip(windows, after, strict=True)]
    return tf.pad(x, [[0, 0], [0, 0], *zeros, [0, 0]])


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
