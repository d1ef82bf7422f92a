r"""
The layers of average pooling, and what they do to covariances: a loop over displacements.

With :math:`K_d(p)` the covariance between position p of the one image and p + d of the other, a window of k pixels per
axis and stride s, and K 0 outside the map,

.. math::
    K'_d(q) = \frac{1}{k^2} \sum_{a, a' \in \text{window}} K_{s d + a' - a}(s q - \text{before} + a)
            = \frac{1}{k^2} \sum_{g = 1 - k}^{k - 1} \;
              \sum_{a,\, a + g \in \text{window}} K_{s d + g}(s q - \text{before} + a)

where the differences g = a' - a, the sums and :math:`k^2` are those of all axes. The same map is applied to the neural
tangent kernel. The inner sum is :meth:`.Displacements.bands`'; the outer sum is taken over a box of differences at a
time, as many as memory allows, in a loop inside the program: what comes before the pool is compiled once.
"""

import abc
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from ..errors import UserError
from .displacements import Displacements, sum_along
from .finite import FiniteMap, Prior, average
from .geometry import Positions, Window, checked_sizes, json_sizes, windows_of
from .layer import Layer
from .state import Kernels, State, remembering_last

#: Covariances that the largest map has for a box of differences, if a single difference has fewer.
HELD = 1 << 17

#: Pairs of images that are assumed where their number isn't known when the program is built.
_PAIRS = 1024


class _Pool(Layer):
    """Average pooling: covariances with displacements are averaged over two windows (:func:`average_pool`)."""

    @abc.abstractmethod
    def window(self, positions: Positions) -> list[Window]:
        """Per axis of the map, where each output pixel's window begins and ends."""

    def windows(self, positions: Positions) -> list[Window]:
        """As :meth:`window`. :raises UserError: where the map has no axes."""
        if not positions:
            raise UserError(
                f"{type(self).__name__} has no spatial axes to pool over; expected a map with 1 to 3 axes: put it "
                "before the first Dense() or GlobalAvgPool()."
            )
        return self.window(positions)

    def output_positions(self, positions: Positions) -> Positions:
        return tuple(window.outputs for window in self.windows(positions))

    def propagate(self, state: State) -> State:
        return average_pool(state, self.windows(state.positions))

    def displacements(self, positions: Positions, n: int) -> int:
        windows = self.windows(positions)
        on_the_map = math.prod(2 * window.inputs - 1 for window in windows)
        return min(n * n_differences(windows), on_the_map)

    def n_covariances(self, positions: Positions, displacements: int = 1) -> int:
        return 0


class AvgPool(_Pool):
    """
    Average pooling: the mean over a window, divided by the window's size also where it reaches into the padding.

    As after a :class:`Sum` of maps that come after a nonlinearity, weights must follow before the next nonlinearity for
    the finite networks to converge to the kernel: a convolution, a dense layer or a :class:`ChannelMix`.

    :param size: one whole number for all axes, or one per axis.
    :param stride: the same for the stride; None: the size.
    :param padding: "VALID" or "SAME", as in TensorFlow. Padding adds zeros.
    """

    def __init__(
        self,
        size: "int | Sequence[int]",
        stride: "int | Sequence[int] | None" = None,
        padding: str = "VALID",
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        if padding not in ("VALID", "SAME"):
            raise UserError(f"padding is {padding!r}; expected VALID or SAME.")
        self.size = checked_sizes(size, "size")
        self.stride = self.size if stride is None else checked_sizes(stride, "stride")
        self.padding = padding

    def window(self, positions: Positions) -> list[Window]:
        return windows_of(positions, self.size, self.stride, self.padding, "size")

    def finite_map(self, prior: Prior, channels: int, positions: Positions, outputs: int) -> FiniteMap:
        windows = self.windows(positions)
        return FiniteMap(lambda x: average(x, windows), channels, self.output_positions(positions))

    def describe(self) -> dict[str, Any]:
        return {
            "layer": "AvgPool",
            "size": json_sizes(self.size),
            "stride": json_sizes(self.stride),
            "padding": self.padding,
        }


class GlobalAvgPool(_Pool):
    """The mean over the whole map. One pixel is left."""

    def window(self, positions: Positions) -> list[Window]:
        return [Window.of(n, n, 1, "VALID") for n in positions]

    def output_positions(self, positions: Positions) -> Positions:
        self.windows(positions)
        return ()

    def propagate(self, state: State) -> State:
        axes = list(range(len(state.positions)))
        return super().propagate(state).then(lambda kernels, _: kernels.map(lambda mean: tf.squeeze(mean, axes)))

    def finite_map(self, prior: Prior, channels: int, positions: Positions, outputs: int) -> FiniteMap:
        axes = list(range(2, 2 + len(positions)))
        return FiniteMap(lambda x: tf.reduce_mean(x, axes), channels, self.output_positions(positions))

    def describe(self) -> dict[str, Any]:
        return {"layer": "GlobalAvgPool"}


def average_pool(state: State, windows: Sequence[Window]) -> State:
    """The state after average pooling, with one window per axis."""
    sizes, strides = [w.size for w in windows], [w.stride for w in windows]
    if all(size == 1 for size in sizes):
        return _subsampled(state, windows)
    source, sum_dtype = state.displaced, state.sum_dtype

    def terms(d: Displacements, g: Displacements) -> Kernels:
        """Of some differences g, the sum of the terms of K'_d: [D, *outputs, N, M] in float64."""
        needed, index = d.times(strides).plus(g)
        n, m = index.shape
        displacements = Displacements(needed.origin, needed.offsets[index.ravel()])
        differences = Displacements(g.origin, np.tile(g.offsets, [n, 1]))
        bands = [tf.cast(displacements.bands(i, w, differences), sum_dtype) for i, w in enumerate(windows)]

        def summed(covariance: tf.Tensor) -> tf.Tensor:
            total = tf.gather(covariance, index.ravel()) if n > 1 else covariance  # of one d: already in this order
            total = tf.cast(total, sum_dtype)
            for axis, band in enumerate(bands):
                total = sum_along(total, axis, band)
            total = tf.reshape(tf.cast(total, tf.float64), tf.concat([[n, m], tf.shape(total)[1:]], 0))
            return tf.reduce_sum(total, axis=1) / math.prod(sizes) ** 2

        return source(needed).map(summed)

    def rounded(kernels: Kernels) -> Kernels:
        return kernels.map(lambda covariance: tf.cast(covariance, state.nngp.own1.dtype))

    def displaced(d: Displacements) -> Kernels:
        [corner], whole = boxes(sizes, None)
        return rounded(terms(d, Displacements(tf.constant(corner), whole)))

    largest = state.nngp.own1 if state.nngp.cross is None else state.nngp.cross
    pairs = math.prod(largest.shape[-2:]) if largest.shape.is_fully_defined() else _PAIRS
    corners, box = boxes(sizes, max(1, HELD // (state.held * pairs)))
    zero = Displacements.zero(len(windows))
    total = _sum(corners, lambda corner: terms(zero, Displacements(corner, box)))
    kernels = rounded(total.map(lambda covariance: covariance[0]))
    return State(
        kernels,
        remembering_last(displaced),
        sum_dtype,
        held=state.held * n_differences(windows),
        largest=max(state.largest, state.held),
    )


def _subsampled(state: State, windows: Sequence[Window]) -> State:
    """A pool of one pixel: K'_d(q) = K_sd(sq), which mixes no displacements."""
    pixels = (..., *(slice(None, None, w.stride) for w in windows), slice(None), slice(None))
    return state.then(
        lambda kernels, _: kernels.map(lambda covariance: covariance[pixels]),
        before=lambda d: d.times([w.stride for w in windows]),
    )


def n_differences(windows: Sequence[Window]) -> int:
    """How many differences two places in the window have."""
    return math.prod(2 * window.size - 1 for window in windows)


def boxes(sizes: Sequence[int], most: int | None) -> tuple[np.ndarray, np.ndarray]:
    """
    The differences of two places in a window of ``sizes``, cut into boxes of at most ``most`` (None: a single one).

    :return: the first difference of each box [n, rank], and the offsets from there [size of a box, rank]. The last
        boxes may reach beyond the largest difference, where no two places of a window are.
    """
    left = math.prod(2 * size - 1 for size in sizes) if most is None else most
    sides: list[int] = []
    for size in reversed(sizes):
        sides.insert(0, max(1, min(left, 2 * size - 1)))
        left //= sides[0]
    corners = [range(1 - size, size, side) for size, side in zip(sizes, sides, strict=True)]
    return _grid(corners), _grid([range(side) for side in sides])


def _grid(axes: Sequence[Sequence[int]]) -> np.ndarray:
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape([-1, len(axes)]).astype(np.int32)


def _sum(corners: np.ndarray, term: Callable[[tf.Tensor], Kernels]) -> Kernels:
    """The sum of a term for each corner [n, rank], as a loop in the program."""
    total = term(tf.constant(corners[0]))
    if len(corners) == 1:
        return total

    def tensors(kernels: Kernels) -> list[tf.Tensor]:
        return [t for t in tf.nest.flatten(kernels) if t is not None]

    def body(i: tf.Tensor, totals: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
        return i + 1, [t + u for t, u in zip(totals, tensors(term(table[i])), strict=True)]

    n, table = len(corners), tf.constant(corners)
    _, totals = tf.while_loop(lambda i, _: i < n, body, (1, tensors(total)), maximum_iterations=n - 1)
    left = iter(totals)
    return tf.nest.map_structure(lambda t: None if t is None else next(left), total)
