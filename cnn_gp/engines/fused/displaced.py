"""
A program at displacements between the positions of two images, for an average pool before the readout.

With :math:`K_d(p)` the covariance between position p of the one image and p + d of the other, a pool is a weighted sum
of :math:`K_d(p)` over d and p (:mod:`cnn_gp.kernels.pooling`). Displacements don't mix before it, so each is the same
program on smaller maps: the rectangles of those p where p + d is inside the map too, which begin at another place of
each image. Padding stays what it is, since what is outside the rectangle counts 0. So a displacement is a copy of the
program's table with other sizes and places.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...kernels.geometry import Window

if TYPE_CHECKING:
    from .program import Code, Step

Strides = dict[int, tuple[int, int]]


class UnequalStrides(ValueError):
    """Two layers read one map, and one of them needs other displacements there than the other."""


def strides_to_the_end(steps: "dict[int, Step]") -> Strides:
    """
    Of each value, the total stride of the layers between it and the last step's source: how far d reaches there.

    :raises UnequalStrides: where they differ between two ways.
    """
    found: Strides = {next(reversed(steps)): (1, 1)}
    for number, step in reversed(steps.items()):
        own = found[number]
        # The pool's own strides are among its weights.
        y, x = (1, 1) if step.windows is None else (window.stride for window in step.windows)
        for value, strides in ((step.source, (own[0] * y, own[1] * x)), (step.addend, own)):
            if value >= 0 and found.setdefault(value, strides) != strides:
                raise UnequalStrides
    return found


@dataclass(frozen=True)
class Pool:
    """An average pool, and the mean over what comes out of it."""

    y: Window
    x: Window

    @property
    def scale(self) -> float:
        """What a sum of covariances with a weight for each window that holds both positions is multiplied by."""
        return 1 / (self.y.size**2 * self.y.outputs * self.x.size**2 * self.x.outputs)


def _weights(window: Window) -> dict[int, np.ndarray]:
    """Along an axis: for each displacement, in how many windows p and p + d are, for all p with p + d in the map."""
    band, n = window.band(), window.inputs
    found = {}
    for d in range(1 - min(window.size, n), min(window.size, n)):
        first, last = max(0, -d), n - max(0, d)
        weights = (band[:, first:last] * band[:, first + d : last + d]).sum(0)
        if weights.any():
            found[d] = weights.astype(np.float32)
    return found


class Displaced:
    """
    The code of each displacement that a pool needs, made when it is asked for.

    :param code: at displacement 0, of maps of full size.
    :param steps: those of the code, the last one the pool.
    """

    def __init__(self, code: "Code", steps: "dict[int, Step]", pool: Pool) -> None:
        strides = strides_to_the_end(steps)
        # Of the maps that each step reads and makes; the pool makes one pixel whatever the displacement.
        pairs = [(strides[step.source if step.source >= 0 else value], strides[value]) for value, step in steps.items()]
        pairs[-1] = (pairs[-1][0], (0, 0))
        self._code, self._strides = code, np.array(pairs)
        self._y, self._x = _weights(pool.y), _weights(pool.x)

    def __len__(self) -> int:
        return len(self._y) * len(self._x)

    def __iter__(self) -> "Iterator[Code]":
        return (self.at(dy, dx) for dy in self._y for dx in self._x)

    def displacements(self) -> tuple[list[int], list[int]]:
        """Along y and along x."""
        return list(self._y), list(self._x)

    def stride_at_start(self) -> tuple[int, int]:
        """How far a displacement of one pixel reaches in what the code begins with."""
        y, x = self._strides[0, 1]
        return int(y), int(x)

    def at(self, dy: int, dx: int) -> "Code":
        """The code of one displacement."""
        return self._code._replace(steps=self.steps_at(dy, dx), weights=self.weights_at(dy, dx))

    def weights_at(self, dy: int, dx: int) -> np.ndarray:
        """The pool's weights at one displacement: of each row, then of each column."""
        return np.concatenate([self._y[dy], self._x[dx]])

    def steps_at(self, dy: int, dx: int) -> np.ndarray:
        """The table of one displacement, STEP [steps]."""
        steps = self._code.steps.copy()
        for end, places in enumerate(("before", "after")):
            size = ("inputs", "outputs")[end]
            d = {"y": dy * self._strides[:, end, 0], "x": dx * self._strides[:, end, 1]}
            for axis, along in d.items():
                steps[axis][size] -= abs(along)
            for side, sign in (("down", -1), ("across", 1)):
                first = {axis: np.maximum(sign * along, 0) for axis, along in d.items()}
                steps[places][side] += first["y"] * steps[places]["width"] + first["x"]
        return steps
