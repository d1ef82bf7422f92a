r"""
Gaussian expectations of products of nonlinearities, in closed form, in TensorFlow.

For :math:`(u, v)` jointly Gaussian with zero mean, variances :math:`v_1, v_2` and covariance :math:`c`, each function
here returns :math:`\mathbb{E}[\phi(u)\,\phi(v)]`: the one step of the kernel's recursion that is not linear.

- :func:`relu` and :func:`step`: Cho & Saul, "Kernel methods for deep learning" (2009), the arc-cosine kernels of order
  1 and 0.
- :func:`erf`: Williams, "Computing with infinite networks" (1997), equation 11.
- :func:`rectified_power`: Cho & Saul's arc-cosine kernels of higher orders, by a recursion.
- :func:`gelu`: Tsuchida, Pearce, van der Heide, Roosta & Gallagher, "Avoiding kernel fixed points: computing with ELU
  and GELU infinite networks" (2021), in another form. :func:`sine`: from the Gaussian's characteristic function.
- The derivative's expectations, for the neural tangent kernel: by Price's theorem the slope in c,
  :math:`\partial_c \mathbb{E}[\phi(u) \phi(v)] = \mathbb{E}[\phi'(u) \phi'(v)]`.

All take tensors that broadcast against each other and keep their dtype. They are symmetric in the two inputs to
the last bit, they are finite where a variance is 0 (a black patch), and so are their gradients, which are given in
closed form: differentiating the formulas operation by operation would give 0 * inf at identical inputs.

No formula here goes through the arccosine of a correlation near 1, which loses half the digits. They are written in
:math:`h = (1 - |\rho|) / 2`, with polynomials for float32 and the exact functions for float64.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from .polynomials import ASIN_HALF, ASIN_QUARTER, SIN_MINUS_T_COS


def _polynomial(coefficients: Sequence[float], x: tf.Tensor) -> tf.Tensor:
    value = tf.fill(tf.shape(x), tf.cast(coefficients[-1], x.dtype))
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + tf.cast(coefficient, x.dtype)
    return value


def _asin_sqrt(h: tf.Tensor) -> tf.Tensor:
    """asin(sqrt(h)) for h in [0, 1/2]."""
    if h.dtype == tf.float32:
        return tf.sqrt(h) * _polynomial(ASIN_HALF, h)
    return tf.asin(tf.sqrt(h))


def deviations(variance: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """
    The standard deviation and its reciprocal, both 0 where the variance is 0 or denormal.

    With denormal variances the product of two reciprocals would overflow. The reciprocal is NaN where the variance has
    overflowed: with 0, functions that are bounded would get values that look right.
    """
    deviation = tf.sqrt(tf.where(variance >= _smallest(variance), variance, 0))
    reciprocal = tf.math.divide_no_nan(tf.ones_like(deviation), deviation)
    return deviation, tf.where(tf.math.is_finite(variance), reciprocal, math.nan)


def _smallest(variance: tf.Tensor) -> float:
    """The smallest variance that doesn't count as 0."""
    return float(np.finfo(variance.dtype.as_numpy_dtype).tiny)


def _half_gap(cross: tf.Tensor, r1: tf.Tensor, r2: tf.Tensor) -> tf.Tensor:
    """h = (1 - |rho|) / 2, or 0 where rounding makes |rho| exceed 1; NaN stays."""
    h = 0.5 - 0.5 * (tf.abs(cross) * (r1 * r2))
    return tf.where(h < 0, tf.zeros_like(h), h)


def exact_half_gap(cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tf.Tensor:
    """
    h, and 0 at identical inputs, where functions with an infinite slope can't afford a rounding error.

    Two black patches are identical patches: rho = 1, the limit of a vanishing bias.
    """
    _, r1 = deviations(var1)
    _, r2 = deviations(var2)
    same = (cross == var1) & (cross == var2) & tf.math.is_finite(cross)
    identical = same | ((var1 < _smallest(var1)) & (var2 < _smallest(var2)))
    return tf.where(identical, tf.zeros_like(cross), _half_gap(cross, r1, r2))


def _angle_fraction(cross: tf.Tensor, h: tf.Tensor) -> tf.Tensor:
    """(pi - theta) / (2 pi), theta the angle between the inputs: the expectation of step times step."""
    q = _asin_sqrt(h) / math.pi
    return tf.where(cross >= 0, 0.5 - q, q)


def _sum_to(gradient: tf.Tensor, argument: tf.Tensor) -> tf.Tensor:
    """Sum a gradient over the axes in which the argument was broadcast: it has one entry there."""
    axes = [axis for axis in range(argument.shape.rank) if argument.shape[axis] == 1]
    return tf.reduce_sum(gradient, axis=axes, keepdims=True) if axes else gradient


def with_gradient(
    value: Callable[..., tf.Tensor], slopes: Callable[..., tuple[tf.Tensor, ...]]
) -> Callable[..., tf.Tensor]:
    """An expectation from its value and its three slopes, functions of the covariance and the two variances."""

    @tf.custom_gradient
    def expectation(cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        arguments = (cross, var1, var2)

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
            return tuple(_sum_to(upstream * s, a) for s, a in zip(slopes(*arguments), arguments, strict=True))

        return value(*arguments), gradient

    return expectation


def _relu_value(cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tf.Tensor:
    # sqrt(v1 * v2) would overflow float32 for kernels that reach 1e30; the product of the roots does not.
    s1, r1 = deviations(var1)
    s2, r2 = deviations(var2)
    h = _half_gap(cross, r1, r2)
    if h.dtype == tf.float32:
        sin_minus_t_cos = h * tf.sqrt(h) * _polynomial(SIN_MINUS_T_COS, h)
    else:
        sin_minus_t_cos = 2 * tf.sqrt(h * (1 - h)) - 2 * tf.asin(tf.sqrt(h)) * (1 - 2 * h)
    return 0.5 * tf.maximum(cross, 0) + (s1 * s2) * (sin_minus_t_cos * (0.5 / math.pi))


def _relu_slopes(cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    s1, r1 = deviations(var1)
    s2, r2 = deviations(var2)
    h = exact_half_gap(cross, var1, var2)
    sine = tf.sqrt(h * (1 - h)) * (0.5 / math.pi)
    return _angle_fraction(cross, h), sine * (s2 * r1), sine * (s1 * r2)


def _step_value(cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tf.Tensor:
    return _angle_fraction(cross, exact_half_gap(cross, var1, var2))


def _step_slopes(cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    _, r1 = deviations(var1)
    _, r2 = deviations(var2)
    h = _half_gap(cross, r1, r2)
    # At identical inputs the three slopes are infinite and cancel: there the value is 1/2 whatever the variance.
    identical = h < 8 * np.finfo(h.dtype.as_numpy_dtype).eps
    sine = 2 * tf.sqrt(tf.where(identical, tf.ones_like(h), h * (1 - h)))
    slope = tf.where(identical, tf.zeros_like(h), (r1 * r2) / (2 * math.pi * sine))
    return slope, -0.5 * slope * (cross * r1 * r1), -0.5 * slope * (cross * r2 * r2)


def _erf_value(cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tf.Tensor:
    r1, r2 = (
        tf.where(tf.math.is_finite(variance), math.sqrt(2) / tf.sqrt(1 + 2 * variance), math.nan)
        for variance in (var1, var2)
    )
    x = cross * (r1 * r2)
    a = tf.minimum(tf.abs(x), 1)
    wide = a > 0.5
    w = tf.where(wide, 0.5 * (1 - a), a * a)
    root = tf.where(wide, tf.sqrt(w), a)
    asin = root * _polynomial(ASIN_QUARTER, w) if w.dtype == tf.float32 else tf.asin(root)
    return (2 / math.pi) * tf.sign(x) * tf.where(wide, 0.5 * math.pi - 2 * asin, asin)


def _erf_slopes(cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    slope = erf_derivative(cross, var1, var2)
    return slope, -slope * cross / (1 + 2 * var1), -slope * cross / (1 + 2 * var2)


_relu = with_gradient(_relu_value, _relu_slopes)
_step = with_gradient(_step_value, _step_slopes)
_erf = with_gradient(_erf_value, _erf_slopes)


def relu(cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tf.Tensor:
    r"""
    :math:`\mathbb{E}[\max(u, 0) \max(v, 0)]`: with :math:`\theta` the angle between the inputs,

    .. math:: \frac{\sqrt{v_1 v_2}}{2 \pi} \left(\sin\theta + (\pi - \theta) \cos\theta\right)

    computed as :math:`\max(c, 0)/2 + \sqrt{v_1 v_2} (\sin t - t \cos t) / (2 \pi)`, where t is the acute one of
    :math:`\theta` and :math:`\pi - \theta`. float32: relative error 5e-7, and 1e-7 of the product of the
    deviations. Equal inputs give v/2 to the last bit.
    """
    return _relu(cross, var1, var2)


def step(cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tf.Tensor:
    r"""
    :math:`P(u > 0, v > 0) = (\pi - \theta) / (2 \pi)`.

    A variance of 0 is the limit of a vanishing bias: two black patches give 1/2, a black patch with another 1/4.
    float32: absolute error 8e-8 at the given correlation, but near a correlation of 1 the function has an infinite
    slope, and one rounding of the correlation moves it by 8e-5. Inputs whose covariance and variances are equal to the
    last bit give exactly 1/2. It is also the expectation for the ReLU's derivative.
    """
    return _step(cross, var1, var2)


def erf(cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tf.Tensor:
    r"""
    .. math::
        \mathbb{E}[\mathrm{erf}(u)\,\mathrm{erf}(v)]
        = \frac{2}{\pi} \arcsin \frac{2 c}{\sqrt{(1 + 2 v_1)(1 + 2 v_2)}}

    float32: absolute error 1e-7. The argument is clipped to [-1, 1], which rounding can exceed.
    """
    return _erf(cross, var1, var2)


def erf_derivative(cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tf.Tensor:
    r"""
    The expectation for the derivative of erf, :math:`\frac{2}{\sqrt\pi} e^{-u^2}`, which is also the slope of
    :func:`erf` in the covariance:

    .. math:: \frac{4}{\pi} \left((1 + 2 v_1)(1 + 2 v_2) - 4 c^2\right)^{-1/2}

    The determinant is computed as :math:`1 + 2 (v_1 + v_2) + 4 (v_1 v_2 - c^2)`, at least 1, with less cancellation.
    """
    determinant = 1 + 2 * (var1 + var2) + 4 * tf.maximum(var1 * var2 - cross * cross, 0)
    return (4 / math.pi) / tf.sqrt(determinant)


def rectified_power(cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor, exponent: int) -> tf.Tensor:
    r"""
    :math:`E_n = \mathbb{E}[\max(u, 0)^n \max(v, 0)^n]` for n = ``exponent`` >= 2, Cho & Saul's (2009) order n:

    .. math:: E_n = (2 n - 1) \, c \, E_{n-1} + (n - 1)^2 (v_1 v_2 - c^2) E_{n-2}

    from :func:`step`, n = 0, and :func:`relu`, n = 1. The recursion follows from integrations by parts. The expectation
    for the derivative is :math:`n^2 E_{n-1}`. float32: 4e-7 n of the product of the deviations to the power of n.
    """

    def lower_ones(cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The orders n - 1 and n - 2, and v1 v2 - c^2."""
        h = exact_half_gap(cross, var1, var2)
        determinant = (var1 * var2) * (4 * h * (1 - h))
        last, before = _relu_value(cross, var1, var2), _step_value(cross, var1, var2)
        for n in range(2, exponent):
            last, before = (2 * n - 1) * cross * last + (n - 1) ** 2 * determinant * before, last
        return last, before, determinant

    def value(cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tf.Tensor:
        last, before, determinant = lower_ones(cross, var1, var2)
        return (2 * exponent - 1) * cross * last + (exponent - 1) ** 2 * determinant * before

    def slopes(cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        last, before, determinant = lower_ones(cross, var1, var2)
        # From the degree of E_n in u's deviation: c dE/dc + 2 v1 dE/dv1 = n E.
        common = 0.5 * exponent * (exponent - 1) * (cross * last + (exponent - 1) * determinant * before)
        _, r1 = deviations(var1)
        _, r2 = deviations(var2)
        return exponent**2 * last, common * r1 * r1, common * r2 * r2

    return with_gradient(value, slopes)(cross, var1, var2)


def sine(cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor, cosine: float) -> tf.Tensor:
    r"""
    :math:`\mathbb{E}[\sin(u + p) \sin(v + p)]`, for ``cosine`` = :math:`\cos 2 p`:

    .. math:: \tfrac{1}{2} e^{-(v_1 + v_2 - 2 c) / 2} - \tfrac{1}{2} \cos(2 p) \, e^{-(v_1 + v_2 + 2 c) / 2}

    With ``-cosine`` it is that of the cosines, the expectation for the derivative. Small arguments don't cancel.
    float32: 1.2e-7 (2 + v1 + v2), since the exponents are rounded.
    """

    def value(cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tf.Tensor:
        a = tf.abs(cross)
        larger = tf.exp(-0.5 * tf.maximum(var1 + var2 - 2 * a, 0))
        # The smaller exponential over the larger one, less 1.
        gap = tf.math.expm1(-2 * a)
        return 0.5 * larger * tf.where(cross >= 0, (1 - cosine) - cosine * gap, (1 - cosine) + gap)

    def slopes(cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        # The second derivative of the sine is minus the sine.
        of_variance = -0.5 * value(cross, var1, var2)
        return sine(cross, var1, var2, -cosine), of_variance, of_variance

    return with_gradient(value, slopes)(cross, var1, var2)


def _gelu_terms(cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """D, its root, and P(both sides positive) of the Gaussians with variances 1 + v."""
    determinant = 1 + (var1 + var2) + tf.maximum(var1 * var2 - cross * cross, 0)
    root = tf.sqrt(determinant)
    return determinant, root, 0.25 + tf.atan2(cross, root) / (2 * math.pi)


def gelu(cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tf.Tensor:
    r"""
    For :math:`\phi(u) = u \, \Phi(u)`, :math:`\Phi` the Gaussian distribution function, with
    :math:`q = (1 + v_1)(1 + v_2)` and :math:`D = q - c^2`:

    .. math::
        c \left(\frac{1}{4} + \frac{1}{2 \pi} \arctan\frac{c}{\sqrt D}\right)
        + \frac{1}{2 \pi q} \left(v_1 v_2 \sqrt{D} + \frac{c^2}{\sqrt{D}}\right)

    which is the expectation in Tsuchida et al. 2021 with the arcsine of :math:`c / \sqrt q` as an arctangent, and its
    fractions brought together so that no difference is left but in D, at least 1. Its gradients need no other form.
    float32: 4e-7 of the product of the deviations, for variances up to 1e18, above which v1 v2 overflows.
    """
    _, root, positive = _gelu_terms(cross, var1, var2)
    a, b = 1 + var1, 1 + var2
    rest = ((var1 / a) * (var2 / b)) * root + ((cross / a) * (cross / b)) / root
    return cross * positive + rest / (2 * math.pi)


def gelu_derivative(cross: tf.Tensor, var1: tf.Tensor, var2: tf.Tensor) -> tf.Tensor:
    r"""
    The expectation for :math:`\phi'(u) = \Phi(u) + u \, \Phi'(u)`: the slope of :func:`gelu` in c,

    .. math::
        \frac{1}{4} + \frac{1}{2 \pi} \left(\arctan\frac{c}{\sqrt D}
        + \frac{c}{\sqrt D} \left(\frac{1}{1 + v_1} + \frac{1}{1 + v_2} + \frac{1}{D}\right)\right)
    """
    determinant, root, positive = _gelu_terms(cross, var1, var2)
    shares = (1 / (1 + var1) + 1 / (1 + var2)) + 1 / determinant
    return positive + (cross / root) * shares / (2 * math.pi)
