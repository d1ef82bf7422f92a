"""
From a kernel's layers to the fused engine's program: one rule for each kind of layer.

The hyperparameters are read from the kernel once; a program doesn't change when they do.
"""

import functools
import math
from dataclasses import replace

from ...errors import UserError
from ...kernels.geometry import Window
from ...kernels.layers import (
    ChannelMix,
    Conv,
    Dense,
    ExErf,
    ExReLU,
    Layer,
    Positions,
    Sequential,
    Sum,
)
from ...kernels.network_kernel import NetworkKernel
from ...kernels.nngp import NNGPKernel
from ...kernels.ntk import NTKKernel
from .program import Function, Nonlinear, Program, Size, Step


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

    def __init__(self, ntk: bool) -> None:
        self.ntk = ntk
        self.steps: list[Step] = []
        self.n_deviations = 0

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

    :raises NotLowered: where a layer isn't one of those below, or the images have more than two spatial axes.
    """
    if not isinstance(kernel, (NNGPKernel, NTKKernel)):
        raise NotLowered(f"The fused engine has no {type(kernel).__name__}")
    channels, *positions = kernel.input_shape
    if len(positions) > 2:
        raise NotLowered(f"The fused engine computes maps with up to 2 spatial axes, and these have {len(positions)}")
    writer = _Writer(isinstance(kernel, NTKKernel))
    image = writer.write(Step("input", _size(tuple(positions)), layer="the images"))
    _lower(kernel.network, writer, image, tuple(positions), "")
    return Program(channels, _size(tuple(positions)), writer.steps, max(1, writer.n_deviations), writer.ntk)


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
    for i, child in enumerate(layer.layers):
        value = _lower(child, writer, value, positions, f"{path}.layers[{i}]".lstrip("."))
        positions = child.output_positions(positions)
    return value


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


@_lower.register
def _(layer: ChannelMix, writer: _Writer, value: int, positions: Positions, path: str) -> int:
    if not writer.ntk:
        return value
    size = writer.steps[value].size
    return writer.write(Step("pointwise", size, source=value, mixed=True, layer=_named(layer, path)))


@_lower.register
def _(layer: Conv, writer: _Writer, value: int, positions: Positions, path: str) -> int:
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
    return writer.nonlinear(value, "relu" if layer.exponent == 1 else "step", layer.factor, _named(layer, path))


@_lower.register
def _(layer: ExErf, writer: _Writer, value: int, positions: Positions, path: str) -> int:
    return writer.nonlinear(value, "erf", 1.0, _named(layer, path))
