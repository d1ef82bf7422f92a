"""The recursion of the paper in plain loops over images, positions and patches, float64: slow and easy to read."""

import functools
import itertools
import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
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


def pooled(description: dict[str, Any], x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """
    The kernel and the neural tangent kernel of two images [C, *positions], from all covariances between positions.

    Three matrices [P, P] are carried for each of the two, of x with y, of x with itself and of y with itself: entry
    (p, q) is between position p of the one image and position q of the other.

    :param description: the network, as its layer describes itself.
    """
    pairs = ((x, y), (x, x), (y, y))
    flat = [[image.reshape(len(image), -1) for image in pair] for pair in pairs]
    K = np.array([np.einsum("cp,cq->pq", a, b) / len(a) for a, b in flat])
    K, T, left = _pooled(description, K, np.zeros_like(K), x.shape[1:])
    assert left == () and K.shape == (3, 1, 1)
    return K[0, 0, 0], T[0, 0, 0]


def _pooled(layer: dict[str, Any], K: Any, T: Any, positions: Positions) -> tuple[Any, Any, Positions]:
    kind = layer["layer"]
    if kind == "Sequential":
        for child in layer["layers"]:
            K, T, positions = _pooled(child, K, T, positions)
        return K, T, positions
    if kind == "Sum":
        branches = [_pooled(branch, K, T, positions) for branch in layer["branches"]]
        return sum(b[0] for b in branches), sum(b[1] for b in branches), branches[0][2]
    if kind == "ChannelMix":
        return K, T + K, positions
    if kind in ("ExReLU", "ExErf"):
        K, T = _all_phi(layer, K, T)
        return K, T, positions
    if kind == "Conv":
        offsets, left = _selections(positions, layer["filter_size"], layer["stride"], layer["padding"])
        scale = layer["var_weight"] / (len(offsets) if layer["divide_by_patch"] else 1)
        K, T = (scale * sum(S @ A @ S.T for S in offsets) for A in (K, T))
        return K + layer["var_bias"], K + layer["var_bias"] + T, left
    if kind == "Dense":
        K, T = (layer["var_weight"] * np.mean(np.diagonal(A, axis1=1, axis2=2), axis=1)[:, None, None] for A in (K, T))
        return K + layer["var_bias"], K + layer["var_bias"] + T, ()
    if kind == "AvgPool":
        offsets, left = _selections(positions, layer["size"], layer["stride"], layer["padding"])
        mean = np.sum(offsets, axis=0) / len(offsets)
    else:
        assert kind == "GlobalAvgPool"
        mean, left = np.full([1, math.prod(positions)], 1 / math.prod(positions)), ()
    return mean @ K @ mean.T, mean @ T @ mean.T, left


def _selections(positions: Positions, size: Any, stride: Any, padding: str) -> tuple[list[np.ndarray], Positions]:
    """For each offset in a window the matrix [outputs, inputs] that selects the pixel there, 0 in the padding."""
    axes = []
    for axis, n in enumerate(positions):
        k, s = (v if isinstance(v, int) else v[axis] for v in (size, stride))
        outputs = {"SAME": -(-n // s), "VALID": (n - k) // s + 1, "FIXED": -(-n // s)}[padding]
        before = {"SAME": max((outputs - 1) * s + k - n, 0) // 2, "VALID": 0, "FIXED": (k - 1) // 2}[padding]
        q, p = np.arange(outputs)[:, None], np.arange(n)
        axes.append([(p == q * s - before + a).astype(float) for a in range(k)])
    matrices = [functools.reduce(np.kron, offset, np.eye(1)) for offset in itertools.product(*axes)]
    return matrices, tuple(axis[0].shape[0] for axis in axes)


def _all_phi(layer: dict[str, Any], K: np.ndarray, T: np.ndarray) -> Iterator[np.ndarray]:
    """A nonlinearity at all pairs of positions."""
    v1, v2 = np.diagonal(K[1])[:, None], np.diagonal(K[2])[None, :]
    variances = ((v1, v2), (v1, v1.T), (v2.T, v2))
    results = []
    for c, t, (a, b) in zip(K, T, variances, strict=True):
        a, b = np.broadcast_arrays(a, b)
        if layer["layer"] == "ExErf":
            value = 2 / np.pi * np.arcsin(2 * c / np.sqrt((1 + 2 * a) * (1 + 2 * b)))
            slope = 4 / np.pi / np.sqrt((1 + 2 * a) * (1 + 2 * b) - 4 * c**2)
        else:
            assert layer["exponent"] == 1
            factor = 2 if layer["multiply_by_sqrt2"] else 1
            cosine = np.clip(c / np.sqrt(a * b), -1, 1)
            # A position with itself: an ulp of the cosine would move the angle by 1e-8.
            theta = np.where((c == a) & (c == b), 0, np.arccos(cosine))
            value = factor * np.sqrt(a * b) / (2 * np.pi) * (np.sin(theta) + (np.pi - theta) * np.cos(theta))
            slope = factor * (np.pi - theta) / (2 * np.pi)
        results.append((value, t * slope))
    return (np.array(matrices) for matrices in zip(*results, strict=True))
