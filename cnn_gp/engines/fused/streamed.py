r"""
Pools in the middle of a network: all displacements of all its stages as one program.

A stage is what lies between two pools. A pool of k pixels and stride s takes

.. math:: K'_D(q) = \frac{1}{k^2} \sum_g \sum_a K_{s D + g}(s q + a)

(:mod:`cnn_gp.kernels.pooling`), so that the map of a displacement before it goes into those of a few after it: for
each difference g, sums over windows, which are added there as a convolution adds another map. So a displacement before
the pool is computed once and forgotten. Displacements go by rows of dy: as soon as all those that a row of the next
stage needs are through, that row goes through its own stage. For a pool of 2 x 2 two rows are kept at a time, and no
array grows with the square of the number of pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ...kernels.geometry import Window
from .displaced import Displaced
from .program import OPERATIONS, Code, Compiled

#: For each displacement d before a pool, the displacements after it that need it and the windows that are summed.
Targets = dict[int, list[tuple[int, Window]]]


class Stage(NamedTuple):
    """What lies between two pools, compiled."""

    compiled: Compiled
    pool: tuple[Window, Window] | None
    """The windows of the pool after it."""


class Streamed(NamedTuple):
    """A program over many displacements."""

    code: Code
    positions: int
    """How many positions the work array holds."""
    layers: list[str]
    """Of each stage's steps, in order, the layers that they come from."""
    order: np.ndarray
    """Of each step of the code, the number of its layer."""


def is_inside(window: Window) -> bool:
    """Whether a pool's windows are all inside the map."""
    return window.before == 0 and (window.outputs - 1) * window.stride + window.size <= window.inputs


def _targets(window: Window, needed: Sequence[int]) -> Targets:
    """:param needed: displacements after the pool."""
    found: Targets = {}
    for D in needed:
        for g in range(1 - window.size, window.size):
            d = window.stride * D + g
            before = max(0, -d) - max(0, -g) - window.stride * max(0, -D)
            sums = Window(window.inputs - abs(d), window.outputs - abs(D), window.size - abs(g), window.stride, before)
            found.setdefault(d, []).append((D, sums))
    return dict(sorted(found.items()))


class _Writer:
    """Writes the steps of all stages down, in the order in which they run."""

    def __init__(self, stages: Sequence[Stage], *, to_map: bool) -> None:
        """:param to_map: whether the program ends in the map after the last stage's pool, at displacement 0."""
        self.stages = stages
        last = stages[-1].compiled.displaced
        ends: tuple[list[int], list[int]] = ([0], [0])
        if not to_map and last is not None:
            ends = last.displacements()
        # Of each pool within, along each axis; the displacements at the end of each stage.
        self.targets: list[tuple[Targets, Targets]] = []
        self.needed = [ends]
        if to_map:
            self._pool_before(stages[-1], ends)
        for stage, after in zip(stages[-2::-1], stages[:0:-1], strict=True):
            y, x = (1, 1) if after.compiled.displaced is None else after.compiled.displaced.stride_at_start()
            self._pool_before(stage, ([y * d for d in self.needed[0][0]], [x * d for d in self.needed[0][1]]))
        self.starts = np.cumsum([0, *(len(stage.compiled.layers) for stage in stages)])
        self.pieces: list[np.ndarray] = []
        self.order: list[np.ndarray] = []
        self.rows: list[dict[int, int]] = [{} for _ in self.targets]
        self.written: set[tuple[int, int, int]] = set()
        # The row of displacements with which each row after the pool is complete.
        self.last = [{D: d for d, found in y_targets.items() for D, _ in found} for y_targets, _ in self.targets]
        # The stages' own maps are never there at the same time; behind them, the rows of maps after each pool.
        self.end = max(stage.compiled.positions for stage in stages)
        self.slots = []
        for (y_targets, x_targets), windows in zip(self.targets, (stage.pool for stage in stages), strict=False):
            assert windows is not None
            n, length = _most_at_a_time(y_targets), windows[0].outputs * windows[1].outputs
            columns = {Dx: i for i, Dx in enumerate(sorted({D for found in x_targets.values() for D, _ in found}))}
            self.slots.append((self.end, n, columns, length))
            self.end += n * len(columns) * length

    def _pool_before(self, stage: Stage, after: tuple[list[int], list[int]]) -> None:
        assert stage.pool is not None
        y, x = (_targets(window, d) for window, d in zip(stage.pool, after, strict=True))
        self.targets.insert(0, (y, x))
        self.needed.insert(0, (list(y), list(x)))

    def place(self, pool: int, Dy: int, Dx: int) -> int:
        """Of the map at a displacement after a pool."""
        start, n, columns, length = self.slots[pool]
        rows = self.rows[pool]
        if Dy not in rows:
            rows[Dy] = min(set(range(n)) - set(rows.values()))
        return start + (rows[Dy] * len(columns) + columns[Dx]) * length

    def write(self, stage: int, dy: int) -> None:
        """The displacements of a row at the end of a stage, and what follows from them in the stages behind it."""
        for dx in self.needed[stage][1]:
            self._write_one(stage, dy, dx)
        if stage == len(self.targets):
            return
        for Dy, _ in self.targets[stage][0][dy]:
            if dy == self.last[stage][Dy] and stage + 1 < len(self.stages):
                self.write(stage + 1, Dy // self._stride(stage + 1)[0])
                del self.rows[stage][Dy]
                self.written = {key for key in self.written if key[:2] != (stage, Dy)}

    def _stride(self, stage: int) -> tuple[int, int]:
        displaced = self.stages[stage].compiled.displaced
        return (1, 1) if displaced is None else displaced.stride_at_start()

    def _write_one(self, stage: int, dy: int, dx: int) -> None:
        compiled = self.stages[stage].compiled
        steps = compiled.code.steps.copy() if compiled.displaced is None else compiled.displaced.steps_at(dy, dx)
        if stage > 0:
            y, x = self._stride(stage)
            given = self.place(stage - 1, y * dy, x * dx)
            for name in ("target", "source", "addend"):
                steps[name][steps[name] == compiled.code.given] = given
        order = self.starts[stage] + np.arange(len(steps))
        if stage < len(self.targets):
            pool, steps = steps[-1:], steps[:-1]
            self._add(steps, order[:-1])
            y_targets, x_targets = (axis[d] for axis, d in zip(self.targets[stage], (dy, dx), strict=True))
            pools = np.repeat(pool, len(y_targets) * len(x_targets))
            # A nonlinearity on the way goes row by row, as before a convolution.
            pools["operation"] = OPERATIONS["conv" if pool["before"]["function"][0] else "pool within"]
            for i, ((Dy, y_window), (Dx, x_window)) in enumerate((a, b) for a in y_targets for b in x_targets):
                place = self.place(stage, Dy, Dx)
                pools["target"][i] = place
                pools["addend"][i] = place if (stage, Dy, Dx) in self.written else -1
                self.written.add((stage, Dy, Dx))
                pools["y"][i], pools["x"][i] = tuple(y_window), tuple(x_window)
            self._add(pools, np.full(len(pools), order[-1]))
            return
        self._add(steps, order)

    def _add(self, steps: np.ndarray, order: np.ndarray) -> None:
        self.pieces.append(steps)
        self.order.append(order)

    def finished(self, *, to_map: bool) -> Streamed:
        """The program."""
        first, last = self.stages[0].compiled, self.stages[-1].compiled
        for dy in self.needed[0][0]:
            self.write(0, dy)
        displaced = None if to_map else last.displaced
        weights = np.zeros(1, np.float32)
        end = self.end
        if to_map:
            result = self.place(len(self.stages) - 1, 0, 0)
        elif displaced is None:
            result = int(self.pieces[-1]["target"][-1])
        else:
            result, end, weights = self._sum_up(displaced)
        steps, order = np.concatenate(self.pieces), np.concatenate(self.order)
        # Behind all maps, the buffers for a row and a ring of rows.
        row = end
        ring = row + max(stage.compiled.code.ring - stage.compiled.code.row for stage in self.stages)
        ring_length = max([1, *(steps["y"]["size"] * steps["x"]["outputs"])])
        positions = ring + int(ring_length)
        tangent = positions | 1 if first.code.tangent > 0 else 0
        code = first.code._replace(
            steps=steps, result=result, row=row, ring=ring, tangent=tangent, given=-1, weights=weights
        )
        layers = [layer for stage in self.stages for layer in stage.compiled.layers]
        return Streamed(code, positions + tangent, layers, order)

    def _sum_up(self, displaced: Displaced) -> tuple[int, int, np.ndarray]:
        """
        Let the last pool leave a pixel for each displacement, and add these up.

        :return: where their sum is, where the places end, and the pool's weights.
        """
        pools = [piece for piece in self.pieces if piece["operation"][-1] == OPERATIONS["pool"]]
        ends = self.needed[-1]
        first, at, weights = self.end, 0, []
        for i, (piece, (dy, dx)) in enumerate(zip(pools, ((y, x) for y in ends[0] for x in ends[1]), strict=True)):
            found = displaced.weights_at(dy, dx)
            piece["target"][-1], piece["weights"][-1] = first + i, at
            weights.append(found)
            at += len(found)
        total = pools[-1][-1:].copy()
        total["operation"], total["source"], total["target"] = OPERATIONS["mean"], first, first + len(pools)
        for axis, n in zip(("y", "x"), map(len, ends), strict=True):
            total[axis] = (n, 1, 1, 1, 0)
        # The mean, times their number.
        total["scale"], total["bias"], total["trained"] = len(pools), 0, 0
        total["before"]["function"] = 0
        self._add(total, self.order[-1][-1:])
        return first + len(pools), first + len(pools) + 1, np.concatenate(weights)


def _most_at_a_time(targets: Targets) -> int:
    """How many rows after a pool are begun and not finished at a time."""
    reach: dict[int, list[int]] = {}
    for d, found in targets.items():
        for D, _ in found:
            reach.setdefault(D, []).append(d)
    return max(sum(min(ds) <= d <= max(ds) for ds in reach.values()) for d in targets)


def streamed(stages: Sequence[Stage], *, to_map: bool = False) -> Streamed:
    """
    The program of all displacements that the end of the last stage needs.

    :param to_map: it ends in the map after the last stage's pool, at displacement 0, whose place is the code's result;
        else in the sum over the last stage's displacements, or where it has no pool in its last value.
    """
    return _Writer(stages, to_map=to_map).finished(to_map=to_map)
