"""A kernel times a number, for a prior variance of about 1."""

import math

import gpflow
import tensorflow as tf
from check_shapes import inherit_check_shapes
from gpflow.base import Parameter, TensorType
from gpflow.utilities import positive

from ..errors import UserError


class Scaled(gpflow.kernels.Kernel):
    """
    A kernel times a number: the prior of a network whose output is multiplied by the number's root.

    The variances of the random search's networks give kernels of 1e4 to 1e14 on images, where the likelihoods and
    initial values of GPflow's models expect about 1. ``Scaled(kernel, 1 / np.mean(kernel(X, full_cov=False)))`` has a
    mean prior variance of 1 at the images X. :func:`cnn_gp.gram` takes it, with either engine.

    :param kernel: any GPflow kernel.
    :param factor: a positive number.
    :param trainable: whether the factor is trained. The kernel's own parameters are trained in any case.
    :raises UserError: where the factor isn't a positive, finite number.
    """

    def __init__(
        self, kernel: gpflow.kernels.Kernel, factor: float, trainable: bool = False, name: str | None = None
    ) -> None:
        super().__init__(name=name)
        factor = float(factor)
        if not (math.isfinite(factor) and factor > 0):
            raise UserError(f"factor is {factor}; expected a positive, finite number: 1 / np.mean(kernel.K_diag(X)).")
        self.kernel = kernel
        self.factor = Parameter(factor, dtype=tf.float64, transform=positive(), trainable=trainable)

    @inherit_check_shapes
    def K(self, X: TensorType, X2: TensorType | None = None) -> tf.Tensor:
        """The kernel's, times the factor, in the kernel's dtype."""
        return self._times(self.kernel(X, X2))

    @inherit_check_shapes
    def K_diag(self, X: TensorType) -> tf.Tensor:
        """The same for the diagonal."""
        return self._times(self.kernel(X, full_cov=False))

    def _times(self, entries: tf.Tensor) -> tf.Tensor:
        return tf.cast(self.factor, entries.dtype) * entries
