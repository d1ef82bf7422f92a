r"""
The layers of an infinitely wide network, each a map of covariances to covariances.

This file is the recursion of Garriga-Alonso, Rasmussen & Aitchison, "Deep Convolutional Networks as shallow Gaussian
Processes" (ICLR 2019), section 2. A network with infinitely many channels, whose weights are independent and Gaussian,
is a Gaussian process: its channels are independent, and only the covariance of one channel between two images, at one
position at a time, has to be carried from layer to layer (their equations 7 to 12). With :math:`K_l(p)` that covariance
at the position p,

.. math::
    \text{convolution:}\quad K_{l+1}(p) &= \sigma_b^2 + \sigma_w^2 \sum_{q \in \text{patch}(p)} V_l(q) \\
    \text{nonlinearity:}\quad V_l(q) &= \mathbb{E}[\phi(u) \phi(v)],\;
        (u, v) \sim \mathcal{N}(0, \text{the 2x2 covariance of the two images at } q) \\
    \text{sum of branches:}\quad K(p) &= \textstyle\sum_i K_i(p)

The neural tangent kernel T (Jacot, Gabriel & Hongler 2018) is carried beside K where it is wanted. It is 0 at the
inputs, and

.. math::
    \text{convolution, dense layer:}\quad T' &= K' + \text{the same linear map of } T \text{, without the bias} \\
    \text{nonlinearity:}\quad T' &= T \, \mathbb{E}[\phi'(u) \phi'(v)] \\
    \text{sum of branches, pooling:}\quad T' &= \text{the same map of } T

Average pooling needs covariances between position p of one image and p + d of the other. The displacements d never mix
but in a pool, so that the recursion above holds for each, with v at p + d and :math:`K_d(p) = 0` where p or p + d is
outside the map; after a convolution of stride s, d needs the displacement s d before it (:mod:`.pooling`).

A layer says what it does to covariances and leaves the loop over pairs of images to the tensor library. Layers one
after another, and the sum of branches, are in :mod:`.composition`, the nonlinearities in :mod:`.nonlinearities`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from gpflow.base import Parameter

from ..errors import UserError
from .displacements import Displacements, sum_along
from .finite import FiniteMap, Prior, convolve, matmul
from .geometry import PADDINGS, Positions, Window, checked_sizes, json_sizes, windows_of
from .layer import Layer, variance_parameter
from .state import Kernels, State


class Conv(Layer):
    """
    A convolution: the covariances are summed over the patch, times ``var_weight``, plus ``var_bias``.

    :param filter_size: one whole number for all axes, or one per axis.
    :param stride: the same for the stride.
    :param padding: "SAME" and "VALID" as in TensorFlow; "FIXED" pads (k - 1) // 2 before and k // 2 after, whatever the
        size of the map, as the ResNet of the paper does. Padding adds zeros; "CIRCULAR", of as many pixels as "SAME",
        those of the map's other end, and can't come before a pool.
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
        self.filter_size = checked_sizes(filter_size, "filter_size")
        self.stride = checked_sizes(stride, "stride")
        self.padding = padding
        self.divide_by_patch = divide_by_patch
        self.var_weight = variance_parameter(var_weight)
        self.var_bias = variance_parameter(var_bias)

    def windows(self, positions: Positions) -> list[Window]:
        """Per axis of the map, where each output pixel's patch begins and ends."""
        return windows_of(positions, self.filter_size, self.stride, self.padding, "filter_size")

    def output_positions(self, positions: Positions) -> Positions:
        return tuple(window.outputs for window in self.windows(positions))

    def displacements(self, positions: Positions, n: int) -> int:
        if self.padding == "CIRCULAR" and n > 1:
            raise UserError(
                "A Conv with padding CIRCULAR comes before a pool, whose displacements would go round the map; "
                "expected another padding there: take SAME, or leave the pool out."
            )
        return n

    def scale(self, positions: Positions) -> tf.Tensor:
        """What the sum over the patch is multiplied by."""
        patch = math.prod(window.size for window in self.windows(positions)) if self.divide_by_patch else 1
        return self.var_weight / patch

    def propagate(self, state: State) -> State:
        windows = self.windows(state.positions)
        trained = _Trained(self.scale(state.positions), self.var_bias)

        def step(kernels: Kernels, d: Displacements | None) -> Kernels:
            bands = {
                axis: tf.cast(window.band() if d is None else d.bands(axis, window), state.sum_dtype)
                for axis, window in enumerate(windows)
                if window.size > 1 or window.stride > 1
            }

            def sums(covariance: tf.Tensor) -> tf.Tensor:
                total = tf.cast(covariance, state.sum_dtype)
                for axis, band in bands.items():
                    total = sum_along(total, axis, band)
                return total

            return trained(kernels, sums)

        return state.then(step, before=lambda d: d.times([window.stride for window in windows]))

    def finite_map(self, prior: Prior, channels: int, positions: Positions, outputs: int) -> FiniteMap:
        windows = self.windows(positions)
        variance = float(self.scale(positions).numpy()) / channels
        filters = prior.weight("filter", [*(window.size for window in windows), channels, outputs], variance)
        add_bias = prior.bias(outputs, float(self.var_bias.numpy()))
        return FiniteMap(lambda x: add_bias(convolve(x, filters, windows)), outputs, self.output_positions(positions))

    def describe(self) -> dict[str, Any]:
        return {
            "layer": "Conv",
            "filter_size": json_sizes(self.filter_size),
            "stride": json_sizes(self.stride),
            "padding": self.padding,
            "divide_by_patch": self.divide_by_patch,
            "var_weight": float(self.var_weight.numpy()),
            "var_bias": float(self.var_bias.numpy()),
        }


class _Trained:
    """
    What weights that are trained make of sums over patches, K' = scale * sum + bias and T' = K' + scale * sum of T.

    T' adds the products of derivatives by these weights and biases, which are K', to those by the weights before.
    """

    def __init__(self, scale: "Parameter | tf.Tensor", bias: Parameter) -> None:
        # Read here, since a layer's step may be traced in a loop.
        self._scale, self._bias = tf.convert_to_tensor(scale), tf.convert_to_tensor(bias)

    def __call__(self, kernels: Kernels, sums: Callable[[tf.Tensor], tf.Tensor]) -> Kernels:
        def scaled(covariance: tf.Tensor) -> tf.Tensor:
            total = sums(covariance)
            return tf.cast(self._scale, total.dtype) * total

        def affine(covariance: tf.Tensor) -> tf.Tensor:
            total = scaled(covariance)
            return tf.cast(total + tf.cast(self._bias, total.dtype), covariance.dtype)

        nngp = kernels.nngp.map(affine)
        if kernels.ntk is None:
            return Kernels(nngp, None)
        return Kernels(nngp, nngp.plus(kernels.ntk.map(lambda t: tf.cast(scaled(t), t.dtype))))


class Dense(Layer):
    """
    A fully connected layer: the mean over positions, times ``var_weight``, plus ``var_bias``. One pixel is left.

    The weights are independent at each position (variance ``var_weight`` / fan-in), so that no covariances between
    positions are needed. To share them, put a :class:`GlobalAvgPool` before this layer.
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
        axes = list(range(len(state.positions)))
        trained = _Trained(self.var_weight, self.var_bias)

        def mean(covariance: tf.Tensor) -> tf.Tensor:
            # In float64 whatever the sums over patches are: it's done once, and the map has hundreds of pixels.
            return tf.reduce_mean(tf.cast(covariance, tf.float64), axis=axes)

        # One pixel is left, which has no displacements.
        return state.then(lambda kernels, d: trained(kernels, mean))

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


class ChannelMix(Layer):
    """
    A 1x1 convolution with weight variance 1 / fan-in and no bias: it leaves covariances as they are.

    It is there for finite networks, in which it makes the channels of a map Gaussian and independent. The sum of two
    maps after a nonlinearity needs this to be equivalent to the sum of their covariances. Its weights are trained: the
    neural tangent kernel has a term of them.
    """

    weighted = True

    def propagate(self, state: State) -> State:
        return state.then(lambda kernels, _: Kernels(kernels.nngp, kernels.ntk and kernels.ntk.plus(kernels.nngp)))

    def n_covariances(self, positions: Positions, displacements: int = 1) -> int:
        return 0

    def finite_map(self, prior: Prior, channels: int, positions: Positions, outputs: int) -> FiniteMap:
        mix = prior.weight("mix", [channels, outputs], 1 / channels)
        return FiniteMap(lambda x: matmul(x, mix), outputs, positions)

    def describe(self) -> dict[str, Any]:
        return {"layer": "ChannelMix"}
