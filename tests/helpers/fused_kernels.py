"""Small kernels that the fused engine computes, each with the relative error that it may have in float32."""

import numpy as np

from cnn_gp import (
    Abs,
    AvgPool,
    ChannelMix,
    Conv,
    DeepKernel,
    Dense,
    ExErf,
    ExReLU,
    GlobalAvgPool,
    LeakyReLU,
    NNGPKernel,
    NTKKernel,
    ResnetKernel,
    Sequential,
    Sum,
)
from cnn_gp.kernels.myrtle import myrtle_kernel
from cnn_gp.kernels.network_kernel import NetworkKernel

KERNELS = {
    "fully connected": (DeepKernel([7], [[]] * 3, ExReLU(), 2.0, 0.3), 3e-7),
    "one axis": (DeepKernel([3, 17], [3, 4], ExReLU(), 2.0, 0.3), 1e-6),
    "colour, even filters, stride 2": (DeepKernel([3, 9, 7], [4, 2], ExReLU(), 1.3, 0.2, "SAME", [2, 1]), 1e-6),
    "valid, stride beyond the filter": (DeepKernel([1, 12, 11], [1, 2], ExReLU(), 1.3, 0.2, "VALID", [3, 1]), 1e-6),
    "wide filters": (DeepKernel([1, 6, 6], [7, 6, 5], ExReLU(), 1.3, 0.2), 1e-6),
    "filters of two sizes": (DeepKernel([1, 8, 6], [[3, 1], [1, 5]], ExReLU(), 1.3, 0.2, strides=[[1, 2], 1]), 1e-6),
    "skips": (DeepKernel([2, 8, 8], [3] * 6, ExReLU(multiply_by_sqrt2=True), 2.0, 1.0, skip_freq=2), 1e-6),
    "skips everywhere": (DeepKernel([2, 8, 8], [3] * 4, ExReLU(), 2.0, 1.0, skip_freq=1), 1e-6),
    "step": (DeepKernel([2, 8, 8], [3] * 3, ExReLU(exponent=0, multiply_by_sqrt2=True), 2.0, 1.0), 1e-3),
    "erf": (DeepKernel([2, 8, 8], [3] * 9, ExErf(), 6.3, 5.0, skip_freq=3), 1e-5),
    "leaky": (
        NNGPKernel(
            Sequential(
                Conv(3, 2, var_weight=1.3, var_bias=0.1),
                LeakyReLU(0.2),
                Sum(Sequential(), Sequential(Conv(2), Abs())),
                AvgPool(2),
                Dense(),
                Abs(),
                Dense(),
            ),
            [2, 9, 8],
        ),
        1e-6,
    ),
    "resnet": (ResnetKernel([1, 10, 10], [2, 2], [1, 2], 3, ExReLU(), 1.0, 0.1), 1e-6),
    "sums of three": (
        NNGPKernel(
            Sequential(
                ExReLU(),
                Sum(Sequential(), Conv(3), Sequential(ExErf(), ExReLU())),
                Sum(ChannelMix(), Sequential()),
                Sum(ExReLU(), ExReLU()),
                Dense(),
                ExReLU(),
                Dense(),
            ),
            [1, 5, 5],
        ),
        1e-5,
    ),
    "a readout alone": (NNGPKernel(Sequential(Dense(2.0, 0.5)), [2, 4, 4]), 3e-7),
}


def conv(size: int = 3, stride: int = 1, padding: str = "SAME") -> Conv:
    """A convolution with some variances."""
    return Conv(size, stride, padding, 1.8, 0.1, divide_by_patch=True)


POOLED = {
    "pool of the image": (Sequential(GlobalAvgPool()), [2, 3, 4]),
    "pool over one axis": (Sequential(conv(), ExReLU(), AvgPool(4, 3, "SAME"), Dense(1.2, 0.1)), [3, 9]),
    "pool": (Sequential(conv(), ExReLU(), conv(4), ExReLU(), AvgPool(3, 1, "SAME"), Dense(1.2, 0.1)), [2, 6, 5]),
    "pool of a strided map, layers after": (
        Sequential(conv(2, 2), ExReLU(), conv(3, 1, "VALID"), ExReLU(), AvgPool((2, 3)), Dense(), ExReLU(), Dense()),
        [1, 13, 12],
    ),
    "pool, erf": (Sequential(conv(), ExErf(), conv(), ExErf(), AvgPool(3, 2), Dense(), ExErf(), Dense()), [1, 7, 7]),
    "pool, residual": (
        Sequential(
            conv(),
            Sum(Sequential(), Sequential(ExReLU(), conv(3, 1, "FIXED"), ChannelMix())),
            Sum(Sequential(conv(3, 2, "FIXED"), ExReLU()), Sequential(ExReLU(), conv(1, 2))),
            ExReLU(),
            GlobalAvgPool(),
            ExReLU(),
            Dense(1.2, 0.1),
        ),
        [1, 8, 8],
    ),
}
STREAMED = {
    "myrtle": (myrtle_kernel((2, 1, 1), [3, 8, 8]).network, [3, 8, 8]),
    "pool of 3 within, stride 2": (
        Sequential(conv(), ExReLU(), AvgPool(3, 2), conv(), ExReLU(), GlobalAvgPool(), Dense(1.2, 0.1)),
        [2, 7, 6],
    ),
    "pools within, no last one, erf": (
        Sequential(
            *(conv(), ExReLU(), AvgPool(2, 1), conv(3, 2), ExReLU(), AvgPool((2, 1)), conv(), ExErf()),
            *(Dense(1.2, 0.1), ExReLU(), Dense()),
        ),
        [1, 9, 8],
    ),
    "pools within, residual": (
        Sequential(
            conv(),
            Sum(Sequential(), Sequential(ExReLU(), conv(), ChannelMix())),
            ExReLU(),
            AvgPool(2),
            Sum(Sequential(), Sequential(ExReLU(), conv())),
            ExReLU(),
            AvgPool(2, 1, "SAME"),
            Dense(1.2, 0.1),
            ExReLU(),
            Dense(),
        ),
        [2, 8, 6],
    ),
    "two pools together, one axis": (
        Sequential(conv(), ExReLU(), AvgPool(2), AvgPool(2), conv(), ExReLU(), GlobalAvgPool(), Dense()),
        [2, 17],
    ),
}
POOLED |= STREAMED
KERNELS |= {name: (NNGPKernel(network, shape), 2e-6) for name, (network, shape) in POOLED.items()}
KERNELS |= {
    f"{name}, ntk": (NTKKernel(kernel.network, kernel.input_shape), 3e-6)
    for name, (kernel, _) in KERNELS.items()
    if name != "step"
}


def images(kernel: NetworkKernel, n: int, seed: int = 0) -> np.ndarray:
    """Random ones, of which one is black and two are equal."""
    X = np.random.default_rng(seed).random((n, kernel.input_size)).astype(np.float32)
    X *= np.random.default_rng(1).random(X.shape) < 0.6
    X[1] = 0
    X[3] = X[2]
    return X


#: The kernels of the paper.
NAMED = ["convnet_gp", "residual_cnn_gp", "resnet_gp"]
