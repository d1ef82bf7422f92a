"""Each layer twice, with other hyperparameters, and the states that layers are given."""

import numpy as np
import tensorflow as tf

from cnn_gp.kernels.composition import Sequential, Sum
from cnn_gp.kernels.layer import Layer
from cnn_gp.kernels.layers import ChannelMix, Conv, Dense
from cnn_gp.kernels.nonlinearities import (
    GELU,
    Abs,
    Cos,
    ElementwiseNumerical,
    ExErf,
    ExReLU,
    LeakyReLU,
    Sin,
)
from cnn_gp.kernels.pooling import AvgPool, GlobalAvgPool
from cnn_gp.kernels.state import Covariances, Displacements, Kernels, State, input_state

# For each layer: another one of other hyperparameters.
CASES = {
    Conv: (Conv(3, 2, "SAME", 1.3, 0.2), Conv(3, 2, "SAME", 1.3, 0.3)),
    Dense: (Dense(1.3, 0.2), Dense(1.4, 0.2)),
    AvgPool: (AvgPool(2, 1, "SAME"), AvgPool(2, 1, "VALID")),
    GlobalAvgPool: (GlobalAvgPool(), None),
    ExReLU: (ExReLU(), ExReLU(multiply_by_sqrt2=True)),
    ExErf: (ExErf(), None),
    LeakyReLU: (LeakyReLU(0.1), LeakyReLU(0.2)),
    Abs: (Abs(), None),
    GELU: (GELU(), None),
    Sin: (Sin(), Sin(2.0)),
    Cos: (Cos(), Cos(c=0.1)),
    ElementwiseNumerical: (ElementwiseNumerical(tf.math.tanh, degree=4), None),
    ChannelMix: (ChannelMix(), None),
    Sequential: (Sequential(Conv(2), ExReLU()), Sequential(Conv(2), ExErf())),
    Sum: (Sum(Sequential(), Conv(3)), Sum(Sequential(), Conv(3, var_weight=2.0))),
}

# A function has no description.
DESCRIBED = {cls: layers for cls, layers in CASES.items() if cls is not ElementwiseNumerical}


def state_of(
    rng: np.random.Generator,
    positions: tuple[int, ...],
    n: int,
    dtype: type = np.float64,
    sum_dtype: tf.DType | None = None,
    alone: bool = False,
) -> State:
    """The covariances of n random images with four channels, with themselves."""
    x = tf.reshape(rng.normal(size=[n, 4, *positions]).astype(dtype), [n, -1])
    return input_state(x, None if alone else x, [4, *positions], tf.as_dtype(sum_dtype or dtype))


def _no_displacements(displacements: Displacements) -> Kernels:
    raise AssertionError("a plain state has no displacements")


def plain_state(cross: np.ndarray | None, own1: np.ndarray, own2: np.ndarray | None) -> State:
    """A state of given covariances, without displacements."""
    given = Covariances(*(None if t is None else tf.constant(t) for t in (cross, own1, own2)))
    return State(Kernels(given, None), _no_displacements, tf.float64, 1, 1)


def cross_after(layer: Layer, state: State) -> tf.Tensor:
    """A layer's covariances of different images."""
    return layer.propagate(state).nngp.cross
