"""
What a program begins with: means over channels of products of two images' pixels, for all pairs of a micro-tile.

At the displacements of a pool this is up to a third of all covariances, so images of one and of three channels have
loops of their own, in which a pixel across is loaded once for all images down.
"""

import numpy as np
from numba import njit

from .microtile import PAIRS, ROWS
from .nonlinear import ONE, ZERO
from .simd import WIDTH, fma, get, load, splat, store


@njit
def _own_row(tile, target, first, n, channels, pixels):
    """Of images with themselves."""
    scale = splat(ONE / np.float32(channels))
    for p in range(n):
        for row in range(ROWS):
            total = splat(ZERO)
            for channel in range(channels):
                x = load(tile.across.pixels, ((row * channels + channel) * pixels + first + p) * WIDTH)
                total = fma(x, x, total)
            store(tile.work, ((target + p) * ROWS + row) * WIDTH, scale * total)


@njit
def _row(tile, target, d1, d2, n, channels, pixels):
    down, across, scale = tile.down.pixels, tile.across.pixels, splat(ONE / np.float32(channels))
    for p in range(n):
        for row in range(ROWS):
            total = splat(ZERO)
            for channel in range(channels):
                k = channel * pixels + p
                total = fma(splat(get(down, (k + d1) * ROWS + row)), load(across, (k + d2) * WIDTH), total)
            store(tile.work, ((target + p) * ROWS + row) * WIDTH, scale * total)


@njit
def _row_of_one_channel(tile, target, d1, d2, n):
    for p in range(n):
        x = load(tile.across.pixels, (d2 + p) * WIDTH)
        for row in range(ROWS):
            x1 = splat(get(tile.down.pixels, (d1 + p) * ROWS + row))
            store(tile.work, ((target + p) * ROWS + row) * WIDTH, x1 * x)


@njit
def _row_of_three_channels(tile, target, d1, d2, n, pixels):
    down, across, scale = tile.down.pixels, tile.across.pixels, splat(ONE / np.float32(3))
    second, third = pixels * ROWS, 2 * pixels * ROWS
    for p in range(n):
        k = (d2 + p) * WIDTH
        x, y, z = load(across, k), load(across, k + pixels * WIDTH), load(across, k + 2 * pixels * WIDTH)
        for row in range(ROWS):
            k = (d1 + p) * ROWS + row
            total = fma(splat(get(down, k + second)), y, splat(get(down, k)) * x)
            total = fma(splat(get(down, k + third)), z, total)
            store(tile.work, ((target + p) * ROWS + row) * WIDTH, scale * total)


@njit
def products_row(tile, target, d1, d2, n, channels):
    """
    Write a row of ``n`` positions.

    :param d1, d2: where the row's pixels begin in an image down, and across.
    """
    if tile.group > 0:
        _own_row(tile, target, d2, n, channels, len(tile.across.pixels) // (channels * PAIRS))
        return
    pixels = len(tile.across.pixels) // (channels * WIDTH)
    if channels == 1:
        _row_of_one_channel(tile, target, d1, d2, n)
    elif channels == 3:
        _row_of_three_channels(tile, target, d1, d2, n, pixels)
    else:
        _row(tile, target, d1, d2, n, channels, pixels)
