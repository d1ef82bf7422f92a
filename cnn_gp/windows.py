"""Where the patches of a convolution lie along one axis of a map."""

from typing import NamedTuple

import numpy as np

from .errors import ShrunkMapError

#: How a convolution pads its input: as TensorFlow's "SAME", not at all, or as the ResNet of the paper.
PADDINGS = ("SAME", "VALID", "FIXED")


class Window(NamedTuple):
    """A one-dimensional filter of ones over an axis of ``inputs`` pixels."""

    inputs: int
    outputs: int
    size: int
    stride: int
    before: int
    """Zeros padded before the first pixel."""

    @classmethod
    def of(cls, inputs: int, size: int, stride: int, padding: str) -> "Window":
        """The window of TensorFlow's paddings "SAME" and "VALID", and of the ResNet's "FIXED"."""
        if padding == "SAME":
            outputs = -(-inputs // stride)
            before = max((outputs - 1) * stride + size - inputs, 0) // 2
        elif padding == "VALID":
            outputs, before = (inputs - size) // stride + 1, 0
        else:
            outputs, before = (inputs - 1) // stride + 1, (size - 1) // 2
        if outputs < 1:
            raise ShrunkMapError(
                f"The map shrinks below one pixel: a filter of {size} with padding {padding} on {inputs} pixels; "
                "take fewer layers, smaller filters or strides, or padding SAME."
            )
        return cls(inputs, outputs, size, stride, before)

    def band(self) -> np.ndarray:
        """The filter as a banded matrix of zeros and ones [outputs, inputs], float64."""
        first = np.arange(self.outputs)[:, None] * self.stride - self.before
        pixel = np.arange(self.inputs)[None, :]
        return ((pixel >= first) & (pixel < first + self.size)).astype(np.float64)
