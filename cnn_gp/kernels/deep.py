"""The family of the paper's random search: convolutions, each followed by one nonlinearity, then a readout."""

from collections.abc import Sequence

from gpflow.base import Parameter
from gpflow.kernels.base import ActiveDims

from ..errors import UserError
from .composition import Sequential, Sum
from .geometry import check_data_format, checked_sizes
from .layer import Layer, variance_parameter
from .layers import ChannelMix, Conv, Dense
from .nngp import NNGPKernel
from .nonlinearities import Nonlinearity


class DeepKernel(NNGPKernel):
    """
    The paper's random-search family: convolutions, each followed by one nonlinearity, then a dense readout.

    A convolution's sum over the patch is multiplied by ``var_weight`` and not divided by the size of the patch.

    With skip connections, before each convolution named by ``skip_freq`` the map at the previous such point, or the
    input, is added. These maps come after a nonlinearity, so the sum of covariances is that of a network only with an
    infinite 1x1 convolution after each of them and on the input (:class:`~cnn_gp.kernels.layers.ChannelMix`).

    :param input_shape: [C, *positions].
    :param filter_sizes: one entry per convolution: a whole number, or one per axis ([] without spatial axes).
    :param recurse_kern: the nonlinearity, :class:`~.nonlinearities.ExReLU` or :class:`~.nonlinearities.ExErf`.
    :param var_weight: weight variance times fan-in channels, shared by all layers.
    :param var_bias: bias variance, shared by all layers.
    :param padding: "SAME" or "VALID" (or "FIXED"), or one per convolution.
    :param strides: one entry per convolution; None means 1.
    :param data_format: "NC", "NCW", "NCHW" or "NCDHW"; None infers it from ``input_shape``, one that contradicts it
        is an error.
    :param skip_freq: a skip connection before each ``skip_freq``-th convolution; a list names their 0-based indices
        (0 is ignored); 0 or less means none.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        filter_sizes: Sequence["int | Sequence[int]"],
        recurse_kern: Nonlinearity,
        var_weight: "float | Parameter" = 1.0,
        var_bias: "float | Parameter" = 1.0,
        padding: "str | Sequence[str]" = "SAME",
        strides: "Sequence[int | Sequence[int]] | None" = None,
        data_format: str | None = None,
        active_dims: ActiveDims | None = None,
        skip_freq: "int | Sequence[int]" = -1,
        name: str | None = None,
    ) -> None:
        check_data_format(data_format, input_shape)
        var_weight, var_bias = variance_parameter(var_weight), variance_parameter(var_bias)
        n_convs = len(filter_sizes)
        paddings = [padding] * n_convs if isinstance(padding, str) else list(padding)
        strides = [1] * n_convs if strides is None else list(strides)
        for what, values in (("padding", paddings), ("strides", strides)):
            if len(values) != n_convs:
                raise UserError(f"{what} has {len(values)} entries; expected {n_convs}, one per filter size.")

        layers: list[list[Layer]] = [
            [Conv(size, stride, pad, var_weight, var_bias), recurse_kern]
            for size, stride, pad in zip(filter_sizes, strides, paddings, strict=True)
        ]
        skips = _skip_indices(skip_freq, n_convs)
        network: list[Layer] = [ChannelMix()] if skips else []
        for start, end in zip([0, *skips], [*skips, n_convs], strict=True):
            block = [layer for pair in layers[start:end] for layer in pair]
            network += block if end == n_convs else [Sum(Sequential(), Sequential(*block, ChannelMix()))]
        readout = Dense(var_weight, var_bias)
        super().__init__(Sequential(*network, readout), input_shape, active_dims=active_dims, name=name)
        self.var_weight, self.var_bias = var_weight, var_bias


def _skip_indices(skip_freq: "int | Sequence[int]", n_convs: int) -> list[int]:
    """The 0-based indices of the convolutions that have a skip connection before them."""
    skip_freq = checked_sizes(skip_freq, "skip_freq")
    if isinstance(skip_freq, int):
        return list(range(skip_freq, n_convs, skip_freq)) if skip_freq > 0 else []
    if any(not 0 <= index < n_convs for index in skip_freq):
        raise UserError(f"skip_freq is {list(skip_freq)}; expected indices of the {n_convs} convolutions, from 0.")
    return sorted(set(skip_freq) - {0})
