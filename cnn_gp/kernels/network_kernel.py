"""What the GPflow kernels of an infinitely wide network share: shapes, checks, the recursion from images to kernels."""

import abc
import math
from collections.abc import Sequence
from typing import Any

import gpflow
import tensorflow as tf
from check_shapes import check_shapes
from gpflow.base import TensorType
from gpflow.kernels.base import ActiveDims

from ..errors import UserError
from .composition import Sequential
from .geometry import checked_input_shape
from .layer import Layer
from .state import Covariances, Kernels, State


class NetworkKernel(gpflow.kernels.Kernel, metaclass=abc.ABCMeta):
    """
    A kernel of an infinitely wide network: :class:`.NNGPKernel` or :class:`.NTKKernel`.

    The dtype of the inputs, float32 or float64, decides the precision.

    :param network: the layers.
    :param input_shape: [C, *positions] with 0, 1, 2 or 3 spatial axes; the inputs are [N, D], flattened channel first.
    :param active_dims: the columns of X that are the image.
    :raises UserError: where the network's output has spatial axes left, or a circular convolution comes before a pool.
    :raises ShrunkMapError: where a map of the network has less than one pixel.
    """

    def __init__(
        self,
        network: Layer,
        input_shape: Sequence[int],
        *,
        active_dims: ActiveDims | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(active_dims=active_dims, name=name)
        if not isinstance(network, Layer):
            raise UserError(
                f"The network is a {type(network).__name__}; expected a layer: several go into Sequential(...)."
            )
        self.input_shape = checked_input_shape(input_shape)
        left = network.output_positions(self.input_shape[1:])
        if left != ():
            raise UserError(
                f"The network ends in a map of shape {left}; expected no spatial axes left: end it in a Dense() "
                "readout."
            )
        network.displacements(self.input_shape[1:], 1)  # refuses what has no covariances between positions
        self.network = network

    @property
    def input_size(self) -> int:
        """D: the number of columns of X that make up an image."""
        return math.prod(self.input_shape)

    @property
    def n_covariances(self) -> int:
        """How many covariances of all layers a pair of images takes: the time of an entry is about proportional."""
        return self.network.n_covariances(self.input_shape[1:])

    @property
    def n_displacements(self) -> int:
        """Between how many displacements of the images' pixels covariances are needed: 1 without pooling."""
        return self.network.displacements(self.input_shape[1:], 1)

    @property
    def largest_map(self) -> int:
        """How many numbers of a pair of images the largest map has that a pooling layer holds at a time, K and T."""
        found = []

        def trace(X: tf.Tensor) -> tf.Tensor:
            state = self.network.propagate(self.input_state(X, None))
            found.append(state.largest * (1 if state.kernels.ntk is None else 2))
            return state.nngp.own1

        tf.function(trace, autograph=False).get_concrete_function(tf.TensorSpec([1, self.input_size], tf.float32))
        return found[0]

    def check_inputs(self, X: TensorType) -> None:
        """:raises UserError: where X [N, D] isn't float32 or float64, or D isn't :attr:`input_size`."""
        dtype = tf.as_dtype(X.dtype)
        if dtype not in (tf.float32, tf.float64):
            raise UserError(
                f"The images have dtype {dtype.name}; expected float32 or float64, which decides the precision: "
                "scale the pixels to [0, 1] and cast them."
            )
        if X.shape[-1] != self.input_size:
            raise UserError(
                f"The images have {X.shape[-1]} columns; expected {self.input_size} for input_shape "
                f"{list(self.input_shape)}: flatten them channel first, or make a kernel of their shape."
            )

    def _checked_inputs(self, X: TensorType) -> tf.Tensor:
        X = tf.convert_to_tensor(X)
        self.check_inputs(X)
        return X

    @check_shapes(
        "X: [N, D]",
        "X2: [N2, D]",
        "return: [N, N2] if X2 is not None",
        "return: [N, N] if X2 is None",
    )
    def K(self, X: TensorType, X2: TensorType | None = None) -> tf.Tensor:
        """
        The kernel between two sets of images.

        ``K(X)`` is exactly symmetric and has exactly ``K_diag(X)`` on its diagonal.
        """
        X = self._checked_inputs(X)
        if X2 is not None:
            return self._covariances(X, tf.cast(self._checked_inputs(X2), X.dtype)).cross
        upper = tf.linalg.band_part(self._covariances(X, X).cross, 0, -1)
        symmetric = upper + tf.linalg.matrix_transpose(upper)
        # The other pairs may pool their displacements in another order.
        return tf.linalg.set_diag(symmetric, self.K_diag(X))

    @check_shapes("X: [N, D]", "return: [N]")
    def K_diag(self, X: TensorType) -> tf.Tensor:
        """The kernel of each image with itself."""
        return self._covariances(self._checked_inputs(X), None).own1[:, 0]

    @abc.abstractmethod
    def input_state(self, X: tf.Tensor, X2: tf.Tensor | None) -> State:
        """What the recursion starts from."""

    @abc.abstractmethod
    def chosen(self, kernels: Kernels) -> Covariances:
        """Those of the covariances after the last layer that are this kernel."""

    def _covariances(self, X: tf.Tensor, X2: tf.Tensor | None) -> Covariances:
        return self.chosen(self.network.propagate(self.input_state(X, X2)).kernels)

    def first_non_finite(self, X: TensorType, X2: TensorType) -> str | None:
        """
        The first layer after which a covariance or variance of X [N, D] and X2 [M, D] isn't finite, or None.

        Named by its place in the network: "layers[2].branches[1].layers[0] (Conv)".
        """
        X, X2 = self._checked_inputs(X), self._checked_inputs(X2)
        state = self.input_state(X, X2)
        return "the images" if not _is_finite(state) else _first_non_finite(self.network, state, "")

    def describe(self) -> dict[str, Any]:
        """What decides the kernel's numbers, in JSON's types: equal descriptions mean equal kernels."""
        return {"input_shape": list(self.input_shape), "network": self.network.describe()}


def _is_finite(state: State) -> bool:
    return all(bool(tf.reduce_all(tf.math.is_finite(t))) for t in tf.nest.flatten(state.kernels) if t is not None)


def _first_non_finite(layer: Layer, state: State, path: str) -> str | None:
    """As :meth:`NetworkKernel.first_non_finite`, for a finite state before the layer."""
    kind = "layers" if isinstance(layer, Sequential) else "branches"
    for i, child in enumerate(layer.children):
        found = _first_non_finite(child, state, f"{path}.{kind}[{i}]" if path else f"{kind}[{i}]")
        if found is not None:
            return found
        if isinstance(layer, Sequential):
            state = child.propagate(state)
    if isinstance(layer, Sequential) or _is_finite(layer.propagate(state)):
        return None
    return f"{path} ({type(layer).__name__})"
