r"""
The layers of an infinitely wide network, each a map of covariances to covariances.

This file is the recursion of Garriga-Alonso, Aitchison & Rasmussen, "Deep Convolutional Networks as shallow Gaussian
Processes" (ICLR 2019), section 2. A network with infinitely many channels, whose weights are independent and Gaussian,
is a Gaussian process: its channels are independent, and only the covariance of one channel between two images, at one
position at a time, has to be carried from layer to layer (their equations 7 to 12). With :math:`K_l(p)` that covariance
at the position p,

.. math::
    \text{convolution:}\quad K_{l+1}(p) &= \sigma_b^2 + \sigma_w^2 \sum_{q \in \text{patch}(p)} V_l(q) \\
    \text{nonlinearity:}\quad V_l(q) &= \mathbb{E}[\phi(u) \phi(v)],\;
        (u, v) \sim \mathcal{N}(0, \text{the 2x2 covariance of the two images at } q) \\
    \text{sum of branches:}\quad K(p) &= \textstyle\sum_i K_i(p)

A layer says what it does to covariances and leaves the loop over pairs of images to the tensor library.
"""

import abc
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import gpflow
import numpy as np
import tensorflow as tf
from gpflow.base import Parameter
from gpflow.utilities import positive

from ..errors import UserError
from . import expectations
from .geometry import PADDINGS, Window

Positions = tuple[int, ...]


class State(NamedTuple):
    """
    The covariances of one channel between images X [N] and X2 [M], at every position of the map.

    ``cross`` [*positions, N, M]; ``var1`` [*positions, N, 1]; ``var2`` [*positions, 1, M]. The pairs are innermost and
    contiguous, so that each step of the recursion runs over full vectors. ``cross`` and ``var2`` are None where only
    the variances of X are wanted. ``sum_dtype`` is the precision of the sums over a patch (:attr:`Layer.sum_dtype`).
    """

    cross: tf.Tensor | None
    var1: tf.Tensor
    var2: tf.Tensor | None
    sum_dtype: tf.DType

    def map(self, function: Callable[[tf.Tensor], tf.Tensor]) -> "State":
        """The same map for each of the three."""
        cross, var1, var2 = (None if t is None else function(t) for t in self[:3])
        return self._replace(cross=cross, var1=var1, var2=var2)


class Layer(gpflow.base.Module, metaclass=abc.ABCMeta):
    """A map of covariances to covariances, equivalent to a layer with infinitely many channels."""

    @abc.abstractmethod
    def propagate(self, state: State) -> State:
        """The covariances after this layer, from those before it."""

    def output_positions(self, positions: Positions) -> Positions:
        """The shape of the map after this layer. :raises ShrunkMapError: where it would have less than one pixel."""
        return positions

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """What decides this layer's numbers, in JSON's types: equal descriptions mean equal kernels."""

    @property
    def children(self) -> "Sequence[Layer]":
        """The layers that this one is made of."""
        return ()

    def n_covariances(self, positions: Positions) -> int:
        """How many covariances a pair of images costs in this layer: what its time is about proportional to."""
        return math.prod(self.output_positions(positions))

    def sum_dtype(self, dtype: tf.DType) -> tf.DType:
        """
        The precision in which sums over a patch are taken, for covariances of precision ``dtype``.

        In float64 a sum of float32 numbers is exact, so it doesn't depend on the order in which a matrix product adds:
        the covariance of two identical patches stays equal to their variance to the last bit, whatever the shapes and
        the device. Deep erf networks amplify any difference between the two until it ruins the kernel, so they pay
        the price, as does the step, whose slope there is infinite. ReLU networks don't amplify it.
        """
        return functools.reduce(
            lambda widest, child: max(widest, child.sum_dtype(dtype), key=lambda d: d.size), self.children, dtype
        )

    def finite(
        self, width: int, input_shape: Sequence[int], draws: int = 1, outputs: int = 1, seed: int = 0
    ) -> "tf.Module":
        """Finite networks of this architecture drawn from the prior: :class:`cnn_gp.kernels.finite.FiniteNetwork`."""
        from .finite import FiniteNetwork

        return FiniteNetwork(self, width, input_shape, draws=draws, outputs=outputs, seed=seed)


def variance_parameter(value: "float | Parameter") -> Parameter:
    """
    A variance as a GPflow parameter in float64: positive and trainable, or fixed where it is exactly 0.

    A :class:`gpflow.Parameter` is kept as it is, so that layers can share it.

    :raises UserError: where the value is negative, infinite or not a number.
    """
    if isinstance(value, Parameter):
        return value
    number = float(value)
    if not (math.isfinite(number) and number >= 0):
        raise UserError(
            f"A variance is {number}; expected a finite number, 0 or more: give var_weight and var_bias so."
        )
    if number == 0:
        # The positive transform has no preimage of 0.
        return Parameter(0.0, dtype=tf.float64, trainable=False)
    return Parameter(number, dtype=tf.float64, transform=positive())


def _per_axis(value: "int | Sequence[int]", rank: int, what: str) -> tuple[int, ...]:
    sizes = (int(value),) * rank if isinstance(value, (int, np.integer)) else tuple(int(v) for v in value)
    if len(sizes) != rank or any(s < 1 for s in sizes):
        raise UserError(
            f"{what} is {value} on a map with {rank} spatial axes; expected one whole number of at least 1 per axis."
        )
    return sizes


class Conv(Layer):
    """
    A convolution: the covariances are summed over the patch, times ``var_weight``, plus ``var_bias``.

    :param filter_size: one whole number for all axes, or one per axis.
    :param stride: the same for the stride.
    :param padding: "SAME" and "VALID" as in TensorFlow; "FIXED" pads (k - 1) // 2 before and k // 2 after, whatever the
        size of the map, as the ResNet of the paper does. Padding adds zeros.
    :param var_weight: variance of a weight times the number of input channels; a shared :class:`gpflow.Parameter` or a
        number.
    :param var_bias: variance of the bias. 0 means none.
    :param divide_by_patch: divide ``var_weight`` by the number of pixels in the patch (weight variance 1 / fan-in).
    """

    def __init__(
        self,
        filter_size: "int | Sequence[int]",
        stride: "int | Sequence[int]" = 1,
        padding: str = "SAME",
        var_weight: "float | Parameter" = 1.0,
        var_bias: "float | Parameter" = 0.0,
        divide_by_patch: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        if padding not in PADDINGS:
            raise UserError(f"padding is {padding!r}; expected one of {', '.join(PADDINGS)}.")
        self.filter_size = filter_size if isinstance(filter_size, int) else tuple(filter_size)
        self.stride = stride if isinstance(stride, int) else tuple(stride)
        self.padding = padding
        self.divide_by_patch = divide_by_patch
        self.var_weight = variance_parameter(var_weight)
        self.var_bias = variance_parameter(var_bias)

    def windows(self, positions: Positions) -> list[Window]:
        """Per axis of the map, where each output pixel's patch begins and ends."""
        rank = len(positions)
        filters = _per_axis(self.filter_size, rank, "filter_size")
        strides = _per_axis(self.stride, rank, "stride")
        return [Window.of(n, k, s, self.padding) for n, k, s in zip(positions, filters, strides, strict=True)]

    def output_positions(self, positions: Positions) -> Positions:
        return tuple(window.outputs for window in self.windows(positions))

    def scale(self, positions: Positions) -> tf.Tensor:
        """What the sum over the patch is multiplied by."""
        patch = math.prod(window.size for window in self.windows(positions)) if self.divide_by_patch else 1
        return self.var_weight / patch

    def propagate(self, state: State) -> State:
        positions = tuple(state.var1.shape[:-2])
        windows, scale = self.windows(positions), self.scale(positions)

        def convolve(covariance: tf.Tensor) -> tf.Tensor:
            total = tf.cast(covariance, state.sum_dtype)
            for axis, window in enumerate(windows):
                total = _sum_windows(total, axis, window)
            return tf.cast(_affine(scale, total, self.var_bias), covariance.dtype)

        return state.map(convolve)

    def describe(self) -> dict[str, Any]:
        return {
            "layer": "Conv",
            "filter_size": self.filter_size,
            "stride": self.stride,
            "padding": self.padding,
            "divide_by_patch": self.divide_by_patch,
            "var_weight": float(self.var_weight.numpy()),
            "var_bias": float(self.var_bias.numpy()),
        }


def _affine(scale: "Parameter | tf.Tensor", covariance: tf.Tensor, bias: Parameter) -> tf.Tensor:
    return tf.cast(scale, covariance.dtype) * covariance + tf.cast(bias, covariance.dtype)


def _sum_windows(covariance: tf.Tensor, axis: int, window: Window) -> tf.Tensor:
    """
    Sum over the window along one axis: [..., inputs, ...] -> [..., outputs, ...].

    The filter is constant over the patch, hence separable: one small banded matrix product per axis.
    """
    if window.size == 1 and window.stride == 1:
        return covariance
    shape = tf.shape(covariance)
    before = math.prod(covariance.shape[:axis])
    band = tf.constant(window.band(), covariance.dtype)
    matrix = tf.reshape(covariance, [before, window.inputs, -1])
    summed = tf.matmul(tf.broadcast_to(band, [before, window.outputs, window.inputs]), matrix)
    return tf.reshape(summed, tf.concat([shape[:axis], [window.outputs], shape[axis + 1 :]], 0))


class Dense(Layer):
    """
    A fully connected layer: the mean over positions, times ``var_weight``, plus ``var_bias``. One pixel is left.

    The weights are independent at each position (variance ``var_weight`` / fan-in). Average pooling, whose weights
    are shared by the positions, would need covariances between positions and is another kernel.
    """

    def __init__(
        self,
        var_weight: "float | Parameter" = 1.0,
        var_bias: "float | Parameter" = 0.0,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.var_weight = variance_parameter(var_weight)
        self.var_bias = variance_parameter(var_bias)

    def output_positions(self, positions: Positions) -> Positions:
        return ()

    def propagate(self, state: State) -> State:
        axes = list(range(state.var1.shape.rank - 2))

        def read_out(covariance: tf.Tensor) -> tf.Tensor:
            # In float64 whatever the sums over patches are: it's done once, and the map has hundreds of pixels.
            mean = tf.reduce_mean(tf.cast(covariance, tf.float64), axis=axes)
            return tf.cast(_affine(self.var_weight, mean, self.var_bias), covariance.dtype)

        return state.map(read_out)

    def describe(self) -> dict[str, Any]:
        return {
            "layer": "Dense",
            "var_weight": float(self.var_weight.numpy()),
            "var_bias": float(self.var_bias.numpy()),
        }


class Nonlinearity(Layer):
    """An elementwise nonlinearity: the Gaussian expectation of its products, position by position."""

    @property
    def amplifies_rounding(self) -> bool:
        """Whether the distance of nearly identical patches can grow from layer to layer: :meth:`Layer.sum_dtype`."""
        return True

    def sum_dtype(self, dtype: tf.DType) -> tf.DType:
        return tf.float64 if self.amplifies_rounding else dtype

    @abc.abstractmethod
    def expectation(self, cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tf.Tensor:
        """E[phi(u) phi(v)] for covariance ``cross`` and variances ``var1``, ``var2``, which broadcast."""

    def variance(self, variance: tf.Tensor) -> tf.Tensor:
        """
        E[phi(u)^2].

        It must be what :meth:`expectation` gives for two identical inputs, to the last bit; so by default it is that.
        """
        return self.expectation(variance, variance, variance)

    @abc.abstractmethod
    def apply(self, x: tf.Tensor) -> tf.Tensor:
        """The nonlinearity itself, for finite networks."""

    def propagate(self, state: State) -> State:
        cross = None if state.cross is None else self.expectation(state.cross, state.var1, state.var2)
        return state.map(self.variance)._replace(cross=cross)


class ExReLU(Nonlinearity):
    """
    The ReLU (``exponent`` 1) or the step function (``exponent`` 0), times sqrt(2) where ``multiply_by_sqrt2``.

    The arc-cosine kernels of order 1 and 0 (:func:`.expectations.relu`, :func:`.expectations.step`).
    """

    def __init__(self, exponent: int = 1, multiply_by_sqrt2: bool = False, name: str | None = None) -> None:
        super().__init__(name=name)
        if exponent not in (0, 1):
            raise UserError(f"exponent is {exponent!r}; expected 1 (the ReLU) or 0 (the step function).")
        self.exponent = exponent
        self.multiply_by_sqrt2 = multiply_by_sqrt2

    @property
    def amplifies_rounding(self) -> bool:
        return self.exponent == 0

    @property
    def factor(self) -> float:
        """The square of what multiplies the nonlinearity."""
        return 2.0 if self.multiply_by_sqrt2 else 1.0

    def expectation(self, cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tf.Tensor:
        function = expectations.relu if self.exponent == 1 else expectations.step
        return self.factor * function(cross, var1, var2)

    def variance(self, variance: tf.Tensor) -> tf.Tensor:
        return 0.5 * self.factor * (variance if self.exponent == 1 else tf.ones_like(variance))

    def apply(self, x: tf.Tensor) -> tf.Tensor:
        activation = tf.nn.relu(x) if self.exponent == 1 else tf.cast(x > 0, x.dtype)
        return math.sqrt(self.factor) * activation

    def describe(self) -> dict[str, Any]:
        return {"layer": "ExReLU", "exponent": self.exponent, "multiply_by_sqrt2": self.multiply_by_sqrt2}


class ExErf(Nonlinearity):
    """The error function, a sigmoid (:func:`cnn_gp.kernels.expectations.erf`)."""

    def expectation(self, cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tf.Tensor:
        return expectations.erf(cross, var1, var2)

    def apply(self, x: tf.Tensor) -> tf.Tensor:
        return tf.math.erf(x)

    def describe(self) -> dict[str, Any]:
        return {"layer": "ExErf"}


class ChannelMix(Layer):
    """
    A 1x1 convolution with weight variance 1 / fan-in and no bias: it leaves covariances as they are.

    In the infinite network it does nothing. In a finite one it makes the channels of a map Gaussian and independent,
    which the sum of two maps after a nonlinearity needs to be equivalent to the sum of their covariances.
    """

    def propagate(self, state: State) -> State:
        return state

    def n_covariances(self, positions: Positions) -> int:
        return 0

    def describe(self) -> dict[str, Any]:
        return {"layer": "ChannelMix"}


class Sequential(Layer):
    """Layers one after another; without any, the identity."""

    def __init__(self, *layers: Layer, name: str | None = None) -> None:
        super().__init__(name=name)
        self.layers = _checked_layers(layers)

    @property
    def children(self) -> Sequence[Layer]:
        return self.layers

    def propagate(self, state: State) -> State:
        return functools.reduce(lambda state, layer: layer.propagate(state), self.layers, state)

    def output_positions(self, positions: Positions) -> Positions:
        return functools.reduce(lambda positions, layer: layer.output_positions(positions), self.layers, positions)

    def n_covariances(self, positions: Positions) -> int:
        total = 0
        for layer in self.layers:
            total += layer.n_covariances(positions)
            positions = layer.output_positions(positions)
        return total

    def describe(self) -> dict[str, Any]:
        return {"layer": "Sequential", "layers": [layer.describe() for layer in self.layers]}


class Sum(Layer):
    """
    The sum of the outputs of independent branches, all of the same size: the covariances add.

    ``Sum(Sequential(), branch)`` is a residual connection.
    """

    def __init__(self, *branches: Layer, name: str | None = None) -> None:
        super().__init__(name=name)
        if not branches:
            raise UserError("Sum() has no branch; expected at least one layer.")
        self.branches = _checked_layers(branches)

    @property
    def children(self) -> Sequence[Layer]:
        return self.branches

    def propagate(self, state: State) -> State:
        outputs = [branch.propagate(state) for branch in self.branches]
        cross, var1, var2 = (
            None if terms[0] is None else functools.reduce(tf.add, terms)
            for terms in zip(*(output[:3] for output in outputs), strict=True)
        )
        return state._replace(cross=cross, var1=var1, var2=var2)

    def output_positions(self, positions: Positions) -> Positions:
        sizes = [branch.output_positions(positions) for branch in self.branches]
        if any(size != sizes[0] for size in sizes):
            raise UserError(
                f"A sum adds maps of different sizes: {', '.join(map(str, sizes))}; "
                "expected equal ones: take padding SAME and stride 1 between skip connections."
            )
        return sizes[0]

    def n_covariances(self, positions: Positions) -> int:
        return sum(branch.n_covariances(positions) for branch in self.branches)

    def describe(self) -> dict[str, Any]:
        return {"layer": "Sum", "branches": [branch.describe() for branch in self.branches]}


def _checked_layers(layers: Iterable[Layer]) -> list[Layer]:
    layers = list(layers)
    for layer in layers:
        if not isinstance(layer, Layer):
            raise UserError(f"{layer!r} is a {type(layer).__name__}; expected a layer of cnn_gp.kernels.layers.")
    return layers


def input_state(X: tf.Tensor, X2: tf.Tensor | None, input_shape: Sequence[int], sum_dtype: tf.DType) -> State:
    """
    The covariances of the inputs: at each position the mean over channels of the products.

    :param X: [N, D], flattened channel first, D the number of entries of ``input_shape``.
    :param X2: [M, D], or None for the variances alone.
    :param input_shape: [C, *positions].
    :param sum_dtype: the precision of the sums over a patch from here on.
    """
    channels, *positions = input_shape

    def images(X: tf.Tensor) -> tf.Tensor:
        # In float64, where products of float32 numbers are exact: see Layer.sum_dtype.
        return tf.reshape(tf.cast(X, tf.float64), [-1, channels, math.prod(positions)])

    def shaped(covariance: tf.Tensor) -> tf.Tensor:
        return tf.reshape(tf.cast(covariance, X.dtype), tf.concat([positions, tf.shape(covariance)[1:]], 0))

    x = images(X)
    var1 = shaped(tf.transpose(tf.reduce_mean(x * x, axis=1))[:, :, None])
    if X2 is None:
        return State(None, var1, None, sum_dtype)
    x2 = images(X2)
    var2 = shaped(tf.transpose(tf.reduce_mean(x2 * x2, axis=1))[:, None, :])
    return State(shaped(tf.einsum("ncp,mcp->pnm", x, x2) / channels), var1, var2, sum_dtype)
