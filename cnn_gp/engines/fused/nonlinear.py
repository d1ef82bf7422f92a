"""
The expectations of nonlinearities at a row of a map, for all pairs of a micro-tile; with tangents, their slopes too.

In float32, by the polynomials of :mod:`cnn_gp.kernels.polynomials`; for the formulas see
:mod:`cnn_gp.kernels.expectations`.
Variances take the same operations in the same order as covariances: where two patches are identical, their covariance
is their variance to the bit, which deep networks with erf nonlinearities need.
"""

import math

import numpy as np
from numba import njit

from .microtile import PAIRS, ROWS
from .program import FUNCTIONS
from .simd import (
    WIDTH,
    absolute,
    fma,
    get,
    larger,
    load,
    negative,
    smaller,
    splat,
    sqrt,
    store,
    where_equal,
    where_less,
)

ZERO, HALF, ONE, TWO = (np.float32(x) for x in (0, 0.5, 1, 2))
_TINY = np.finfo(np.float32).tiny
_FOUR = np.float32(4)
_HALF_PI, _TWO_OVER_PI, _SQRT_TWO = (np.float32(x) for x in (math.pi / 2, 2 / math.pi, math.sqrt(2)))
_FOUR_OVER_PI = np.float32(4 / math.pi)

RELU, STEP, ERF = (FUNCTIONS[name] for name in ("relu", "step", "erf"))


@njit(forceinline=True)
def place_down(place, y):
    """Where the deviations of a row of a map begin on the micro-tile's side down."""
    return place.down + y * place.width


@njit(forceinline=True)
def place_across(place, y):
    """The same across: at a displacement another place of the images."""
    return place.across + y * place.width


@njit(forceinline=True)
def coefficients(polynomial):
    """The ReLU's, in a vector each: in registers, not loaded again for every pair."""
    return (
        splat(polynomial[0]),
        splat(polynomial[1]),
        splat(polynomial[2]),
        splat(polynomial[3]),
        splat(polynomial[4]),
        splat(polynomial[5]),
    )


@njit(forceinline=True)
def relu(c, ss, rr, zero, q):
    """
    Twice E[relu(u) relu(v)], for their covariance and the products of their deviations and of the reciprocals.

    max(c, 0) + s1 s2 g^(3/2) q(g) with g = 1 - |rho|: s1 s2 g is s1 s2 - |c|, one multiplication less, and the factor
    1/2 is left to the next step's scale.
    """
    t = larger(ss - absolute(c), zero)
    g = t * rr
    q = fma(fma(fma(fma(fma(q[5], g, q[4]), g, q[3]), g, q[2]), g, q[1]), g, q[0])
    return fma(t * sqrt(g), q, larger(c, zero))


@njit(forceinline=True)
def slope_coefficients(polynomial):
    """The same for the ReLU's slope, of which there are seven."""
    return (
        splat(polynomial[0]),
        splat(polynomial[1]),
        splat(polynomial[2]),
        splat(polynomial[3]),
        splat(polynomial[4]),
        splat(polynomial[5]),
        splat(polynomial[6]),
    )


@njit(forceinline=True)
def relu_tangent(c, tangent, v1, r1, v2, r2, s2, zero, one, q, a):
    """
    Twice E[relu(u) relu(v)], and twice the expectation of the derivatives times the tangent.

    g = 1 - |rho| and its root serve both. It is 0 at identical inputs, where a rounding error would cost its root.
    """
    g = larger(fma(negative(absolute(c)), r1 * r2, one), zero)
    g = where_equal(c, v1, v2, zero, g)
    root = sqrt(g)
    p = fma(fma(fma(fma(fma(q[5], g, q[4]), g, q[3]), g, q[2]), g, q[1]), g, q[0])
    slope = root * fma(fma(fma(fma(fma(fma(a[6], g, a[5]), g, a[4]), g, a[3]), g, a[2]), g, a[1]), g, a[0])
    # v1 r1 first, which is a deviation: v1 s2 would overflow where the covariances don't.
    value = fma(v1 * r1 * s2 * (g * root), p, larger(c, zero))
    return value, tangent * where_less(c, zero, slope, one - slope)


@njit(forceinline=True)
def _erf(c, rr, zero, polynomial):
    """(2 / pi) asin(c rr), for the covariance and the product of the reciprocals."""
    half, one = splat(HALF), splat(ONE)
    x = c * rr
    # In this order NaN stays.
    a = smaller(one, absolute(x))
    # a <= 1/2: asin a directly; else pi/2 - 2 asin(sqrt((1 - a) / 2)).
    w = where_less(half, a, fma(negative(half), a, half), a * a)
    root = where_less(half, a, sqrt(w), a)
    q = splat(polynomial[5])
    for i in range(4, -1, -1):
        q = fma(q, w, splat(polynomial[i]))
    asin = root * q
    value = splat(_TWO_OVER_PI) * where_less(half, a, fma(negative(splat(TWO)), asin, splat(_HALF_PI)), asin)
    return where_less(x, zero, negative(value), value)


@njit(forceinline=True)
def _erf_slope(c, v1, v2, zero):
    """(4 / pi) / sqrt(1 + 2 (v1 + v2) + 4 (v1 v2 - c^2))"""
    # In this order NaN stays, of squares that overflow.
    gap = larger(zero, v1 * v2 - c * c)
    determinant = fma(splat(_FOUR), gap, fma(splat(TWO), v1 + v2, splat(ONE)))
    return splat(_FOUR_OVER_PI) / sqrt(determinant)


@njit
def _relu_row(tile, place, y, target, source, n):
    work, down, across = tile.work, tile.down.deviations, tile.across.deviations
    q = coefficients(tile.polynomials.relu)
    # A zero that the compiler can't see through keeps the maximum one instruction.
    zero = splat(place.factor - place.factor)
    d1, d2 = place_down(place, y), place_across(place, y)
    for p in range(n):
        s2, r2 = load(across, (d2 + p) * 2 * WIDTH), load(across, ((d2 + p) * 2 + 1) * WIDTH)
        for row in range(ROWS):
            k = ((d1 + p) * ROWS + row) * 2
            ss, rr = splat(get(down, k)) * s2, splat(get(down, k + 1)) * r2
            c = load(work, ((source + p) * ROWS + row) * WIDTH)
            store(work, ((target + p) * ROWS + row) * WIDTH, relu(c, ss, rr, zero, q))


@njit
def _step_row(tile, place, y, target, source, n):
    work, down, across, polynomial = tile.work, tile.down.deviations, tile.across.deviations, tile.polynomials.step
    factor, d1, d2 = place.factor, place_down(place, y), place_across(place, y)
    half, zero, tiny, constant = splat(HALF), splat(ZERO), splat(_TINY), splat(HALF * factor)
    for p in range(n):
        v2, r2 = load(across, (d2 + p) * 2 * WIDTH), load(across, ((d2 + p) * 2 + 1) * WIDTH)
        for row in range(ROWS):
            k = ((d1 + p) * ROWS + row) * 2
            v1, rr = splat(get(down, k)), splat(get(down, k + 1)) * r2
            c = load(work, ((source + p) * ROWS + row) * WIDTH)
            # In this order NaN stays.
            h = larger(zero, fma(negative(absolute(c)), half * rr, half))
            # Identical inputs, of which a rounding error would cost its root; two variances of 0 are identical too.
            h = where_less(v1 + v2, tiny, zero, where_equal(c, v1, v2, zero, h))
            q = splat(polynomial[6])
            for m in range(5, -1, -1):
                q = fma(q, h, splat(polynomial[m]))
            q = splat(factor) * (sqrt(h) * q)
            store(work, ((target + p) * ROWS + row) * WIDTH, where_less(c, zero, q, constant - q))


@njit
def _erf_row(tile, place, y, target, source, n):
    work, down, across, polynomial = tile.work, tile.down.deviations, tile.across.deviations, tile.polynomials.erf
    d1, d2, zero = place_down(place, y), place_across(place, y), splat(ZERO)
    for p in range(n):
        r2 = load(across, ((d2 + p) * 2 + 1) * WIDTH)
        for row in range(ROWS):
            rr = splat(get(down, ((d1 + p) * ROWS + row) * 2 + 1)) * r2
            c = load(work, ((source + p) * ROWS + row) * WIDTH)
            store(work, ((target + p) * ROWS + row) * WIDTH, _erf(c, rr, zero, polynomial))


@njit
def _relu_tangent_row(tile, place, y, target, source, n):
    """The ReLU of covariances, and tangents times the expectation of its derivatives."""
    work, down, across, tangent = tile.work, tile.down.deviations, tile.across.deviations, tile.tangent * PAIRS
    q, slope = coefficients(tile.polynomials.relu), slope_coefficients(tile.polynomials.relu_slope)
    zero, one = splat(place.factor - place.factor), splat(ONE)
    d1, d2 = place_down(place, y), place_across(place, y)
    for p in range(n):
        v2, r2 = load(across, (d2 + p) * 2 * WIDTH), load(across, ((d2 + p) * 2 + 1) * WIDTH)
        s2 = v2 * r2
        for row in range(ROWS):
            k = ((d1 + p) * ROWS + row) * 2
            v1, r1 = splat(get(down, k)), splat(get(down, k + 1))
            at, to = ((source + p) * ROWS + row) * WIDTH, ((target + p) * ROWS + row) * WIDTH
            c, t = relu_tangent(load(work, at), load(work, at + tangent), v1, r1, v2, r2, s2, zero, one, q, slope)
            store(work, to, c)
            store(work, to + tangent, t)


@njit
def _erf_tangent_row(tile, place, y, target, source, n):
    """The same for the erf."""
    work, down, across, polynomial = tile.work, tile.down.deviations, tile.across.deviations, tile.polynomials.erf
    d1, d2 = place_down(place, y), place_across(place, y)
    zero, tangent = splat(ZERO), tile.tangent * PAIRS
    for p in range(n):
        v2, r2 = load(across, (d2 + p) * 2 * WIDTH), load(across, ((d2 + p) * 2 + 1) * WIDTH)
        for row in range(ROWS):
            k = ((d1 + p) * ROWS + row) * 2
            v1, rr = splat(get(down, k)), splat(get(down, k + 1)) * r2
            at, to = ((source + p) * ROWS + row) * WIDTH, ((target + p) * ROWS + row) * WIDTH
            c = load(work, at)
            store(work, to, _erf(c, rr, zero, polynomial))
            store(work, to + tangent, load(work, at + tangent) * _erf_slope(c, v1, v2, zero))


@njit
def _variance_row(tile, place, y, target, source, n):
    """The nonlinearity of variances (the ReLU's twice); each group's deviations are written on the way."""
    work, deviations, polynomial, group = tile.work, tile.across.deviations, tile.polynomials.erf, tile.group
    function, factor, d = place.function, place.factor, place_across(place, y)
    one, zero, tangent = splat(ONE), splat(ZERO), tile.tangent * PAIRS
    keeps_variance = tangent > 0
    for p in range(n):
        for row in range(ROWS):
            at, to = ((source + p) * ROWS + row) * WIDTH, ((target + p) * ROWS + row) * WIDTH
            v = load(work, at)
            # NaN where the variance overflows, for bounded functions too: their values would look right.
            overflow = v - v
            # A denormal variance counts as 0: the product of two reciprocals would overflow.
            s = v if keeps_variance else where_less(v, splat(_TINY), zero, sqrt(v) if function == RELU else v)
            if function == ERF:
                r = splat(_SQRT_TWO) / sqrt(fma(splat(TWO), v, one)) + overflow
                value = _erf(v, r * r, zero, polynomial)
            else:
                r = where_less(v, splat(_TINY), zero, one / sqrt(v)) + overflow
                value = v if function == RELU else splat(HALF * factor) + overflow
            k = row * group + (d + p) * 2 * WIDTH
            store(deviations, k, s + overflow)
            store(deviations, k + WIDTH, r)
            if tangent > 0:
                # At identical inputs the ReLU's slope is 1, twice 1/2.
                slope = _erf_slope(v, v, v, zero) if function == ERF else one
                store(work, to + tangent, load(work, at + tangent) * slope)
            store(work, to, value)


@njit
def nonlinear_row(tile, place, y, target, source, n):
    """
    Put a row of ``n`` positions through a nonlinearity; the ReLU leaves its factor / 2 to who reads the value.

    :param place: a record NONLINEAR: the nonlinearity, and where its deviations begin.
    :param y: the number of the row in its map.
    """
    if tile.group > 0:
        _variance_row(tile, place, y, target, source, n)
    elif tile.tangent > 0:
        if place.function == RELU:
            _relu_tangent_row(tile, place, y, target, source, n)
        else:
            _erf_tangent_row(tile, place, y, target, source, n)
    elif place.function == RELU:
        _relu_row(tile, place, y, target, source, n)
    elif place.function == STEP:
        _step_row(tile, place, y, target, source, n)
    else:
        _erf_row(tile, place, y, target, source, n)
