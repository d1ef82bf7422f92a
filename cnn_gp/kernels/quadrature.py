r"""
Gaussian expectations of any function's products, by Gauss-Hermite quadrature.

The pair (u, v) is written by two independent standard Gaussians x and y, with the correlation
:math:`\rho = \cos 2 \psi`,

.. math:: u = \sqrt{v_1} (x \cos\psi + y \sin\psi), \quad v = \sqrt{v_2} (x \cos\psi - y \sin\psi)

which treats the two images alike: the terms of y and -y are added first, and the result is symmetric to the last bit.
"""

import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from ..errors import UserError
from .expectations import deviations, exact_half_gap, with_gradient

#: Points that are evaluated together: more take more memory, fewer more steps of the loop.
_AT_A_TIME = 8

#: A function of each entry of a tensor.
Elementwise = Callable[[tf.Tensor], tf.Tensor]


def derivative_of(function: Elementwise) -> Elementwise:
    """By automatic differentiation. :raises UserError: by the function returned, where there is none."""

    def derivative(x: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        slope = tape.gradient(y, x)
        if slope is None:
            raise UserError(
                "TensorFlow finds no derivative of the function; expected a differentiable one for a neural tangent "
                "kernel and for gradients: give derivative=."
            )
        return slope

    return derivative


def expectation(
    function: Elementwise, derivative: Elementwise, degree: int
) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]:
    """
    E[function(u) function(v)] of a covariance and two variances, with gradients.

    2 ``degree``^2 evaluations of the function, in float64 whatever the dtype of the arguments, which the result has.
    The slope in the covariance is E[derivative(u) derivative(v)] by Price's theorem; that in a variance is half
    E[function''(u) function(v)], which Stein's lemma gives from the derivative alone.
    """

    def value(cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tf.Tensor:
        return _mean(lambda u, v: function(u) * function(v), degree, cross, var1, var2)

    def slopes(cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        both = _mean(lambda u, v: derivative(u) * derivative(v), degree, cross, var1, var2)
        first = _mean(lambda u, v: u * derivative(u) * function(v), degree, cross, var1, var2)
        second = _mean(lambda u, v: v * derivative(v) * function(u), degree, cross, var1, var2)
        of_variances = (
            0.5 * tf.math.divide_no_nan(mean - cross * both, tf.ones_like(mean) * variance)
            for mean, variance in ((first, var1), (second, var2))
        )
        return both, *of_variances

    return with_gradient(value, slopes)


def _mean(
    product: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    degree: int,
    cross: tf.Tensor,
    var1: tf.Tensor,
    var2: tf.Tensor,
) -> tf.Tensor:
    dtype = cross.dtype
    cross, var1, var2 = (tf.cast(t, tf.float64) for t in (cross, var1, var2))
    s1, s2 = deviations(var1)[0], deviations(var2)[0]
    h = exact_half_gap(cross, var1, var2)
    near, far = tf.sqrt(1 - h), tf.sqrt(h)
    cos, sin = tf.where(cross >= 0, near, far), tf.where(cross >= 0, far, near)
    nodes = _nodes(degree)
    count, table = len(nodes), tf.constant(nodes)

    def add(k: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        x, y, weight = (tf.reshape(table[k, i], [_AT_A_TIME, *[1] * h.shape.rank]) for i in range(3))
        plus, minus = cos * x + sin * y, cos * x - sin * y
        terms = weight * (product(s1 * plus, s2 * minus) + product(s1 * minus, s2 * plus))
        return k + 1, total + tf.reduce_sum(terms, axis=0)

    _, total = tf.while_loop(lambda k, _: k < count, add, (0, tf.zeros_like(h)), maximum_iterations=count)
    return tf.cast(total, dtype)


def _nodes(degree: int) -> np.ndarray:
    """x, y >= 0, and half the weight of (x, y) and (x, -y) together: [n, 3, _AT_A_TIME], the last ones of weight 0."""
    x, w = np.polynomial.hermite_e.hermegauss(degree)
    w /= math.sqrt(2 * math.pi)
    half = [j for j in range(degree) if x[j] >= 0]
    nodes = [(x[i], x[j], w[i] * w[j] * (0.5 if x[j] == 0 else 1)) for i in range(degree) for j in half]
    nodes += [(0.0, 0.0, 0.0)] * (-len(nodes) % _AT_A_TIME)
    return np.array(nodes).reshape([-1, _AT_A_TIME, 3]).transpose(0, 2, 1)
