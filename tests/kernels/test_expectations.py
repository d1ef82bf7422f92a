"""The Gaussian expectations: against quadrature, their precision in float32, the corners, and their gradients."""

import functools
import itertools

import numpy as np
import pytest
import tensorflow as tf
from scipy import integrate, special

from cnn_gp.kernels import expectations
from cnn_gp.kernels import quadrature as quadrature_of

CORRELATIONS = [-1.0, -0.999, -0.7, -0.1, 0.0, 0.3, 0.9, 0.9999, 1.0]
VARIANCES = [(1.0, 1.0), (0.3, 2.5), (4.0, 0.01)]
PHASE = 0.3


def power(exponent):
    return functools.partial(expectations.rectified_power, exponent=exponent)


def sine(phase):
    return functools.partial(expectations.sine, cosine=np.cos(2 * phase))


def by_quadrature(function, derivative):
    return quadrature_of.expectation(function, derivative, 6)


FUNCTIONS = {
    "relu": (expectations.relu, lambda u: np.maximum(u, 0)),
    "step": (expectations.step, lambda u: (u > 0).astype(float)),
    "erf": (expectations.erf, special.erf),
    "erf's derivative": (expectations.erf_derivative, lambda u: 2 / np.sqrt(np.pi) * np.exp(-(u**2))),
    "squared relu": (power(2), lambda u: np.maximum(u, 0) ** 2),
    "relu to the 5": (power(5), lambda u: np.maximum(u, 0) ** 5),
    "gelu": (expectations.gelu, lambda u: u * special.ndtr(u)),
    "gelu's derivative": (
        expectations.gelu_derivative,
        lambda u: special.ndtr(u) + u * np.exp(-(u**2) / 2) / np.sqrt(2 * np.pi),
    ),
    "sine": (sine(0), np.sin),
    "shifted sine": (sine(PHASE), lambda u: np.sin(u + PHASE)),
    "cosine": (sine(np.pi / 2), np.cos),
    # Of a degree so high that the quadrature of a polynomial is exact, and its slopes.
    "cubic by quadrature": (by_quadrature(lambda x: x**3 - x, lambda x: 3 * x**2 - 1), lambda u: u**3 - u),
}
#: Of one more function each: its expectation is the slope in the covariance of that of the one named.
SLOPES = {
    "erf": FUNCTIONS["erf's derivative"][0],
    "relu": expectations.step,
    "squared relu": lambda *covariances: 4 * expectations.relu(*covariances),
    "relu to the 5": lambda *covariances: 25 * power(4)(*covariances),
    "gelu": expectations.gelu_derivative,
    "sine": sine(np.pi / 2),
    "shifted sine": sine(PHASE + np.pi / 2),
}


def quadrature(phi, rho, v1, v2):
    """E[phi(u) phi(v)] over the half planes where u and v keep their signs, in polar coordinates of two normals."""

    def integrand(angle):
        # u and v are radius times these; the nonlinearities' kinks lie on rays, where one of the two is 0.
        du = np.sqrt(v1) * np.cos(angle)
        dv = np.sqrt(v2) * (rho * np.cos(angle) + np.sqrt(1 - rho**2) * np.sin(angle))
        radius, weights = RADII
        return np.sum(weights * phi(radius * du) * phi(radius * dv)) / (2 * np.pi)

    kink = np.arctan2(-rho, np.sqrt(1 - rho**2))
    kinks = sorted(a % (2 * np.pi) for a in (np.pi / 2, 3 * np.pi / 2, kink, kink + np.pi))
    edges = [0.0, *kinks, 2 * np.pi]
    return sum(integrate.quad(integrand, a, b, epsabs=1e-12)[0] for a, b in itertools.pairwise(edges))


def _radii():
    # The density of the radius is r exp(-r^2 / 2).
    r, w = np.polynomial.legendre.leggauss(300)
    r, w = 6 * (r + 1), 6 * w
    return r, w * r * np.exp(-(r**2) / 2)


RADII = _radii()


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(("v1", "v2"), VARIANCES)
@pytest.mark.parametrize("rho", CORRELATIONS)
def test_equals_quadrature(name, rho, v1, v2):
    function, phi = FUNCTIONS[name]
    c = rho * np.sqrt(v1 * v2)
    value = function(*map(tf.constant, np.float64([c, v1, v2]))).numpy()
    # The step's slope is infinite at a correlation of 1, where rounding c costs 1e-8.
    assert value == pytest.approx(quadrature(phi, rho, v1, v2), rel=1e-9, abs=3e-8 if name == "step" else 1e-9)


@pytest.mark.parametrize("name", SLOPES)
@pytest.mark.parametrize(("v1", "v2"), VARIANCES)
@pytest.mark.parametrize("rho", CORRELATIONS[1:-1])
def test_the_derivatives_expectation_is_the_slope_in_the_covariance(name, rho, v1, v2):
    """Price's theorem."""
    c, v1, v2 = (tf.constant(a, tf.float64) for a in (rho * np.sqrt(v1 * v2), v1, v2))
    with tf.GradientTape() as tape:
        tape.watch(c)
        value = FUNCTIONS[name][0](c, v1, v2)
    # Where c is -0.9999 of the largest, the value's slope is small and its rounding errors aren't.
    np.testing.assert_allclose(tape.gradient(value, c), SLOPES[name](c, v1, v2), rtol=1e-9, atol=1e-12)


def dense_correlations():
    rho = np.linspace(-1, 1, 200_001)
    near = 1 - np.logspace(-7, -1, 20_000)
    return np.concatenate([rho, near, -near, [0.0, -0.0, 0.5, -0.5]]).astype(np.float32)


def in_both_precisions(function, c, v):
    """The values for float32 covariances at one variance, in float32 and in float64 of the same numbers."""
    arguments = (c, np.full_like(c, v), np.full_like(c, v))
    single = function(*map(tf.constant, arguments)).numpy().astype(np.float64)
    return single, function(*(tf.constant(a.astype(np.float64)) for a in arguments)).numpy()


# The step and the erf at the variance for which r1 * r2 is exact, so that the error is the function's own. Measured:
# relu 7.7e-8 of the variance, step 7.7e-8, erf 6.3e-8.
@pytest.mark.parametrize(
    ("name", "v", "bound"),
    [*(("relu", v, 9e-8) for v in (1e-30, 0.5, 1, 2, 1e30)), ("step", 1, 1e-7), ("erf", 0.5, 8e-8)],
)
def test_float32_is_within_its_bound_over_the_whole_domain(name, v, bound):
    c = dense_correlations() * np.float32(v)
    single, double = in_both_precisions(FUNCTIONS[name][0], c, np.float32(v))
    assert np.abs(single - double).max() <= bound * (v if name == "relu" else 1)


def test_float32_relu_is_within_its_bound_relative_to_the_value():
    """Also near a correlation of -1, where the value vanishes. Measured: 3.9e-7."""
    single, double = in_both_precisions(expectations.relu, dense_correlations(), np.float32(1))
    np.testing.assert_allclose(single, double, rtol=4.5e-7)


@pytest.mark.parametrize("v", np.logspace(-8, 6, 8))
def test_float32_erf_at_any_variance(v):
    v1, v2 = np.float32(v), np.float32(3 * v)
    c = (np.linspace(-1, 1, 10_001) * np.sqrt(np.float64(v1) * np.float64(v2)) * (1 - 1e-6)).astype(np.float32)
    single = expectations.erf(tf.constant(c), tf.constant(v1), tf.constant(v2)).numpy()
    double = expectations.erf(*(tf.constant(np.float64(a)) for a in (c, v1, v2))).numpy()
    x = 2 * c.astype(np.float64) / np.sqrt((1 + 2 * np.float64(v1)) * (1 + 2 * np.float64(v2)))
    # The argument's own rounding, 2e-7, times the slope of the arcsine.
    np.testing.assert_array_less(np.abs(single - double), 2e-7 + 2e-7 / np.sqrt(1 - x**2))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_symmetric_to_the_last_bit(name, dtype, rng):
    function, _ = FUNCTIONS[name]
    v1, v2 = (np.exp(rng.uniform(-5, 5, 10_000)).astype(dtype) for _ in range(2))
    c = (rng.uniform(-1, 1, 10_000) * np.sqrt(v1 * v2)).astype(dtype)
    c, v1, v2 = map(tf.constant, (c, v1, v2))
    np.testing.assert_array_equal(function(c, v1, v2), function(c, v2, v1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_relu_of_identical_inputs_is_half_the_variance_to_the_last_bit(dtype, rng):
    v = tf.constant(np.exp(rng.uniform(np.log(1e-30), np.log(1e30), 100_000)).astype(dtype))
    np.testing.assert_array_equal(expectations.relu(v, v, v), v / 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_step_of_identical_inputs_is_a_half_to_the_last_bit(dtype, rng):
    """Where the correlation computed from the deviations is often not 1: it would be off by up to 1e-8 and 1e-4."""
    v = tf.constant(np.exp(rng.uniform(np.log(1e-30), np.log(1e30), 100_000)).astype(dtype))
    np.testing.assert_array_equal(expectations.step(v, v, v), 0.5)
    assert (expectations.step(-v, v, v).numpy() < 1e-3).all()


@pytest.mark.parametrize("v", np.logspace(-8, 3, 6))
def test_float32_derivative_of_erf_is_within_its_bound(v):
    """The worst is the cancellation in v1 v2 - c^2. Measured: 1.8e-7 up to a variance of 1, 1.6e-5 at 1,000."""
    single, double = in_both_precisions(
        expectations.erf_derivative, dense_correlations() * np.float32(v), np.float32(v)
    )
    np.testing.assert_allclose(single, double, rtol=2e-7 * (1 + v))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_finite_in_the_corners(name, dtype):
    function, _ = FUNCTIONS[name]
    tiny, huge = (1e-45, 1e30) if dtype == np.float32 else (5e-324, 1e140)
    cases = [
        (0, 0, 0),
        (0, 0, 1),
        (0, 1, 0),
        (tiny, tiny, tiny),
        (0, tiny, tiny),
        (0, tiny, huge),
        (1, 1, 1),
        (-1, 1, 1),
        (1.5, 1, 1),
    ]
    if name in ("relu", "step"):
        # The erf's and the sine's covariances are bounded; the GELU's, and those of powers, overflow earlier.
        cases += [(huge, huge, huge), (-huge, huge, huge)]
    for case in cases:
        arguments = [tf.constant([[a]], dtype) for a in case]
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            value = function(*arguments)
        assert np.isfinite(value).all(), case
        for gradient in tape.gradient(value, arguments):
            assert np.isfinite(gradient).all(), case


def test_correlations_beyond_one_count_as_one():
    one = tf.constant(1.0, tf.float32)
    above = tf.constant(np.float32(1 + 1e-6))
    np.testing.assert_allclose(expectations.relu(above, one, one), 0.5, rtol=2e-6)
    assert expectations.step(above, one, one) == 0.5
    assert expectations.erf(tf.constant(2.0), one, one).numpy() == pytest.approx(1.0)
    assert expectations.erf(tf.constant(-2.0), one, one).numpy() == pytest.approx(-1.0)
    assert expectations.relu(-above, one, one) == 0
    assert expectations.step(-above, one, one) == 0


def test_black_patches_are_the_limit_of_a_vanishing_bias():
    def step(c, v1, v2):
        return expectations.step(*map(tf.constant, np.float64([c, v1, v2]))).numpy()

    assert step(0, 0, 0) == 0.5 == pytest.approx(step(1e-12, 1e-12, 1e-12))
    assert step(0, 0, 3) == pytest.approx(0.25)
    assert step(1e-12, 1e-12, 3) == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "expected", "slope"), [("relu", 0, 0.5), ("step", 0.5, 0), ("erf", 0, 4 / np.pi)])
def test_two_black_patches_have_the_value_and_slopes_of_identical_ones(name, expected, slope, dtype):
    function, _ = FUNCTIONS[name]
    arguments = [tf.constant([[0]], dtype) for _ in range(3)]
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        value = function(*arguments)
    assert value.numpy() == expected
    np.testing.assert_allclose(np.ravel(tape.gradient(value, arguments)), [slope, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(("c", "v1", "v2"), [(0.3, 1.2, 0.5), (-0.6, 0.8, 0.9), (0.0, 1.0, 2.0), (1.1, 1.2, 1.3)])
def test_gradients_are_the_finite_differences(name, c, v1, v2):
    function, _ = FUNCTIONS[name]
    arguments = [tf.constant(a, tf.float64) for a in (c, v1, v2)]
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        value = function(*arguments)
    gradients = tape.gradient(value, arguments)
    for i, gradient in enumerate(gradients):
        up, down = ([a + (h if j == i else 0) for j, a in enumerate(arguments)] for h in (1e-6, -1e-6))
        assert gradient.numpy() == pytest.approx((function(*up) - function(*down)).numpy() / 2e-6, rel=1e-5, abs=1e-9)


def test_gradients_sum_over_what_was_broadcast(rng):
    v1, v2 = tf.constant(rng.uniform(1, 2, [4, 3, 1])), tf.constant(rng.uniform(1, 2, [4, 1, 5]))
    c = tf.constant(rng.uniform(-1, 1, [4, 3, 5]))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([c, v1, v2])
        broadcast = expectations.relu(c, v1, v2)
        whole = expectations.relu(c, tf.broadcast_to(v1, [4, 3, 5]), tf.broadcast_to(v2, [4, 3, 5]))
    for a, b in zip(tape.gradient(broadcast, [c, v1, v2]), tape.gradient(whole, [c, v1, v2]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_relu_gradient_at_identical_inputs_is_the_variances():
    """Along c = v1 = v2 the expectation is v/2, so the slopes must add up to 1/2."""
    v = tf.constant([[0.7]], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(v)
        value = expectations.relu(v, v, v)
    assert tape.gradient(value, v).numpy() == pytest.approx(0.5, abs=1e-7)


# Relative to the value at identical inputs. Measured: squared relu 2.5e-7, to the 5 6.2e-7, gelu 1.6e-7, its derivative
# 1.7e-7, sine 9.5e-8, cosine 5.7e-8.
@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("squared relu", 1e-6),
        ("relu to the 5", 3e-6),
        ("gelu", 5e-7),
        ("gelu's derivative", 5e-7),
        ("sine", 3e-7),
        ("cosine", 3e-7),
    ],
)
@pytest.mark.parametrize("v", [1e-6, 0.3, 1, 20])
def test_float32_of_the_others_is_within_its_bound(name, bound, v):
    function = FUNCTIONS[name][0]
    c = dense_correlations()[::20] * np.float32(v)
    single, double = in_both_precisions(function, c, np.float32(v))
    largest = function(*(tf.constant(v, tf.float64) for _ in range(3))).numpy()
    scale = (2 + 2 * v) if name in ("sine", "cosine") else 1
    assert np.abs(single - double).max() <= bound * scale * largest


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_diagonal_is_the_value_at_identical_inputs(name, dtype, rng):
    """Whatever else is in the tensor: the same operations for a covariance that is the variance."""
    function = FUNCTIONS[name][0]
    v = np.exp(rng.uniform(-5, 2, 200)).astype(dtype)
    c = np.outer(np.sqrt(v), np.sqrt(v)) * rng.uniform(-1, 1, [200, 200])
    c = c.astype(dtype)
    np.fill_diagonal(c, v)
    matrix = function(*map(tf.constant, (c, v[:, None], v[None, :])))
    np.testing.assert_array_equal(tf.linalg.diag_part(matrix), function(*map(tf.constant, (v, v, v))))


def test_quadrature_converges_to_the_closed_forms():
    """Measured: gelu 2e-12 at 32 points; the ReLU has a kink."""
    arguments = [tf.constant(a, tf.float64) for a in (0.5, 1.2, 0.8)]

    def error(function, closed, degree):
        numerical = quadrature_of.expectation(function, quadrature_of.derivative_of(function), degree)
        return abs(numerical(*arguments) - closed(*arguments)).numpy()

    def gelu(x):
        return 0.5 * x * tf.math.erfc(-np.sqrt(0.5) * x)

    assert error(gelu, expectations.gelu, 32) < 1e-9 < error(gelu, expectations.gelu, 5)
    assert error(tf.sin, sine(0), 32) < 1e-13
    assert error(tf.nn.relu, expectations.relu, 64) < 3e-4
