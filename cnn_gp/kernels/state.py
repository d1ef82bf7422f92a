"""What the recursion carries from layer to layer, and what it starts from."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf


class State(NamedTuple):
    """
    The covariances of one channel between images X [N] and X2 [M], at every position of the map.

    ``cross`` [*positions, N, M]; ``var1`` [*positions, N, 1]; ``var2`` [*positions, 1, M]. The pairs are innermost and
    contiguous, so that each step of the recursion runs over full vectors. ``cross`` and ``var2`` are None where only
    the variances of X are wanted. ``sum_dtype`` is the precision of the sums over a patch (:meth:`.Layer.sum_dtype`).
    """

    cross: tf.Tensor | None
    var1: tf.Tensor
    var2: tf.Tensor | None
    sum_dtype: tf.DType

    def map(self, function: Callable[[tf.Tensor], tf.Tensor]) -> "State":
        """The same map for each of the three."""
        cross, var1, var2 = (None if t is None else function(t) for t in self[:3])
        return self._replace(cross=cross, var1=var1, var2=var2)


def input_state(X: tf.Tensor, X2: tf.Tensor | None, input_shape: Sequence[int], sum_dtype: tf.DType) -> State:
    """
    The covariances of the inputs: at each position the mean over channels of the products.

    :param X: [N, D], flattened channel first, D the number of entries of ``input_shape``.
    :param X2: [M, D], or None for the variances alone.
    :param input_shape: [C, *positions].
    :param sum_dtype: the precision of the sums over a patch from here on.
    """
    channels, *positions = input_shape

    def images(X: tf.Tensor) -> tf.Tensor:
        # In float64, where products of float32 numbers are exact: see Layer.sum_dtype.
        return tf.reshape(tf.cast(X, tf.float64), [-1, channels, math.prod(positions)])

    def shaped(covariance: tf.Tensor) -> tf.Tensor:
        return tf.reshape(tf.cast(covariance, X.dtype), tf.concat([positions, tf.shape(covariance)[1:]], 0))

    x = images(X)
    var1 = shaped(tf.transpose(tf.reduce_mean(x * x, axis=1))[:, :, None])
    if X2 is None:
        return State(None, var1, None, sum_dtype)
    x2 = images(X2)
    var2 = shaped(tf.transpose(tf.reduce_mean(x2 * x2, axis=1))[:, None, :])
    return State(shaped(tf.einsum("ncp,mcp->pnm", x, x2) / channels), var1, var2, sum_dtype)
