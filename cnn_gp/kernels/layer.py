"""What a layer is: a map of covariances, a shape, a finite version, and a description that it can be read from."""

import abc
import functools
import inspect
import math
from collections.abc import Sequence
from typing import Any

import gpflow
import tensorflow as tf
from gpflow.base import Parameter
from gpflow.utilities import positive

from ..errors import UserError
from .finite import FiniteMap, FiniteNetwork, Prior
from .geometry import Positions
from .state import State

_REGISTRY: dict[str, type["Layer"]] = {}


class Layer(gpflow.base.Module, metaclass=abc.ABCMeta):
    """
    A map of covariances to covariances, equivalent to a layer with infinitely many channels.

    A subclass is registered by its name, which its :meth:`describe` gives under the key "layer".
    """

    #: Whether the finite version of the layer itself, its children aside, has weights.
    weighted = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _REGISTRY[cls.__name__] = cls

    @abc.abstractmethod
    def propagate(self, state: State) -> State:
        """The covariances after this layer, from those before it."""

    def output_positions(self, positions: Positions) -> Positions:
        """The shape of the map after this layer. :raises ShrunkMapError: where it would have less than one pixel."""
        return positions

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """What decides this layer's numbers, in JSON's types: equal descriptions mean equal kernels."""

    def structure(self) -> dict[str, Any]:
        """What a compiled program of this layer, its children aside, holds: the description without its parameters."""
        return {k: v for k, v in self.describe().items() if not isinstance(getattr(self, k, None), Parameter)}

    @classmethod
    def from_arguments(cls, **arguments: Any) -> "Layer":
        """The layer from the entries of its description other than its name."""
        return cls(**arguments)

    @property
    def children(self) -> "Sequence[Layer]":
        """The layers that this one is made of."""
        return ()

    def displacements(self, positions: Positions, n: int) -> int:
        """How many displacements are needed before this layer for n after it: only pooling needs more."""
        return n

    def n_covariances(self, positions: Positions, displacements: int = 1) -> int:
        """
        How many covariances a pair of images costs in this layer: what its time is about proportional to.

        :param positions: the map before the layer.
        :param displacements: how many are wanted after the layer.
        """
        return displacements * math.prod(self.output_positions(positions))

    def sum_dtype(self, dtype: tf.DType) -> tf.DType:
        """
        The precision in which sums over a patch are taken, for covariances of precision ``dtype``.

        In float64 a sum of float32 numbers is exact, so it doesn't depend on the order in which a matrix product adds:
        the covariance of two identical patches stays equal to their variance to the last bit, whatever the shapes and
        the device. Deep erf networks amplify any difference between the two until it ruins the kernel, so they pay
        the price, as does the step, whose slope there is infinite. ReLU networks don't amplify it.
        """
        return functools.reduce(
            lambda widest, child: max(widest, child.sum_dtype(dtype), key=lambda d: d.size), self.children, dtype
        )

    def check_derivatives(self) -> None:
        """:raises UserError: where the layer has no neural tangent kernel."""
        for child in self.children:
            child.check_derivatives()

    @property
    def has_weights(self) -> bool:
        """Whether the finite version of the layer or of its children has weights."""
        return self.weighted or any(child.has_weights for child in self.children)

    def finite_map(self, prior: Prior, channels: int, positions: Positions, outputs: int) -> FiniteMap:
        """The finite version of the layer: :class:`cnn_gp.kernels.finite.Finite`."""
        raise UserError(
            f"{type(self).__name__} has no finite version; expected the layers of cnn_gp.kernels.layers, "
            "or a layer with a method finite_map."
        )

    def finite(
        self, width: int, input_shape: Sequence[int], draws: int = 1, outputs: int = 1, seed: int = 0
    ) -> FiniteNetwork:
        """Finite networks of this architecture drawn from the prior: :class:`cnn_gp.kernels.finite.FiniteNetwork`."""
        return FiniteNetwork(self, width, input_shape, draws=draws, outputs=outputs, seed=seed)


def layer_from_description(description: dict[str, Any]) -> Layer:
    """
    The layer that :meth:`Layer.describe` described.

    :raises UserError: where no layer of that name is registered.
    """
    arguments = {key: value for key, value in description.items() if key != "layer"}
    known = {name: cls for name, cls in _REGISTRY.items() if not inspect.isabstract(cls)}
    if description["layer"] not in known:
        raise UserError(
            f"The stored kernel has a layer {description['layer']}; expected one of {', '.join(sorted(known))}: make "
            "the kernel in a program of your own, and multiply it by the alpha in the result's _predictions.npz."
        )
    return known[description["layer"]].from_arguments(**arguments)


def variance_parameter(value: "float | Parameter") -> Parameter:
    """
    A variance as a GPflow parameter in float64: positive and trainable, or fixed where it is exactly 0.

    A :class:`gpflow.Parameter` is kept as it is, so that layers can share it.

    :raises UserError: where the value is negative, infinite or not a number.
    """
    if isinstance(value, Parameter):
        return value
    number = float(value)
    if not (math.isfinite(number) and number >= 0):
        raise UserError(
            f"A variance is {number}; expected a finite number, 0 or more: give var_weight and var_bias so."
        )
    if number == 0:
        # The positive transform has no preimage of 0.
        return Parameter(0.0, dtype=tf.float64, trainable=False)
    return Parameter(number, dtype=tf.float64, transform=positive())
