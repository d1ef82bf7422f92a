"""Kernels by name: the paper's, its random search's and Myrtle networks, with a pool or as neural tangent kernels."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from ..errors import UserError
from .random_search import Architecture, SkipRule, draw_architecture

if TYPE_CHECKING:
    from .layer import Layer
    from .network_kernel import NetworkKernel
    from .nngp import NNGPKernel

#: The paper's three networks.
PAPER_MODELS = ("convnet_gp", "residual_cnn_gp", "resnet_gp")

#: Convolutions in each of the three stages of the Myrtle networks.
MYRTLE_STAGES = {"myrtle5": (2, 1, 1), "myrtle7": (2, 2, 2)}

#: The models of the command line. "random" is the random search's draw of a seed.
MODELS = (*PAPER_MODELS, *MYRTLE_STAGES, "random")

#: A network's kernels: of its Gaussian process, or of its training by gradient descent.
KERNELS = ("nngp", "ntk")

#: A pool before the readout: of so many positions of its map on a side, or of the whole map.
Pool = int | Literal["global"]

#: Errors on MNIST in %, validation and test, as the paper's authors report them.
PAPER_ERRORS = {"convnet_gp": (0.71, 1.03), "residual_cnn_gp": (0.72, 0.96), "resnet_gp": (0.68, 0.84)}


def run_name(model: str, seed: int, kernel: str = "nngp", pool: Pool | None = None) -> str:
    """The name of a run's files: ``resnet_gp``, ``seed_31`` of the random search, ``convnet_gp_pool_5_ntk``."""
    name = f"seed_{seed:02d}" if model == "random" else model
    return name + ("" if pool is None else f"_pool_{pool}") + ("" if kernel == "nngp" else f"_{kernel}")


def parse_pool(text: str) -> Pool | None:
    """The pool that a flag names: "none", "global" or a size. :raises UserError: for anything else."""
    if text in ("none", "global"):
        return None if text == "none" else "global"
    if not (text.isdecimal() and len(text) < 5 and int(text)):
        raise UserError(
            f"--pool is {text!r}; expected none, global, or how many positions of the feature map on a side: --pool=5."
        )
    return int(text)


def build_kernel(
    model: str,
    input_shape: Sequence[int],
    *,
    kernel: str = "nngp",
    pool: Pool | None = None,
    seed: int = 53,
    allow_skip: bool | None = None,
    skip_rule: SkipRule = "published",
    depth: int = 32,
    n_blocks: int = 3,
    var_weight: float | None = None,
    var_bias: float | None = None,
    multiply_by_sqrt2: bool | None = None,
) -> "NetworkKernel":
    """
    A kernel by the name of its network.

    :param model: "convnet_gp" (the random search's seed 31), "residual_cnn_gp" (seed 53), "resnet_gp", or "random" for
        the network of ``seed``; "myrtle5" and "myrtle7" are those of Shankar et al. 2020 (arXiv:2003.02237).
    :param input_shape: [C, *positions] of the images.
    :param kernel: "nngp", of the network's Gaussian process, or "ntk", its neural tangent kernel.
    :param pool: an average pool before the first dense layer: of ``pool`` x ``pool`` positions with stride 1 and
        padding SAME, or "global", of the whole map. None: the network's own readout.
    :param depth: layers of the ResNet: 2 * n_blocks * n + 2 for n units in each of ``n_blocks`` blocks, whose strides
        are 1, 2, 2, ...
    :param var_weight, var_bias, multiply_by_sqrt2: in place of the model's own.
    :raises ShrunkMapError: where the network's map shrinks below one pixel on such images.
    :raises UserError: where an argument is unknown, out of range or not one of the model's.
    """
    architecture = checked_architecture(
        model,
        kernel=kernel,
        seed=seed,
        allow_skip=allow_skip,
        skip_rule=skip_rule,
        depth=depth,
        n_blocks=n_blocks,
        var_weight=var_weight,
        var_bias=var_bias,
        multiply_by_sqrt2=multiply_by_sqrt2,
    )
    if model == "resnet_gp":
        plain = _resnet(input_shape, depth, n_blocks, var_weight, var_bias, bool(multiply_by_sqrt2))
    elif architecture is None:
        from .myrtle import myrtle_kernel

        plain = myrtle_kernel(MYRTLE_STAGES[model], input_shape, var_weight, var_bias, bool(multiply_by_sqrt2), model)
    else:
        own: dict[str, Any] = {"var_weight": var_weight, "var_bias": var_bias, "multiply_by_sqrt2": multiply_by_sqrt2}
        changed = replace(architecture, **{name: value for name, value in own.items() if value is not None})
        plain = changed.kernel(input_shape, name=run_name(model, seed))
    if kernel == "nngp" and pool is None:
        return plain
    return network_kernel(
        plain.network, input_shape, kernel=kernel, pool=pool, name=run_name(model, seed, kernel, pool)
    )


def network_kernel(
    network: "Layer",
    input_shape: Sequence[int],
    *,
    kernel: str = "nngp",
    pool: Pool | None = None,
    name: str | None = None,
) -> "NetworkKernel":
    """The kernel of a network of layers; the other arguments are :func:`build_kernel`'s."""
    from .nngp import NNGPKernel
    from .ntk import NTKKernel

    if pool is not None:
        network = _with_pool(network, input_shape, pool)
    return (NNGPKernel if kernel == "nngp" else NTKKernel)(network, input_shape, name=name)


def checked_architecture(
    model: str,
    *,
    kernel: str = "nngp",
    seed: int = 53,
    allow_skip: bool | None = None,
    skip_rule: SkipRule = "published",
    depth: int = 32,
    n_blocks: int = 3,
    var_weight: float | None = None,
    var_bias: float | None = None,
    multiply_by_sqrt2: bool | None = None,
) -> Architecture | None:
    """
    The draw that a model's kernel is built from, without its overrides; None for the ResNet and the Myrtle networks.

    It needs no TensorFlow.

    :raises UserError: where :func:`build_kernel` can't take these arguments, whatever the images.
    """
    for what, given, known in (("model", model, MODELS), ("kernel", kernel, KERNELS)):
        if given not in known:
            raise UserError(f"The {what} is {given!r}; expected one of {', '.join(known)}.")
    for name, variance in (("var_weight", var_weight), ("var_bias", var_bias)):
        if variance is not None and not 0 <= variance < math.inf:
            raise UserError(f"{name} is {variance}; expected a finite number of at least 0.")
    for name, value, default, only in (
        ("allow_skip", allow_skip, None, "random"),
        ("skip_rule", skip_rule, "published", "random"),
        ("depth", depth, 32, "resnet_gp"),
        ("n_blocks", n_blocks, 3, "resnet_gp"),
    ):
        if value != default and model != only:
            raise UserError(f"{name} is given for {model}, and only {only} has it: leave it out.")
    if model == "resnet_gp":
        if n_blocks < 1 or depth < 2 * n_blocks + 2 or (depth - 2) % (2 * n_blocks):
            raise UserError(
                f"The ResNet's depth is {depth} with {n_blocks} blocks; expected 2 * n_blocks * n + 2 for a whole "
                "number n of units in each block: with 3 blocks 8, 14, 20, 26, 32, ..."
            )
        return None
    if model in MYRTLE_STAGES:
        return None
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
    return architecture


def _with_pool(network: "Layer", input_shape: Sequence[int], pool: Pool) -> "Layer":
    """The network with an average pool before its first dense layer."""
    from .composition import Sequential
    from .layers import Dense
    from .pooling import AvgPool, GlobalAvgPool

    layers = network.layers if isinstance(network, Sequential) else [network]
    readout = next((i for i, layer in enumerate(layers) if isinstance(layer, Dense)), None)
    if readout is None:
        raise UserError(
            f"A pool ({pool}) is asked for where the network has no Dense() in its outer Sequential: add one."
        )
    before = Sequential(*layers[:readout])
    if max(before.output_positions(tuple(input_shape[1:])), default=1) == 1:
        raise UserError(
            f"A pool ({pool}) is asked for where the map before the readout is one pixel; expected a map to pool: "
            "leave the pool out."
        )
    return Sequential(
        *before.layers, GlobalAvgPool() if pool == "global" else AvgPool(pool, 1, "SAME"), *layers[readout:]
    )


def _resnet(
    input_shape: Sequence[int],
    depth: int,
    n_blocks: int,
    var_weight: float | None,
    var_bias: float | None,
    multiply_by_sqrt2: bool,
) -> "NNGPKernel":
    from .nonlinearities import ExReLU
    from .resnet import ResnetKernel

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
