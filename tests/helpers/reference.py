"""The recursion of the paper in plain loops over images, positions and patches, float64: slow and easy to read."""

import itertools
import math

import numpy as np


def relu(c, v1, v2):
    if v1 == 0 or v2 == 0:
        return 0.0
    cosine = max(-1.0, min(1.0, c / math.sqrt(v1 * v2)))
    theta = math.acos(cosine)
    return math.sqrt(v1 * v2) / (2 * math.pi) * (math.sin(theta) + (math.pi - theta) * cosine)


def step(c, v1, v2):
    return (math.pi - math.acos(max(-1.0, min(1.0, c / math.sqrt(v1 * v2))))) / (2 * math.pi)


def erf(c, v1, v2):
    return 2 / math.pi * math.asin(2 * c / math.sqrt((1 + 2 * v1) * (1 + 2 * v2)))


class Pair:
    """Covariance and both variances of two images at every position: a dict from position to (c, v1, v2)."""

    def __init__(self, shape, values):
        self.shape, self.values = tuple(shape), values

    @classmethod
    def of(cls, x, y):
        """From images [C, *positions]."""
        shape = x.shape[1:]
        values = {}
        for p in itertools.product(*map(range, shape)):
            a, b = x[(slice(None), *p)], y[(slice(None), *p)]
            values[p] = (np.mean(a * b), np.mean(a * a), np.mean(b * b))
        return cls(shape, values)

    def conv(self, size, stride, padding, var_weight, var_bias, divide=False):
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

    def phi(self, expectation, factor=1.0):
        values = {}
        for p, (c, v1, v2) in self.values.items():
            values[p] = tuple(factor * expectation(*a) for a in ((c, v1, v2), (v1, v1, v1), (v2, v2, v2)))
        return Pair(self.shape, values)

    def dense(self, var_weight, var_bias):
        mean = np.mean(list(self.values.values()), axis=0)
        return Pair((), {(): tuple(var_weight * mean + var_bias)})

    def __add__(self, other):
        assert self.shape == other.shape
        return Pair(self.shape, {p: tuple(np.add(v, other.values[p])) for p, v in self.values.items()})


def deep(pair, sizes, strides, padding, expectation, factor, var_weight, var_bias, skips=()):
    """DeepKernel's recursion. :param skips: indices of the convolutions that have a skip connection before them."""
    z = previous = pair
    for i, (size, stride) in enumerate(zip(sizes, strides, strict=True)):
        if i > 0 and i in skips:
            z = z + previous
            previous = z
        z = z.conv(size, stride, padding, var_weight, var_bias).phi(expectation, factor)
    return z.dense(var_weight, var_bias).values[()][0]


def resnet(pair, block_sizes, block_strides, kernel_size, var_weight, var_bias, conv_stride=1):
    """ResnetKernel's recursion, with the ReLU."""

    def conv(z, size, stride=1):
        return z.conv(size, stride, "FIXED", var_weight, 0.0, divide=True)

    z = conv(pair, kernel_size, conv_stride)
    for units, block_stride in zip(block_sizes, block_strides, strict=True):
        for unit in range(units):
            stride = block_stride if unit == 0 else 1
            a = z.phi(relu)
            shortcut = conv(a, 1, stride) if unit == 0 else z
            z = conv(conv(a, 3, stride).phi(relu), 3) + shortcut
    return z.dense(var_weight, var_bias).phi(relu).dense(var_weight, var_bias).values[()][0]


def matrix(X, X2, input_shape, recursion):
    """The kernel matrix of a recursion for one pair."""
    images, images2 = (np.reshape(A, [-1, *input_shape]) for A in (X, X2))
    return np.array([[recursion(Pair.of(x, y)) for y in images2] for x in images])
