"""
The fused engine: float32 kernels on the CPU, a few pairs of images at a time through all layers, in Numba.

It runs a :class:`~.program.Program`, not the kernel, and doesn't import TensorFlow. The machine code and
the reasons for its speed are in :mod:`.loops`; here is what surrounds it: which images go through it together, and
threads.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...errors import UserError
from ..threads import each, n_cores
from .cache import is_kept
from .loops import covariances, variances
from .microtile import PAIRS, POLYNOMIALS, ROWS, Side
from .program import Code, Compiled, Program
from .simd import WIDTH
from .streamed import Stage, Streamed, streamed

if TYPE_CHECKING:
    from ..engine import Progress

#: Row images in a strip: their deviations (88 kB each in the paper's ResNet) are kept while all columns pass.
STRIP = 512


def is_compiled() -> bool:
    """Whether the machine code is in Numba's cache, so that the first use needn't wait for the compiler."""
    return is_kept(variances) and is_kept(covariances)


def positions_per_entry(program: Program) -> int:
    """How many numbers the steps write for a pair of images, at all displacements: its time is about proportional."""
    code = _Code(program)
    codes = [code.images.code] if code.images.displaced is None else code.images.displaced
    if code.streamed is not None:
        codes = [code.streamed.code]
    return sum(int((one.steps["y"]["outputs"] * one.steps["x"]["outputs"]).sum()) for one in codes)


class _Memory(threading.local):
    """A thread's own work array and deviations."""

    def __init__(self, positions: int, n_deviations: int) -> None:
        self.work = _aligned(positions * PAIRS)
        self.deviations = _aligned(n_deviations * 2 * PAIRS)


class _Code:
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
        """How often ``done`` is called for so many groups of ROWS images."""
        if self.images.displaced is None or self.streamed is not None:
            return groups
        return groups * len(self.images.displaced)

    def entries(self, memory: _Memory, down: Side, across: Side, done: "Progress | None" = None) -> np.ndarray:
        """
        The kernels of a column of micro-tiles, [covariances and tangents, rows, WIDTH].

        :param done: called with the number of micro-tiles that went through the program once more.
        """
        entries = self.pooled(memory, down, across, done)
        if self.head is not None:
            covariances(self.head.code, memory.work, down, across, POLYNOMIALS, entries)
        return entries

    def pooled(self, memory: _Memory, down: Side, across: Side, done: "Progress | None" = None) -> np.ndarray:
        """The same before the head, [kernels, rows, WIDTH]."""
        code, displaced = self.images.code, self.images.displaced
        n_groups = len(down.pixels)
        if self.streamed is not None:
            code = self.streamed.code
            entries = np.zeros((code.kernels, n_groups * ROWS, WIDTH))
            # One at a time takes long enough.
            for group in range(n_groups):
                one = Side(down.pixels[group : group + 1], down.deviations[group : group + 1])
                rows = entries[:, group * ROWS : (group + 1) * ROWS]
                covariances(code, memory.work, one, across, POLYNOMIALS, rows)
                if done is not None:
                    done(1)
            return entries
        entries = np.zeros((code.kernels, n_groups * ROWS, WIDTH))
        for at_displacement in [code] if displaced is None else displaced:
            covariances(at_displacement, memory.work, down, across, POLYNOMIALS, entries)
            if done is not None:
                done(n_groups)
        return entries

    def own_maps(self, part: Streamed, memory: _Memory, down: Side, across: Side, length: int) -> np.ndarray:
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


class _Prepared(NamedTuple):
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
    def of(cls, X: np.ndarray, code: _Code, memory: _Memory, *, diagonal: bool = False) -> "_Prepared":
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


class FusedEngine:
    """
    Computes kernel entries from a kernel's program.

    The entries don't depend on how the images are cut into micro-tiles, on the number of threads or on an image's
    place.

    :param program: :func:`cnn_gp.engines.fused.lowering.lower`'s.
    :param n_threads: by default one for each core that this process may use.
    """

    name = "fused"

    def __init__(self, program: Program, *, n_threads: int | None = None) -> None:
        if n_threads is not None and n_threads < 1:
            raise UserError(f"n_threads is {n_threads}; expected at least 1, or none for all cores.")
        self._program = program
        self.n_threads = n_threads or n_cores()
        self._pool = ThreadPoolExecutor(self.n_threads, thread_name_prefix="fused")
        self._code = _Code(program)
        self._memory = _Memory(self._code.positions, program.n_deviations)

    @property
    def program(self) -> Program:
        """What it computes."""
        return self._program

    def matrix(
        self,
        X: np.ndarray,
        X2: np.ndarray | None = None,
        progress: "Progress | None" = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """
        K(X, X2) [N, M]; without X2 the symmetric K(X) [N, N], whose diagonal is :meth:`diag`'s to the bit.

        :param out: where entries are written; what isn't NaN there isn't computed again (:class:`..engine.Engine`).
        """
        X = self._checked(X)
        symmetric = X2 is None
        columns = X if X2 is None else self._checked(X2)
        result = np.full((len(X), len(columns)), np.nan, np.float32) if out is None else out
        for start in range(0, len(X), STRIP):
            self._strip([result], X, columns, start, symmetric, progress)
        return result

    def both(
        self, X: np.ndarray, X2: np.ndarray | None = None, progress: "Progress | None" = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Of a neural tangent kernel's program: the Gaussian process's kernel of the same network and the neural tangent
        kernel, in the time of the second.

        :return: two of :meth:`matrix`'s.
        """
        if not self._program.ntk:
            raise UserError("Both kernels come from a neural tangent kernel's program, and this is another's.")
        X = self._checked(X)
        columns = X if X2 is None else self._checked(X2)
        K, T = (np.full((len(X), len(columns)), np.nan, np.float32) for _ in range(2))
        for start in range(0, len(X), STRIP):
            self._strip([K, T], X, columns, start, X2 is None, progress)
        return K, T

    def diag(self, X: np.ndarray) -> np.ndarray:
        """The variances of the images, [N]."""
        X = self._checked(X)
        parts = each(
            self._pool,
            lambda first: self._prepare(X[first : first + PAIRS], diagonal=True).variances[-1],
            range(0, len(X), PAIRS),
        )
        return np.concatenate(parts)[: len(X)].astype(np.float32)

    def first_non_finite(self, x: np.ndarray, x2: np.ndarray) -> str:
        """For an error message: the layer in which the kernel of two images [D] first isn't finite."""
        # One step at a time, each value in a place of its own.
        code = _Code(self._program, merge=False)
        memory = _Memory(code.positions, self._program.n_deviations)
        maps = memory.work.reshape(-1, PAIRS)
        prepared = _Prepared.of(self._checked(np.stack([x, x2])), code, memory, diagonal=True)
        down, across = prepared.down(), prepared.across(0)
        images = Side(prepared.pixels.reshape(-1), memory.deviations)

        def bad(steps: Code, run: Callable[[Code], object]) -> Iterator[int]:
            for number, step in enumerate(steps.steps):
                run(steps._replace(steps=steps.steps[number : number + 1]))
                length = step["y"]["outputs"] * step["x"]["outputs"]
                places = {step["target"], step["target"] + steps.tangent}
                if not all(np.isfinite(maps[place:][:length]).all() for place in places):
                    yield number

        def named(part: Compiled, own: np.ndarray, entries: np.ndarray) -> str:
            """:param own, entries: what a head is given, else zeros."""
            of_images = bad(part.code, lambda one: variances(one, memory.work, images, POLYNOMIALS, own.copy()))
            of_pairs = bad(
                part.code, lambda one: covariances(one, memory.work, down, across, POLYNOMIALS, entries.copy())
            )
            return [*part.layers, ""][min(next(found, len(part.layers)) for found in (of_images, of_pairs))]

        def named_in_stream(part: Streamed) -> str:
            """An image's variances are there as its covariances with itself."""
            out = np.zeros((part.code.kernels, ROWS, WIDTH))
            one = Side(down.pixels[:1], down.deviations[:1])
            found = bad(part.code, lambda step: covariances(step, memory.work, one, across, POLYNOMIALS, out.copy()))
            return [*part.layers, ""][min((part.order[number] for number in found), default=len(part.layers))]

        given = code.pooled(memory, down, across)
        own = np.zeros((len(given), PAIRS))
        found = named(code.images, own, np.zeros_like(given))
        if not found and code.streamed is not None:
            found = named_in_stream(code.streamed)
        if not found and code.head is not None:
            own[:, :WIDTH] = given[:, :WIDTH].diagonal(axis1=1, axis2=2)
            found = named(code.head, own, given)
        return found or "the merged program only"

    def _checked(self, X: np.ndarray) -> np.ndarray:
        D = self._program.channels * self._program.size[0] * self._program.size[1]
        if X.dtype != np.float32:
            raise UserError(f"The images have dtype {X.dtype}; the fused engine computes in float32: cast them.")
        if X.ndim != 2 or X.shape[1] != D:
            raise UserError(f"The images have shape {X.shape}; expected [N, {D}], flattened channel first.")
        return X

    def _prepare(self, X: np.ndarray, *, diagonal: bool = False) -> _Prepared:
        """In a thread, in its memory."""
        return _Prepared.of(X, self._code, self._memory, diagonal=diagonal)

    def _strip(
        self,
        results: list[np.ndarray],
        X: np.ndarray,
        columns: np.ndarray,
        start: int,
        symmetric: bool,
        progress: "Progress | None",
    ) -> None:
        """
        The rows of ``results`` from ``start`` on; where these are symmetric also what they mirror in their columns.

        :param results: the program's kernel, or its covariances and tangents.
        """
        stop = min(start + STRIP, len(X))

        def prepare_rows(first: int) -> tuple[Side, np.ndarray]:
            rows = self._prepare(X[first : min(first + PAIRS, stop)], diagonal=symmetric)
            return rows.down(), rows.variances

        sides, diagonals = zip(*each(self._pool, prepare_rows, range(start, stop, PAIRS)), strict=True)
        pixels, deviations = (np.concatenate(arrays) for arrays in zip(*sides, strict=True))

        def pass_columns(task: tuple[int, int, int]) -> None:
            first, top, end = task
            last = min(first + PAIRS, len(columns))
            # Of a symmetric matrix only what isn't wholly below the diagonal.
            rights = [(left, min(left + WIDTH, last)) for left in range(first, last, WIDTH)]
            groups = [(left, right, min(end, right) if symmetric else end) for left, right in rights]
            groups = [group for group in groups if group[-1] > top]
            n_entries = _n_entries(top, end, first, last, symmetric)
            missing = [group for group in groups if np.isnan(results[-1][top : group[2], group[0] : group[1]]).any()]
            total, left = (
                self._code.n_calls(sum(-(-(bottom - top) // ROWS) for _, _, bottom in some))
                for some in (groups, missing)
            )
            done = progress and _in_shares(progress, n_entries, total)
            if done is not None and left < total:
                done(total - left)
            if not missing:
                return
            prepared = self._prepare(columns[first:last])
            for left, right, bottom in missing:
                rows = slice((top - start) // ROWS, -(-(bottom - start) // ROWS))
                down, across = Side(pixels[rows], deviations[rows]), prepared.across((left - first) // WIDTH)
                entries = self._code.entries(self._memory, down, across, done)
                for result, found in zip(results, entries[-len(results) :], strict=True):
                    result[top:bottom, left:right] = found[: bottom - top, : right - left]

        firsts = range(start if symmetric else 0, len(columns), PAIRS)
        each(self._pool, pass_columns, _tasks(firsts, start, stop, self.n_threads))
        if symmetric:
            diagonal = np.concatenate(diagonals, axis=1)[-len(results) :, : stop - start]
            for result, own in zip(results, diagonal, strict=True):
                square = result[start:stop, start:stop]
                lower = np.tril_indices(len(square), -1)
                square[lower] = square.T[lower]
                np.fill_diagonal(square, own)
                result[stop:, start:stop] = result[start:stop, stop:].T


def _tasks(firsts: range, start: int, stop: int, n_threads: int) -> Iterator[tuple[int, int, int]]:
    """
    (first column, first row, end of rows): PAIRS columns from each of ``firsts`` on, and rows ``start`` to ``stop``.

    The last ones are cut into pieces, so that no thread is long without work at the end.
    """
    for number, first in enumerate(firsts):
        pieces = n_threads if number >= len(firsts) - 2 * n_threads else 1
        height = -(-(stop - start) // (pieces * ROWS)) * ROWS
        for top in range(start, stop, height):
            yield first, top, min(top + height, stop)


def _in_shares(progress: "Progress", n_entries: int, n_calls: int) -> "Progress":
    """What reports ``n_entries`` in all, in equal shares, as it is called with ``n_calls`` in all."""
    calls = reported = 0

    def done(n: int) -> None:
        nonlocal calls, reported
        calls += n
        share = n_entries * calls // n_calls - reported
        reported += share
        progress(share)

    return done


def _n_entries(start: int, stop: int, first: int, last: int, symmetric: bool) -> int:
    """How many entries there are; of a symmetric matrix those on and above the diagonal."""
    if not symmetric:
        return (stop - start) * (last - first)
    return sum(max(0, min(stop, column + 1) - start) for column in range(first, last))


def _aligned(n: int) -> np.ndarray:
    """n float32 numbers that begin at a cache line: a vector that straddles two costs twice."""
    buffer = np.empty(n + 16, np.float32)
    start = -(buffer.ctypes.data // buffer.itemsize) % 16
    return buffer[start : start + n]
