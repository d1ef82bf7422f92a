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
from . import expectations, quadrature
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
            f"{type(self).__name__} has no derivative's expectation, which a neural tangent kernel needs; "
            "take another nonlinearity, or an NNGPKernel."
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
            # A covariance isn't a variance: it may be below 0.
            own2 = None if var2 is None else of_variance(K.own2)
            return Covariances(None if var2 is None else function(K.cross, var1, var2), of_variance(K.own1), own2)

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
    max(u, 0)^``exponent``, times sqrt(2) where ``multiply_by_sqrt2``: 1 is the ReLU, 0 the step function.

    The arc-cosine kernel of that order (:func:`.expectations.relu`, :func:`.expectations.step`,
    :func:`.expectations.rectified_power`).

    :raises UserError: where the exponent isn't a whole number from 0 to 16.
    """

    def __init__(self, exponent: int = 1, multiply_by_sqrt2: bool = False, name: str | None = None) -> None:
        super().__init__(name=name)
        if exponent not in range(17):
            raise UserError(f"exponent is {exponent!r}; expected 1 (the ReLU), 0 (the step), or 2 to 16.")
        self.exponent = int(exponent)
        self.multiply_by_sqrt2 = multiply_by_sqrt2

    @property
    def amplifies_rounding(self) -> bool:
        return self.exponent != 1

    @property
    def factor(self) -> float:
        """The square of what multiplies the nonlinearity."""
        return 2.0 if self.multiply_by_sqrt2 else 1.0

    def expectation(self, cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tf.Tensor:
        return self.factor * self._of_order(self.exponent, cross, var1, var2)

    def variance(self, variance: tf.Tensor) -> tf.Tensor:
        if self.exponent > 1:
            return super().variance(variance)
        # The step's is constant, but not where there is none.
        of_step = tf.where(tf.math.is_finite(variance), tf.ones_like(variance), math.nan)
        return 0.5 * self.factor * (variance if self.exponent == 1 else of_step)

    def derivative_expectation(self, cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tf.Tensor:
        if self.exponent == 0:
            raise UserError(
                "The step function, ExReLU(exponent=0), has no neural tangent kernel: its derivative is 0 almost "
                "everywhere; take ExReLU() or ExErf(), or an NNGPKernel."
            )
        return self.factor * self.exponent**2 * self._of_order(self.exponent - 1, cross, var1, var2)

    @staticmethod
    def _of_order(exponent: int, cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tf.Tensor:
        if exponent > 1:
            return expectations.rectified_power(cross, var1, var2, exponent)
        return (expectations.relu if exponent == 1 else expectations.step)(cross, var1, var2)

    def apply(self, x: tf.Tensor) -> tf.Tensor:
        activation = tf.cast(x > 0, x.dtype) if self.exponent == 0 else tf.nn.relu(x) ** self.exponent
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


class LeakyReLU(Nonlinearity):
    """
    u where it is positive, ``alpha`` u elsewhere.

    It is alpha u + (1 - alpha) max(u, 0), so that E[phi(u) phi(v)] is alpha c + (1 - alpha)^2 times the ReLU's, and the
    derivative's expectation alpha + (1 - alpha)^2 times the step's.
    """

    def __init__(self, alpha: float, name: str | None = None) -> None:
        super().__init__(name=name)
        self.alpha = float(alpha)
        if not math.isfinite(self.alpha):
            raise UserError(f"alpha is {self.alpha}; expected a finite number.")

    @property
    def amplifies_rounding(self) -> bool:
        return False

    def expectation(self, cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tf.Tensor:
        return self.alpha * cross + (1 - self.alpha) ** 2 * expectations.relu(cross, var1, var2)

    def derivative_expectation(self, cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tf.Tensor:
        return self.alpha + (1 - self.alpha) ** 2 * expectations.step(cross, var1, var2)

    def apply(self, x: tf.Tensor) -> tf.Tensor:
        return tf.where(x > 0, x, self.alpha * x)

    def describe(self) -> dict[str, Any]:
        return {"layer": "LeakyReLU", "alpha": self.alpha}


class Abs(LeakyReLU):
    """The absolute value: the leaky ReLU of alpha = -1."""

    def __init__(self, name: str | None = None) -> None:
        super().__init__(-1.0, name=name)

    def describe(self) -> dict[str, Any]:
        return {"layer": "Abs"}


class GELU(Nonlinearity):
    """u times the Gaussian distribution function of u (:func:`.expectations.gelu`), not its tanh approximation."""

    def expectation(self, cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tf.Tensor:
        return expectations.gelu(cross, var1, var2)

    def derivative_expectation(self, cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tf.Tensor:
        return expectations.gelu_derivative(cross, var1, var2)

    def apply(self, x: tf.Tensor) -> tf.Tensor:
        return 0.5 * x * tf.math.erfc(-math.sqrt(0.5) * x)

    def describe(self) -> dict[str, Any]:
        return {"layer": "GELU"}


class Sin(Nonlinearity):
    """a sin(b u + c) (:func:`.expectations.sine`), with the arguments and defaults that neural-tangents gives it."""

    #: What is added to the phase c of the sine.
    _shift = 0.0

    def __init__(self, a: float = 1.0, b: float = 1.0, c: float = 0.0, name: str | None = None) -> None:
        super().__init__(name=name)
        self.a, self.b, self.c = float(a), float(b), float(c)
        if not all(map(math.isfinite, (self.a, self.b, self.c))):
            raise UserError(f"a, b and c are {self.a}, {self.b} and {self.c}; expected finite numbers.")

    def expectation(self, cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tf.Tensor:
        return self.a**2 * self._sine(cross, var1, var2, math.cos(2 * (self.c + self._shift)))

    def derivative_expectation(self, cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tf.Tensor:
        return (self.a * self.b) ** 2 * self._sine(cross, var1, var2, -math.cos(2 * (self.c + self._shift)))

    def _sine(self, cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor, cosine: float) -> tf.Tensor:
        return expectations.sine(self.b**2 * cross, self.b**2 * var1, self.b**2 * var2, cosine)

    def apply(self, x: tf.Tensor) -> tf.Tensor:
        return self.a * tf.sin(self.b * x + self.c + self._shift)

    def describe(self) -> dict[str, Any]:
        return {"layer": type(self).__name__, "a": self.a, "b": self.b, "c": self.c}


class Cos(Sin):
    """a cos(b u + c): the sine a quarter of a turn further."""

    _shift = math.pi / 2


class ElementwiseNumerical(Nonlinearity):
    """
    Any function of TensorFlow, by Gauss-Hermite quadrature (:mod:`.quadrature`).

    The error falls exponentially with ``degree`` for a smooth function, the faster the smaller the variances, and about
    as 1 / ``degree`` for one with a kink. A kernel entry takes 2 ``degree``^2 evaluations of ``fn`` a position. A run
    can't store it.

    :param fn: elementwise, of a float32 or float64 tensor, without variables of its own: ``tf.math.tanh``.
    :param derivative: of ``fn``, also a function; None: by automatic differentiation.
    :param degree: how many points an axis has.
    :raises UserError: where ``fn`` isn't an elementwise function of TensorFlow, or the degree below 1.
    """

    def __init__(
        self,
        fn: quadrature.Elementwise,
        derivative: quadrature.Elementwise | None = None,
        degree: int = 32,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        if degree not in range(1, 1001):
            raise UserError(f"degree is {degree!r}; expected a whole number from 1 to 1,000.")
        self.fn, self.degree = _checked_elementwise(fn), int(degree)
        # As it was given: what is made of fn doesn't pickle.
        self._derivative = None if derivative is None else _checked_elementwise(derivative)

    @property
    def derivative(self) -> quadrature.Elementwise:
        """Of ``fn``."""
        return quadrature.derivative_of(self.fn) if self._derivative is None else self._derivative

    def expectation(self, cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tf.Tensor:
        return quadrature.expectation(self.fn, self.derivative, self.degree)(cross, var1, var2)

    def derivative_expectation(self, cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tf.Tensor:
        first = self.derivative
        return quadrature.expectation(first, quadrature.derivative_of(first), self.degree)(cross, var1, var2)

    def apply(self, x: tf.Tensor) -> tf.Tensor:
        return self.fn(x)

    def structure(self) -> dict[str, Any]:
        return {"fn": self.fn, "derivative": self._derivative, "degree": self.degree}

    def describe(self) -> dict[str, Any]:
        raise UserError(
            "ElementwiseNumerical has a function, which a run's description can't hold; expected a nonlinearity with a "
            "name: compute the matrices with cnn_gp.gram instead."
        )


def _checked_elementwise(fn: quadrature.Elementwise) -> quadrature.Elementwise:
    try:
        traced = tf.function(fn, autograph=False).get_concrete_function(tf.TensorSpec([3], tf.float64))
        result = traced.structured_outputs
        fits = result.shape == [3] and result.dtype == tf.float64
    except Exception as error:
        raise UserError(
            f"{fn!r} can't be traced ({type(error).__name__}); expected a function of TensorFlow, as tf.math.tanh."
        ) from error
    if not fits:
        raise UserError(f"{fn!r} makes {result} of a tensor [3] in float64; expected the same shape and dtype.")
    return fn
