"""The paper's random search: the network that it draws for a seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..errors import ShrunkMapError, UserError
from .geometry import Window

if TYPE_CHECKING:
    from .nngp import NNGPKernel

SkipRule = Literal["published", "released"]

#: The seed of a network that isn't drawn.
_FIXED_SEED = 1234

#: The seeds of the paper's random search: plain networks up to 35, skip connections allowed from 36 on.
SEARCH_SEEDS = (*range(1, 61), _FIXED_SEED)

_FIRST_SEED_WITH_SKIPS, _LAST_SEED_WITH_SKIPS = 36, 60


@dataclass(frozen=True)
class Architecture:
    """The hyperparameters of a network of the random search (:class:`cnn_gp.kernels.deep.DeepKernel`)."""

    filter_sizes: tuple[int, ...]
    strides: tuple[int, ...]
    paddings: tuple[str, ...]
    nonlinearity: Literal["ExReLU", "ExErf"]
    var_weight: float
    var_bias: float
    skip_freq: int = -1
    multiply_by_sqrt2: bool = True

    def kernel(self, input_shape: Sequence[int], name: str | None = None) -> "NNGPKernel":
        """The kernel on images [C, *positions]. :raises ShrunkMapError: where the map shrinks below one pixel."""
        from .deep import DeepKernel
        from .nonlinearities import ExErf, ExReLU, Nonlinearity

        nonlinearity: Nonlinearity = (
            ExErf() if self.nonlinearity == "ExErf" else ExReLU(multiply_by_sqrt2=self.multiply_by_sqrt2)
        )
        return DeepKernel(
            input_shape,
            self.filter_sizes,
            nonlinearity,
            self.var_weight,
            self.var_bias,
            self.paddings,
            self.strides,
            skip_freq=self.skip_freq,
            name=name,
        )


def draw_architecture(seed: int, allow_skip: bool | None = None, skip_rule: SkipRule = "published") -> Architecture:
    """
    The random search's network of a seed.

    Every number comes from NumPy's legacy ``RandomState(seed)``, in the order of the 2019 program. Seed 1234 is a fixed
    network.

    :param allow_skip: whether skip connections are allowed, which also changes the ranges of depth and filter size;
        None: for seeds 36 to 60, as in the paper.
    :param skip_rule: "published": a skip is taken if it is allowed and (a coin says so or the seed is below 56), which
        gives the paper's networks. "released": the rule of the released program, where the parentheses are elsewhere
        and every seed below 56 gets a skip.
    :raises UserError: where the seed or the rule can't be used.
    """
    if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**32:
        raise UserError(f"The seed is {seed!r}; expected a whole number from 0 to {2**32 - 1}.")
    if skip_rule not in ("published", "released"):
        raise UserError(f"The skip rule is {skip_rule!r}; expected published or released.")
    if seed == _FIXED_SEED:
        paddings = ("VALID", "SAME", "VALID", "SAME")
        return Architecture((5, 2, 5, 2), (1, 1, 1, 1), paddings, "ExReLU", var_weight=1.0, var_bias=1.0)
    if allow_skip is None:
        allow_skip = _FIRST_SEED_WITH_SKIPS <= seed <= _LAST_SEED_WITH_SKIPS
    u = np.random.RandomState(seed).random_sample
    fewest_layers, layer_span, filter_span = (4, 12, 4) if allow_skip else (2, 7, 5)
    var_weight = 0.5 + 8 * u()
    var_bias = 0.2 + 8 * u()
    n_layers = fewest_layers + int(layer_span * u())
    filter_size = 3 + int(filter_span * u())
    stride = 1 + int(3 * u())
    padding = "VALID" if u() > 0.5 else "SAME"
    nonlinearity: Literal["ExReLU", "ExErf"] = "ExReLU" if u() > 0.5 else "ExErf"
    coin, early = u() > 0.5, seed < 56
    takes_skip = (allow_skip and (coin or early)) if skip_rule == "published" else ((allow_skip and coin) or early)
    skip_freq = -1
    if takes_skip:
        skip_freq = int(2 * u()) + 1
        padding, stride = "SAME", 1
    return Architecture(
        (filter_size,) * n_layers,
        (stride,) * n_layers,
        (padding,) * n_layers,
        nonlinearity,
        var_weight,
        var_bias,
        skip_freq,
    )


def shrunk_seeds(positions: Sequence[int]) -> list[int]:
    """The seeds of the search that have no kernel on images of a size: a map shrinks below one pixel."""
    return [seed for seed in SEARCH_SEEDS if _shrinks(seed, positions)]


def _shrinks(seed: int, positions: Sequence[int]) -> bool:
    a = draw_architecture(seed)
    sizes = list(positions)
    try:
        for filter_size, stride, padding in zip(a.filter_sizes, a.strides, a.paddings, strict=True):
            sizes = [Window.of(size, filter_size, stride, padding).outputs for size in sizes]
    except ShrunkMapError:
        return True
    return False
