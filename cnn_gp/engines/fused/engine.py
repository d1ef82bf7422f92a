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
from .program import Code, Program
from .simd import WIDTH

if TYPE_CHECKING:
    from ..engine import Progress

#: Row images in a strip: their deviations (88 kB each in the paper's ResNet) are kept while all columns pass.
STRIP = 512


def is_compiled() -> bool:
    """Whether the machine code is in Numba's cache, so that the first use needn't wait for the compiler."""
    return is_kept(variances) and is_kept(covariances)


class _Memory(threading.local):
    """A thread's own work array and deviations."""

    def __init__(self, positions: int, n_deviations: int) -> None:
        self.work = _aligned(positions * PAIRS)
        self.deviations = _aligned(n_deviations * 2 * PAIRS)


class _Prepared(NamedTuple):
    """Up to PAIRS images, padded to PAIRS, with their deviations, in ROWS groups of WIDTH images."""

    pixels: np.ndarray
    """[ROWS, D, WIDTH]"""
    deviations: np.ndarray
    """[ROWS, n_deviations, 2, WIDTH]: the memory's, good until it prepares the next images."""
    variances: np.ndarray
    """[PAIRS]"""

    @classmethod
    def of(cls, X: np.ndarray, code: Code, memory: _Memory) -> "_Prepared":
        """Images [N, D]; where there are fewer than PAIRS, the last one is repeated."""
        missing = PAIRS - len(X)
        X = np.concatenate([X, np.repeat(X[-1:], missing, axis=0)]) if missing else X
        pixels = np.ascontiguousarray(X.reshape(ROWS, WIDTH, -1).transpose(0, 2, 1))
        result = np.empty(PAIRS, np.float32)
        variances(code, memory.work, Side(pixels.reshape(-1), memory.deviations), POLYNOMIALS, result)
        return cls(pixels, memory.deviations.reshape(ROWS, -1, 2, WIDTH), result)

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
        compiled = program.compiled()
        self._code = compiled.code
        self._memory = _Memory(compiled.positions, program.n_deviations)

    @property
    def program(self) -> Program:
        """What it computes."""
        return self._program

    def matrix(self, X: np.ndarray, X2: np.ndarray | None = None, progress: "Progress | None" = None) -> np.ndarray:
        """K(X, X2) [N, M]; without X2 the symmetric K(X) [N, N], whose diagonal is :meth:`diag`'s to the bit."""
        X = self._checked(X)
        symmetric = X2 is None
        columns = X if X2 is None else self._checked(X2)
        result = np.empty((len(X), len(columns)), np.float32)
        for start in range(0, len(X), STRIP):
            self._strip(result, X, columns, start, symmetric, progress)
        return result

    def diag(self, X: np.ndarray) -> np.ndarray:
        """The variances of the images, [N]."""
        X = self._checked(X)
        parts = each(
            self._pool, lambda first: self._prepare(X[first : first + PAIRS]).variances, range(0, len(X), PAIRS)
        )
        return np.concatenate(parts)[: len(X)]

    def first_non_finite(self, x: np.ndarray, x2: np.ndarray) -> str:
        """For an error message: the layer in which the kernel of two images [D] first isn't finite."""
        # One step at a time, each value in a place of its own.
        code, positions, layers = self._program.compiled(merge=False)
        memory = _Memory(positions, self._program.n_deviations)
        maps = memory.work.reshape(positions, PAIRS)

        def first_bad(run: Callable[[Code], object]) -> int:
            for number, step in enumerate(code.steps):
                run(code._replace(steps=code.steps[number : number + 1]))
                length = step["y"]["outputs"] * step["x"]["outputs"]
                places = {step["target"], step["target"] + code.tangent}
                if not all(np.isfinite(maps[place:][:length]).all() for place in places):
                    return number
            return len(layers)

        X = self._checked(np.stack([x, x2]))
        found = first_bad(lambda code: _Prepared.of(X, code, memory))
        images, entries = _Prepared.of(X, code, memory), np.empty((PAIRS, WIDTH), np.float32)
        down, across = images.down(), images.across(0)
        found = min(found, first_bad(lambda code: covariances(code, memory.work, down, across, POLYNOMIALS, entries)))
        return [*layers, "the merged program only"][found]

    def _checked(self, X: np.ndarray) -> np.ndarray:
        D = self._program.channels * self._program.size[0] * self._program.size[1]
        if X.dtype != np.float32:
            raise UserError(f"The images have dtype {X.dtype}; the fused engine computes in float32: cast them.")
        if X.ndim != 2 or X.shape[1] != D:
            raise UserError(f"The images have shape {X.shape}; expected [N, {D}], flattened channel first.")
        return X

    def _prepare(self, X: np.ndarray) -> _Prepared:
        """In a thread, in its memory."""
        return _Prepared.of(X, self._code, self._memory)

    def _strip(
        self,
        result: np.ndarray,
        X: np.ndarray,
        columns: np.ndarray,
        start: int,
        symmetric: bool,
        progress: "Progress | None",
    ) -> None:
        """The rows of ``result`` from ``start`` on; where it is symmetric also those of its columns that it mirrors."""
        stop = min(start + STRIP, len(X))

        def prepare_rows(first: int) -> tuple[Side, np.ndarray]:
            rows = self._prepare(X[first : min(first + PAIRS, stop)])
            return rows.down(), rows.variances

        sides, diagonals = zip(*each(self._pool, prepare_rows, range(start, stop, PAIRS)), strict=True)
        pixels, deviations = (np.concatenate(arrays) for arrays in zip(*sides, strict=True))

        def pass_columns(task: tuple[int, int, int]) -> None:
            first, top, end = task
            last = min(first + PAIRS, len(columns))
            prepared = self._prepare(columns[first:last])
            for group, left in enumerate(range(first, last, WIDTH)):
                right = min(left + WIDTH, last)
                # Of a symmetric matrix only what isn't wholly below the diagonal.
                bottom = min(end, right) if symmetric else end
                if bottom <= top:
                    continue
                groups = slice((top - start) // ROWS, -(-(bottom - start) // ROWS))
                down, across = Side(pixels[groups], deviations[groups]), prepared.across(group)
                entries = np.empty((len(down.pixels) * ROWS, WIDTH), np.float32)
                covariances(self._code, self._memory.work, down, across, POLYNOMIALS, entries)
                result[top:bottom, left:right] = entries[: bottom - top, : right - left]
            if progress is not None:
                progress(_n_entries(top, end, first, last, symmetric))

        firsts = range(start if symmetric else 0, len(columns), PAIRS)
        each(self._pool, pass_columns, _tasks(firsts, start, stop, self.n_threads))
        if symmetric:
            square = result[start:stop, start:stop]
            lower = np.tril_indices(len(square), -1)
            square[lower] = square.T[lower]
            np.fill_diagonal(square, np.concatenate(diagonals)[: len(square)])
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
