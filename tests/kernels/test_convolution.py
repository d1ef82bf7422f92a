"""Convolutions: their windows, paddings and sums."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from cnn_gp import NTKKernel
from cnn_gp.kernels.composition import Sequential
from cnn_gp.kernels.layers import Conv, Dense
from cnn_gp.kernels.nonlinearities import (
    ExErf,
    ExReLU,
)
from helpers.layers import cross_after, plain_state, state_of


def loop_windows(x, size, stride, padding):
    """Sums over windows of the leading axes, with loops."""
    rank = len(size)
    out, before = [], []
    for n, k, s in zip(x.shape, size, stride, strict=False):
        if padding in ("SAME", "CIRCULAR"):
            outputs = -(-n // s)
            before.append(max((outputs - 1) * s + k - n, 0) // 2)
        elif padding == "VALID":
            outputs = (n - k) // s + 1
            before.append(0)
        else:
            outputs = (n - 1) // s + 1
            before.append((k - 1) // 2)
        out.append(outputs)
    result = np.zeros([*out, *x.shape[rank:]])
    for o in itertools.product(*map(range, out)):
        for d in itertools.product(*map(range, size)):
            p = [a * s - b + c for a, s, b, c in zip(o, stride, before, d, strict=True)]
            if padding == "CIRCULAR":
                p = [a % n for a, n in zip(p, x.shape, strict=False)]
            if all(0 <= a < n for a, n in zip(p, x.shape, strict=False)):
                result[o] += x[tuple(p)]
    return result


@pytest.mark.parametrize("padding", ["SAME", "VALID", "FIXED", "CIRCULAR"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("positions", [(7,), (8, 5), (5, 6, 5)])
def test_convolution_sums_over_the_patch(padding, stride, size, positions, rng):
    rank = len(positions)
    x = rng.normal(size=[*positions, 2, 3])
    state = plain_state(x, x[..., :1], x[..., :1, :])
    layer = Conv(size, stride, padding, var_weight=1.7, var_bias=0.4)
    result = layer.propagate(state).nngp
    expected = 1.7 * loop_windows(x, (size,) * rank, (stride,) * rank, padding) + 0.4
    np.testing.assert_allclose(result.cross, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(result.own1, expected[..., :1], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(result.own2, expected[..., :1, :], rtol=1e-12, atol=1e-12)
    assert layer.output_positions(positions) == expected.shape[:rank]


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("size", "stride"), [((4, 2), (1, 1)), ((3, 5), (2, 3)), ((4, 4), (3, 2))])
def test_convolution_pads_like_tensorflow(padding, size, stride, rng):
    x = rng.normal(size=[9, 11, 2, 1])
    result = Conv(size, stride, padding).propagate(plain_state(None, x, None)).nngp.own1
    maps = tf.nn.conv2d(np.transpose(x, [2, 0, 1, 3]), np.ones([*size, 1, 1]), stride, padding)
    np.testing.assert_allclose(result, np.transpose(maps, [1, 2, 0, 3]), rtol=1e-12, atol=1e-12)


def test_circular_padding_makes_a_kernel_that_no_turn_of_both_images_changes(rng):
    X = rng.normal(size=(3, 2, 6, 5))
    layers = [Conv((3, 4), padding="CIRCULAR", var_bias=0.1), ExReLU(), Conv(7, padding="CIRCULAR"), ExErf(), Dense()]
    kernel = NTKKernel(Sequential(*layers), [2, 6, 5])
    turned = np.roll(X, (2, 1), (2, 3))
    np.testing.assert_allclose(kernel(turned.reshape(3, -1)), kernel(X.reshape(3, -1)), rtol=1e-13)


def test_divide_by_patch(rng):
    state = state_of(rng, (6, 6), 2)
    divided = cross_after(Conv((3, 2), var_weight=1.2, var_bias=0.1, divide_by_patch=True), state)
    np.testing.assert_allclose(divided, cross_after(Conv((3, 2), var_weight=0.2, var_bias=0.1), state), rtol=1e-12)
