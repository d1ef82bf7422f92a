"""Layers made of layers: one after another, and the sum of branches."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from ..errors import UserError
from .finite import FiniteMap, Prior
from .geometry import Positions
from .layer import Layer, layer_from_description
from .state import Kernels, State, remembering_last


class Sequential(Layer):
    """Layers one after another; without any, the identity."""

    def __init__(self, *layers: Layer, name: str | None = None) -> None:
        super().__init__(name=name)
        self.layers = _checked_layers(layers)

    @property
    def children(self) -> Sequence[Layer]:
        return self.layers

    def propagate(self, state: State) -> State:
        return functools.reduce(lambda state, layer: layer.propagate(state), self.layers, state)

    def output_positions(self, positions: Positions) -> Positions:
        return functools.reduce(lambda positions, layer: layer.output_positions(positions), self.layers, positions)

    def _backwards(self, positions: Positions) -> Iterator[tuple[Layer, Positions]]:
        """From the last layer to the first, with the map before it."""
        maps = [positions]
        for layer in self.layers[:-1]:
            maps.append(layer.output_positions(maps[-1]))
        yield from zip(reversed(self.layers), reversed(maps), strict=False)

    def displacements(self, positions: Positions, n: int) -> int:
        for layer, before in self._backwards(positions):
            n = layer.displacements(before, n)
        return n

    def n_covariances(self, positions: Positions, displacements: int = 1) -> int:
        total = 0
        for layer, before in self._backwards(positions):
            total += layer.n_covariances(before, displacements)
            displacements = layer.displacements(before, displacements)
        return total

    def finite_map(self, prior: Prior, channels: int, positions: Positions, outputs: int) -> FiniteMap:
        last_weighted = max((i for i, layer in enumerate(self.layers) if layer.has_weights), default=-1)
        steps = []
        for i, layer in enumerate(self.layers):
            step = layer.finite_map(prior, channels, positions, prior.width if i < last_weighted else outputs)
            channels, positions = step.channels, step.positions
            steps.append(step.forward)
        return FiniteMap(lambda x: functools.reduce(lambda x, step: step(x), steps, x), channels, positions)

    def describe(self) -> dict[str, Any]:
        return {"layer": "Sequential", "layers": [layer.describe() for layer in self.layers]}

    def structure(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_arguments(cls, layers: Sequence[dict[str, Any]]) -> "Sequential":  # type: ignore[override]
        return cls(*map(layer_from_description, layers))


class Sum(Layer):
    """
    The sum of the outputs of independent branches, all of the same size: the covariances add.

    ``Sum(Sequential(), branch)`` is a residual connection.
    """

    def __init__(self, *branches: Layer, name: str | None = None) -> None:
        super().__init__(name=name)
        if not branches:
            raise UserError("Sum() has no branch; expected at least one layer.")
        self.branches = _checked_layers(branches)

    @property
    def children(self) -> Sequence[Layer]:
        return self.branches

    def propagate(self, state: State) -> State:
        outputs = [branch.propagate(state) for branch in self.branches]
        kernels = functools.reduce(Kernels.plus, (output.kernels for output in outputs))
        terms = [output.displaced for output in outputs]
        displaced = remembering_last(lambda d: functools.reduce(Kernels.plus, (term(d) for term in terms)))
        return State(
            kernels,
            displaced,
            state.sum_dtype,
            held=max(output.held for output in outputs),
            largest=max(output.largest for output in outputs),
        )

    def output_positions(self, positions: Positions) -> Positions:
        sizes = [branch.output_positions(positions) for branch in self.branches]
        if any(size != sizes[0] for size in sizes):
            raise UserError(
                f"A sum adds maps of different sizes: {', '.join(map(str, sizes))}; "
                "expected equal ones: take padding SAME and stride 1 between skip connections."
            )
        return sizes[0]

    def displacements(self, positions: Positions, n: int) -> int:
        # Branches that need the same ones share them.
        return sum({branch.displacements(positions, n) for branch in self.branches})

    def n_covariances(self, positions: Positions, displacements: int = 1) -> int:
        return sum(branch.n_covariances(positions, displacements) for branch in self.branches)

    def finite_map(self, prior: Prior, channels: int, positions: Positions, outputs: int) -> FiniteMap:
        left = self.output_positions(positions)  # refuses maps of different sizes
        branches = [branch.finite_map(prior, channels, positions, outputs) for branch in self.branches]
        counts = [branch.channels for branch in branches]
        if len(set(counts)) > 1:
            raise UserError(
                f"A sum adds maps of {' and '.join(map(str, counts))} channels; expected equal numbers: put a "
                "ChannelMix() or a convolution before the first skip connection."
            )
        return FiniteMap(lambda x: functools.reduce(tf.add, [b.forward(x) for b in branches]), counts[0], left)

    def describe(self) -> dict[str, Any]:
        return {"layer": "Sum", "branches": [branch.describe() for branch in self.branches]}

    def structure(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_arguments(cls, branches: Sequence[dict[str, Any]]) -> "Sum":  # type: ignore[override]
        return cls(*map(layer_from_description, branches))


def _checked_layers(layers: Iterable[Layer]) -> list[Layer]:
    layers = list(layers)
    for layer in layers:
        if not isinstance(layer, Layer):
            raise UserError(f"{layer!r} is a {type(layer).__name__}; expected a layer of cnn_gp.")
    return layers
