"""The kernels as GPflow kernels: against plain loops and arc-cosine kernels, in models, and with gradients."""

import gpflow
import numpy as np
import pytest
import tensorflow as tf

from cnn_gp import (
    Conv,
    DeepKernel,
    Dense,
    ExErf,
    ExReLU,
    NNGPKernel,
    ResnetKernel,
    Sequential,
    Sum,
)
from cnn_gp.errors import ShrunkMapError, UserError
from helpers import reference

SQRT2 = {"multiply_by_sqrt2": True}

# Constructor arguments of DeepKernel and the same for the reference: input shape, sizes, strides, padding, ...
DEEP = {
    "plain": ([2, 5, 4], [3, 2], [1, 2], "SAME", ExReLU(**SQRT2), (reference.relu, 2), -1, ()),
    "valid": ([1, 6, 5], [(3, 2), 2], [(2, 1), 1], "VALID", ExErf(), (reference.erf, 1), 0, ()),
    "skip at each layer": (
        [2, 4, 4],
        [3, 3, 2, 3],
        [1] * 4,
        "SAME",
        ExReLU(**SQRT2),
        (reference.relu, 2),
        1,
        (1, 2, 3),
    ),
    "skip at every other": ([1, 4, 3], [3, 2, 3, 2, 3], [1] * 5, "SAME", ExErf(), (reference.erf, 1), 2, (2, 4)),
    "skip list": ([1, 4, 3], [3, 2, 3, 2], [1] * 4, "SAME", ExReLU(), (reference.relu, 1), [0, 1, 3], (1, 3)),
    "step": ([3, 4, 4], [3, 3], [1, 1], "SAME", ExReLU(0, True), (reference.step, 2), -1, ()),
    "one axis": ([3, 7], [3, 4], [2, 1], "SAME", ExReLU(), (reference.relu, 1), -1, ()),
    "three axes": ([2, 3, 3, 4], [2, (3, 2, 3)], [1, 2], "SAME", ExReLU(), (reference.relu, 1), -1, ()),
    "no axes": ([4], [[], 3], [1, 1], "SAME", ExReLU(), (reference.relu, 1), -1, ()),
}


def deep_kernel(name):
    shape, sizes, strides, padding, nonlinearity, _, skip_freq, _ = DEEP[name]
    return DeepKernel(shape, sizes, nonlinearity, 1.3, 0.6, padding, strides, skip_freq=skip_freq)


@pytest.mark.parametrize("name", DEEP)
def test_deep_kernel_is_the_plain_loops(name, rng):
    shape, sizes, strides, padding, _, (expectation, factor), _, skips = DEEP[name]
    kernel = deep_kernel(name)
    X, X2 = rng.normal(size=(3, kernel.input_size)), rng.normal(size=(2, kernel.input_size))

    def recursion(pair):
        return reference.deep(pair, sizes, strides, padding, expectation, factor, 1.3, 0.6, skips)

    tolerance = 1e-7 if name == "step" else 1e-12
    np.testing.assert_allclose(kernel(X, X2), reference.matrix(X, X2, shape, recursion), rtol=tolerance)
    np.testing.assert_allclose(kernel(X), reference.matrix(X, X, shape, recursion), rtol=tolerance)
    np.testing.assert_allclose(
        kernel(X, full_cov=False), np.diag(reference.matrix(X, X, shape, recursion)), rtol=tolerance
    )


@pytest.mark.parametrize(
    ("shape", "sizes", "strides", "kernel_size", "conv_stride"),
    [([1, 6, 6], [2, 1], [1, 2], 3, 1), ([2, 7, 5], [1, 2], [1, 2], 5, 2), ([2, 6], [1, 1, 1], [1, 2, 2], 4, 1)],
)
def test_resnet_kernel_is_the_plain_loops(shape, sizes, strides, kernel_size, conv_stride, rng):
    kernel = ResnetKernel(shape, sizes, strides, kernel_size, ExReLU(), 1.3, 0.2, conv_stride)
    X, X2 = rng.normal(size=(2, kernel.input_size)), rng.normal(size=(2, kernel.input_size))

    def recursion(pair):
        return reference.resnet(pair, sizes, strides, kernel_size, 1.3, 0.2, conv_stride)

    np.testing.assert_allclose(kernel(X, X2), reference.matrix(X, X2, shape, recursion), rtol=1e-12)
    np.testing.assert_allclose(kernel(X), reference.matrix(X, X, shape, recursion), rtol=1e-12)


@pytest.mark.parametrize("order", [0, 1])
def test_one_fully_connected_layer_is_gpflows_arc_cosine(order, rng):
    X, X2 = rng.normal(size=(5, 4)), rng.normal(size=(3, 4))
    kernel = DeepKernel([4], [[]], ExReLU(order), var_weight=1.7, var_bias=0.3)
    # Ours is E[phi phi], theirs twice that; our first layer divides by the number of inputs.
    theirs = gpflow.kernels.ArcCosine(order, variance=0.5, weight_variances=1.7 / 4, bias_variance=0.3)
    np.testing.assert_allclose(kernel(X, X2), 1.7 * theirs(X, X2) + 0.3, rtol=1e-7)
    np.testing.assert_allclose(kernel(X, full_cov=False), 1.7 * theirs(X, full_cov=False) + 0.3, rtol=1e-7)


def test_deep_fully_connected_is_the_iterated_arc_cosine(rng):
    X = rng.normal(size=(6, 5))
    K = 1.4 * X @ X.T / 5 + 0.2
    for _ in range(4):
        s = np.sqrt(np.diag(K))
        theta = np.arccos(np.clip(K / np.outer(s, s), -1, 1))
        K = 1.4 * np.outer(s, s) / np.pi * (np.sin(theta) + (np.pi - theta) * np.cos(theta)) + 0.2
    kernel = DeepKernel([5], [[]] * 4, ExReLU(**SQRT2), 1.4, 0.2)
    np.testing.assert_allclose(kernel(X), K, rtol=1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", [*DEEP, "resnet"])
def test_gram_matrix_is_symmetric_positive_and_has_the_diagonal(name, dtype, rng):
    kernel = ResnetKernel([1, 6, 6], [2, 2], [1, 2], 3, ExReLU(), 1.0, 0.0) if name == "resnet" else deep_kernel(name)
    X = rng.normal(size=(9, kernel.input_size)).astype(dtype)
    K = kernel(X).numpy()
    assert K.dtype == dtype
    np.testing.assert_array_equal(K, K.T)
    np.testing.assert_array_equal(np.diag(K), kernel(X, full_cov=False))
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    assert np.linalg.eigvalsh(K.astype(np.float64))[0] >= -tolerance * K.max()
    off = ~np.eye(9, dtype=bool)
    np.testing.assert_allclose(kernel(X, X).numpy()[off], K[off], rtol=tolerance)
    np.testing.assert_allclose(kernel(X[:1], X[3:4]), K[:1, 3:4], rtol=tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_step_networks_have_their_variance_at_two_identical_images(n, dtype, rng):
    """The step's slope is infinite there: one rounding error in each of these layers moved the kernel by 2e-2."""
    step = ExReLU(0, True)
    layers = [layer for _ in range(5) for layer in (Conv(3, var_weight=1.7, var_bias=0.3), step)]
    kernel = NNGPKernel(Sequential(*layers, Dense(1.3, 0.2)), [3, 6, 5])
    X = rng.random((n, kernel.input_size)).astype(dtype)
    np.testing.assert_array_equal(np.diag(kernel(X, X.copy())), kernel(X, full_cov=False))
    assert (np.triu(kernel(X, X), 1) < 1.5 - 1e-3).all()


def test_x2_is_cast_to_the_precision_of_x(rng):
    kernel = deep_kernel("plain")
    X, X2 = rng.normal(size=(3, 40)).astype(np.float32), rng.normal(size=(2, 40))
    assert kernel(X, X2).dtype == tf.float32
    assert kernel(X2, X).dtype == tf.float64


def test_compiled_and_with_unknown_numbers_of_images(rng):
    kernel = deep_kernel("skip at each layer")
    X, X2 = rng.normal(size=(4, 32)), rng.normal(size=(3, 32))
    signature = [tf.TensorSpec([None, 32], tf.float64)] * 2
    graph = tf.function(lambda a, b: (kernel(a, b), kernel(a)), input_signature=signature, autograph=False)
    compiled = tf.function(lambda a, b: (kernel(a, b), kernel(a)), jit_compile=True, autograph=False)
    for function in (graph, compiled):
        cross, square = function(X, X2)
        np.testing.assert_allclose(cross, kernel(X, X2), rtol=1e-12)
        np.testing.assert_allclose(square, kernel(X), rtol=1e-12)


def test_active_dims_choose_the_image(rng):
    kernel = DeepKernel([1, 3, 3], [2], ExReLU(), active_dims=[*range(4, 13)])
    plain = DeepKernel([1, 3, 3], [2], ExReLU())
    X = rng.normal(size=(4, 15))
    np.testing.assert_array_equal(kernel(X), plain(X[:, 4:13]))
    np.testing.assert_array_equal(kernel(X, X[:2]), plain(X[:, 4:13], X[:2, 4:13]))
    np.testing.assert_array_equal(kernel(X, full_cov=False), plain(X[:, 4:13], full_cov=False))


def test_sums_and_products_with_gpflows_kernels(rng):
    kernel, other = deep_kernel("plain"), gpflow.kernels.RBF()
    X = rng.normal(size=(4, 40))
    np.testing.assert_allclose((kernel + other)(X), kernel(X) + other(X), rtol=1e-12)
    np.testing.assert_allclose((kernel * other)(X), kernel(X) * other(X), rtol=1e-12)
    np.testing.assert_allclose((kernel * other)(X, full_cov=False), kernel.K_diag(X) * other.K_diag(X), rtol=1e-12)


def test_print_summary_shows_the_parameters(capsys):
    gpflow.utilities.print_summary(ResnetKernel([1, 6, 6], [1], [1], 3, ExReLU(), 1.5, 0.0))
    shown = capsys.readouterr().out
    assert "ResnetKernel.var_weight" in shown and "ResnetKernel.var_bias" in shown
    # A shared parameter's value stands in the line of its first name.
    values = [line.split("│")[-2].strip() for line in shown.splitlines() if "Parameter" in line]
    assert values[0] == "1.5" and set(values[1:]) == {"0"}


def test_layers_share_their_parameters():
    assert len(deep_kernel("skip at each layer").trainable_parameters) == 2
    resnet = ResnetKernel([1, 6, 6], [2, 2], [1, 2], 3, ExReLU(), 1.0, 0.0)
    assert len(resnet.trainable_parameters) == 1
    shared = gpflow.Parameter(1.2, transform=gpflow.utilities.positive())
    network = Sequential(Conv(3, var_weight=shared), ExReLU(), Dense(shared))
    assert NNGPKernel(network, [1, 4, 4]).trainable_parameters == (shared,)


@pytest.mark.parametrize("name", ["plain", "skip at every other", "resnet"])
def test_gpr_learns_and_its_gradients_are_the_finite_differences(name, rng):
    kernel = ResnetKernel([1, 5, 5], [1, 1], [1, 2], 3, ExReLU(), 1.2, 0.3) if name == "resnet" else deep_kernel(name)
    X = rng.normal(size=(8, kernel.input_size))
    X[1] = X[0]
    Y = np.sin(X[:, :1]) + X[:, 1:2]
    model = gpflow.models.GPR((X, Y), kernel, noise_variance=0.1)
    variables = kernel.trainable_variables
    with tf.GradientTape() as tape:
        value = model.log_marginal_likelihood()
    gradients = tape.gradient(value, variables)
    assert len(variables) == 2
    for variable, gradient in zip(variables, gradients, strict=True):
        at = variable.numpy()
        variable.assign(at + 1e-5)
        up = model.log_marginal_likelihood()
        variable.assign(at - 1e-5)
        down = model.log_marginal_likelihood()
        variable.assign(at)
        assert gradient.numpy() == pytest.approx((up - down).numpy() / 2e-5, rel=1e-5, abs=1e-7)
    gpflow.optimizers.Scipy().minimize(model.training_loss, model.trainable_variables, options={"maxiter": 3})
    assert model.log_marginal_likelihood() > value
    mean, variance = model.predict_f(X[:3] + 0.1)
    assert np.isfinite(mean).all() and (variance.numpy() > 0).all()


@pytest.mark.parametrize("name", ["relu", "relu, zero bias", "resnet, zero bias", "erf", "step"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradients_are_finite_at_identical_and_black_images(name, dtype, rng):
    nonlinearity = {"erf": ExErf(), "step": ExReLU(0)}.get(name, ExReLU())
    bias = 0.0 if "zero" in name else 0.5
    if "resnet" in name:
        kernel = ResnetKernel([1, 6, 6], [1, 1], [1, 2], 3, nonlinearity, 1.0, bias)
    else:
        kernel = DeepKernel([1, 6, 6], [3, 3], nonlinearity, 1.2, bias)
    X = rng.random((5, 1, 6, 6)).astype(dtype)
    X[1] = X[0]
    X[2] = 0
    X[3, :, :4] = 0
    X = tf.constant(X.reshape(5, 36))
    for cross in (lambda: kernel(X), lambda: kernel(X, X), lambda: kernel(X, full_cov=False)):
        with tf.GradientTape() as tape:
            tape.watch(X)
            value = tf.reduce_sum(cross())
        gradients = tape.gradient(value, [X, *kernel.trainable_variables], unconnected_gradients="zero")
        assert np.isfinite(value)
        assert all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize(("skip_freq", "same_as"), [([0, 2], 2), ([1, 2, 3], 1), ([], -1), ([0], 0), (7, -1)])
def test_skip_freq_as_a_list(skip_freq, same_as, rng):
    X = rng.normal(size=(3, 16))
    kernels = [DeepKernel([1, 4, 4], [3] * 4, ExReLU(), 1.2, 0.1, skip_freq=s) for s in (skip_freq, same_as)]
    np.testing.assert_array_equal(kernels[0](X), kernels[1](X))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: DeepKernel([1, 4, 4], [3], ExReLU(), data_format="NHWC"), "data_format is 'NHWC' .*expected 'NCHW'"),
        (lambda: DeepKernel([4], [3], ExReLU(), data_format="NCHW"), "data_format is 'NCHW' .*expected 'NC'"),
        (lambda: ResnetKernel([1, 4, 4], [1], [1], 3, ExReLU(), data_format="NCW"), "data_format is 'NCW'"),
        (lambda: DeepKernel([1, 0, 4], [3], ExReLU()), r"input_shape is \[1, 0, 4\]"),
        (lambda: DeepKernel([1, 2, 2, 2, 2], [3], ExReLU()), "0 to 3 spatial axes"),
        (lambda: DeepKernel([1, 4, 4], [3, 3], ExReLU(), strides=[1]), "strides has 1 entries; expected 2"),
        (lambda: DeepKernel([1, 4, 4], [3], ExReLU(), padding=["SAME"] * 2), "padding has 2 entries; expected 1"),
        (lambda: DeepKernel([1, 4, 4], [3, 3], ExReLU(), skip_freq=[5]), r"skip_freq is \[5\]; expected indices"),
        (lambda: DeepKernel([1, 4, 4], [3, 3], ExReLU(), strides=[2, 2], skip_freq=1), "maps of different sizes"),
        (lambda: ResnetKernel([1, 4, 4], [1, 1], [1], 3, ExReLU()), r"block_sizes is \[1, 1\]"),
        (
            lambda: NNGPKernel(Sequential(Conv(3)), [1, 4, 4]),
            r"ends in a map of shape \(4, 4\); expected no",
        ),
        (lambda: NNGPKernel(Dense(), [1, 4, 4])(np.ones((2, 15))), "have 15 columns; expected 16"),
        (lambda: NNGPKernel(Dense(), [1, 4, 4])(np.ones((2, 16), np.uint8)), "dtype uint8; expected float32"),
        (lambda: NNGPKernel(Dense(), [1, 4])(np.ones((2, 4)), np.ones((2, 4), np.int64)), "dtype int64"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(make, said):
    with pytest.raises(UserError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_network_that_shrinks_below_a_pixel_has_no_kernel():
    with pytest.raises(ShrunkMapError):
        DeepKernel([1, 6, 6], [3, 3, 3], ExReLU(), padding="VALID")


def test_the_first_layer_that_is_not_finite_is_named():
    skip = Sum(Sequential(), Sequential(ExReLU(), Conv(3, var_weight=1e30), ExReLU(), Conv(3, var_weight=1e30)))
    kernel = NNGPKernel(Sequential(Conv(3), skip, Dense()), [1, 4, 4])
    X = np.ones((2, 16), np.float32)
    assert kernel.first_non_finite(X, X) == "layers[1].branches[1].layers[3] (Conv)"
    assert kernel.first_non_finite(X.astype(np.float64), X.astype(np.float64)) is None
    X[1, 3] = np.nan
    assert kernel.first_non_finite(X, X) == "the images"
