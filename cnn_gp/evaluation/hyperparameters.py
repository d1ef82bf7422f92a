"""A kernel's hyperparameters in summary, from its description."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

#: A filter's size or its stride: a number, or one for each axis.
PerAxis = int | tuple[int, ...]

#: The layers that aren't nonlinearities.
_LINEAR = ("Sequential", "Sum", "Conv", "Dense", "ChannelMix", "AvgPool", "GlobalAvgPool")


@dataclass(frozen=True)
class Hyperparameters:
    """How many layers a network has, and the distinct values in them, in the order in which they first appear."""

    n_convolutions: int
    filter_sizes: tuple[PerAxis, ...]
    strides: tuple[PerAxis, ...]
    paddings: tuple[str, ...]
    nonlinearities: tuple[str, ...]
    """"ReLU", "step", "ReLU^2", ..., with "sqrt2*" before it where the layer has it; "erf"; else the layer's name."""
    var_weights: tuple[float, ...]
    var_biases: tuple[float, ...]
    n_skips: int


def hyperparameters(kernel: dict[str, Any]) -> Hyperparameters:
    """:param kernel: a kernel's description, :meth:`cnn_gp.kernels.nngp.NNGPKernel.describe`'s."""
    layers = list(_walk(kernel["network"]))
    convolutions = [layer for layer in layers if layer["layer"] == "Conv"]
    weighted = [layer for layer in layers if "var_weight" in layer]
    nonlinearities = [layer for layer in layers if layer["layer"] not in _LINEAR]
    return Hyperparameters(
        n_convolutions=len(convolutions),
        filter_sizes=_distinct(c["filter_size"] for c in convolutions),
        strides=_distinct(c["stride"] for c in convolutions),
        paddings=_distinct(c["padding"] for c in convolutions),
        nonlinearities=_distinct(_nonlinearity(layer) for layer in nonlinearities),
        var_weights=_distinct(layer["var_weight"] for layer in weighted),
        var_biases=_distinct(layer["var_bias"] for layer in weighted),
        n_skips=sum(layer["layer"] == "Sum" for layer in layers),
    )


def readout_pool(kernel: dict[str, Any]) -> int | str | None:
    """The average pool before the first dense layer, as ``--pool`` has it: None, positions on a side, or "global"."""
    layers = kernel["network"].get("layers", [])
    readout = next((i for i, layer in enumerate(layers) if layer["layer"] == "Dense"), 0)
    pool = layers[readout - 1] if readout else {"layer": None}
    if pool["layer"] == "GlobalAvgPool":
        return "global"
    # With another stride it is one of the network's own pools.
    if pool["layer"] == "AvgPool" and (pool["stride"], pool["padding"]) == (1, "SAME"):
        return pool["size"] if isinstance(pool["size"], int) else None
    return None


def _walk(layer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield layer
    for child in layer.get("layers", layer.get("branches", ())):
        yield from _walk(child)


def _nonlinearity(layer: dict[str, Any]) -> str:
    if layer["layer"] != "ExReLU":
        return {"ExErf": "erf"}.get(layer["layer"], layer["layer"])
    exponent = layer["exponent"]
    return ("sqrt2*" if layer["multiply_by_sqrt2"] else "") + {1: "ReLU", 0: "step"}.get(exponent, f"ReLU^{exponent}")


def _distinct(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(tuple(value) if isinstance(value, list) else value for value in values))
