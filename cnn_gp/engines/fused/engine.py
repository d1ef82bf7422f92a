"""
The fused engine: float32 kernels on the CPU, a few pairs of images at a time through all layers, in Numba.

It runs a :class:`~.program.Program`, not the kernel, and doesn't import TensorFlow. The machine code and
the reasons for its speed are in :mod:`.loops`; here is what surrounds it: which images go through it together
(:mod:`.prepared` lays them out), and threads.
"""

import numbers
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from ...errors import UserError
from ..threads import each, n_cores
from .cache import is_kept
from .loops import covariances, variances
from .microtile import PAIRS, POLYNOMIALS, ROWS, Side
from .prepared import Codes, Memory, PreparedImages
from .program import Code, Compiled, Program
from .simd import WIDTH
from .streamed import Streamed

if TYPE_CHECKING:
    from ..engine import Count

#: Row images in a strip: their deviations (88 kB each in the paper's ResNet) are kept while all columns pass.
STRIP = 512


def is_compiled() -> bool:
    """Whether the machine code is in Numba's cache, so that the first use needn't wait for the compiler."""
    return is_kept(variances) and is_kept(covariances)


def all_codes(program: Program) -> list[Code]:
    """What is run for a pair of images: a code for each displacement, or one of them all; without the head."""
    codes = Codes(program)
    if codes.streamed is not None:
        return [codes.streamed.code]
    return [codes.images.code] if codes.images.displaced is None else list(codes.images.displaced)


def positions_per_entry(program: Program) -> int:
    """How many numbers the steps write for a pair of images, at all displacements: its time is about proportional."""
    return sum(int((one.steps["y"]["outputs"] * one.steps["x"]["outputs"]).sum()) for one in all_codes(program))


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
        if n_threads is not None and not (isinstance(n_threads, numbers.Integral) and n_threads >= 1):
            raise UserError(f"n_threads is {n_threads!r}; expected a whole number above 0, or none for all cores.")
        self._program = program
        self.n_threads = n_threads or n_cores()
        self._pool = ThreadPoolExecutor(self.n_threads, thread_name_prefix="fused")
        self._code = Codes(program)
        self._memory = Memory(self._code.positions, program.n_deviations)

    @property
    def program(self) -> Program:
        """What it computes."""
        return self._program

    def matrix(
        self,
        X: np.ndarray,
        X2: np.ndarray | None = None,
        progress: "Count | None" = None,
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
        self, X: np.ndarray, X2: np.ndarray | None = None, progress: "Count | None" = None
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
        code = Codes(self._program, merge=False)
        memory = Memory(code.positions, self._program.n_deviations)
        maps = memory.work.reshape(-1, PAIRS)
        prepared = PreparedImages.of(self._checked(np.stack([x, x2])), code, memory, diagonal=True)
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

    def _prepare(self, X: np.ndarray, *, diagonal: bool = False) -> PreparedImages:
        """In a thread, in its memory."""
        return PreparedImages.of(X, self._code, self._memory, diagonal=diagonal)

    def _strip(
        self,
        results: list[np.ndarray],
        X: np.ndarray,
        columns: np.ndarray,
        start: int,
        symmetric: bool,
        progress: "Count | None",
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
            n_all, n_missing = (
                self._code.n_calls(sum(-(-(bottom - top) // ROWS) for _, _, bottom in some))
                for some in (groups, missing)
            )
            done = progress and _in_shares(progress, n_entries, n_all)
            if done is not None and n_missing < n_all:
                done(n_all - n_missing)
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


def _in_shares(progress: "Count", n_entries: int, n_calls: int) -> "Count":
    """Reports ``n_entries`` in all, in proportion to the numbers it is called with, which add up to ``n_calls``."""
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
