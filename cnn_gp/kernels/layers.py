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
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from gpflow.base import Parameter

from ..errors import UserError
from . import expectations
from .finite import FiniteMap, Prior, convolve, matmul
from .geometry import PADDINGS, Positions, Window
from .layer import Layer, layer_from_description, variance_parameter
from .state import State


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

    weighted = True

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

    def finite_map(self, prior: Prior, channels: int, positions: Positions, outputs: int) -> FiniteMap:
        windows = self.windows(positions)
        variance = float(self.scale(positions).numpy()) / channels
        filters = prior.weight("filter", [*(window.size for window in windows), channels, outputs], variance)
        add_bias = prior.bias(outputs, float(self.var_bias.numpy()))
        return FiniteMap(lambda x: add_bias(convolve(x, filters, windows)), outputs, self.output_positions(positions))

    def describe(self) -> dict[str, Any]:
        return {
            "layer": "Conv",
            "filter_size": _json(self.filter_size),
            "stride": _json(self.stride),
            "padding": self.padding,
            "divide_by_patch": self.divide_by_patch,
            "var_weight": float(self.var_weight.numpy()),
            "var_bias": float(self.var_bias.numpy()),
        }


def _json(sizes: "int | tuple[int, ...]") -> "int | list[int]":
    return sizes if isinstance(sizes, int) else list(sizes)


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

    weighted = True

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

    def finite_map(self, prior: Prior, channels: int, positions: Positions, outputs: int) -> FiniteMap:
        pixels = math.prod(positions)
        inputs = pixels * channels
        weight = prior.weight("dense", [pixels, channels, outputs], float(self.var_weight.numpy()) / inputs)
        add_bias = prior.bias(outputs, float(self.var_bias.numpy()))

        def forward(x: tf.Tensor) -> tf.Tensor:
            flat = tf.reshape(x, [x.shape[0], -1, inputs])
            return add_bias(matmul(flat, tf.reshape(weight, [weight.shape[0], inputs, outputs])))

        return FiniteMap(forward, outputs, ())

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

    def finite_map(self, prior: Prior, channels: int, positions: Positions, outputs: int) -> FiniteMap:
        return FiniteMap(self.apply, channels, positions)


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

    weighted = True

    def propagate(self, state: State) -> State:
        return state

    def n_covariances(self, positions: Positions) -> int:
        return 0

    def finite_map(self, prior: Prior, channels: int, positions: Positions, outputs: int) -> FiniteMap:
        mix = prior.weight("mix", [channels, outputs], 1 / channels)
        return FiniteMap(lambda x: matmul(x, mix), outputs, positions)

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

    def finite_map(self, prior: Prior, channels: int, positions: Positions, outputs: int) -> FiniteMap:
        last_weighted = max((i for i, layer in enumerate(self.layers) if layer.has_weights), default=-1)
        steps = []
        for i, layer in enumerate(self.layers):
            step = layer.finite_map(prior, channels, positions, prior.width if i < last_weighted else outputs)
            channels, positions = step.channels, step.positions
            steps.append(step.forward)
        return FiniteMap(lambda x: functools.reduce(lambda x, step: step(x), steps, x), channels, positions)

    def describe(self) -> dict[str, Any]:
        return {"layer": "Sequential", "layers": [layer.describe() for layer in self.layers]}

    @classmethod
    def from_arguments(cls, layers: Sequence[dict[str, Any]]) -> "Sequential":  # type: ignore[override]
        return cls(*map(layer_from_description, layers))


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

    def finite_map(self, prior: Prior, channels: int, positions: Positions, outputs: int) -> FiniteMap:
        left = self.output_positions(positions)  # refuses maps of different sizes
        branches = [branch.finite_map(prior, channels, positions, outputs) for branch in self.branches]
        counts = [branch.channels for branch in branches]
        if len(set(counts)) > 1:
            raise UserError(
                f"A sum adds maps of {' and '.join(map(str, counts))} channels; expected equal numbers: put a "
                "ChannelMix() or a convolution before the first skip connection."
            )
        return FiniteMap(lambda x: functools.reduce(tf.add, [b.forward(x) for b in branches]), counts[0], left)

    def describe(self) -> dict[str, Any]:
        return {"layer": "Sum", "branches": [branch.describe() for branch in self.branches]}

    @classmethod
    def from_arguments(cls, branches: Sequence[dict[str, Any]]) -> "Sum":  # type: ignore[override]
        return cls(*map(layer_from_description, branches))


def _checked_layers(layers: Iterable[Layer]) -> list[Layer]:
    layers = list(layers)
    for layer in layers:
        if not isinstance(layer, Layer):
            raise UserError(f"{layer!r} is a {type(layer).__name__}; expected a layer of cnn_gp.kernels.layers.")
    return layers
