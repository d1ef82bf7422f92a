"""
Gaussian processes equivalent to deep convolutional networks.

The kernels of Garriga-Alonso, Aitchison & Rasmussen, "Deep Convolutional Networks as shallow Gaussian Processes"
(ICLR 2019), as GPflow kernels, and what it takes to classify tens of thousands of images with them.

The names below are imported when they are first used: ``import cnn_gp`` alone doesn't import TensorFlow.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from ._gram import gram
    from .architectures import build_kernel
    from .datasets import load
    from .errors import ShrunkMapError, UserError
    from .finite import FiniteNetwork
    from .kernels import DeepKernel, NNGPKernel, ResnetKernel
    from .layers import ChannelMix, Conv, Dense, ExErf, ExReLU, Layer, Sequential, Sum

_HOMES = {
    "architectures": ["build_kernel"],
    "datasets": ["load"],
    "errors": ["ShrunkMapError", "UserError"],
    "finite": ["FiniteNetwork"],
    "_gram": ["gram"],
    "kernels": ["DeepKernel", "NNGPKernel", "ResnetKernel"],
    "layers": ["ChannelMix", "Conv", "Dense", "ExErf", "ExReLU", "Layer", "Sequential", "Sum"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "ChannelMix",
    "Conv",
    "DeepKernel",
    "Dense",
    "ExErf",
    "ExReLU",
    "FiniteNetwork",
    "Layer",
    "NNGPKernel",
    "ResnetKernel",
    "Sequential",
    "ShrunkMapError",
    "Sum",
    "UserError",
    "__version__",
    "build_kernel",
    "gram",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
