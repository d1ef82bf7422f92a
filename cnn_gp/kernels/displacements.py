"""
Displacements between the positions of two maps, for average pooling.

Pooling needs the covariances :math:`K_d(p)` between position p of one image and position p + d of the other. Under
convolutions, nonlinearities and sums those of one displacement d never mix with those of another, so a layer's step is
the plain recursion on the rectangle of positions p where p + d is inside the map too. All displacements have maps of
the full shape, so that one program serves all of them: what is outside the rectangle is finite and without meaning,
and every sum over a window leaves it out (:meth:`Displacements.bands`).
"""

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from .geometry import Window


class Displacements:
    """
    D displacements, the whole numbers ``origin`` [rank] + ``offsets`` [D, rank]. The origin may vary in a loop.

    Compared by identity, so that the covariances last asked for can be remembered.
    """

    def __init__(self, origin: tf.Tensor, offsets: np.ndarray) -> None:
        self.origin, self.offsets = origin, offsets
        self._multiples: dict[tuple[int, ...], Displacements] = {}

    def __len__(self) -> int:
        return len(self.offsets)

    @classmethod
    def zero(cls, rank: int) -> "Displacements":
        """The one displacement 0."""
        return cls(tf.zeros([rank], tf.int32), np.zeros([1, rank], np.int32))

    def times(self, strides: Sequence[int]) -> "Displacements":
        """Those before a layer of these strides."""
        key = tuple(strides)
        if all(stride == 1 for stride in key):
            return self
        if key not in self._multiples:
            strided = np.array(key, np.int32)
            self._multiples[key] = Displacements(self.origin * strided, self.offsets * strided)
        return self._multiples[key]

    def plus(self, other: "Displacements") -> tuple["Displacements", np.ndarray]:
        """All sums with others, each once, and the number of the sum of each with each [D, others]."""
        sums = self.offsets[:, None] + other.offsets[None]
        offsets, index = np.unique(sums.reshape([-1, sums.shape[-1]]), axis=0, return_inverse=True)
        return Displacements(self.origin + other.origin, offsets), index.reshape(sums.shape[:2])

    def along(self, axis: int) -> tf.Tensor:
        """[D] along one axis."""
        return self.origin[axis] + self.offsets[:, axis]

    def shifted(self, covariance: tf.Tensor) -> tf.Tensor:
        """[*positions, ...] at p + d for each position p: [D, *positions, ...]; outside the map the nearest pixel."""
        rank = self.offsets.shape[1]
        positions = covariance.shape[:rank].as_list()
        index = tf.zeros([len(self), *[1] * rank], tf.int32)
        for axis, n in enumerate(positions):
            along = tf.clip_by_value(self.along(axis)[:, None] + tf.range(n), 0, n - 1)
            index = index * n + tf.reshape(along, [-1, *(n if i == axis else 1 for i in range(rank))])
        rest = tf.shape(covariance)[rank:]
        flat = tf.reshape(covariance, tf.concat([[math.prod(positions)], rest], 0))
        shifted = tf.gather(flat, tf.reshape(index, [-1]))
        return tf.reshape(shifted, tf.concat([[len(self), *positions], rest], 0))

    def where_zero(self, variance: tf.Tensor, covariance: tf.Tensor) -> tf.Tensor:
        """The variance [...] where d is 0, the covariance [D, ...] elsewhere."""
        is_zero = tf.reduce_all(self.origin + self.offsets == 0, axis=1)
        return tf.where(tf.reshape(is_zero, [-1, *[1] * variance.shape.rank]), variance[None], covariance)

    def bands(self, axis: int, window: Window, differences: "Displacements | None" = None) -> tf.Tensor:
        """
        A window's sum along an axis, over those p where p + d is inside the map too: [D, outputs, inputs], 0 or 1.

        :param differences: one for each d: only over those p where p + difference is in the window too.
        """
        partner = self.along(axis)[:, None] + np.arange(window.inputs)
        bands = window.band() * tf.cast((partner >= 0) & (partner < window.inputs), tf.float64)[:, None, :]
        if differences is None:
            return bands
        place = np.arange(window.inputs) - (np.arange(window.outputs)[:, None] * window.stride - window.before)
        other = place + differences.along(axis)[:, None, None]
        return bands * tf.cast((other >= 0) & (other < window.size), tf.float64)


def sum_along(covariance: tf.Tensor, axis: int, bands: tf.Tensor) -> tf.Tensor:
    """
    Sums over windows along one axis of the map: [..., inputs, ...] -> [..., outputs, ...].

    A filter is constant over the patch, hence separable: one small banded matrix product per axis.

    :param bands: [outputs, inputs], or with displacements [D, outputs, inputs], which the first axis then stands for.
    """
    lead = bands.shape.rank - 2
    axis += lead
    shape = tf.shape(covariance)
    before = math.prod(covariance.shape[lead:axis])
    outputs, inputs = bands.shape[-2:]
    left = [*bands.shape[:lead], before]
    matrix = tf.reshape(covariance, [*left, inputs, -1])
    summed = tf.matmul(tf.broadcast_to(tf.expand_dims(bands, lead), [*left, outputs, inputs]), matrix)
    return tf.reshape(summed, tf.concat([shape[:axis], [outputs], shape[axis + 1 :]], 0))
