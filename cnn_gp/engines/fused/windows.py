"""
Sums over windows, for all pairs of a micro-tile: a convolution's along x in a row and along y over a ring of rows, and
those of a pool in the middle of a network.

Sums are taken left to right and in the order of the ring's rows, and a pixel outside the map is 0.
"""

from numba import njit

from .microtile import PAIRS, ROWS
from .nonlinear import HALF, ONE, ZERO, coefficients, place_across, place_down, relu, relu_tangent, slope_coefficients
from .simd import WIDTH, fma, get, load, splat, store


def _sums(fixed):
    """The loops for windows of ``fixed`` pixels, so that the compiler unrolls them; for 0 of ``size`` pixels."""

    @njit(forceinline=True)
    def window(size, work, first, distance):
        total = load(work, first)
        for k in range(1, fixed if fixed > 0 else size):
            total = total + load(work, first + k * distance)
        return total

    @njit
    def along_x(size, work, target, source, windows):
        n_in, n_out, stride, before = windows.inputs, windows.outputs, windows.stride, windows.before
        if fixed == 3 and stride == 1 and before == 1 and n_out == n_in and n_in > 2:
            # Most of the filters there are: each number is loaded once, and then moves through registers.
            for row in range(ROWS):
                at, to = (source * ROWS + row) * WIDTH, (target * ROWS + row) * WIDTH
                a, b = load(work, at), load(work, at + PAIRS)
                store(work, to, a + b)
                for x in range(1, n_in - 1):
                    c = load(work, at + (x + 1) * PAIRS)
                    store(work, to + x * PAIRS, a + b + c)
                    a, b = b, c
                store(work, to + (n_in - 1) * PAIRS, a + b)
            return
        for x in range(n_out):
            first = x * stride - before
            if first >= 0 and first + size <= n_in:
                for row in range(ROWS):
                    total = window(size, work, ((source + first) * ROWS + row) * WIDTH, PAIRS)
                    store(work, ((target + x) * ROWS + row) * WIDTH, total)
                continue
            start, stop = max(first, 0), min(first + size, n_in)
            for row in range(ROWS):
                total = load(work, ((source + start) * ROWS + row) * WIDTH)
                for k in range(start + 1, stop):
                    total = total + load(work, ((source + k) * ROWS + row) * WIDTH)
                store(work, ((target + x) * ROWS + row) * WIDTH, total)

    @njit
    def along_y(size, tile, target, ring, addend, step):
        """scale * (sum over the ring's rows) + bias, plus a row of another map where ``addend`` isn't negative."""
        work, n, a, b = tile.work, step.x.outputs, splat(step.scale), splat(step.bias)
        if addend < 0:
            for x in range(n * ROWS):
                total = window(size, work, (ring * ROWS + x) * WIDTH, n * PAIRS)
                store(work, (target * ROWS + x) * WIDTH, fma(a, total, b))
        else:
            for x in range(n * ROWS):
                total = window(size, work, (ring * ROWS + x) * WIDTH, n * PAIRS)
                store(work, (target * ROWS + x) * WIDTH, fma(a, total, b) + load(work, (addend * ROWS + x) * WIDTH))

    @njit
    def along_y_relu(size, tile, target, ring, addend, step, y):
        """The same through a ReLU before the other map is added: the sums cost little beside its arithmetic."""
        work, down, across = tile.work, tile.down.deviations, tile.across.deviations
        n, a, b = step.x.outputs, splat(step.scale), splat(step.bias)
        q, factor = coefficients(tile.polynomials.relu), step.after.factor
        d1, d2 = place_down(step.after, y), place_across(step.after, y)
        half, zero = splat(HALF * factor), splat(factor - factor)
        for p in range(n):
            s2, r2 = load(across, (d2 + p) * 2 * WIDTH), load(across, ((d2 + p) * 2 + 1) * WIDTH)
            for row in range(ROWS):
                k = ((d1 + p) * ROWS + row) * 2
                ss, rr = splat(get(down, k)) * s2, splat(get(down, k + 1)) * r2
                at = (p * ROWS + row) * WIDTH
                c = fma(a, window(size, work, ring * PAIRS + at, n * PAIRS), b)
                value = relu(c, ss, rr, zero, q)
                if addend >= 0:
                    value = fma(half, value, load(work, addend * PAIRS + at))
                store(work, target * PAIRS + at, value)

    @njit
    def along_y_tangent(size, tile, target, ring, addend, step):
        """As along_y, of covariances and tangents, to which a trained convolution's covariances are added."""
        work, tangent = tile.work, tile.tangent * PAIRS
        n, a, b, zero = step.x.outputs, splat(step.scale), splat(step.bias), splat(ZERO)
        for x in range(n * ROWS):
            to, at = target * PAIRS + x * WIDTH, addend * PAIRS + x * WIDTH
            c = fma(a, window(size, work, ring * PAIRS + x * WIDTH, n * PAIRS), b)
            own = c if step.trained > 0 else zero
            t = fma(a, window(size, work, ring * PAIRS + tangent + x * WIDTH, n * PAIRS), own)
            store(work, to, c + load(work, at) if addend >= 0 else c)
            store(work, to + tangent, t + load(work, at + tangent) if addend >= 0 else t)

    @njit
    def along_y_relu_tangent(size, tile, target, ring, addend, step, y):
        """As along_y_relu, of a trained convolution's covariances and tangents."""
        work, down, across, tangent = tile.work, tile.down.deviations, tile.across.deviations, tile.tangent * PAIRS
        n, a, b = step.x.outputs, splat(step.scale), splat(step.bias)
        q, slope = coefficients(tile.polynomials.relu), slope_coefficients(tile.polynomials.relu_slope)
        factor, d1, d2 = step.after.factor, place_down(step.after, y), place_across(step.after, y)
        half, zero, one = splat(HALF * factor), splat(factor - factor), splat(ONE)
        for p in range(n):
            v2, r2 = load(across, (d2 + p) * 2 * WIDTH), load(across, ((d2 + p) * 2 + 1) * WIDTH)
            s2 = v2 * r2
            for row in range(ROWS):
                k = ((d1 + p) * ROWS + row) * 2
                at = (p * ROWS + row) * WIDTH
                c = fma(a, window(size, work, ring * PAIRS + at, n * PAIRS), b)
                t = fma(a, window(size, work, ring * PAIRS + tangent + at, n * PAIRS), c)
                v1, r1 = splat(get(down, k)), splat(get(down, k + 1))
                c, t = relu_tangent(c, t, v1, r1, v2, r2, s2, zero, one, q, slope)
                if step.mixed > 0:
                    t = t + c
                if addend >= 0:
                    c = fma(half, c, load(work, addend * PAIRS + at))
                    t = fma(half, t, load(work, addend * PAIRS + tangent + at))
                store(work, target * PAIRS + at, c)
                store(work, target * PAIRS + tangent + at, t)

    return along_x, along_y, along_y_relu, along_y_tangent, along_y_relu_tangent


def _by_size(any_size, one, two, three, four, five, six, seven):
    """One function that calls the loop for the size that is its first argument."""

    @njit(forceinline=True)
    def loop(size, *arguments):
        if size == 3:
            three(size, *arguments)
        elif size == 7:
            seven(size, *arguments)
        elif size == 4:
            four(size, *arguments)
        elif size == 5:
            five(size, *arguments)
        elif size == 6:
            six(size, *arguments)
        elif size == 1:
            one(size, *arguments)
        elif size == 2:
            two(size, *arguments)
        else:
            any_size(size, *arguments)

    return loop


sum_along_x, sum_along_y, sum_along_y_relu, sum_along_y_tangent, sum_along_y_relu_tangent = (
    _by_size(*loops) for loops in zip(*(_sums(size) for size in range(8)), strict=True)
)


def _pooled(fixed_y, fixed_x):
    """The loop for windows of a fixed size, or of any for 0."""

    @njit
    def pooled(work, target, source, step):
        y, x, a = step.y, step.x, splat(step.scale)
        height, width = fixed_y if fixed_y > 0 else y.size, fixed_x if fixed_x > 0 else x.size
        for row in range(y.outputs):
            above = source + (row * y.stride - y.before) * x.inputs - x.before
            for column in range(x.outputs):
                first, out = above + column * x.stride, target + row * x.outputs + column
                for k in range(ROWS):
                    total = load(work, (first * ROWS + k) * WIDTH)
                    for across in range(1, width):
                        total = total + load(work, ((first + across) * ROWS + k) * WIDTH)
                    for down in range(1, height):
                        at = ((first + down * x.inputs) * ROWS + k) * WIDTH
                        one = load(work, at)
                        for across in range(1, width):
                            one = one + load(work, at + across * PAIRS)
                        total = total + one
                    to = (out * ROWS + k) * WIDTH
                    store(work, to, fma(a, total, load(work, to)) if step.addend >= 0 else a * total)

    return pooled


_one_by_one, _one_by_two, _two_by_one, _two_by_two, _any_by_any = (
    _pooled(y, x) for y, x in ((1, 1), (1, 2), (2, 1), (2, 2), (0, 0))
)


@njit
def sum_over_windows(work, target, source, step):
    """Add scale * (sums over windows that are inside the map), or where ``addend`` is negative write it."""
    if step.y.size == 2 and step.x.size == 2:
        _two_by_two(work, target, source, step)
    elif step.y.size == 2 and step.x.size == 1:
        _two_by_one(work, target, source, step)
    elif step.y.size == 1 and step.x.size == 2:
        _one_by_two(work, target, source, step)
    elif step.y.size == 1 and step.x.size == 1:
        _one_by_one(work, target, source, step)
    else:
        _any_by_any(work, target, source, step)
