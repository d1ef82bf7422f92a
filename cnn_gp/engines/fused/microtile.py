"""
What the loops work on: a micro-tile, ROWS images by WIDTH images, whose pairs go through the network together.

Its pairs lie innermost in every array, so that every step at a position is ROWS full vectors, and a map of all its
pairs stays in the processor's own cache from the first layer to the last. All arrays are flat, and places in them are
counted in positions of a map.
"""

import math
from typing import NamedTuple

import numpy as np

from ...kernels.polynomials import ASIN_HALF, ASIN_QUARTER, SIN_MINUS_T_COS
from .simd import WIDTH

#: Pairs in a micro-tile, or images where it computes variances. With 64 a map of 28 x 28 takes 200 kB.
PAIRS = 64

#: Images down the side of a micro-tile.
ROWS = PAIRS // WIDTH


class Side(NamedTuple):
    """
    The images on one side of a micro-tile, and the deviations of the inputs of all nonlinearities at them.

    Deviations are two numbers a position, of the variance v: s = sqrt(v) and r = 1 / s for the ReLU of a kernel
    without tangents; v and r for the rest, for the erf the r of its own formula. Across there are WIDTH images: pixels
    [channels * positions, WIDTH] and deviations [n_deviations, 2, WIDTH]. Down there are ROWS:
    [channels * positions, ROWS] and [n_deviations, ROWS, 2].
    """

    pixels: np.ndarray
    deviations: np.ndarray


class Polynomials(NamedTuple):
    """The coefficients of the polynomials for Gaussian expectations, ready for the loops."""

    relu: np.ndarray
    """In 1 - |rho| = 2 h, for twice the ReLU's value."""
    step: np.ndarray
    erf: np.ndarray
    relu_slope: np.ndarray
    """In 1 - |rho|, for twice the ReLU's derivative's."""


class MicroTile(NamedTuple):
    """The arrays of a micro-tile of pairs; or of PAIRS images, for their variances."""

    work: np.ndarray
    """[positions, ROWS, WIDTH]: the maps, and the buffers for a row and for a ring of rows."""
    down: Side
    across: Side
    group: int
    """
    0 where the micro-tile is one of pairs. Else both sides are the same ROWS groups of WIDTH images, each laid out as
    one group across, and this is the length of a group's deviations, which are written.
    """
    tangent: int
    """How far behind each map of covariances its map of tangents is, in positions; 0 where there are none."""
    polynomials: Polynomials


POLYNOMIALS = Polynomials(
    np.array([c * 2 ** (-1.5 - i) / math.pi for i, c in enumerate(SIN_MINUS_T_COS)], np.float32),
    np.array([c / math.pi for c in ASIN_HALF], np.float32),
    np.array(ASIN_QUARTER, np.float32),
    np.array([c * 2 ** (0.5 - i) / math.pi for i, c in enumerate(ASIN_HALF)], np.float32),
)
