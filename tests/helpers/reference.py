"""The recursion of the paper in plain loops over images, positions and patches, float64: slow and easy to read."""

import itertools
import math
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import numpy as np

#: Of a covariance and two variances.
Expectation = Callable[[float, float, float], float]

Positions = tuple[int, ...]


def relu(c: float, v1: float, v2: float) -> float:
    if v1 == 0 or v2 == 0:
        return 0.0
    cosine = max(-1.0, min(1.0, c / math.sqrt(v1 * v2)))
    theta = math.acos(cosine)
    return math.sqrt(v1 * v2) / (2 * math.pi) * (math.sin(theta) + (math.pi - theta) * cosine)


def step(c: float, v1: float, v2: float) -> float:
    return (math.pi - math.acos(max(-1.0, min(1.0, c / math.sqrt(v1 * v2))))) / (2 * math.pi)


def erf(c: float, v1: float, v2: float) -> float:
    return 2 / math.pi * math.asin(2 * c / math.sqrt((1 + 2 * v1) * (1 + 2 * v2)))


class Pair:
    """Covariance and both variances of two images at every position: a dict from position to (c, v1, v2)."""

    def __init__(self, shape: Sequence[int], values: Mapping[Positions, Sequence[float]]) -> None:
        self.shape, self.values = tuple(shape), values

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray) -> "Pair":
        """From images [C, *positions]."""
        shape = x.shape[1:]
        values = {}
        for p in itertools.product(*map(range, shape)):
            place: tuple[Any, ...] = (slice(None), *p)
            a, b = x[place], y[place]
            values[p] = (np.mean(a * b), np.mean(a * a), np.mean(b * b))
        return cls(shape, values)

    def conv(
        self,
        size: "int | Positions",
        stride: "int | Positions",
        padding: str,
        var_weight: float,
        var_bias: float,
        divide: bool = False,
    ) -> "Pair":
        rank = len(self.shape)
        size = (size,) * rank if isinstance(size, int) else size
        stride = (stride,) * rank if isinstance(stride, int) else stride
        out, before = [], []
        for n, k, s in zip(self.shape, size, stride, strict=True):
            if padding == "SAME":
                outputs = math.ceil(n / s)
                before.append(max((outputs - 1) * s + k - n, 0) // 2)
            elif padding == "VALID":
                outputs = math.ceil((n - k + 1) / s)
                before.append(0)
            else:
                outputs = math.ceil(n / s)
                before.append((k - 1) // 2)
            out.append(outputs)
        values = {}
        for o in itertools.product(*map(range, out)):
            total = np.zeros(3)
            for d in itertools.product(*map(range, size)):
                p = tuple(oi * s - b + di for oi, s, b, di in zip(o, stride, before, d, strict=True))
                if p in self.values:
                    total += self.values[p]
            scale = var_weight / math.prod(size) if divide else var_weight
            values[o] = tuple(scale * total + var_bias)
        return Pair(out, values)

    def phi(self, expectation: Expectation, factor: float = 1.0) -> "Pair":
        values = {}
        for p, (c, v1, v2) in self.values.items():
            values[p] = tuple(factor * expectation(*a) for a in ((c, v1, v2), (v1, v1, v1), (v2, v2, v2)))
        return Pair(self.shape, values)

    def dense(self, var_weight: float, var_bias: float) -> "Pair":
        mean = np.mean(list(self.values.values()), axis=0)
        return Pair((), {(): tuple(var_weight * mean + var_bias)})

    def __add__(self, other: "Pair") -> "Pair":
        assert self.shape == other.shape
        return Pair(self.shape, {p: tuple(np.add(v, other.values[p])) for p, v in self.values.items()})


def deep(
    pair: Pair,
    sizes: Sequence["int | Positions"],
    strides: Sequence["int | Positions"],
    padding: str,
    expectation: Expectation,
    factor: float,
    var_weight: float,
    var_bias: float,
    skips: Container[int] = (),
) -> float:
    """DeepKernel's recursion. :param skips: indices of the convolutions that have a skip connection before them."""
    z = previous = pair
    for i, (size, stride) in enumerate(zip(sizes, strides, strict=True)):
        if i > 0 and i in skips:
            z = z + previous
            previous = z
        z = z.conv(size, stride, padding, var_weight, var_bias).phi(expectation, factor)
    return z.dense(var_weight, var_bias).values[()][0]


def resnet(
    pair: Pair,
    block_sizes: Sequence[int],
    block_strides: Sequence[int],
    kernel_size: int,
    var_weight: float,
    var_bias: float,
    conv_stride: int = 1,
) -> float:
    """ResnetKernel's recursion, with the ReLU."""

    def conv(z: Pair, size: int, stride: int = 1) -> Pair:
        return z.conv(size, stride, "FIXED", var_weight, 0.0, divide=True)

    z = conv(pair, kernel_size, conv_stride)
    for units, block_stride in zip(block_sizes, block_strides, strict=True):
        for unit in range(units):
            stride = block_stride if unit == 0 else 1
            a = z.phi(relu)
            shortcut = conv(a, 1, stride) if unit == 0 else z
            z = conv(conv(a, 3, stride).phi(relu), 3) + shortcut
    return z.dense(var_weight, var_bias).phi(relu).dense(var_weight, var_bias).values[()][0]


def matrix(X: np.ndarray, X2: np.ndarray, input_shape: Sequence[int], recursion: Callable[[Pair], float]) -> np.ndarray:
    """The kernel matrix of a recursion for one pair."""
    images, images2 = (np.reshape(A, [-1, *input_shape]) for A in (X, X2))
    return np.array([[recursion(Pair.of(x, y)) for y in images2] for x in images])
