"""The layers, one by one: windows, sums, what they refuse, and that every one is covered."""

import inspect
import itertools
import json
import re

import numpy as np
import pytest
import tensorflow as tf

from cnn_gp import NNGPKernel, NTKKernel
from cnn_gp.errors import ShrunkMapError, UserError
from cnn_gp.kernels import layers, nonlinearities, pooling
from cnn_gp.kernels.geometry import Window
from cnn_gp.kernels.layer import Layer, layer_from_description
from cnn_gp.kernels.layers import ChannelMix, Conv, Dense, Sequential, Sum
from cnn_gp.kernels.nonlinearities import (
    GELU,
    Abs,
    Cos,
    ElementwiseNumerical,
    ExErf,
    ExReLU,
    LeakyReLU,
    Nonlinearity,
    Sin,
)
from cnn_gp.kernels.pooling import AvgPool, GlobalAvgPool
from cnn_gp.kernels.state import Covariances, Kernels, State, input_state
from helpers.paths import ROOT

# For each layer: another one of other hyperparameters.
CASES = {
    Conv: (Conv(3, 2, "SAME", 1.3, 0.2), Conv(3, 2, "SAME", 1.3, 0.3)),
    Dense: (Dense(1.3, 0.2), Dense(1.4, 0.2)),
    AvgPool: (AvgPool(2, 1, "SAME"), AvgPool(2, 1, "VALID")),
    GlobalAvgPool: (GlobalAvgPool(), None),
    ExReLU: (ExReLU(), ExReLU(multiply_by_sqrt2=True)),
    ExErf: (ExErf(), None),
    LeakyReLU: (LeakyReLU(0.1), LeakyReLU(0.2)),
    Abs: (Abs(), None),
    GELU: (GELU(), None),
    Sin: (Sin(), Sin(2.0)),
    Cos: (Cos(), Cos(c=0.1)),
    ElementwiseNumerical: (ElementwiseNumerical(tf.math.tanh, degree=4), None),
    ChannelMix: (ChannelMix(), None),
    Sequential: (Sequential(Conv(2), ExReLU()), Sequential(Conv(2), ExErf())),
    Sum: (Sum(Sequential(), Conv(3)), Sum(Sequential(), Conv(3, var_weight=2.0))),
}

# A function has no description.
DESCRIBED = {cls: layers for cls, layers in CASES.items() if cls is not ElementwiseNumerical}


def state_of(rng, positions, n, dtype=np.float64, sum_dtype=None, alone=False):
    """The covariances of n random images with four channels, with themselves."""
    x = tf.reshape(rng.normal(size=[n, 4, *positions]).astype(dtype), [n, -1])
    return input_state(x, None if alone else x, [4, *positions], tf.as_dtype(sum_dtype or dtype))


def plain_state(cross, own1, own2):
    """A state of given covariances, without displacements."""
    cross, own1, own2 = (None if t is None else tf.constant(t) for t in (cross, own1, own2))
    return State(Kernels(Covariances(cross, own1, own2), None), None, tf.float64, 1, 1)


def cross_after(layer, state):
    return layer.propagate(state).nngp.cross


def test_every_layer_is_covered():
    concrete = {
        cls
        for module in (layers, nonlinearities, pooling)
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, Layer) and not inspect.isabstract(cls)
    }
    assert concrete == set(CASES)


@pytest.mark.parametrize(
    ("layer", "positions"),
    [
        pytest.param(layer, positions, id=f"{cls.__name__}-{positions}")
        for cls, (layer, _) in CASES.items()
        for positions in [(5, 4), (6,), (3, 4, 2), *([()] if cls not in (AvgPool, GlobalAvgPool) else [])]
    ],
)
def test_variances_are_the_covariances_of_identical_images(layer, positions, rng):
    state = layer.propagate(state_of(rng, positions, 3))
    diagonal = tf.linalg.diag_part(state.nngp.cross)
    np.testing.assert_allclose(diagonal, state.nngp.own1[..., 0], rtol=1e-13)
    np.testing.assert_allclose(diagonal, state.nngp.own2[..., 0, :], rtol=1e-13)
    assert tuple(state.nngp.cross.shape[:-2]) == layer.output_positions(positions)


@pytest.mark.parametrize("layer", [case for case, _ in CASES.values()], ids=lambda layer: type(layer).__name__)
def test_variances_alone_are_the_same(layer):
    both, alone = (layer.propagate(state_of(np.random.default_rng(0), (5, 4), 3, alone=a)) for a in (False, True))
    assert alone.nngp.cross is None and alone.nngp.own2 is None
    np.testing.assert_array_equal(alone.nngp.own1, both.nngp.own1)


@pytest.mark.parametrize("n", [1, 2, 7, 33])
def test_float32_erf_networks_keep_identical_patches_identical_to_the_last_bit(n, rng):
    network = Sequential(*[layer for _ in range(6) for layer in (Conv(3, var_weight=6.0, var_bias=5.0), ExErf())])
    state = state_of(rng, (8, 8), n, np.float32, network.sum_dtype(tf.float32))
    state = network.propagate(state)
    np.testing.assert_array_equal(tf.linalg.diag_part(state.nngp.cross), state.nngp.own1[..., 0])
    np.testing.assert_array_equal(tf.linalg.diag_part(state.nngp.cross), state.nngp.own2[..., 0, :])


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (ExErf(), tf.float64),
        (ExReLU(0), tf.float64),
        (ExReLU(), tf.float32),
        (Sequential(Conv(3), Sum(ExReLU(), Sequential(ExErf()))), tf.float64),
        (Sequential(Conv(3), Sum(ExReLU(), Sequential(ExReLU()))), tf.float32),
    ],
)
def test_sums_are_exact_where_rounding_is_amplified(layer, expected):
    assert layer.sum_dtype(tf.float32) == expected
    assert layer.sum_dtype(tf.float64) == tf.float64


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


def loop_windows(x, size, stride, padding):
    """Sums over windows of the leading axes, with loops."""
    rank = len(size)
    out, before = [], []
    for n, k, s in zip(x.shape, size, stride, strict=False):
        if padding in ("SAME", "CIRCULAR"):
            outputs = -(-n // s)
            before.append(max((outputs - 1) * s + k - n, 0) // 2)
        elif padding == "VALID":
            outputs = (n - k) // s + 1
            before.append(0)
        else:
            outputs = (n - 1) // s + 1
            before.append((k - 1) // 2)
        out.append(outputs)
    result = np.zeros([*out, *x.shape[rank:]])
    for o in itertools.product(*map(range, out)):
        for d in itertools.product(*map(range, size)):
            p = [a * s - b + c for a, s, b, c in zip(o, stride, before, d, strict=True)]
            if padding == "CIRCULAR":
                p = [a % n for a, n in zip(p, x.shape, strict=False)]
            if all(0 <= a < n for a, n in zip(p, x.shape, strict=False)):
                result[o] += x[tuple(p)]
    return result


@pytest.mark.parametrize("padding", ["SAME", "VALID", "FIXED", "CIRCULAR"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("positions", [(7,), (8, 5), (5, 6, 5)])
def test_convolution_sums_over_the_patch(padding, stride, size, positions, rng):
    rank = len(positions)
    x = rng.normal(size=[*positions, 2, 3])
    state = plain_state(x, x[..., :1], x[..., :1, :])
    layer = Conv(size, stride, padding, var_weight=1.7, var_bias=0.4)
    result = layer.propagate(state).nngp
    expected = 1.7 * loop_windows(x, (size,) * rank, (stride,) * rank, padding) + 0.4
    np.testing.assert_allclose(result.cross, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(result.own1, expected[..., :1], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(result.own2, expected[..., :1, :], rtol=1e-12, atol=1e-12)
    assert layer.output_positions(positions) == expected.shape[:rank]


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("size", "stride"), [((4, 2), (1, 1)), ((3, 5), (2, 3)), ((4, 4), (3, 2))])
def test_convolution_pads_like_tensorflow(padding, size, stride, rng):
    x = rng.normal(size=[9, 11, 2, 1])
    result = Conv(size, stride, padding).propagate(plain_state(None, x, None)).nngp.own1
    maps = tf.nn.conv2d(np.transpose(x, [2, 0, 1, 3]), np.ones([*size, 1, 1]), stride, padding)
    np.testing.assert_allclose(result, np.transpose(maps, [1, 2, 0, 3]), rtol=1e-12, atol=1e-12)


def test_circular_padding_makes_a_kernel_that_no_turn_of_both_images_changes(rng):
    X = rng.normal(size=(3, 2, 6, 5))
    layers = [Conv((3, 4), padding="CIRCULAR", var_bias=0.1), ExReLU(), Conv(7, padding="CIRCULAR"), ExErf(), Dense()]
    kernel = NTKKernel(Sequential(*layers), [2, 6, 5])
    turned = np.roll(X, (2, 1), (2, 3))
    np.testing.assert_allclose(kernel(turned.reshape(3, -1)), kernel(X.reshape(3, -1)), rtol=1e-13)


def test_the_table_in_the_documents_has_every_layer():
    rows = (ROOT / "docs" / "usage.md").read_text().split("### All layers")[1].splitlines()
    named = {name for row in rows if row.startswith("| `") for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == {cls.__name__ for cls in CASES}


def test_divide_by_patch(rng):
    state = state_of(rng, (6, 6), 2)
    divided = cross_after(Conv((3, 2), var_weight=1.2, var_bias=0.1, divide_by_patch=True), state)
    np.testing.assert_allclose(divided, cross_after(Conv((3, 2), var_weight=0.2, var_bias=0.1), state), rtol=1e-12)


def test_dense_is_the_mean_over_positions(rng):
    state = state_of(rng, (6, 5), 3)
    np.testing.assert_allclose(
        cross_after(Dense(1.5, 0.2), state), 1.5 * np.mean(state.nngp.cross, axis=(0, 1)) + 0.2, rtol=1e-13
    )


def test_sum_adds_and_sequential_composes(rng):
    state = state_of(rng, (5,), 2)
    a, b = Conv(3, var_weight=0.7), ExReLU()
    np.testing.assert_allclose(
        cross_after(Sum(a, b, Sequential()), state),
        cross_after(a, state) + cross_after(b, state) + state.nngp.cross,
        rtol=1e-13,
    )
    np.testing.assert_array_equal(cross_after(Sequential(a, b), state), cross_after(b, a.propagate(state)))
    assert Sequential().propagate(state) is state


NONLINEARITIES = [
    *(case for case, _ in DESCRIBED.values() if isinstance(case, Nonlinearity)),
    ExReLU(0),
    ExReLU(multiply_by_sqrt2=True),
    ExReLU(0, True),
    ExReLU(3, True),
    LeakyReLU(-0.4),
    Sin(1.3, 0.7, 0.2),
    Cos(1.3, 0.7, 0.2),
    ElementwiseNumerical(tf.math.tanh),
]


@pytest.mark.parametrize("layer", NONLINEARITIES, ids=lambda layer: type(layer).__name__)
def test_sqrt2_and_the_function_itself_agree_with_the_expectation(layer: Nonlinearity):
    """By the mean over a fine grid of quantiles of one Gaussian."""
    from scipy.stats import norm

    u = norm.ppf((np.arange(200_000) + 0.5) / 200_000) * np.sqrt(1.7)
    squares = np.mean(np.asarray(layer.apply(tf.constant(u))) ** 2)
    v = tf.constant(1.7, tf.float64)
    assert layer.variance(v).numpy() == pytest.approx(squares, rel=1e-3)
    assert layer.expectation(v, v, v).numpy() == pytest.approx(layer.variance(v).numpy(), rel=1e-8)


@pytest.mark.parametrize("layer", NONLINEARITIES, ids=lambda layer: type(layer).__name__)
def test_the_derivatives_expectation_is_that_of_the_functions_slope(layer: Nonlinearity):
    """By the mean over a fine grid of quantiles, the derivative by automatic differentiation."""
    from scipy.stats import norm

    if isinstance(layer, ExReLU) and layer.exponent == 0:
        return
    u = tf.constant(norm.ppf((np.arange(200_000) + 0.5) / 200_000) * np.sqrt(0.7))
    with tf.GradientTape() as tape:
        tape.watch(u)
        value = layer.apply(u)
    squares = np.mean(tape.gradient(value, u).numpy() ** 2)
    assert layer.derivative_variance(tf.constant(0.7, tf.float64)).numpy() == pytest.approx(squares, rel=1e-3)


def test_n_covariances_counts_every_layer():
    network = Sequential(Conv(3), ExReLU(), Sum(Sequential(), Sequential(Conv(3, 2), ExReLU())), Dense())
    # A sum of maps of different sizes is refused elsewhere; here it only counts.
    assert Sequential(*network.layers[:2]).n_covariances((4, 4)) == 32
    assert network.layers[2].branches[1].n_covariances((4, 4)) == 8
    assert Dense().n_covariances((4, 4)) == 1


def test_n_covariances_counts_the_displacements_of_a_pool():
    trunk = Sequential(Conv(3), ExReLU())
    # A window of 3 has 5 differences per axis, and a map of 6 no more than 11.
    assert Sequential(trunk, AvgPool(3, 1, "SAME"), Dense()).n_covariances((6, 6)) == 5**2 * 72 + 1
    assert Sequential(trunk, GlobalAvgPool(), Dense()).n_covariances((6, 6)) == 11**2 * 72 + 1
    twice = Sequential(Conv(3), AvgPool(2), Conv(3), AvgPool(2), Dense())
    assert twice.n_covariances((6, 6)) == min(3**4, 11**2) * 36 + 3**2 * 9 + 1
    # Branches that need the same displacements share them.
    residual = Sequential(Conv(3), Sum(Sequential(), trunk), Sum(Sequential(), AvgPool(2, 1, "SAME")), Dense())
    assert residual.n_covariances((6, 6)) == (1 + 3**2) * (36 + 72) + 1


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Conv(3, padding="same"), "padding is 'same'; expected one of SAME, VALID, FIXED, CIRCULAR"),
        (lambda: Conv(3, var_weight=-1.0), "A variance is -1.0; expected a finite number"),
        (lambda: Dense(var_bias=float("nan")), "A variance is nan"),
        (lambda: Dense(var_weight=float("inf")), "A variance is inf"),
        (lambda: ExReLU(-1), r"exponent is -1; expected 1 \(the ReLU\), 0 \(the step\), or 2 to 16"),
        (lambda: ExReLU(1.5), "exponent is 1.5; expected 1"),
        (lambda: LeakyReLU(float("nan")), "alpha is nan; expected a finite number"),
        (lambda: Sin(b=float("inf")), "a, b and c are 1.0, inf and 0.0; expected finite"),
        (lambda: ElementwiseNumerical(np.tanh), r"can't be traced \(\w+\); expected a function of TensorFlow"),
        (lambda: ElementwiseNumerical(tf.reduce_sum), "expected the same shape and dtype"),
        (lambda: ElementwiseNumerical(tf.sin, degree=0), "degree is 0; expected a whole number from 1"),
        (lambda: ElementwiseNumerical(tf.sin).describe(), "a function, which a run's description can't hold"),
        (
            lambda: NTKKernel(Sequential(Dense(), ElementwiseNumerical(tf.round), Dense()), [3]),
            "finds no derivative of the function.*give derivative=",
        ),
        (lambda: Sequential(3), "3 is a int; expected a layer"),
        (lambda: Sum(), r"Sum\(\) has no branch"),
        (lambda: Conv((3, 3)).output_positions((5,)), "filter_size is .* on a map with 1 spatial axes"),
        (lambda: AvgPool((2, 2)).output_positions((5,)), "size is .* on a map with 1 spatial axes"),
        (lambda: AvgPool(2, padding="FIXED"), "padding is 'FIXED'; expected VALID or SAME"),
        (lambda: AvgPool(2).output_positions(()), "AvgPool has no spatial axes to pool over; expected a map with 1"),
        (lambda: GlobalAvgPool().output_positions(()), "GlobalAvgPool has no spatial axes.*before the first Dense"),
        (lambda: AvgPool(7).output_positions((6, 9)), "a window of 7 with padding VALID on 6 pixels"),
        (
            lambda: NNGPKernel(Sequential(Sum(Conv(3, padding="CIRCULAR")), AvgPool(2), Dense()), [1, 4, 4]),
            "Conv with padding CIRCULAR comes before a pool.*take SAME",
        ),
        (lambda: Conv(3.0), "filter_size is 3.0; expected a whole number, or one per axis"),
        (lambda: AvgPool("2"), "size is '2'; expected a whole number"),
        (lambda: NNGPKernel([Conv(3), Dense()], [1, 4, 4]), r"The network is a list; expected a layer.*Sequential"),
        (lambda: NTKKernel(Conv, [1, 4, 4]), r"The network is a \w+; expected a layer"),
        (lambda: Conv(0).output_positions((5,)), "filter_size is 0 .*at least 1 per axis"),
        (lambda: Conv(3, 0).output_positions((5,)), "stride is 0 .*at least 1 per axis"),
        (lambda: Sum(Conv(3), Conv(3, 2)).output_positions((6,)), r"maps of different sizes: \(6,\), \(3,\)"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(make, said):
    with pytest.raises(UserError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_sizes_are_kept_as_pythons_own_numbers():
    layers = Conv(np.int64(3), (np.int32(1), np.uint8(2))), AvgPool(np.int64(2))
    assert json.loads(json.dumps([layer.describe() for layer in layers])) == [layer.describe() for layer in layers]


def test_a_map_below_one_pixel_is_its_own_error():
    with pytest.raises(ShrunkMapError, match="a window of 5 with padding VALID on 4 pixels") as caught:
        Conv(5, padding="VALID").output_positions((6, 4))
    assert caught.value.exit_status == 3


def test_window_band_is_the_filter():
    np.testing.assert_array_equal(
        Window.of(5, 3, 2, "SAME").band(), [[1, 1, 0, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 1, 1]]
    )
