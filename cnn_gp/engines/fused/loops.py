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
from .nonlinear import HALF, ONE, RELU, ZERO, nonlinear_row
from .program import OPERATIONS
from .simd import WIDTH, fma, get, load, splat, store
from .windows import (
    sum_along_x,
    sum_along_y,
    sum_along_y_relu,
    sum_along_y_relu_tangent,
    sum_along_y_tangent,
)

_INPUT, _CONV, _POINTWISE = (OPERATIONS[name] for name in ("input", "conv", "pointwise"))


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
    """The mean over channels of the products of pixels."""
    work, down, across = tile.work, tile.down.pixels, tile.across.pixels
    target, n, scale = step.target, step.y.outputs * step.x.outputs, splat(ONE / np.float32(channels))
    for p in range(n):
        for row in range(ROWS):
            total = splat(ZERO)
            for channel in range(channels):
                k = channel * n + p
                if tile.group > 0:
                    x2 = load(across, (row * channels * n + k) * WIDTH)
                    x1 = x2
                else:
                    x2 = load(across, k * WIDTH)
                    x1 = splat(get(down, k * ROWS + row))
                total = fma(x1, x2, total)
            store(work, ((target + p) * ROWS + row) * WIDTH, scale * total)
    if tile.tangent > 0:
        _clear_row(work, target + tile.tangent, n)


@njit
def _pointwise(tile, step, row_buffer):
    n = step.x.inputs
    for y in range(step.y.inputs):
        row, out = step.source + y * n, step.target + y * n
        if step.before.function > 0:
            value = row_buffer if step.addend >= 0 else out
            nonlinear_row(tile, step.before, y * n, value, row, n)
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
                nonlinear_row(tile, step.before, y * n_in, row_buffer, row, n_in)
                row = row_buffer
            sum_along_x(step.x.size, work, slot, row, step.x)
            if tangent > 0:
                sum_along_x(step.x.size, work, slot + tangent, row + tangent, step.x)
        if padded >= size - 1 and (padded - size + 1) % stride == 0:
            first = (padded - size + 1) // stride * n_out
            target = step.target + first
            addend = step.addend + first if step.addend >= 0 else -1
            if step.after.function == RELU and tile.group == 0:
                if tangent > 0:
                    sum_along_y_relu_tangent(size, tile, target, ring, addend, step, first)
                else:
                    sum_along_y_relu(size, tile, target, ring, addend, step, first)
                continue
            apart = (step.after.function > 0 or step.mixed > 0) and addend >= 0
            out, added = (row_buffer, -1) if apart else (target, addend)
            if tangent > 0:
                sum_along_y_tangent(size, tile, out, ring, added, step)
            else:
                sum_along_y(size, tile, out, ring, added, step)
            if step.after.function > 0:
                nonlinear_row(tile, step.after, first, out, out, n_out)
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
def _mean(tile, step, row_buffer, total_buffer):
    work, n, tangent = tile.work, step.x.inputs, tile.tangent
    _clear_row(work, total_buffer, 1)
    _clear_row(work, total_buffer + tangent, 1)
    for y in range(step.y.inputs):
        at = step.source + y * n
        if step.before.function > 0:
            nonlinear_row(tile, step.before, y * n, row_buffer, at, n)
            at = row_buffer
        _add_sum(work, total_buffer, at, n)
        if tangent > 0:
            _add_sum(work, total_buffer + tangent, at + tangent, n)
    scale, bias = splat(step.scale / np.float32(step.y.inputs * n)), splat(step.bias)
    for row in range(ROWS):
        total = load(work, (total_buffer * ROWS + row) * WIDTH)
        value = fma(scale, total, bias)
        store(work, (step.target * ROWS + row) * WIDTH, value)
        if tangent > 0:
            total = load(work, ((total_buffer + tangent) * ROWS + row) * WIDTH)
            store(work, ((step.target + tangent) * ROWS + row) * WIDTH, fma(scale, total, value))


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
        else:
            _mean(tile, step, code.row, code.ring)


@kept
def variances(code, work, images, polynomials, out):
    """
    The variances of PAIRS images into ``out`` [PAIRS], and their deviations.

    :param images: a Side of ROWS groups, one after the other; its deviations are written.
    """
    _run(code, MicroTile(work, images, images, len(images.deviations) // ROWS, code.tangent, polynomials))
    for image in range(PAIRS):
        out[image] = work[code.result * PAIRS + image]


@kept
def covariances(code, work, down, across, polynomials, out):
    """
    The covariances of a column of micro-tiles: of groups of ROWS images, one below the other, with WIDTH images.

    :param down: a Side whose arrays have a row for each group of ROWS images.
    :param across: the Side of the WIDTH images.
    :param out: [groups * ROWS, WIDTH], written.
    """
    for group in range(len(down.pixels)):
        rows = Side(down.pixels[group], down.deviations[group])
        _run(code, MicroTile(work, rows, across, 0, code.tangent, polynomials))
        for row in range(ROWS):
            for column in range(WIDTH):
                out[group * ROWS + row, column] = work[(code.result * ROWS + row) * WIDTH + column]
