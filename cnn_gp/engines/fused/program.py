"""
A network as a short program on numbered maps: what the fused engine runs, without TensorFlow.

:mod:`.lowering` writes a program down step by step, one value a step, from a kernel's layers. :meth:`Program.compiled`
makes it into what the loops want: steps merged where one pass over the map does for both, values given places in one
work array, everything in one table of records.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np

from ...kernels.geometry import Window
from .displaced import Displaced, Pool

Function = Literal["relu", "step", "erf"]

#: The interpreter's numbers for the nonlinearities; 0 is none.
FUNCTIONS: dict[Function, int] = {"relu": 1, "step": 2, "erf": 3}

#: The interpreter's numbers for the operations.
OPERATIONS = {"input": 0, "conv": 1, "pointwise": 2, "mean": 3, "pool": 4, "given": 5, "pool within": 6}

#: Those that multiply what they read by a number.
_SCALING = ("conv", "mean", "pool")

WINDOW = np.dtype([(name, np.int64) for name in Window._fields])

#: A nonlinearity (function 0: none) at a map: where the map's deviations begin on the two sides of a micro-tile, and
#: how long its rows are there.
NONLINEAR = np.dtype(
    [*((name, np.int64) for name in ("function", "down", "across", "width")), ("factor", np.float32)], align=True
)

#: A record of the interpreter's table; places are counted in positions of a map, and -1 is none.
STEP = np.dtype(
    [
        ("operation", np.int64),
        ("target", np.int64),
        ("source", np.int64),
        ("addend", np.int64),
        ("y", WINDOW),
        ("x", WINDOW),
        ("before", NONLINEAR),
        ("after", NONLINEAR),
        ("scale", np.float32),
        ("bias", np.float32),
        ("trained", np.int64),
        ("mixed", np.int64),
        ("weights", np.int64),
    ],
    align=True,
)

Size = tuple[int, int]


class Nonlinear(NamedTuple):
    """A nonlinearity at a place in the network."""

    function: Function
    factor: float
    """The expectation is multiplied by it."""

    deviations: int
    """The number of the first of its positions among those of all nonlinearities."""

    @property
    def remaining_factor(self) -> float:
        """What the loops' value is still to be multiplied by: for the ReLU they compute 2 E[relu(u) relu(v)]."""
        return 0.5 * self.factor if self.function == "relu" else 1.0


@dataclass(frozen=True)
class Step:
    """
    One operation: a map of covariances from others.

    "input" takes the images; "conv" is scale * (sum over the windows of ``before(source)``) + bias, then ``after``,
    then plus the map ``addend``; "pointwise" is ``before(source)`` plus ``addend``; "mean" is scale * (mean over
    positions of ``before(source)``) + bias; "pool" is scale * (weighted sum over positions of ``before(source)``);
    "given" is what comes out of a pool.
    """

    operation: str
    size: Size
    """Rows and columns of the map that comes out."""
    source: int = -1
    addend: int = -1
    windows: tuple[Window, Window] | None = None
    scale: float = 1.0
    bias: float = 0.0
    before: Nonlinear | None = None
    after: Nonlinear | None = None
    trained: bool = True
    """For the tangents: whether a convolution's or mean's own covariances are added to them."""
    mixed: bool = False
    """For the tangents: whether the covariances that come out are added to them, before the addend: a ChannelMix."""
    layer: str = ""
    """Where it is in the network, for error messages."""

    @property
    def sources(self) -> tuple[int, ...]:
        """The values that are read."""
        return tuple(value for value in (self.source, self.addend) if value >= 0)


class Code(NamedTuple):
    """A program for the interpreter; places are counted in positions of a map."""

    steps: np.ndarray
    """STEP [steps]"""
    result: int
    """The place of the kernel: of the last step's covariance, and so far behind as ever of its tangent."""
    row: int
    """The place of the buffer for a row."""
    ring: int
    """The place of the buffer for the rows that a convolution's window spans."""
    channels: int
    """Channels of the images."""
    tangent: int
    """How far behind each map of covariances its map of tangents is; 0 where there are none."""
    kernels: int
    """How many kernels come out: the covariances, and where there are any the tangents."""
    given: int
    """The place of covariances that the program begins with; -1: it begins with images."""
    weights: np.ndarray
    """float32, of pools: for each row of the map, then for each column, from the step's ``weights`` on."""


class Compiled(NamedTuple):
    """What :meth:`Program.compiled` makes."""

    code: Code
    positions: int
    """How many positions the work array holds."""
    layers: list[str]
    """Of each step, the layer that it comes from."""
    displaced: Displaced | None
    """Where the program ends in a pool: its code for each displacement."""


@dataclass(frozen=True)
class Program:
    """The steps in order, each with its number as the name of its value; the last one's is the kernel."""

    channels: int
    size: Size
    """Rows and columns of the images."""
    steps: list[Step] = field(default_factory=list)
    n_deviations: int = 1
    """The positions of all nonlinearities together, at least 1: numbers kept of each image."""
    ntk: bool = False
    """Whether every value has tangents beside its covariances, and the kernel is the neural tangent kernel."""
    pool: Pool | None = None
    """The average pool that it ends in: its last step."""
    head: "Program | None" = None
    """After a pool: the program of what comes out of it, which is one pixel after the last pool."""

    def compiled(self, *, merge: bool = True) -> Compiled:
        """:param merge: False: every step on its own, every value in a place of its own, to look at them one by one."""
        steps = _with_remaining_factors(merged(self.steps) if merge else dict(enumerate(self.steps)))
        places, used = _places(steps, reuse=merge)
        row = used
        ring = row + max(self._input_size(step, steps)[1] for step in steps.values())
        rings = [w[0].size * w[1].outputs for w in (step.windows for step in steps.values()) if w is not None]
        records = np.array([self._record(step, number, steps, places) for number, step in steps.items()], STEP)
        positions, result = ring + max([1, *rings]), places[next(reversed(steps))]
        # Odd, so that a map and its tangents don't lie a multiple of 4 kB apart.
        tangent = positions | 1 if self.ntk else 0
        kernels = 2 if self.ntk else 1
        given = places[0] if self.steps[0].operation == "given" else -1
        weights = np.zeros(1, np.float32)
        code = Code(records, result, row, ring, self.channels, tangent, kernels, given, weights)
        displaced = None if self.pool is None else Displaced(code, steps, self.pool)
        code = code if displaced is None else displaced.at(0, 0)
        return Compiled(code, positions + tangent, [step.layer for step in steps.values()], displaced)

    def _input_size(self, step: Step, steps: dict[int, Step]) -> Size:
        return self.size if step.source < 0 else steps[step.source].size

    def _record(self, step: Step, number: int, steps: dict[int, Step], places: dict[int, int]) -> tuple:
        sizes = (self._input_size(step, steps), step.size)
        before, after = (
            (FUNCTIONS[place.function], place.deviations, place.deviations, width, place.factor)
            if place
            else (0, 0, 0, width, 1.0)
            for place, (_, width) in zip((step.before, step.after), sizes, strict=True)
        )
        return (
            OPERATIONS[step.operation],
            places[number],
            places.get(step.source, -1),
            places.get(step.addend, -1),
            *(step.windows or (Window(inputs, outputs, 1, 1, 0) for inputs, outputs in zip(*sizes, strict=True))),
            before,
            after,
            step.scale,
            step.bias,
            step.trained,
            step.mixed,
            0,
        )


def merged(steps: list[Step]) -> dict[int, Step]:
    """
    The same program in fewer passes over the maps; the numbers that come out are the same to the bit.

    Four things are done within another step: a nonlinearity that alone reads a convolution, as the convolution's rows
    are finished; so too a ChannelMix; a sum, where its later term is made; a nonlinearity that only one convolution,
    mean or pool reads, as that takes its rows in.
    """
    done = dict(enumerate(steps))

    def read_once(value: int, *operations: str) -> Step | None:
        """The step that makes a value: where it is one of these operations, adds no map, and is read once."""
        step = done.get(value)
        if step is None or step.operation not in operations or step.addend >= 0:
            return None
        n_readers = Counter(value for step in done.values() for value in step.sources)
        return step if n_readers[value] == 1 else None

    # The merged step takes the later one's number: what it reads is there by then.
    for number, step in list(done.items()):
        if step.operation == "pointwise" and step.before is not None and step.addend < 0:
            producer = read_once(step.source, "conv")
            if producer is not None and producer.after is None:
                del done[step.source]
                done[number] = replace(producer, after=step.before, layer=step.layer)
    for number, step in list(done.items()):
        producer = read_once(step.source, "conv", "pointwise") if step.mixed else None
        if producer is not None and not producer.mixed:
            del done[step.source]
            done[number] = replace(producer, mixed=True, layer=step.layer)
    for number, step in list(done.items()):
        if step.operation == "pointwise" and step.before is None and step.addend >= 0:
            for last, other in sorted(((step.source, step.addend), (step.addend, step.source)), reverse=True):
                producer = read_once(last, "conv", "pointwise")
                if producer is not None:
                    del done[last]
                    done[number] = replace(producer, addend=other, layer=step.layer)
                    break
    for number, step in list(done.items()):
        if step.operation in _SCALING and step.before is None:
            producer = read_once(step.source, "pointwise")
            if producer is not None and producer.before is not None and not producer.mixed:
                del done[step.source]
                done[number] = replace(step, source=producer.source, before=producer.before)
    return done


def _with_remaining_factors(steps: dict[int, Step]) -> dict[int, Step]:
    """
    The program with each nonlinearity's :attr:`~Nonlinear.remaining_factor` folded into the scale of the next step.

    Where a step without a scale reads the value too, a convolution of one pixel that multiplies it is put between. The
    ReLU's factors are 1/2 and 1, by which nothing is rounded.
    """
    done: dict[int, Step] = {}
    remaining: dict[int, float] = {}
    renamed: dict[int, int] = {}
    fresh = max(steps) + 1
    for number, step in steps.items():
        step = replace(step, source=renamed.get(step.source, step.source), addend=renamed.get(step.addend, step.addend))
        if step.operation in _SCALING:
            factor = step.before.remaining_factor if step.before else remaining.get(step.source, 1.0)
            step = replace(step, scale=step.scale * factor)
        done[number] = step
        last = step.after or (step.before if step.operation == "pointwise" else None)
        if last is None or step.addend >= 0 or last.remaining_factor == 1:
            continue
        readers = [other for other in steps.values() if number in other.sources]
        if all(other.operation in _SCALING and not other.before and other.addend != number for other in readers):
            remaining[number] = last.remaining_factor
            continue
        one = Window(1, 1, 1, 1, 0)
        rows, columns = (one._replace(inputs=n, outputs=n) for n in step.size)
        scaled = Step("conv", step.size, number, windows=(rows, columns), scale=last.remaining_factor, layer=step.layer)
        done[fresh] = replace(scaled, trained=False)
        renamed[number] = fresh
        fresh += 1
    return done


def _places(steps: dict[int, Step], *, reuse: bool) -> tuple[dict[int, int], int]:
    """
    The place of each value in the work array, and where the places end.

    A step may write over a map that it reads: row by row, it has always read what it writes over.
    """
    last_use = {value: number for number, step in steps.items() for value in step.sources}
    places: dict[int, int] = {}
    free: list[tuple[int, int]] = []
    lengths: dict[int, int] = {}
    end = 0
    for number, step in steps.items():
        length = step.size[0] * step.size[1]
        dying = dict.fromkeys(value for value in step.sources if last_use[value] == number) if reuse else {}
        free += [(lengths[places[value]], places[value]) for value in dying]
        fitting = sorted(slot for slot in free if slot[0] >= length)
        if reuse and fitting:
            free.remove(fitting[0])
            places[number] = fitting[0][1]
        else:
            places[number] = end
            lengths[end] = length
            end += length
    return places, end
