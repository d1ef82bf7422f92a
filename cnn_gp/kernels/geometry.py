"""Shapes: of the images, of the maps, and where the patches of a convolution lie along one axis of a map."""

import operator
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..errors import ShrunkMapError, UserError

#: The spatial shape of a map: 0 to 3 axes.
Positions = tuple[int, ...]

#: How a convolution pads: as TensorFlow's "SAME", not at all, as the ResNet of the paper, or by the map's other end.
PADDINGS = ("SAME", "VALID", "FIXED", "CIRCULAR")

_DATA_FORMATS = {0: "NC", 1: "NCW", 2: "NCHW", 3: "NCDHW"}


class Window(NamedTuple):
    """A one-dimensional filter of ones, or a pool, over an axis of ``inputs`` pixels."""

    inputs: int
    outputs: int
    size: int
    stride: int
    before: int
    """Zeros padded before the first pixel."""

    @classmethod
    def of(cls, inputs: int, size: int, stride: int, padding: str) -> "Window":
        """The window of TensorFlow's paddings "SAME" and "VALID", of the ResNet's "FIXED", and of "CIRCULAR"."""
        if padding in ("SAME", "CIRCULAR"):
            outputs = -(-inputs // stride)
            before = max((outputs - 1) * stride + size - inputs, 0) // 2
        elif padding == "VALID":
            outputs, before = (inputs - size) // stride + 1, 0
        else:
            outputs, before = (inputs - 1) // stride + 1, (size - 1) // 2
        if outputs < 1:
            raise ShrunkMapError(
                f"The map shrinks below one pixel: a window of {size} with padding {padding} on {inputs} pixels; "
                "take fewer layers, smaller filters or strides, or padding SAME."
            )
        kind = CircularWindow if padding == "CIRCULAR" else cls
        return kind(inputs, outputs, size, stride, before)

    def band(self) -> np.ndarray:
        """The filter as a banded matrix of zeros and ones [outputs, inputs], float64."""
        first = np.arange(self.outputs)[:, None] * self.stride - self.before
        pixel = np.arange(self.inputs)[None, :]
        return ((pixel >= first) & (pixel < first + self.size)).astype(np.float64)


class CircularWindow(Window):
    """One whose padding has the pixels of the other end of the axis, in place of zeros."""

    def band(self) -> np.ndarray:
        """As :meth:`Window.band`, with how often the filter meets a pixel: more than once where it is the longer."""
        places = np.arange(self.outputs)[:, None] * self.stride - self.before + np.arange(self.size)
        return np.sum((places % self.inputs)[:, :, None] == np.arange(self.inputs), axis=1).astype(np.float64)


def checked_sizes(value: int | Sequence[int], what: str) -> int | tuple[int, ...]:
    """
    A whole number, or several such as one per axis, as Python's own numbers.

    :param what: what they are called.
    :raises UserError: where it isn't whole numbers.
    """
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        pass
    try:
        return tuple(operator.index(size) for size in value)  # type: ignore[union-attr]
    except TypeError:
        raise UserError(f"{what} is {value!r}; expected a whole number, or a list of them.") from None


def json_sizes(sizes: int | tuple[int, ...]) -> int | list[int]:
    """What :func:`checked_sizes` returned, in JSON's types."""
    return sizes if isinstance(sizes, int) else list(sizes)


def windows_of(
    positions: Positions, size: int | Sequence[int], stride: int | Sequence[int], padding: str, what: str
) -> list[Window]:
    """
    The windows along each axis of a map, for sizes and strides that are one whole number or one per axis.

    :param what: what the sizes are called.
    :raises UserError: where they don't fit the map's axes.
    """
    lengths, strides = _per_axis(size, len(positions), what), _per_axis(stride, len(positions), "stride")
    return [Window.of(n, k, s, padding) for n, k, s in zip(positions, lengths, strides, strict=True)]


def _per_axis(value: int | Sequence[int], rank: int, what: str) -> tuple[int, ...]:
    per_axis = (value,) * rank if isinstance(value, int) else tuple(value)
    if len(per_axis) != rank or any(size < 1 for size in per_axis):
        raise UserError(
            f"{what} is {value} on a map with {rank} spatial axes; expected one whole number of at least 1 per axis."
        )
    return per_axis


def checked_input_shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    """[C, *positions] as a tuple. :raises UserError: where it isn't one of 0 to 3 spatial axes."""
    shape = checked_sizes(input_shape, "input_shape")
    if isinstance(shape, int) or len(shape) - 1 not in _DATA_FORMATS or any(n < 1 for n in shape):
        raise UserError(
            f"input_shape is {json_sizes(shape)}; expected [channels, *positions] with 0 to 3 spatial axes, "
            "all at least 1: for one 28x28 channel, [1, 28, 28]."
        )
    return shape


def check_data_format(data_format: str | None, input_shape: Sequence[int]) -> None:
    """:raises UserError: where a data format is given that isn't the one of ``input_shape``."""
    expected = _DATA_FORMATS[len(checked_input_shape(input_shape)) - 1]
    if data_format is not None and data_format != expected:
        raise UserError(
            f"data_format is {data_format!r} with input_shape {list(input_shape)}; expected {expected!r}, "
            "channels first: leave it out, or move the channels."
        )
