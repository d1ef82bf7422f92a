"""The paper's kernels by name, and the random search that found two of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from .errors import UserError

if TYPE_CHECKING:
    from .kernels import NNGPKernel

SkipRule = Literal["published", "released"]

#: The models of the command line. "random" is the random search's draw of a seed.
MODELS = ("convnet_gp", "residual_cnn_gp", "resnet_gp", "random")

#: Errors on MNIST in %, validation and test, as the paper's authors report them.
PAPER_ERRORS = {"convnet_gp": (0.71, 1.03), "residual_cnn_gp": (0.72, 0.96), "resnet_gp": (0.68, 0.84)}

#: The seeds of the paper's random search: plain networks up to 35, skip connections allowed from 36 on.
SEARCH_SEEDS = (*range(1, 61), 1234)
_FIRST_SEED_WITH_SKIPS, _LAST_SEED_WITH_SKIPS = 36, 60
_FIXED_SEED = 1234


@dataclass(frozen=True)
class Architecture:
    """The hyperparameters of a network of the random search (:class:`cnn_gp.kernels.DeepKernel`)."""

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
        from .kernels import DeepKernel
        from .layers import ExErf, ExReLU, Nonlinearity

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
        gives the paper's networks. "released": the rule that the released program has, where the parentheses are
        elsewhere and every seed below 56 gets a skip.
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


def run_name(model: str, seed: int) -> str:
    """The name of a run's files: the model's, or ``seed_NN`` of the random search."""
    return f"seed_{seed:02d}" if model == "random" else model


def build_kernel(
    model: str,
    input_shape: Sequence[int],
    *,
    seed: int = 53,
    allow_skip: bool | None = None,
    skip_rule: SkipRule = "published",
    depth: int = 32,
    n_blocks: int = 3,
    var_weight: float | None = None,
    var_bias: float | None = None,
    multiply_by_sqrt2: bool | None = None,
) -> "NNGPKernel":
    """
    A kernel of the paper, by name.

    :param model: "convnet_gp" (the random search's seed 31), "residual_cnn_gp" (seed 53), "resnet_gp", or "random" for
        the network of ``seed``.
    :param input_shape: [C, *positions] of the images.
    :param depth: layers of the ResNet: 2 * n_blocks * n + 2 for n units in each of ``n_blocks`` blocks, whose strides
        are 1, 2, 2, ...
    :param var_weight, var_bias, multiply_by_sqrt2: in place of the model's own.
    :raises ShrunkMapError: where the network's map shrinks below one pixel on such images.
    """
    if model not in MODELS:
        raise UserError(f"The model is {model!r}; expected one of {', '.join(MODELS)}.")
    if model == "resnet_gp":
        return _resnet(input_shape, depth, n_blocks, var_weight, var_bias, bool(multiply_by_sqrt2))
    fixed_seeds = {"convnet_gp": 31, "residual_cnn_gp": 53}
    if model == "random":
        architecture = draw_architecture(seed, allow_skip, skip_rule)
    else:
        architecture = draw_architecture(fixed_seeds[model])
    if multiply_by_sqrt2 is not None and architecture.nonlinearity != "ExReLU":
        raise UserError(
            f"multiply_by_sqrt2 is given for {run_name(model, seed)}, whose nonlinearity is the erf; "
            "expected a ReLU network: leave the flag out."
        )
    if var_weight is not None:
        architecture = replace(architecture, var_weight=var_weight)
    if var_bias is not None:
        architecture = replace(architecture, var_bias=var_bias)
    if multiply_by_sqrt2 is not None:
        architecture = replace(architecture, multiply_by_sqrt2=multiply_by_sqrt2)
    return architecture.kernel(input_shape, name=run_name(model, seed))


def _resnet(
    input_shape: Sequence[int],
    depth: int,
    n_blocks: int,
    var_weight: float | None,
    var_bias: float | None,
    multiply_by_sqrt2: bool,
) -> "NNGPKernel":
    from .kernels import ResnetKernel
    from .layers import ExReLU

    if n_blocks < 1 or depth < 2 * n_blocks + 2 or (depth - 2) % (2 * n_blocks):
        raise UserError(
            f"The ResNet's depth is {depth} with {n_blocks} blocks; expected 2 * n_blocks * n + 2 for a whole number n "
            "of units in each block: with 3 blocks 8, 14, 20, 26, 32, ..."
        )
    return ResnetKernel(
        input_shape,
        block_sizes=[(depth - 2) // (2 * n_blocks)] * n_blocks,
        block_strides=[1] + [2] * (n_blocks - 1),
        kernel_size=3,
        recurse_kern=ExReLU(multiply_by_sqrt2=multiply_by_sqrt2),
        var_weight=1.0 if var_weight is None else var_weight,
        var_bias=0.0 if var_bias is None else var_bias,
        name="resnet_gp",
    )
