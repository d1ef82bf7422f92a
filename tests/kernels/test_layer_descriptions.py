"""What a layer says of itself, and layers made again from it."""

import inspect
import json

import pytest

from cnn_gp.errors import UserError
from cnn_gp.kernels.composition import Sequential
from cnn_gp.kernels.layer import Layer, layer_from_description
from cnn_gp.kernels.layers import ChannelMix, Conv, Dense
from cnn_gp.kernels.nonlinearities import (
    LeakyReLU,
)
from cnn_gp.kernels.pooling import AvgPool
from helpers.layers import DESCRIBED


@pytest.mark.parametrize(("layer", "other"), DESCRIBED.values(), ids=[cls.__name__ for cls in DESCRIBED])
def test_descriptions_are_json_and_tell_layers_apart(layer, other):
    text = json.dumps(layer.describe())
    assert json.loads(text)["layer"] == type(layer).__name__
    assert other is None or json.dumps(other.describe()) != text


@pytest.mark.parametrize(
    "layer",
    [*(case for case, _ in DESCRIBED.values()), Conv((3, 2), [1, 2])],
    ids=[*(cls.__name__ for cls in DESCRIBED), "Conv per axis"],
)
def test_a_layer_is_made_again_from_its_description(layer):
    description = layer.describe()
    again = layer_from_description(json.loads(json.dumps(description)))
    assert type(again) is type(layer)
    assert json.loads(json.dumps(description)) == description == again.describe()


def test_a_layer_of_ones_own_is_made_again_too_but_has_no_finite_version():
    class Halved(ChannelMix):
        def describe(self):
            return {"layer": "Halved"}

    class Bare(Layer):
        def propagate(self, state):
            return state

        def describe(self):
            return {"layer": "Bare"}

    again = layer_from_description(Sequential(Halved(), Bare(), Dense()).describe())
    assert [type(layer) for layer in again.layers] == [Halved, Bare, Dense]
    with pytest.raises(UserError, match=r"^Bare has no finite version; expected the layers of .*[^\n]$"):
        again.finite(3, [1, 4, 4])


@pytest.mark.parametrize("kind", ["Attention", "Nonlinearity", "Layer"])
def test_an_unknown_layer_is_one_line(kind):
    with pytest.raises(UserError, match=rf"has a layer {kind}; expected one of .*Conv, .*Dense, .*, Sum.*[^\n]$"):
        layer_from_description({"layer": "Sequential", "layers": [{"layer": kind}]})


# For each argument of a layer's constructor: another value than its default (a size's is 3 here).
OTHERS = {
    "filter_size": 4,
    "stride": 2,
    "padding": "VALID",
    "var_weight": 1.4,
    "var_bias": 0.2,
    "divide_by_patch": True,
    "exponent": 0,
    "multiply_by_sqrt2": True,
    "size": 4,
    "alpha": 0.3,
    "a": 2.0,
    "b": 2.0,
    "c": 0.5,
}


def constructor_arguments(cls):
    parameters = inspect.signature(cls).parameters.values()
    return [p.name for p in parameters if p.kind is not p.VAR_POSITIONAL and p.name != "name"]


@pytest.mark.parametrize(("cls", "argument"), [(cls, a) for cls in DESCRIBED for a in constructor_arguments(cls)])
def test_each_hyperparameter_is_in_the_description(cls, argument):
    given = {Conv: {"filter_size": 3}, AvgPool: {"size": 3, "stride": 1}, LeakyReLU: {"alpha": 0.1}}.get(cls, {})
    other = "SAME" if cls is AvgPool and argument == "padding" else OTHERS[argument]
    assert cls(**given).describe() != cls(**{**given, argument: other}).describe()
