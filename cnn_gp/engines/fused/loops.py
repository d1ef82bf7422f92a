"""
The fused engine's machine code: an interpreter of programs over small blocks of pairs of images, in Numba.

A block is ROWS images by WIDTH images; its pairs lie innermost, so that every step at a position is ROWS full vectors,
and a map of all its pairs stays in the processor's own cache from the first layer to the last. A step goes through
its map row by row: a row goes through the nonlinearity, its windows are summed along x into a ring of rows, the ring
is summed along y, and what comes out goes through the next nonlinearity and is added to another map.

The variances of images are the same program with an image in each lane in place of a pair, and they take the same
operations in the same order: where two patches are identical, their covariance is their variance to the bit, which deep
networks with erf nonlinearities need. On the way the deviations of every nonlinearity's inputs are kept.

Arrays are flat, and places in them are counted in vectors or rows of them:

- ``work`` [positions, ROWS, WIDTH]: the maps, and the buffers for a row and for a ring of rows.
- ``across`` [deviations, 2, WIDTH]: of the WIDTH images, the factor s and the factor r of each position of each
  nonlinearity: the deviation sqrt(v) and its reciprocal; for the erf the r of its own formula.
- ``down`` [deviations, ROWS, 2]: the same of the ROWS images.

Numba's cache looks at this file's age only: after a change in simd.py, touch this one.
"""

import math

import numpy as np
from numba import njit

from ...kernels.polynomials import ASIN_HALF, ASIN_QUARTER, SIN_MINUS_T_COS
from .program import COLUMNS, FUNCTIONS, OPERATIONS
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
    where_less,
)

#: Pairs in a block; images in a block of variances. With 64 a map of 28 x 28 takes 200 kB.
LANES = 64

#: Images down the side of a block.
ROWS = LANES // WIDTH

# The polynomials for Gaussian expectations, ready for the loops: the ReLU's in 1 - |rho| = 2 h, for twice its value.
RELU = np.array([c * 2 ** (-1.5 - i) / math.pi for i, c in enumerate(SIN_MINUS_T_COS)], np.float32)
STEP = np.array([c / math.pi for c in ASIN_HALF], np.float32)
ERF = np.array(ASIN_QUARTER, np.float32)

_ZERO, _HALF, _ONE, _TWO = (np.float32(x) for x in (0, 0.5, 1, 2))
_TINY = np.finfo(np.float32).tiny
_HALF_PI, _TWO_OVER_PI, _SQRT_TWO = (np.float32(x) for x in (math.pi / 2, 2 / math.pi, math.sqrt(2)))

(_OPERATION, _TARGET, _SOURCE, _ADDEND, _ROWS_IN, _COLUMNS_IN, _ROWS_OUT, _COLUMNS_OUT, _SIZE_Y, _STRIDE_Y, _BEFORE_Y,
 _SIZE_X, _STRIDE_X, _BEFORE_X, _FUNCTION_BEFORE, _DEVIATIONS_BEFORE, _FUNCTION_AFTER, _DEVIATIONS_AFTER) = range(
    len(COLUMNS)
)  # fmt: skip
_RELU, _STEP, _ERF = (FUNCTIONS[name] for name in ("relu", "step", "erf"))
_INPUT, _CONV, _POINTWISE, _MEAN = (OPERATIONS[name] for name in ("input", "conv", "pointwise", "mean"))


@njit(forceinline=True)
def _erf(c, rr, zero, polynomial):
    """(2 / pi) asin(c rr), for c, the product of the reciprocals, and ERF."""
    half, one = splat(_HALF), splat(_ONE)
    x = c * rr
    a = smaller(absolute(x), one)
    # a <= 1/2: asin a directly; else pi/2 - 2 asin(sqrt((1 - a) / 2)).
    w = where_less(half, a, fma(negative(half), a, half), a * a)
    root = where_less(half, a, sqrt(w), a)
    q = splat(polynomial[5])
    for i in range(4, -1, -1):
        q = fma(q, w, splat(polynomial[i]))
    asin = root * q
    value = splat(_TWO_OVER_PI) * where_less(half, a, fma(negative(splat(_TWO)), asin, splat(_HALF_PI)), asin)
    return where_less(x, zero, negative(value), value)


@njit(forceinline=True)
def _relu(c, ss, rr, zero, q0, q1, q2, q3, q4, q5):
    """
    Twice E[relu(u) relu(v)], for their covariance and the products of their deviations and of the reciprocals.

    max(c, 0) + s1 s2 g^(3/2) q(g) with g = 1 - |rho|: s1 s2 g is s1 s2 - |c|, one multiplication less, and the factor
    1/2 is left to the next step's scale.
    """
    t = larger(ss - absolute(c), zero)
    g = t * rr
    q = fma(fma(fma(fma(fma(q5, g, q4), g, q3), g, q2), g, q1), g, q0)
    return fma(t * sqrt(g), q, larger(c, zero))


@njit
def _relu_row(work, target, source, n, factor, down, i, across, j, polynomial):
    # Splatted once: in registers, not loaded again for every pair.
    q0, q1, q2 = splat(polynomial[0]), splat(polynomial[1]), splat(polynomial[2])
    q3, q4, q5 = splat(polynomial[3]), splat(polynomial[4]), splat(polynomial[5])
    # A zero that the compiler can't see through keeps the maximum one instruction.
    zero = splat(factor - factor)
    for p in range(n):
        s2, r2 = load(across, (j + p) * 2 * WIDTH), load(across, ((j + p) * 2 + 1) * WIDTH)
        for row in range(ROWS):
            k = ((i + p) * ROWS + row) * 2
            ss, rr = splat(get(down, k)) * s2, splat(get(down, k + 1)) * r2
            c = load(work, ((source + p) * ROWS + row) * WIDTH)
            store(
                work,
                ((target + p) * ROWS + row) * WIDTH,
                _relu(c, ss, rr, zero, q0, q1, q2, q3, q4, q5),
            )


@njit
def _step_row(work, target, source, n, factor, down, i, across, j, polynomial):
    half, zero, constant = splat(_HALF), splat(_ZERO), splat(_HALF * factor)
    for p in range(n):
        s2, r2 = load(across, (j + p) * 2 * WIDTH), load(across, ((j + p) * 2 + 1) * WIDTH)
        for row in range(ROWS):
            k = ((i + p) * ROWS + row) * 2
            s, rr = splat(get(down, k)) + s2, splat(get(down, k + 1)) * r2
            c = load(work, ((source + p) * ROWS + row) * WIDTH)
            h = larger(fma(negative(absolute(c)), half * rr, half), zero)
            # Two variances of 0: two identical inputs.
            h = where_less(zero, s, h, zero)
            q = splat(polynomial[6])
            for m in range(5, -1, -1):
                q = fma(q, h, splat(polynomial[m]))
            q = splat(factor) * (sqrt(h) * q)
            store(work, ((target + p) * ROWS + row) * WIDTH, where_less(c, zero, q, constant - q))


@njit
def _erf_row(work, target, source, n, factor, down, i, across, j, polynomial):
    zero = splat(_ZERO)
    for p in range(n):
        r2 = load(across, ((j + p) * 2 + 1) * WIDTH)
        for row in range(ROWS):
            rr = splat(get(down, ((i + p) * ROWS + row) * 2 + 1)) * r2
            c = load(work, ((source + p) * ROWS + row) * WIDTH)
            store(work, ((target + p) * ROWS + row) * WIDTH, _erf(c, rr, zero, polynomial))


@njit
def _variance_row(function, work, target, source, n, factor, across, j, panel, polynomial):
    """The nonlinearity of variances (the ReLU's twice); the deviations of each row of lanes go to its panel."""
    one, zero = splat(_ONE), splat(_ZERO)
    for p in range(n):
        for row in range(ROWS):
            v = load(work, ((source + p) * ROWS + row) * WIDTH)
            # A denormal variance counts as 0: the product of two reciprocals would overflow.
            s = where_less(v, splat(_TINY), zero, sqrt(v))
            if function == _ERF:
                r = splat(_SQRT_TWO) / sqrt(fma(splat(_TWO), v, one))
                value = _erf(v, r * r, zero, polynomial)
            else:
                r = where_less(v, splat(_TINY), zero, one / sqrt(v))
                value = v if function == _RELU else splat(_HALF * factor)
            k = row * panel + (j + p) * 2 * WIDTH
            store(across, k, s)
            store(across, k + WIDTH, r)
            store(work, ((target + p) * ROWS + row) * WIDTH, value)


@njit
def _nonlinear_row(function, work, target, source, n, factor, down, i, across, j, panel, relu, step, erf):
    if panel > 0:
        _variance_row(function, work, target, source, n, factor, across, j, panel, erf)
    elif function == _RELU:
        _relu_row(work, target, source, n, factor, down, i, across, j, relu)
    elif function == _STEP:
        _step_row(work, target, source, n, factor, down, i, across, j, step)
    else:
        _erf_row(work, target, source, n, factor, down, i, across, j, erf)


def _sums(fixed):
    """
    The loops that sum over windows of ``fixed`` pixels, so that the compiler unrolls them; for 0 of any number.

    Sums are taken left to right and in the order of the ring's rows, and a pixel outside the map is 0.
    """

    @njit(forceinline=True)
    def window(work, first, distance, size):
        total = load(work, first)
        for k in range(1, fixed if fixed > 0 else size):
            total = total + load(work, first + k * distance)
        return total

    @njit
    def along_x(work, target, source, n_in, n_out, size, stride, before):
        if fixed == 3 and stride == 1 and before == 1 and n_out == n_in and n_in > 2:
            # Most of the filters there are: each number is loaded once, and then moves through registers.
            for row in range(ROWS):
                at, to = (source * ROWS + row) * WIDTH, (target * ROWS + row) * WIDTH
                a, b = load(work, at), load(work, at + LANES)
                store(work, to, a + b)
                for x in range(1, n_in - 1):
                    c = load(work, at + (x + 1) * LANES)
                    store(work, to + x * LANES, a + b + c)
                    a, b = b, c
                store(work, to + (n_in - 1) * LANES, a + b)
            return
        for x in range(n_out):
            first = x * stride - before
            if first >= 0 and first + size <= n_in:
                for row in range(ROWS):
                    total = window(work, ((source + first) * ROWS + row) * WIDTH, LANES, size)
                    store(work, ((target + x) * ROWS + row) * WIDTH, total)
                continue
            start, stop = max(first, 0), min(first + size, n_in)
            for row in range(ROWS):
                total = load(work, ((source + start) * ROWS + row) * WIDTH)
                for k in range(start + 1, stop):
                    total = total + load(work, ((source + k) * ROWS + row) * WIDTH)
                store(work, ((target + x) * ROWS + row) * WIDTH, total)

    @njit
    def along_y(work, target, ring, n, size, scale, bias, addend):
        """scale * (sum over the ring's rows) + bias, plus a row of another map where ``addend`` isn't negative."""
        a, b = splat(scale), splat(bias)
        if addend < 0:
            for x in range(n * ROWS):
                total = window(work, (ring * ROWS + x) * WIDTH, n * LANES, size)
                store(work, (target * ROWS + x) * WIDTH, fma(a, total, b))
        else:
            for x in range(n * ROWS):
                total = window(work, (ring * ROWS + x) * WIDTH, n * LANES, size)
                store(work, (target * ROWS + x) * WIDTH, fma(a, total, b) + load(work, (addend * ROWS + x) * WIDTH))

    @njit
    def along_y_relu(work, target, ring, n, size, scale, bias, addend, factor, down, i, across, j, polynomial):
        """The same through a ReLU before the other map is added: the sums cost little beside its arithmetic."""
        a, b = splat(scale), splat(bias)
        q0, q1, q2 = splat(polynomial[0]), splat(polynomial[1]), splat(polynomial[2])
        q3, q4, q5 = splat(polynomial[3]), splat(polynomial[4]), splat(polynomial[5])
        half, zero = splat(_HALF * factor), splat(factor - factor)
        for p in range(n):
            s2, r2 = load(across, (j + p) * 2 * WIDTH), load(across, ((j + p) * 2 + 1) * WIDTH)
            for row in range(ROWS):
                k = ((i + p) * ROWS + row) * 2
                ss, rr = splat(get(down, k)) * s2, splat(get(down, k + 1)) * r2
                at = (p * ROWS + row) * WIDTH
                c = fma(a, window(work, ring * LANES + at, n * LANES, size), b)
                value = _relu(c, ss, rr, zero, q0, q1, q2, q3, q4, q5)
                if addend >= 0:
                    value = fma(half, value, load(work, addend * LANES + at))
                store(work, target * LANES + at, value)

    return along_x, along_y, along_y_relu


_x1, _y1, _r1 = _sums(1)
_x2, _y2, _r2 = _sums(2)
_x3, _y3, _r3 = _sums(3)
_x4, _y4, _r4 = _sums(4)
_x5, _y5, _r5 = _sums(5)
_x6, _y6, _r6 = _sums(6)
_x7, _y7, _r7 = _sums(7)
_x, _y, _r = _sums(0)


@njit
def _sum_along_x(work, target, source, n_in, n_out, size, stride, before):
    if size == 3:
        _x3(work, target, source, n_in, n_out, size, stride, before)
    elif size == 7:
        _x7(work, target, source, n_in, n_out, size, stride, before)
    elif size == 4:
        _x4(work, target, source, n_in, n_out, size, stride, before)
    elif size == 5:
        _x5(work, target, source, n_in, n_out, size, stride, before)
    elif size == 6:
        _x6(work, target, source, n_in, n_out, size, stride, before)
    elif size == 1:
        _x1(work, target, source, n_in, n_out, size, stride, before)
    elif size == 2:
        _x2(work, target, source, n_in, n_out, size, stride, before)
    else:
        _x(work, target, source, n_in, n_out, size, stride, before)


@njit
def _sum_along_y(work, target, ring, n, size, scale, bias, addend):
    if size == 3:
        _y3(work, target, ring, n, size, scale, bias, addend)
    elif size == 7:
        _y7(work, target, ring, n, size, scale, bias, addend)
    elif size == 4:
        _y4(work, target, ring, n, size, scale, bias, addend)
    elif size == 5:
        _y5(work, target, ring, n, size, scale, bias, addend)
    elif size == 6:
        _y6(work, target, ring, n, size, scale, bias, addend)
    elif size == 1:
        _y1(work, target, ring, n, size, scale, bias, addend)
    elif size == 2:
        _y2(work, target, ring, n, size, scale, bias, addend)
    else:
        _y(work, target, ring, n, size, scale, bias, addend)


@njit
def _sum_along_y_relu(work, target, ring, n, size, scale, bias, addend, factor, down, i, across, j, p):
    if size == 3:
        _r3(work, target, ring, n, size, scale, bias, addend, factor, down, i, across, j, p)
    elif size == 7:
        _r7(work, target, ring, n, size, scale, bias, addend, factor, down, i, across, j, p)
    elif size == 4:
        _r4(work, target, ring, n, size, scale, bias, addend, factor, down, i, across, j, p)
    elif size == 5:
        _r5(work, target, ring, n, size, scale, bias, addend, factor, down, i, across, j, p)
    elif size == 6:
        _r6(work, target, ring, n, size, scale, bias, addend, factor, down, i, across, j, p)
    elif size == 1:
        _r1(work, target, ring, n, size, scale, bias, addend, factor, down, i, across, j, p)
    elif size == 2:
        _r2(work, target, ring, n, size, scale, bias, addend, factor, down, i, across, j, p)
    else:
        _r(work, target, ring, n, size, scale, bias, addend, factor, down, i, across, j, p)


@njit
def _add_rows(work, target, function, factor, row, addend, n):
    """The values of a nonlinearity (0: of none) plus a row of another map."""
    unit = splat(_HALF * factor if function == _RELU else _ONE)
    for x in range(n * ROWS):
        k = (target * ROWS + x) * WIDTH
        store(work, k, fma(unit, load(work, (row * ROWS + x) * WIDTH), load(work, (addend * ROWS + x) * WIDTH)))


@njit
def _fill_row(work, target, n, value):
    for x in range(n * ROWS):
        store(work, (target * ROWS + x) * WIDTH, splat(value))


@njit
def _input(work, target, n, channels, images_down, images_across, panel):
    """The mean over channels of the products of pixels."""
    scale = splat(_ONE / np.float32(channels))
    for p in range(n):
        for row in range(ROWS):
            total = splat(_ZERO)
            for channel in range(channels):
                k = channel * n + p
                if panel > 0:
                    x2 = load(images_across, (row * channels * n + k) * WIDTH)
                    x1 = x2
                else:
                    x2 = load(images_across, k * WIDTH)
                    x1 = splat(get(images_down, k * ROWS + row))
                total = fma(x1, x2, total)
            store(work, ((target + p) * ROWS + row) * WIDTH, scale * total)


@njit
def _run(table, numbers, buffers, channels, work, images_down, images_across, down, across, panel, relu, step, erf):
    """
    The program over one block of pairs, or of images where ``panel`` is the distance of the images' deviations.

    ``buffers``: the places of the row's and the ring's buffers.
    """
    row_buffer, ring = buffers
    for s in range(len(table)):
        t = table[s]
        scale, bias, factor_before, factor_after = numbers[s, 0], numbers[s, 1], numbers[s, 2], numbers[s, 3]
        target, source, addend = t[_TARGET], t[_SOURCE], t[_ADDEND]
        n_in, n_out = t[_COLUMNS_IN], t[_COLUMNS_OUT]
        before, after = t[_FUNCTION_BEFORE], t[_FUNCTION_AFTER]
        i, j = t[_DEVIATIONS_BEFORE], t[_DEVIATIONS_AFTER]
        if t[_OPERATION] == _INPUT:
            _input(work, target, t[_ROWS_OUT] * n_out, channels, images_down, images_across, panel)
        elif t[_OPERATION] == _POINTWISE:
            for y in range(t[_ROWS_IN]):
                row, at = source + y * n_in, target + y * n_in
                if before > 0:
                    out = row_buffer if addend >= 0 else at
                    _nonlinear_row(
                        before, work, out, row, n_in, factor_before,
                        down, i + y * n_in, across, i + y * n_in, panel, relu, step, erf,
                    )  # fmt: skip
                    row = out
                if addend >= 0:
                    _add_rows(work, at, before, factor_before, row, addend + y * n_in, n_in)
        elif t[_OPERATION] == _CONV:
            size, stride, margin = t[_SIZE_Y], t[_STRIDE_Y], t[_BEFORE_Y]
            # Rows above the map, of which there are margin, are zeros, as are those below.
            _fill_row(work, ring, margin * n_out, _ZERO)
            for padded in range(margin, (t[_ROWS_OUT] - 1) * stride + size):
                y = padded - margin
                slot = ring + (padded % size) * n_out
                if y >= t[_ROWS_IN]:
                    _fill_row(work, slot, n_out, _ZERO)
                elif padded % stride < size:
                    row = source + y * n_in
                    if before > 0:
                        _nonlinear_row(
                            before, work, row_buffer, row, n_in, factor_before,
                            down, i + y * n_in, across, i + y * n_in, panel, relu, step, erf,
                        )  # fmt: skip
                        row = row_buffer
                    _sum_along_x(work, slot, row, n_in, n_out, t[_SIZE_X], t[_STRIDE_X], t[_BEFORE_X])
                if padded >= size - 1 and (padded - size + 1) % stride == 0:
                    done = (padded - size + 1) // stride * n_out
                    other = addend + done if addend >= 0 else -1
                    if after == 0:
                        _sum_along_y(work, target + done, ring, n_out, size, scale, bias, other)
                    elif after == _RELU and panel == 0:
                        _sum_along_y_relu(
                            work, target + done, ring, n_out, size, scale, bias, other, factor_after,
                            down, j + done, across, j + done, relu,
                        )  # fmt: skip
                    else:
                        out = row_buffer if addend >= 0 else target + done
                        _sum_along_y(work, out, ring, n_out, size, scale, bias, -1)
                        _nonlinear_row(
                            after, work, out, out, n_out, factor_after,
                            down, j + done, across, j + done, panel, relu, step, erf,
                        )  # fmt: skip
                        if addend >= 0:
                            _add_rows(work, target + done, after, factor_after, out, other, n_out)
        else:
            for row in range(ROWS):
                store(work, (ring * ROWS + row) * WIDTH, splat(_ZERO))
            for y in range(t[_ROWS_IN]):
                at = source + y * n_in
                if before > 0:
                    _nonlinear_row(
                        before, work, row_buffer, at, n_in, factor_before,
                        down, i + y * n_in, across, i + y * n_in, panel, relu, step, erf,
                    )  # fmt: skip
                    at = row_buffer
                # A row's sum first: the rounding of 28 additions twice, not of 784.
                for row in range(ROWS):
                    total = load(work, (at * ROWS + row) * WIDTH)
                    for x in range(1, n_in):
                        total = total + load(work, ((at + x) * ROWS + row) * WIDTH)
                    k = (ring * ROWS + row) * WIDTH
                    store(work, k, load(work, k) + total)
            mean = splat(scale / np.float32(t[_ROWS_IN] * n_in))
            for row in range(ROWS):
                total = load(work, (ring * ROWS + row) * WIDTH)
                store(work, (target * ROWS + row) * WIDTH, fma(mean, total, splat(bias)))


@njit(nogil=True, cache=True)
def variances(table, numbers, buffers, result, channels, work, images, deviations, out, relu, step, erf):
    """
    The variances of LANES images into ``out`` [LANES], and their deviations.

    :param images: [ROWS, channels * positions, WIDTH]
    :param deviations: [ROWS, n_deviations, 2, WIDTH], written.
    """
    panel = len(deviations) // ROWS
    _run(table, numbers, buffers, channels, work, images, images, deviations, deviations, panel, relu, step, erf)
    for lane in range(LANES):
        out[lane] = work[result * LANES + lane]


@njit(nogil=True, cache=True)
def covariances(
    table, numbers, buffers, result, channels, work, images_down, images_across, down, across, out, relu, step, erf
):
    """
    The covariances of blocks of ROWS images, one below the other, with WIDTH images.

    :param images_down: [blocks, channels * positions * ROWS]
    :param images_across: [channels * positions * WIDTH]
    :param down: [blocks, n_deviations * ROWS * 2]
    :param across: [n_deviations * 2 * WIDTH]
    :param out: [blocks * ROWS, WIDTH], written.
    """
    for block in range(len(images_down)):
        _run(
            table, numbers, buffers, channels, work, images_down[block], images_across, down[block], across, 0,
            relu, step, erf,
        )  # fmt: skip
        for row in range(ROWS):
            for lane in range(WIDTH):
                out[block * ROWS + row, lane] = work[(result * ROWS + row) * WIDTH + lane]
