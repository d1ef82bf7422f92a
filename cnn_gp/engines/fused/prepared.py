"""
Images prepared for a program, and its codes run on them in a thread's memory: a column of micro-tiles at a time.

Up to PAIRS images are prepared together: padded, laid out as rows and columns of micro-tiles, with the deviations that
every nonlinearity asks for.
"""

import threading
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .loops import covariances, variances
from .microtile import PAIRS, POLYNOMIALS, ROWS, Side
from .program import Program
from .simd import WIDTH
from .streamed import Stage, Streamed, streamed

if TYPE_CHECKING:
    from ..engine import Count


class Memory(threading.local):
    """A thread's own work array and deviations."""

    def __init__(self, positions: int, n_deviations: int) -> None:
        self.work = _aligned(positions * PAIRS)
        self.deviations = _aligned(n_deviations * 2 * PAIRS)


class Codes:
    """A program's codes, and what is done with them in a thread's memory."""

    def __init__(self, program: Program, *, merge: bool = True) -> None:
        programs = [program]
        while (head := programs[-1].head) is not None and head.size != (1, 1):
            programs.append(head)
        stages = [
            Stage(one.compiled(merge=merge), None if one.pool is None else (one.pool.y, one.pool.x)) for one in programs
        ]
        self.images = stages[0].compiled
        self.head = None if head is None else head.compiled(merge=merge)
        # Where there are pools in the middle: for an image's own map after each, and for a pair all of it.
        self.later = [(streamed(stages[:n], to_map=True), stages[n].compiled) for n in range(1, len(stages))]
        self.streamed = streamed(stages) if self.later else None
        parts = [self.images, self.head, self.streamed, *(part for pair in self.later for part in pair)]
        self.positions = max(part.positions for part in parts if part is not None)
        # A nonlinearity of the pooled pixel needs each image's own variance.
        self.needs_pooled = head is not None and any(step.before for step in head.steps)

    def n_calls(self, groups: int) -> int:
        """What the numbers that :meth:`entries` calls ``done`` with add up to, for so many groups of ROWS images."""
        if self.images.displaced is None or self.streamed is not None:
            return groups
        return groups * len(self.images.displaced)

    def entries(self, memory: Memory, down: Side, across: Side, done: "Count | None" = None) -> np.ndarray:
        """
        The kernels of a column of micro-tiles, [covariances and tangents, rows, WIDTH].

        :param done: called with the number of micro-tiles that went through the program once more.
        """
        entries = self.pooled(memory, down, across, done)
        if self.head is not None:
            covariances(self.head.code, memory.work, down, across, POLYNOMIALS, entries)
        return entries

    def pooled(self, memory: Memory, down: Side, across: Side, done: "Count | None" = None) -> np.ndarray:
        """The same before the head, [kernels, rows, WIDTH]."""
        code, displaced = self.images.code, self.images.displaced
        n_groups = len(down.pixels)
        if self.streamed is not None:
            code = self.streamed.code
            # Each group's apart: Numba compiles the loops a second time for an array with gaps.
            groups = np.zeros((n_groups, code.kernels, ROWS, WIDTH))
            # One at a time takes long enough.
            for group in range(n_groups):
                one = Side(down.pixels[group : group + 1], down.deviations[group : group + 1])
                covariances(code, memory.work, one, across, POLYNOMIALS, groups[group])
                if done is not None:
                    done(1)
            return np.ascontiguousarray(groups.transpose(1, 0, 2, 3)).reshape(code.kernels, -1, WIDTH)
        entries = np.zeros((code.kernels, n_groups * ROWS, WIDTH))
        for at_displacement in [code] if displaced is None else displaced:
            covariances(at_displacement, memory.work, down, across, POLYNOMIALS, entries)
            if done is not None:
                done(n_groups)
        return entries

    def own_maps(self, part: Streamed, memory: Memory, down: Side, across: Side, length: int) -> np.ndarray:
        """
        Of WIDTH images, which are down too, the covariances of each with itself, and the tangents.

        :return: [covariances and tangents, length of the map, WIDTH]
        """
        code, maps = part.code, memory.work.reshape(-1, ROWS, WIDTH)
        starts = [code.result, code.result + code.tangent] if code.tangent else [code.result]
        found = np.empty((len(starts), length, WIDTH), np.float32)
        for group in range(WIDTH // ROWS):
            one = Side(down.pixels[group : group + 1], down.deviations[group : group + 1])
            covariances(code, memory.work, one, across, POLYNOMIALS, np.zeros((code.kernels, ROWS, WIDTH)))
            for i, start in enumerate(starts):
                for row in range(ROWS):
                    image = group * ROWS + row
                    found[i, :, image] = maps[start : start + length, row, image]
        return found


class PreparedImages(NamedTuple):
    """Up to PAIRS images, padded to PAIRS, with their deviations, in ROWS groups of WIDTH images."""

    pixels: np.ndarray
    """[ROWS, D, WIDTH]"""
    deviations: np.ndarray
    """[ROWS, n_deviations, 2, WIDTH]: the memory's, good until it prepares the next images."""
    variances: np.ndarray
    """
    [covariances and tangents, PAIRS] of each image with itself; before a pool without meaning where they aren't asked
    for.
    """

    @classmethod
    def of(cls, X: np.ndarray, code: Codes, memory: Memory, *, diagonal: bool = False) -> "PreparedImages":
        """
        Images [N, D]; where there are fewer than PAIRS, the last one is repeated.

        :param diagonal: whether the variances are asked for; without a pool they come by the way.
        """
        n_groups = -(-len(X) // WIDTH)
        missing = PAIRS - len(X)
        X = np.concatenate([X, np.repeat(X[-1:], missing, axis=0)]) if missing else X
        pixels = np.ascontiguousarray(X.reshape(ROWS, WIDTH, -1).transpose(0, 2, 1))
        result = np.zeros((code.images.code.kernels, PAIRS))
        side = Side(pixels.reshape(-1), memory.deviations)
        variances(code.images.code, memory.work, side, POLYNOMIALS, result)
        prepared = cls(pixels, memory.deviations.reshape(ROWS, -1, 2, WIDTH), result)
        for part, stage in code.later:
            # As in the pairs' program, so that an image's variances are its covariances with itself to the bit.
            given = stage.code.steps[0]
            length = int(given["y"]["outputs"] * given["x"]["outputs"])
            own = [code.own_maps(part, memory, *side, length) for side in prepared.both_sides(n_groups)]
            maps = memory.work.reshape(-1, ROWS, WIDTH)
            for i in range(len(own[0])):
                place = stage.code.given + i * stage.code.tangent
                maps[place : place + length] = 0
                for group, found in enumerate(own):
                    maps[place : place + length, group] = found[i]
            variances(stage.code._replace(given=-1), memory.work, side, POLYNOMIALS, result)
        if code.head is not None and (diagonal or code.needs_pooled):
            # The covariances of each image with itself, so that they are the matrix's to the bit.
            for group, (down, across) in enumerate(prepared.both_sides(n_groups)):
                entries = code.pooled(memory, down, across)
                result[:, group * WIDTH : (group + 1) * WIDTH] = entries.diagonal(axis1=1, axis2=2)
            variances(code.head.code, memory.work, side, POLYNOMIALS, result)
        return prepared

    def both_sides(self, n_groups: int) -> list[tuple[Side, Side]]:
        """Of each of the first groups, its WIDTH images down and across."""
        down, height = self.down(), WIDTH // ROWS
        rows = [slice(group * height, (group + 1) * height) for group in range(n_groups)]
        return [(Side(down.pixels[at], down.deviations[at]), self.across(i)) for i, at in enumerate(rows)]

    def across(self, group: int) -> Side:
        """A group of WIDTH images as a micro-tile's columns."""
        return Side(self.pixels[group].reshape(-1), self.deviations[group].reshape(-1))

    def down(self) -> Side:
        """All images as the rows of WIDTH micro-tiles, one below the other: copies [WIDTH, ...]."""
        pixels = self.pixels.reshape(ROWS, -1, WIDTH // ROWS, ROWS).transpose(0, 2, 1, 3)
        deviations = self.deviations.reshape(ROWS, -1, 2, WIDTH // ROWS, ROWS).transpose(0, 3, 1, 4, 2)
        return Side(pixels.reshape(WIDTH, -1), deviations.reshape(WIDTH, -1))


def _aligned(n: int) -> np.ndarray:
    """n float32 numbers that begin at a cache line: a vector that straddles two costs twice."""
    buffer = np.empty(n + 16, np.float32)
    start = -(buffer.ctypes.data // buffer.itemsize) % 16
    return buffer[start : start + n]
