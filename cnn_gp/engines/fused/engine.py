"""
The fused engine: float32 kernels on the CPU, a few pairs of images at a time through all layers, in Numba.

It runs a :class:`~.program.Program`, not the kernel, and doesn't import TensorFlow. The machine code and
the reasons for its speed are in :mod:`.loops`; here is what surrounds it: which images go through it together, and
threads.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import UserError
from ..threads import each, n_cores
from . import loops
from .loops import LANES, ROWS
from .program import Compiled, Program
from .simd import WIDTH

if TYPE_CHECKING:
    from ..engine import Progress

#: Images down the side of a band: their deviations (88 kB each in the paper's ResNet) are kept while all columns pass.
BAND = 512

_POLYNOMIALS = (loops.RELU, loops.STEP, loops.ERF)

# Numba's dispatchers, whose arguments type checkers don't know.
_variances: Callable[..., None] = loops.variances
_covariances: Callable[..., None] = loops.covariances


def is_compiled() -> bool:
    """Whether the machine code is in Numba's cache, so that the first use needn't wait for the compiler."""
    source = Path(loops.__file__).stat().st_mtime
    kept = Path(loops.covariances.stats.cache_path or "").glob("loops.covariances-*.nbi")
    return any(path.stat().st_mtime >= source for path in kept)


class _Block:
    """LANES images with the deviations of every nonlinearity's input: [ROWS] groups of WIDTH images."""

    def __init__(self, images: np.ndarray, deviations: np.ndarray, variances: np.ndarray) -> None:
        self.images = images
        """[ROWS, D, WIDTH]"""
        self.deviations = deviations
        """[ROWS, n_deviations, 2, WIDTH]"""
        self.variances = variances
        """[LANES]"""

    def down(self) -> tuple[np.ndarray, np.ndarray]:
        """Images [WIDTH, D * ROWS] and deviations [WIDTH, n_deviations * ROWS * 2]: in groups of ROWS, not WIDTH."""
        images = self.images.reshape(ROWS, -1, WIDTH // ROWS, ROWS).transpose(0, 2, 1, 3)
        deviations = self.deviations.reshape(ROWS, -1, 2, WIDTH // ROWS, ROWS).transpose(0, 3, 1, 4, 2)
        return images.reshape(WIDTH, -1), deviations.reshape(WIDTH, -1)


class _Memory(threading.local):
    """A thread's own work array and deviations."""

    def __init__(self, positions: int, n_deviations: int) -> None:
        self.work = _aligned(positions * LANES)
        self.deviations = _aligned(n_deviations * 2 * LANES)


class FusedEngine:
    """
    Computes blocks of a kernel from its program.

    The numbers don't depend on how the images are cut into blocks, on the number of threads or on an image's place.

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
        self._compiled = program.compiled()
        self._memory = _Memory(self._compiled.positions, program.n_deviations)

    def matrix(self, X: np.ndarray, X2: np.ndarray | None = None, progress: "Progress | None" = None) -> np.ndarray:
        """K(X, X2) [N, M]; without X2 the symmetric K(X) [N, N], whose diagonal is :meth:`diag`'s to the bit."""
        X = self._checked(X)
        symmetric = X2 is None
        columns = X if X2 is None else self._checked(X2)
        result = np.empty((len(X), len(columns)), np.float32)
        for start in range(0, len(X), BAND):
            self._band(result, X, columns, start, symmetric, progress)
        return result

    def diag(self, X: np.ndarray) -> np.ndarray:
        """The variances of the images, [N]."""
        X = self._checked(X)
        starts = range(0, len(X), LANES)
        blocks = each(self._pool, lambda start: self._block(X[start : start + LANES]).variances.copy(), starts)
        return np.concatenate(blocks)[: len(X)]

    def first_non_finite(self, x: np.ndarray, x2: np.ndarray) -> str:
        """For an error message: the layer in which the kernel of two images [D] first isn't finite."""
        # One step at a time, each value in a place of its own.
        code = self._program.compiled(merge=False)
        memory = _Memory(code.positions, self._program.n_deviations)
        images = _padded(self._checked(np.stack([x, x2])))
        arrays = images, memory.deviations
        variances, covariances = np.empty(LANES, np.float32), np.empty((ROWS, WIDTH), np.float32)
        maps = memory.work.reshape(-1, ROWS, WIDTH)

        def first_bad(run: Callable[[Compiled], None]) -> int:
            for number, step in enumerate(code.steps):
                run(_one_step(code, number))
                place = code.table[number, 1]
                if not np.isfinite(maps[place : place + step.size[0] * step.size[1]]).all():
                    return number
            return len(code.steps)

        channels = self._program.channels
        found = first_bad(
            lambda c: _variances(
                *_arguments(c, channels), memory.work, arrays[0].reshape(-1), arrays[1], variances, *_POLYNOMIALS
            )
        )
        block = _Block(images, memory.deviations.reshape(ROWS, -1, 2, WIDTH), variances)
        down_images, down = block.down()
        across = images[0].reshape(-1), block.deviations[0].reshape(-1)
        found = min(
            found,
            first_bad(
                lambda c: _covariances(
                    *_arguments(c, channels),
                    memory.work,
                    down_images[:1],
                    across[0],
                    down[:1],
                    across[1],
                    covariances,
                    *_POLYNOMIALS,
                )
            ),
        )
        return "the merged program only" if found == len(code.steps) else code.steps[found].layer

    def _checked(self, X: np.ndarray) -> np.ndarray:
        D = self._program.channels * self._program.size[0] * self._program.size[1]
        if X.dtype != np.float32:
            raise UserError(f"The images have dtype {X.dtype}; the fused engine computes in float32: cast them.")
        if X.ndim != 2 or X.shape[1] != D:
            raise UserError(f"The images have shape {X.shape}; expected [N, {D}], flattened channel first.")
        return X

    def _block(self, X: np.ndarray) -> _Block:
        """In a thread: up to LANES images; their deviations are good until the thread's next block."""
        images = _padded(X)
        variances = np.empty(LANES, np.float32)
        memory = self._memory
        code = _arguments(self._compiled, self._program.channels)
        _variances(*code, memory.work, images.reshape(-1), memory.deviations, variances, *_POLYNOMIALS)
        return _Block(images, memory.deviations.reshape(ROWS, -1, 2, WIDTH), variances)

    def _band(
        self,
        result: np.ndarray,
        X: np.ndarray,
        columns: np.ndarray,
        start: int,
        symmetric: bool,
        progress: "Progress | None",
    ) -> None:
        """The rows of ``result`` from ``start`` on; where it is symmetric also those of its columns that it mirrors."""
        stop = min(start + BAND, len(X))

        def take_down(first: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            block = self._block(X[first : min(first + LANES, stop)])
            return *block.down(), block.variances

        parts = each(self._pool, take_down, range(start, stop, LANES))
        images, down, variances = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        code = _arguments(self._compiled, self._program.channels)

        def pass_columns(task: tuple[int, int, int]) -> None:
            first, top, end = task
            last = min(first + LANES, len(columns))
            block = self._block(columns[first:last])
            for group, left in enumerate(range(first, last, WIDTH)):
                right = min(left + WIDTH, last)
                # Of a symmetric matrix only what isn't wholly below the diagonal.
                bottom = min(end, right) if symmetric else end
                if bottom <= top:
                    continue
                blocks = slice((top - start) // ROWS, -(-(bottom - start) // ROWS))
                entries = np.empty(((blocks.stop - blocks.start) * ROWS, WIDTH), np.float32)
                _covariances(
                    *code,
                    self._memory.work,
                    images[blocks],
                    block.images[group].reshape(-1),
                    down[blocks],
                    block.deviations[group].reshape(-1),
                    entries,
                    *_POLYNOMIALS,
                )
                result[top:bottom, left:right] = entries[: bottom - top, : right - left]
            if progress is not None:
                progress(_n_entries(top, end, first, last, symmetric))

        firsts = range(start if symmetric else 0, len(columns), LANES)
        each(self._pool, pass_columns, _tasks(firsts, start, stop, self.n_threads))
        if symmetric:
            square = result[start:stop, start:stop]
            lower = np.tril_indices(len(square), -1)
            square[lower] = square.T[lower]
            np.fill_diagonal(square, variances[: len(square)])
            result[stop:, start:stop] = result[start:stop, stop:].T


def _tasks(firsts: range, start: int, stop: int, n_threads: int) -> Iterator[tuple[int, int, int]]:
    """
    (first column, first row, end of rows) of the blocks of columns at ``firsts``, for rows ``start`` to ``stop``.

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


def _arguments(code: Compiled, channels: int) -> tuple:
    return code.table, code.numbers, (code.row, code.ring), code.result, channels


def _one_step(code: Compiled, number: int) -> Compiled:
    return code._replace(table=code.table[number : number + 1], numbers=code.numbers[number : number + 1])


def _padded(X: np.ndarray) -> np.ndarray:
    """Images [N, D], N up to LANES, as [ROWS, D, WIDTH]; the last one repeated where there are fewer."""
    missing = LANES - len(X)
    X = np.concatenate([X, np.repeat(X[-1:], missing, axis=0)]) if missing else X
    return np.ascontiguousarray(X.reshape(ROWS, WIDTH, -1).transpose(0, 2, 1))


def _aligned(n: int) -> np.ndarray:
    """n float32 numbers that begin at a cache line: a vector that straddles two costs twice."""
    buffer = np.empty(n + 16, np.float32)
    start = -(buffer.ctypes.data // buffer.itemsize) % 16
    return buffer[start : start + n]
