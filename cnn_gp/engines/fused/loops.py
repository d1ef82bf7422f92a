"""
The fused engine's machine code: an interpreter of programs over micro-tiles (:mod:`.microtile`), in Numba.

A step goes through its map row by row: a row goes through the nonlinearity, its windows are summed along x into a ring
of rows, the ring is summed along y, and what comes out goes through the next nonlinearity and is added to another map.

With tangents, those of the neural tangent kernel, every map has a second one behind it, and each step does both row by
row: a convolution's windows are summed in both, and its own covariances are added to its tangents.

The variances of images are the same program with an image in each lane in place of a pair. On the way the deviations
of every nonlinearity's inputs are kept.
"""

import numpy as np
from numba import njit

from .cache import kept
from .microtile import PAIRS, ROWS, MicroTile, Side
from .nonlinear import HALF, ONE, RELU, ZERO, nonlinear_row, place_across, place_down
from .products import products_row
from .program import OPERATIONS
from .simd import WIDTH, fma, get, load, splat, store
from .windows import (
    sum_along_x,
    sum_along_y,
    sum_along_y_relu,
    sum_along_y_relu_tangent,
    sum_along_y_tangent,
    sum_over_windows,
)

_INPUT, _CONV, _POINTWISE, _POOL, _GIVEN, _POOL_WITHIN = (
    OPERATIONS[name] for name in ("input", "conv", "pointwise", "pool", "given", "pool within")
)


@njit
def _add_rows(tile, target, place, row, addend, n):
    """The values of a nonlinearity (function 0: of none) plus a row of another map."""
    _add_row(tile.work, target, place, row, addend, n)
    if tile.tangent > 0:
        _add_row(tile.work, target + tile.tangent, place, row + tile.tangent, addend + tile.tangent, n)


@njit
def _add_row(work, target, place, row, addend, n):
    unit = splat(HALF * place.factor if place.function == RELU else ONE)
    for x in range(n * ROWS):
        k = (target * ROWS + x) * WIDTH
        store(work, k, fma(unit, load(work, (row * ROWS + x) * WIDTH), load(work, (addend * ROWS + x) * WIDTH)))


@njit
def _mix_row(tile, target, row, n):
    """Covariances as they are, which are added to their tangents."""
    for x in range(n * ROWS):
        at, to = (row * ROWS + x) * WIDTH, (target * ROWS + x) * WIDTH
        c, t = load(tile.work, at), load(tile.work, at + tile.tangent * PAIRS)
        store(tile.work, to, c)
        store(tile.work, to + tile.tangent * PAIRS, t + c)


@njit
def _clear_row(work, target, n):
    for x in range(n * ROWS):
        store(work, (target * ROWS + x) * WIDTH, splat(ZERO))


@njit
def _input(tile, step, channels):
    n = step.x.outputs
    for y in range(step.y.outputs):
        target = step.target + y * n
        products_row(tile, target, place_down(step.before, y), place_across(step.before, y), n, channels)
        if tile.tangent > 0:
            _clear_row(tile.work, target + tile.tangent, n)


@njit
def _pointwise(tile, step, row_buffer):
    n = step.x.inputs
    for y in range(step.y.inputs):
        row, out = step.source + y * n, step.target + y * n
        if step.before.function > 0:
            value = row_buffer if step.addend >= 0 else out
            nonlinear_row(tile, step.before, y, value, row, n)
            row = value
        if step.mixed > 0:
            value = row_buffer if step.addend >= 0 else out
            _mix_row(tile, value, row, n)
            row = value
        if step.addend >= 0:
            _add_rows(tile, out, step.before, row, step.addend + y * n, n)


@njit
def _convolution(tile, step, row_buffer, ring):
    work, tangent = tile.work, tile.tangent
    n_in, n_out, size, stride, margin = step.x.inputs, step.x.outputs, step.y.size, step.y.stride, step.y.before
    # Rows above the map, of which there are margin, are zeros, as are those below.
    _clear_row(work, ring, margin * n_out)
    if tangent > 0:
        _clear_row(work, ring + tangent, margin * n_out)
    for padded in range(margin, (step.y.outputs - 1) * stride + size):
        y = padded - margin
        slot = ring + (padded % size) * n_out
        if y >= step.y.inputs:
            _clear_row(work, slot, n_out)
            if tangent > 0:
                _clear_row(work, slot + tangent, n_out)
        elif padded % stride < size:
            row = step.source + y * n_in
            if step.before.function > 0:
                nonlinear_row(tile, step.before, y, row_buffer, row, n_in)
                row = row_buffer
            sum_along_x(step.x.size, work, slot, row, step.x)
            if tangent > 0:
                sum_along_x(step.x.size, work, slot + tangent, row + tangent, step.x)
        if padded >= size - 1 and (padded - size + 1) % stride == 0:
            y_out = (padded - size + 1) // stride
            target = step.target + y_out * n_out
            addend = step.addend + y_out * n_out if step.addend >= 0 else -1
            if step.after.function == RELU and tile.group == 0:
                if tangent > 0:
                    sum_along_y_relu_tangent(size, tile, target, ring, addend, step, y_out)
                else:
                    sum_along_y_relu(size, tile, target, ring, addend, step, y_out)
                continue
            apart = (step.after.function > 0 or step.mixed > 0) and addend >= 0
            out, added = (row_buffer, -1) if apart else (target, addend)
            if tangent > 0:
                sum_along_y_tangent(size, tile, out, ring, added, step)
            else:
                sum_along_y(size, tile, out, ring, added, step)
            if step.after.function > 0:
                nonlinear_row(tile, step.after, y_out, out, out, n_out)
            if step.mixed > 0:
                _mix_row(tile, out, out, n_out)
            if apart:
                _add_rows(tile, target, step.after, out, addend, n_out)


@njit
def _add_sum(work, target, source, n):
    """Add a row's sum to one position. First the row's alone: the rounding of 28 additions twice, not of 784."""
    for row in range(ROWS):
        total = load(work, (source * ROWS + row) * WIDTH)
        for x in range(1, n):
            total = total + load(work, ((source + x) * ROWS + row) * WIDTH)
        k = (target * ROWS + row) * WIDTH
        store(work, k, load(work, k) + total)


@njit
def _add_weighted_sum(work, target, source, n, weights, weight):
    """The same with weights along the row, and one for the row."""
    for row in range(ROWS):
        total = splat(ZERO)
        for x in range(n):
            total = fma(splat(get(weights, x)), load(work, ((source + x) * ROWS + row) * WIDTH), total)
        k = (target * ROWS + row) * WIDTH
        store(work, k, fma(splat(weight), total, load(work, k)))


@njit
def _mean(tile, step, row_buffer, total_buffer, weights):
    """
    The mean of a map, or for a pool the weighted sum.

    :param weights: a pool's: of the map's rows, then of its columns.
    """
    work, n, tangent = tile.work, step.x.inputs, tile.tangent
    _clear_row(work, total_buffer, 1)
    _clear_row(work, total_buffer + tangent, 1)
    rows, pools = step.y.inputs, step.operation == _POOL
    for y in range(rows):
        at = step.source + y * n
        if step.before.function > 0:
            nonlinear_row(tile, step.before, y, row_buffer, at, n)
            at = row_buffer
        if pools:
            _add_weighted_sum(work, total_buffer, at, n, weights[rows:], weights[y])
        else:
            _add_sum(work, total_buffer, at, n)
        if tangent > 0:
            if pools:
                _add_weighted_sum(work, total_buffer + tangent, at + tangent, n, weights[rows:], weights[y])
            else:
                _add_sum(work, total_buffer + tangent, at + tangent, n)
    scale = splat(step.scale if pools else step.scale / np.float32(rows * n))
    bias = splat(step.bias)
    for row in range(ROWS):
        total = load(work, (total_buffer * ROWS + row) * WIDTH)
        value = fma(scale, total, bias)
        store(work, (step.target * ROWS + row) * WIDTH, value)
        if tangent > 0:
            total = load(work, ((total_buffer + tangent) * ROWS + row) * WIDTH)
            own = value if step.trained > 0 else splat(ZERO)
            store(work, ((step.target + tangent) * ROWS + row) * WIDTH, fma(scale, total, own))


@njit
def _run(code, tile):
    """The program over one micro-tile."""
    for s in range(len(code.steps)):
        step = code.steps[s]
        if step.operation == _INPUT:
            _input(tile, step, code.channels)
        elif step.operation == _POINTWISE:
            _pointwise(tile, step, code.row)
        elif step.operation == _CONV:
            _convolution(tile, step, code.row, code.ring)
        elif step.operation == _POOL_WITHIN:
            sum_over_windows(tile.work, step.target, step.source, step)
            if tile.tangent > 0:
                sum_over_windows(tile.work, step.target + tile.tangent, step.source + tile.tangent, step)
        elif step.operation != _GIVEN:
            _mean(tile, step, code.row, code.ring, code.weights[step.weights :])


@kept
def variances(code, work, images, polynomials, out):
    """
    The variances of PAIRS images into ``out`` [kernels, PAIRS], float64, and their deviations.

    :param images: a Side of ROWS groups, one after the other; its deviations are written.
    :param out: for a code that begins with given variances: these.
    """
    if code.given >= 0:
        for i in range(len(out)):
            for image in range(PAIRS):
                work[(code.given + i * code.tangent) * PAIRS + image] = out[i, image]
    _run(code, MicroTile(work, images, images, len(images.deviations) // ROWS, code.tangent, polynomials))
    for i in range(code.kernels):
        for image in range(PAIRS):
            out[i, image] = work[(code.result + i * code.tangent) * PAIRS + image]


@kept
def covariances(code, work, down, across, polynomials, out):
    """
    The covariances of a column of micro-tiles: of groups of ROWS images, one below the other, with WIDTH images.

    :param down: a Side whose arrays have a row for each group of ROWS images.
    :param across: the Side of the WIDTH images.
    :param out: [kernels, groups * ROWS, WIDTH], float64: they are added to it. A code that begins with given
        covariances takes them from there and writes over them.
    """
    for group in range(len(down.pixels)):
        first = group * ROWS
        if code.given >= 0:
            for i in range(len(out)):
                for row in range(ROWS):
                    k = ((code.given + i * code.tangent) * ROWS + row) * WIDTH
                    for column in range(WIDTH):
                        work[k + column] = out[i, first + row, column]
                        out[i, first + row, column] = 0
        rows = Side(down.pixels[group], down.deviations[group])
        _run(code, MicroTile(work, rows, across, 0, code.tangent, polynomials))
        for i in range(code.kernels):
            for row in range(ROWS):
                k = ((code.result + i * code.tangent) * ROWS + row) * WIDTH
                for column in range(WIDTH):
                    out[i, first + row, column] += work[k + column]
