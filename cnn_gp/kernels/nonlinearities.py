"""
The elementwise nonlinearities phi of an infinitely wide network, each by its Gaussian expectations.

A nonlinearity maps covariances to E[phi(u) phi(v)], position by position, and the neural tangent kernel to its product
with E[phi'(u) phi'(v)] (:mod:`.layers`). The formulas are in :mod:`.expectations`.
"""

import abc
import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from ..errors import UserError
from . import expectations
from .displacements import Displacements
from .finite import FiniteMap, Prior
from .geometry import Positions
from .layer import Layer
from .state import Covariances, Kernels, State

#: Of a covariance and the two variances.
Function = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


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

    def derivative_expectation(self, cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tf.Tensor:
        """E[phi'(u) phi'(v)], for the neural tangent kernel. :raises UserError: where it has none."""
        raise UserError(
            f"{self.describe()} has no derivative's expectation, which a neural tangent kernel needs; "
            "take ExReLU() or ExErf(), or an NNGPKernel."
        )

    def check_derivatives(self) -> None:
        one = tf.ones([], tf.float64)
        self.derivative_expectation(one, one, one)

    def derivative_variance(self, variance: tf.Tensor) -> tf.Tensor:
        """E[phi'(u)^2], the same for two identical inputs."""
        return self.derivative_expectation(variance, variance, variance)

    @abc.abstractmethod
    def apply(self, x: tf.Tensor) -> tf.Tensor:
        """The nonlinearity itself, for finite networks."""

    def propagate(self, state: State) -> State:
        var1, var2 = state.nngp.own1, state.nngp.own2

        def at_zero(K: Covariances, function: Function, of_variance: Callable[[tf.Tensor], tf.Tensor]) -> Covariances:
            return K.map(of_variance)._replace(cross=None if var2 is None else function(K.cross, var1, var2))

        def displaced(K: Covariances, function: Function, var1_d: tf.Tensor, var2_d: tf.Tensor) -> Covariances:
            # The first image's variances at p, the second's at p + d.
            return Covariances(
                None if var2 is None else function(K.cross, var1[None], var2_d),
                function(K.own1, var1[None], var1_d),
                None if var2 is None else function(K.own2, var2[None], var2_d),
            )

        def step(kernels: Kernels, d: Displacements | None) -> Kernels:
            K, T = kernels
            if d is None:
                nngp = at_zero(K, self.expectation, self.variance)
                ntk = T and T.times(at_zero(K, self.derivative_expectation, self.derivative_variance))
                return Kernels(nngp, ntk)
            # An image's covariance with itself is its variance at d = 0, where no rounding error may make it another.
            K = K._replace(own1=d.where_zero(var1, K.own1), own2=None if var2 is None else d.where_zero(var2, K.own2))
            shifted = d.shifted(var1), None if var2 is None else d.shifted(var2)
            nngp = displaced(K, self.expectation, *shifted)
            return Kernels(nngp, T and T.times(displaced(K, self.derivative_expectation, *shifted)))

        return state.then(step)

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

    def derivative_expectation(self, cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tf.Tensor:
        if self.exponent == 0:
            raise UserError(
                "The step function, ExReLU(exponent=0), has no neural tangent kernel: its derivative is 0 almost "
                "everywhere; take ExReLU() or ExErf(), or an NNGPKernel."
            )
        return self.factor * expectations.step(cross, var1, var2)

    def apply(self, x: tf.Tensor) -> tf.Tensor:
        activation = tf.nn.relu(x) if self.exponent == 1 else tf.cast(x > 0, x.dtype)
        return math.sqrt(self.factor) * activation

    def describe(self) -> dict[str, Any]:
        return {"layer": "ExReLU", "exponent": self.exponent, "multiply_by_sqrt2": self.multiply_by_sqrt2}


class ExErf(Nonlinearity):
    """The error function, a sigmoid (:func:`cnn_gp.kernels.expectations.erf`)."""

    def expectation(self, cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tf.Tensor:
        return expectations.erf(cross, var1, var2)

    def derivative_expectation(self, cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tf.Tensor:
        return expectations.erf_derivative(cross, var1, var2)

    def apply(self, x: tf.Tensor) -> tf.Tensor:
        return tf.math.erf(x)

    def describe(self) -> dict[str, Any]:
        return {"layer": "ExErf"}
