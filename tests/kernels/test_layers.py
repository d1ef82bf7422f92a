"""The layers, one by one: sums, expectations, costs, what they refuse, and that every one is covered."""

import inspect
import json
import pickle
import re

import numpy as np
import pytest
import tensorflow as tf

from cnn_gp import DeepKernel, NNGPKernel, NTKKernel
from cnn_gp.errors import ShrunkMapError, UserError
from cnn_gp.kernels import composition, layers, nonlinearities, pooling
from cnn_gp.kernels.composition import Sequential, Sum
from cnn_gp.kernels.geometry import Window
from cnn_gp.kernels.layer import Layer
from cnn_gp.kernels.layers import Conv, Dense
from cnn_gp.kernels.nonlinearities import (
    Cos,
    ElementwiseNumerical,
    ExErf,
    ExReLU,
    LeakyReLU,
    Nonlinearity,
    Sin,
)
from cnn_gp.kernels.pooling import AvgPool, GlobalAvgPool
from helpers.layers import CASES, DESCRIBED, cross_after, state_of
from helpers.paths import ROOT


def test_every_layer_is_covered():
    concrete = {
        cls
        for module in (composition, layers, nonlinearities, pooling)
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


def test_the_table_in_the_documents_has_every_layer():
    rows = (ROOT / "docs" / "usage.md").read_text().split("### All layers")[1].splitlines()
    named = {name for row in rows if row.startswith("| `") for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == {cls.__name__ for cls in CASES}


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


def test_deeply_nested_networks_are_counted_in_no_time():
    """Each level asks for its displacements once: twice would be 2^60 times."""
    network = Dense()
    for _ in range(60):
        network = Sequential(ExReLU(), network)
    kernel = NNGPKernel(network, [1, 2, 2])
    assert (kernel.n_displacements, kernel.n_covariances) == (1, 60 * 4 + 1)


def test_a_nonlinearity_s_variance_is_asked_for_at_variances_only(rng):
    """A covariance below -1/2 has no erf's variance: its root is NaN."""
    tf.debugging.enable_check_numerics()
    try:
        X = np.array([[3.0, -2.0], [-3.0, 2.0]])
        NNGPKernel(Sequential(Dense(), ExErf(), Dense()), [2])(X, X.copy())
    finally:
        tf.debugging.disable_check_numerics()


def test_a_function_of_ones_own_pickles():
    layer = pickle.loads(pickle.dumps(ElementwiseNumerical(tf.math.tanh)))
    x = tf.constant([0.1, 0.4], tf.float64)
    np.testing.assert_allclose(layer.derivative(x), 1 - np.tanh(x) ** 2)
    assert layer.degree == 32


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
        (lambda: Conv(3.0), "filter_size is 3.0; expected a whole number, or a list of them"),
        (lambda: AvgPool("2"), "size is '2'; expected a whole number"),
        (lambda: DeepKernel([1, 4, 4], [3] * 4, ExReLU(), skip_freq=1.5), "skip_freq is 1.5; expected a whole number,"),
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


@pytest.mark.parametrize(("numpys", "pythons"), [(np.int64(2), 2), (np.array([1, 3]), [1, 3])])
def test_skip_freq_in_numpys_numbers(numpys, pythons):
    kernels = [DeepKernel([1, 4, 4], [3] * 4, ExReLU(), skip_freq=skip_freq) for skip_freq in (numpys, pythons)]
    assert kernels[0].describe() == kernels[1].describe()


def test_a_map_below_one_pixel_is_its_own_error():
    with pytest.raises(ShrunkMapError, match="a window of 5 with padding VALID on 4 pixels") as caught:
        Conv(5, padding="VALID").output_positions((6, 4))
    assert caught.value.exit_status == 3


def test_window_band_is_the_filter():
    np.testing.assert_array_equal(
        Window.of(5, 3, 2, "SAME").band(), [[1, 1, 0, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 1, 1]]
    )
