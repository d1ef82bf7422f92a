"""The kernel of the Gaussian process that an infinitely wide network is."""

import tensorflow as tf

from .network_kernel import NetworkKernel
from .state import Covariances, Kernels, State, input_state


class NNGPKernel(NetworkKernel):
    r"""
    The kernel of the Gaussian process that an infinitely wide network is.

    The recursion of the covariances is the layers' (:mod:`cnn_gp.kernels.layers`); it starts from

    .. math:: K_0(x, x')(p) = \frac{1}{C} \sum_{c=1}^{C} x_{c,p} \, x'_{c,p}

    and ends in a :class:`~cnn_gp.kernels.layers.Dense` readout, which leaves one number per pair of images. See
    Garriga-Alonso, Rasmussen & Aitchison, ICLR 2019 (arXiv:1808.05587). The arguments are
    :class:`~cnn_gp.kernels.network_kernel.NetworkKernel`'s.
    """

    def input_state(self, X: tf.Tensor, X2: tf.Tensor | None) -> State:
        return input_state(X, X2, self.input_shape, self.network.sum_dtype(X.dtype))

    def chosen(self, kernels: Kernels) -> Covariances:
        return kernels.nngp
