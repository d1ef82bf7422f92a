"""The paper's kernels by name, and the random search that found two of them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import UserError
from .random_search import SkipRule, draw_architecture

if TYPE_CHECKING:
    from .nngp import NNGPKernel


#: The models of the command line. "random" is the random search's draw of a seed.
MODELS = ("convnet_gp", "residual_cnn_gp", "resnet_gp", "random")

#: Errors on MNIST in %, validation and test, as the paper's authors report them.
PAPER_ERRORS = {"convnet_gp": (0.71, 1.03), "residual_cnn_gp": (0.72, 0.96), "resnet_gp": (0.68, 0.84)}


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
    from .layers import ExReLU
    from .resnet import ResnetKernel

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
