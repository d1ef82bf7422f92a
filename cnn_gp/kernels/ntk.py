"""The neural tangent kernel of an infinitely wide network."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from gpflow.kernels.base import ActiveDims

from .layer import Layer
from .network_kernel import NetworkKernel
from .state import Covariances, Kernels, State, input_state


class NTKKernel(NetworkKernel):
    r"""
    The neural tangent kernel: the limit of the sum over all weights and biases of products of derivatives,

    .. math:: T(x, x') = \sum_i \frac{\partial f(x)}{\partial \theta_i} \frac{\partial f(x')}{\partial \theta_i}

    where each weight is :math:`\sqrt{\sigma_w^2 / \text{fan-in}}` and each bias :math:`\sigma_b` times a
    :math:`\theta_i \sim \mathcal{N}(0, 1)`, and all are trained. With it as the kernel, the posterior mean is what an
    infinitely wide ensemble trained by gradient descent to convergence predicts on average; the posterior variance is
    not that ensemble's. See Jacot, Gabriel & Hongler 2018 (arXiv:1806.07572) and Lee et al. 2019 (arXiv:1902.06720).
    The arguments are :class:`~cnn_gp.kernels.network_kernel.NetworkKernel`'s.

    :raises UserError: for a network with the step function, whose derivative is 0 almost everywhere.
    """

    def __init__(
        self,
        network: Layer,
        input_shape: Sequence[int],
        *,
        active_dims: ActiveDims | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(network, input_shape, active_dims=active_dims, name=name)
        network.check_derivatives()

    def input_state(self, X: tf.Tensor, X2: tf.Tensor | None) -> State:
        # The derivative's expectation of the ReLU has an infinite slope at identical inputs: see Layer.sum_dtype.
        return input_state(X, X2, self.input_shape, tf.float64, ntk=True)

    def chosen(self, kernels: Kernels) -> Covariances:
        assert kernels.ntk is not None
        return kernels.ntk

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "kernel": "ntk"}
