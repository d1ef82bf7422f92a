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
    def unit(self) -> float:
        """What the loops' value is to be multiplied by: they leave the ReLU's factor / 2 to who reads it."""
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
        steps = _with_units(merged(self.steps) if merge else dict(enumerate(self.steps)))
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

    A nonlinearity that is all that reads a convolution is done as the convolution's rows are finished; one that is read
    by one convolution or mean only is done as that takes its rows in; a sum is done where its later term is made.
    """
    done = dict(enumerate(steps))

    def uses() -> Counter[int]:
        return Counter(value for step in done.values() for value in step.sources)

    # The merged step takes the later one's number: what it reads is there by then.
    for number, step in list(done.items()):
        producer = done.get(step.source)
        if (
            step.operation == "pointwise"
            and step.before is not None
            and step.addend < 0
            and producer is not None
            and producer.operation == "conv"
            and producer.after is None
            and producer.addend < 0
            and uses()[step.source] == 1
        ):
            del done[step.source]
            done[number] = replace(producer, after=step.before, layer=step.layer)
    for number, step in list(done.items()):
        producer = done.get(step.source)
        if (
            step.mixed
            and producer is not None
            and producer.operation in ("conv", "pointwise")
            and producer.addend < 0
            and not producer.mixed
            and uses()[step.source] == 1
        ):
            del done[step.source]
            done[number] = replace(producer, mixed=True, layer=step.layer)
    for number, step in list(done.items()):
        if step.operation != "pointwise" or step.before is not None or step.addend < 0:
            continue
        for last, other in sorted(((step.source, step.addend), (step.addend, step.source)), reverse=True):
            producer = done[last]
            if (
                last != other
                and producer.operation in ("conv", "pointwise")
                and producer.addend < 0
                and uses()[last] == 1
            ):
                del done[last]
                done[number] = replace(producer, addend=other, layer=step.layer)
                break
    for number, step in list(done.items()):
        producer = done.get(step.source)
        if (
            step.operation in _SCALING
            and step.before is None
            and producer is not None
            and producer.operation == "pointwise"
            and producer.before is not None
            and producer.addend < 0
            and not producer.mixed
            and uses()[step.source] == 1
        ):
            del done[step.source]
            done[number] = replace(step, source=producer.source, before=producer.before)
    return done


def _with_units(steps: dict[int, Step]) -> dict[int, Step]:
    """
    The program with every ReLU's unit taken up: by the scale of the convolution or mean that reads it.

    Where something else reads it too, a convolution of one pixel is put between. Units are 1/2 and 1: nothing is
    rounded.
    """
    done: dict[int, Step] = {}
    units: dict[int, float] = {}
    renamed: dict[int, int] = {}
    fresh = max(steps) + 1
    for number, step in steps.items():
        step = replace(step, source=renamed.get(step.source, step.source), addend=renamed.get(step.addend, step.addend))
        if step.operation in _SCALING:
            unit = step.before.unit if step.before else units.get(step.source, 1.0)
            step = replace(step, scale=step.scale * unit)
        done[number] = step
        last = step.after or (step.before if step.operation == "pointwise" else None)
        if last is None or step.addend >= 0 or last.unit == 1:
            continue
        readers = [other for other in steps.values() if number in other.sources]
        if all(other.operation in _SCALING and not other.before and other.addend != number for other in readers):
            units[number] = last.unit
            continue
        one = Window(1, 1, 1, 1, 0)
        rows, columns = (one._replace(inputs=n, outputs=n) for n in step.size)
        scaled = Step("conv", step.size, source=number, windows=(rows, columns), scale=last.unit, layer=step.layer)
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
