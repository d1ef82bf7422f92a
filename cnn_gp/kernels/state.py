"""What the recursion carries from layer to layer, and what it starts from."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from .displacements import Displacements
from .geometry import Positions


class Covariances(NamedTuple):
    """
    Covariances of one channel between images X [N] and X2 [M], and of each image with itself, at every position.

    ``cross`` [*positions, N, M]; ``own1`` [*positions, N, 1]; ``own2`` [*positions, 1, M]: at displacement 0 the
    variances. Between position p and position p + d: the same with the D displacements d as a first axis. The pairs are
    innermost and contiguous, so that each step of the recursion runs over full vectors. ``cross`` and ``own2`` are None
    where only X with itself is wanted.
    """

    cross: tf.Tensor | None
    own1: tf.Tensor
    own2: tf.Tensor | None

    def map(self, function: Callable[[tf.Tensor], tf.Tensor]) -> "Covariances":
        """The same map for each of the three."""
        return Covariances(*(None if t is None else function(t) for t in self))

    def times(self, other: "Covariances") -> "Covariances":
        """The product of each of the three."""
        return Covariances(*(None if t is None else t * o for t, o in zip(self, other, strict=True)))

    def plus(self, other: "Covariances") -> "Covariances":
        """The sum of each of the three."""
        return Covariances(*(None if t is None else t + o for t, o in zip(self, other, strict=True)))


class Kernels(NamedTuple):
    """The covariances K, and T of the neural tangent kernel where it is wanted."""

    nngp: Covariances
    ntk: Covariances | None

    def map(self, function: Callable[[tf.Tensor], tf.Tensor]) -> "Kernels":
        """The same linear map for both."""
        return Kernels(self.nngp.map(function), None if self.ntk is None else self.ntk.map(function))

    def plus(self, other: "Kernels") -> "Kernels":
        """The sum of both."""
        ntk = None if self.ntk is None or other.ntk is None else self.ntk.plus(other.ntk)
        return Kernels(self.nngp.plus(other.nngp), ntk)


class State(NamedTuple):
    """
    The kernels of a map at displacement 0, and how to compute them at other displacements.

    ``displaced`` gives the kernels between positions p and p + d; only pooling asks for it. ``sum_dtype`` is the
    precision of the sums over a patch (:meth:`.Layer.sum_dtype`). ``held`` says how many covariances of a pair of
    images the largest map has that one displacement needs, ``largest`` how many the largest had for displacement 0.
    """

    kernels: Kernels
    displaced: Callable[[Displacements], Kernels]
    sum_dtype: tf.DType
    held: int
    largest: int

    @property
    def nngp(self) -> Covariances:
        """K at displacement 0."""
        return self.kernels.nngp

    @property
    def positions(self) -> Positions:
        """The shape of the map."""
        return tuple(self.nngp.own1.shape[:-2])

    def then(
        self,
        step: Callable[[Kernels, Displacements | None], Kernels],
        before: Callable[[Displacements], Displacements] = lambda d: d,
    ) -> "State":
        """
        The state after a layer.

        :param step: from the kernels before the layer, at displacement 0 (None) or at others, to those after it.
        :param before: the displacements before the layer that those after it need.
        """
        source = self.displaced  # without the maps at displacement 0, which may be freed
        kernels = step(self.kernels, None)
        pixels = math.prod(kernels.nngp.own1.shape[:-2])
        displaced = remembering_last(lambda d: step(source(before(d)), before(d)))
        return self._replace(
            kernels=kernels, displaced=displaced, held=max(self.held, pixels), largest=max(self.largest, pixels)
        )


def remembering_last(function: Callable[[Displacements], Kernels]) -> Callable[[Displacements], Kernels]:
    """Remembers the last result: the branches of a sum ask for the same displacements before it."""
    asked: Displacements | None = None
    result: Kernels

    def remembered(d: Displacements) -> Kernels:
        nonlocal asked, result
        if d is not asked:
            asked, result = d, function(d)
        return result

    return remembered


def input_state(
    X: tf.Tensor, X2: tf.Tensor | None, input_shape: Sequence[int], sum_dtype: tf.DType, ntk: bool = False
) -> State:
    """
    The covariances of the inputs: at each position the mean over channels of the products.

    :param X: [N, D], flattened channel first, D the number of entries of ``input_shape``.
    :param X2: [M, D], or None for X with itself alone.
    :param input_shape: [C, *positions].
    :param sum_dtype: the precision of the sums over a patch from here on.
    :param ntk: whether the neural tangent kernel is wanted, which is 0 at the inputs.
    """
    channels, *positions = input_shape
    pixels = math.prod(positions)

    def images(X: tf.Tensor) -> tf.Tensor:
        # In float64, where products of float32 numbers are exact: see Layer.sum_dtype.
        return tf.reshape(tf.cast(X, tf.float64), [-1, channels, pixels])

    def kernels(own1: tf.Tensor, own2: tf.Tensor | None, cross: tf.Tensor | None, lead: Sequence[int]) -> Kernels:
        def shaped(covariance: tf.Tensor) -> tf.Tensor:
            sizes = tf.concat([[*lead, *positions], tf.shape(covariance)[-2:]], 0)
            return tf.reshape(tf.cast(covariance, X.dtype), sizes)

        nngp = Covariances(cross, own1, own2).map(shaped)
        return Kernels(nngp, nngp.map(lambda covariance: 0.0 * covariance) if ntk else None)

    x = images(X)
    x2 = None if X2 is None else images(X2)
    cross = None if x2 is None else tf.einsum("ncp,mcp->pnm", x, x2) / channels
    own1 = tf.transpose(tf.reduce_mean(x * x, axis=1))[:, :, None]
    own2 = None if x2 is None else tf.transpose(tf.reduce_mean(x2 * x2, axis=1))[:, None, :]

    def displaced(d: Displacements) -> Kernels:
        def pixels_first(x: tf.Tensor) -> tf.Tensor:
            return tf.reshape(tf.transpose(x, [2, 0, 1]), [*positions, -1, channels])

        def flat(x: tf.Tensor) -> tf.Tensor:
            return tf.reshape(x, [len(d), pixels, -1, channels])

        a = tf.reshape(pixels_first(x), [1, pixels, -1, channels])
        a_shifted = flat(d.shifted(pixels_first(x)))
        own1 = tf.reduce_mean(a * a_shifted, axis=-1)[..., None]
        if x2 is None:
            return kernels(own1, None, None, [len(d)])
        b = tf.reshape(pixels_first(x2), [1, pixels, -1, channels])
        b_shifted = flat(d.shifted(pixels_first(x2)))
        own2 = tf.reduce_mean(b * b_shifted, axis=-1)[..., None, :]
        cross = tf.matmul(tf.broadcast_to(a, tf.concat([[len(d)], tf.shape(a)[1:]], 0)), b_shifted, transpose_b=True)
        return kernels(own1, own2, cross / channels, [len(d)])

    return State(kernels(own1, own2, cross, []), remembering_last(displaced), sum_dtype, pixels, pixels)
