"""
From a kernel's layers to the fused engine's program: one rule for each kind of layer.

The hyperparameters are read from the kernel once; a program doesn't change when they do.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import replace

from ...errors import UserError
from ...kernels.composition import Sequential, Sum
from ...kernels.geometry import Positions, Window
from ...kernels.layer import Layer
from ...kernels.layers import ChannelMix, Conv, Dense
from ...kernels.network_kernel import NetworkKernel
from ...kernels.nngp import NNGPKernel
from ...kernels.nonlinearities import ExErf, ExReLU, LeakyReLU
from ...kernels.ntk import NTKKernel
from ...kernels.pooling import AvgPool, GlobalAvgPool
from .displaced import Pool, UnequalStrides, strides_to_the_end
from .program import Function, Nonlinear, Program, Size, Step
from .streamed import is_inside


class NotLowered(UserError):
    """
    The fused engine can't compute a kernel.

    :param reason: why, as a sentence without its full stop.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"{reason}: take --engine=tensorflow.")


class _Writer:
    """Collects steps, each with the place in the network that it comes from."""

    def __init__(self, ntk: bool, n_deviations: int = 0) -> None:
        self.ntk = ntk
        self.steps: list[Step] = []
        self.n_deviations = n_deviations

    def write(self, step: Step) -> int:
        """Add a step. :return: its value's number."""
        self.steps.append(step)
        return len(self.steps) - 1

    def nonlinear(self, value: int, function: Function, factor: float, layer: str) -> int:
        """Add an elementwise nonlinearity."""
        size = self.steps[value].size
        before = Nonlinear(function, factor, self.n_deviations)
        self.n_deviations += math.prod(size)
        return self.write(Step("pointwise", size, source=value, before=before, layer=layer))


def lower(kernel: NetworkKernel) -> Program:
    """
    The program of a kernel.

    :raises NotLowered: where a layer isn't one of those below, the images have more than two spatial axes, or a pool
        is in a branch of a sum, or reaches beyond the edge of its map and isn't the last.
    """
    if not isinstance(kernel, (NNGPKernel, NTKKernel)):
        raise NotLowered(f"The fused engine has no {type(kernel).__name__}")
    channels, *axes = kernel.input_shape
    positions = tuple(axes)
    if len(positions) > 2:
        raise NotLowered(f"The fused engine computes maps with up to 2 spatial axes, and these have {len(positions)}")
    writer = _Writer(isinstance(kernel, NTKKernel))
    first = Step("input", _size(positions), layer="the images")
    return _lower_stage(list(_in_order(kernel.network, "")), writer, first, channels, positions)


def _lower_stage(
    layers: list[tuple[Layer, str]], writer: _Writer, first: Step, channels: int, positions: Positions
) -> Program:
    """The program from one step on to the first pool, whose head goes on from there."""
    program = Program(channels, first.size, writer.steps, ntk=writer.ntk)
    n_before = next(
        (i for i, (layer, _) in enumerate(layers) if isinstance(layer, (AvgPool, GlobalAvgPool))), len(layers)
    )
    value, positions = _lower_all(layers[:n_before], writer, writer.write(first), positions)
    if n_before == len(layers):
        return replace(program, n_deviations=max(1, writer.n_deviations))
    (pool, path), after = layers[n_before], layers[n_before + 1 :]
    if first.operation == "given" and first.size == (1, 1):
        raise NotLowered(
            f"The fused engine has no pool of a map that another pool left one pixel of: {_named(pool, path)}"
        )
    assert isinstance(pool, (AvgPool, GlobalAvgPool))
    one = Window(1, 1, 1, 1, 0)
    y, x = (one, one, *pool.windows(positions))[-2:]
    layer = _named(pool, path)
    positions = pool.output_positions(positions)
    if after and isinstance(after[0][0], Dense):
        # It reads the mean over what comes out.
        positions = ()
    size = _size(positions)
    averaged = Pool(y, x)
    if size != (1, 1) and not (is_inside(y) and is_inside(x)):
        raise NotLowered(
            f"The fused engine has no pool whose windows reach beyond the map before other layers: {layer}"
        )
    scale = averaged.scale if size == (1, 1) else 1 / (y.size * x.size) ** 2
    writer.write(Step("pool", (1, 1), source=value, scale=scale, trained=False, layer=layer))
    try:
        strides_to_the_end(dict(enumerate(writer.steps)))
    except UnequalStrides:
        raise NotLowered(
            f"The fused engine needs equal strides in the branches of a sum before a pool: {layer}"
        ) from None
    given = Step("given", size, layer=layer)
    head = _lower_stage(after, _Writer(writer.ntk, writer.n_deviations), given, 1, positions)
    return replace(program, n_deviations=head.n_deviations, pool=averaged, head=head)


def _in_order(layer: Layer, path: str) -> Iterator[tuple[Layer, str]]:
    """The layers one after another, each with its place in the network."""
    if not isinstance(layer, Sequential):
        yield layer, path
        return
    for i, child in enumerate(layer.layers):
        yield from _in_order(child, f"{path}.layers[{i}]".lstrip("."))


def _lower_all(
    layers: list[tuple[Layer, str]], writer: _Writer, value: int, positions: Positions
) -> tuple[int, Positions]:
    """:return: the last value, and its map."""
    for layer, path in layers:
        value = _lower(layer, writer, value, positions, path)
        positions = layer.output_positions(positions)
    return value, positions


def _size(positions: Positions) -> Size:
    rows, columns = (1, 1, *positions)[-2:]
    return rows, columns


@functools.singledispatch
def _lower(layer: Layer, writer: _Writer, value: int, positions: Positions, path: str) -> int:
    raise NotLowered(f"The fused engine has no rule for the layer {path or 'network'} ({type(layer).__name__})")


def _named(layer: Layer, path: str) -> str:
    return f"{path} ({type(layer).__name__})"


@_lower.register
def _(layer: Sequential, writer: _Writer, value: int, positions: Positions, path: str) -> int:
    return _lower_all(list(_in_order(layer, path)), writer, value, positions)[0]


@_lower.register
def _(layer: Sum, writer: _Writer, value: int, positions: Positions, path: str) -> int:
    terms = [
        _lower(branch, writer, value, positions, f"{path}.branches[{i}]".lstrip("."))
        for i, branch in enumerate(layer.branches)
    ]
    total = terms[0]
    for term in terms[1:]:
        size = writer.steps[term].size
        total = writer.write(Step("pointwise", size, source=term, addend=total, layer=_named(layer, path)))
    return total


@_lower.register(AvgPool)
@_lower.register(GlobalAvgPool)
def _(layer: Layer, writer: _Writer, value: int, positions: Positions, path: str) -> int:
    raise NotLowered(f"The fused engine has no pool in a branch of a sum: {_named(layer, path)}")


@_lower.register
def _(layer: ChannelMix, writer: _Writer, value: int, positions: Positions, path: str) -> int:
    if not writer.ntk:
        return value
    size = writer.steps[value].size
    return writer.write(Step("pointwise", size, source=value, mixed=True, layer=_named(layer, path)))


@_lower.register
def _(layer: Conv, writer: _Writer, value: int, positions: Positions, path: str) -> int:
    if layer.padding == "CIRCULAR":
        raise NotLowered(f"The fused engine has no padding CIRCULAR: {_named(layer, path)}")
    one = Window(1, 1, 1, 1, 0)
    y, x = (one, one, *layer.windows(positions))[-2:]
    step = Step(
        "conv",
        (y.outputs, x.outputs),
        source=value,
        windows=(y, x),
        scale=float(layer.scale(positions).numpy()),
        bias=float(layer.var_bias.numpy()),
        layer=_named(layer, path),
    )
    return writer.write(step)


@_lower.register
def _(layer: Dense, writer: _Writer, value: int, positions: Positions, path: str) -> int:
    mean = Step("mean", (1, 1), source=value, scale=float(layer.var_weight.numpy()), bias=float(layer.var_bias.numpy()))
    return writer.write(replace(mean, layer=_named(layer, path)))


@_lower.register
def _(layer: ExReLU, writer: _Writer, value: int, positions: Positions, path: str) -> int:
    if layer.exponent > 1:
        raise NotLowered(f"The fused engine has no exponent {layer.exponent} of {_named(layer, path)}")
    return writer.nonlinear(value, "relu" if layer.exponent == 1 else "step", layer.factor, _named(layer, path))


@_lower.register
def _(layer: LeakyReLU, writer: _Writer, value: int, positions: Positions, path: str) -> int:
    """alpha times the map, as a convolution of 1x1 that isn't trained, and (1 - alpha)^2 times the ReLU's."""
    rows, columns = size = writer.steps[value].size
    windows, named = (Window(rows, rows, 1, 1, 0), Window(columns, columns, 1, 1, 0)), _named(layer, path)
    linear = Step("conv", size, source=value, windows=windows, scale=layer.alpha, trained=False, layer=named)
    rectified = writer.nonlinear(value, "relu", (1 - layer.alpha) ** 2, named)
    return writer.write(Step("pointwise", size, source=rectified, addend=writer.write(linear), layer=named))


@_lower.register
def _(layer: ExErf, writer: _Writer, value: int, positions: Positions, path: str) -> int:
    return writer.nonlinear(value, "erf", 1.0, _named(layer, path))
