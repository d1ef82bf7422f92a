"""The neural tangent kernel as a GPflow kernel: its recursion, its precision, in models, and what it refuses."""

import gpflow
import numpy as np
import pytest
import tensorflow as tf

from cnn_gp import AvgPool, ChannelMix, Conv, Dense, ExErf, ExReLU, NNGPKernel, NTKKernel, Sequential, Sum
from cnn_gp.errors import UserError
from cnn_gp.kernels.description import kernel_from_description
from helpers import reference


def convolutional(depth=7, bias=0.1):
    convs = [Conv(3, 1, "SAME", 2.0, bias, divide_by_patch=True) for _ in range(depth)]
    return Sequential(*(layer for conv in convs for layer in (conv, ExReLU())), Dense(1.3, 0.2))


def residual(depth=7):
    def conv(stride=1):
        return Conv(3, stride, "FIXED", 1.0, 0.0, divide_by_patch=True)

    units = [Sum(Sequential(), Sequential(ExReLU(), conv(), ExReLU(), conv())) for _ in range(depth)]
    return Sequential(conv(), *units, ExReLU(), Dense())


NETWORKS = {
    "convolutional": convolutional,
    "residual": residual,
    "erf": lambda: Sequential(*[layer for _ in range(7) for layer in (Conv(3, var_weight=0.4), ExErf())], Dense()),
    "pooled": lambda: Sequential(*convolutional(3).layers[:-1], AvgPool(3, 1, "SAME"), Dense()),
}


def test_two_layers_by_hand(rng):
    """Jacot, Gabriel & Hongler's recursion for a fully connected network, with the angles of the arc-cosine kernels."""
    X = rng.normal(size=(6, 5))
    K = 1.4 * X @ X.T / 5 + 0.2
    T = K
    for _ in range(2):
        s = np.sqrt(np.diag(K))
        theta = np.arccos(np.clip(K / np.outer(s, s), -1, 1))
        np.fill_diagonal(theta, 0)
        K = 1.4 * np.outer(s, s) / (2 * np.pi) * (np.sin(theta) + (np.pi - theta) * np.cos(theta)) + 0.2
        T = K + 1.4 * T * (np.pi - theta) / (2 * np.pi)
    dense = [Dense(1.4, 0.2) for _ in range(3)]
    network = Sequential(dense[0], ExReLU(), dense[1], ExReLU(), dense[2])
    np.testing.assert_allclose(NTKKernel(network, [5])(X), T, rtol=1e-13)


@pytest.mark.parametrize("nonlinearity", [ExReLU(), ExErf(), ExReLU(multiply_by_sqrt2=True)])
def test_the_derivatives_expectation_is_the_slope_of_the_expectation(nonlinearity):
    """Price's theorem: the slope in the covariance."""
    c, v1, v2 = (tf.constant(a, tf.float64) for a in (0.4, 1.3, 0.7))
    up, down = (nonlinearity.expectation(c + h, v1, v2).numpy() for h in (1e-5, -1e-5))
    assert nonlinearity.derivative_expectation(c, v1, v2).numpy() == pytest.approx((up - down) / 2e-5, rel=1e-8)
    near = v1 * (1 - 1e-14)
    slope = nonlinearity.derivative_expectation(near, v1, v1).numpy()
    assert nonlinearity.derivative_variance(v1).numpy() == pytest.approx(slope, rel=1e-6)


def test_a_channel_mix_is_trained(rng):
    network = Sequential(ChannelMix(), Conv(2, var_weight=0.7), ExErf(), ChannelMix(), Dense(1.2, 0.1))
    x, y = rng.normal(size=(2, 2, 3, 3))
    _, T = reference.pooled(network.describe(), x, y)
    kernel = NTKKernel(network, [2, 3, 3])
    np.testing.assert_allclose(kernel(x.reshape(1, -1), y.reshape(1, -1)), [[T]], rtol=1e-13)


# The largest relative errors in float32 between images that differ by 1e-1 to 1e-7. Measured: convolutional 1.4e-4,
# residual 2.7e-4, erf 8e-7, pooled 1.4e-5. The slope of the ReLU's derivative's expectation is infinite at identical
# images, so that one rounding error of a covariance costs its root.
NEAR = {"convolutional": 4e-4, "residual": 6e-4, "erf": 2e-6, "pooled": 4e-5}


@pytest.mark.parametrize("name", NETWORKS)
def test_float32_is_within_its_bound(name, rng):
    network = NETWORKS[name]()
    kernel = NTKKernel(network, [1, 8, 8])
    X = rng.random((4, 64)).astype(np.float32)
    noise = rng.normal(size=(4, 64))
    near = np.concatenate([X + 1e-3 * noise, X + 1e-5 * noise]).astype(np.float32)
    double = X.astype(np.float64), near.astype(np.float64)
    # Of different images. Measured: 2.1e-7, at the erf.
    np.testing.assert_allclose(kernel(X), kernel(double[0]), rtol=5e-7)
    np.testing.assert_allclose(kernel(X, near), kernel(*double), rtol=NEAR[name])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_two_identical_images_and_black_ones(name, dtype, rng):
    kernel = NTKKernel(NETWORKS[name](), [1, 6, 6])
    X = rng.random((4, 36)).astype(dtype)
    X[1] = 0
    X[2, :20] = 0
    variances = kernel(X, full_cov=False)
    # In float32 the sums are exact. In float64 a covariance may differ from the variance by a rounding error, which
    # costs its root. Measured: 5e-9.
    np.testing.assert_allclose(np.diag(kernel(X, X)), variances, rtol=3e-8 if dtype == np.float64 else 0)
    T = kernel(X)
    np.testing.assert_array_equal(np.diag(T), variances)
    assert np.isfinite(T).all()


def test_gram_matrix_is_symmetric_positive_and_above_the_other_kernel(rng):
    X = rng.normal(size=(9, 16))
    K, T = (cls(convolutional(3), [1, 4, 4])(X).numpy() for cls in (NNGPKernel, NTKKernel))
    np.testing.assert_array_equal(T, T.T)
    # The last layer's weights alone give K.
    assert np.linalg.eigvalsh(T - K)[0] > 0


def test_active_dims_choose_the_image(rng):
    kernel = NTKKernel(convolutional(2), [1, 3, 3], active_dims=[*range(4, 13)])
    X = rng.normal(size=(4, 15))
    np.testing.assert_array_equal(kernel(X), NTKKernel(convolutional(2), [1, 3, 3])(X[:, 4:13]))


@pytest.mark.parametrize("name", ["convolutional", "pooled NTK", "pooled NNGP"])
def test_gpr_learns_and_its_gradients_are_the_finite_differences(name, rng):
    shared = [gpflow.Parameter(v, transform=gpflow.utilities.positive()) for v in (1.4, 0.3)]
    pools = [] if name == "convolutional" else [AvgPool(2), ExErf(), AvgPool(2, 1)]
    layers = [Conv(2, 1, "SAME", *shared, divide_by_patch=True), ExReLU(), *pools, Dense(*shared)]
    kernel = (NNGPKernel if "NNGP" in name else NTKKernel)(Sequential(*layers), [1, 4, 4])
    X = rng.normal(size=(5, 16))
    X[1] = X[0]
    model = gpflow.models.GPR((X, X[:, :1]), kernel, noise_variance=0.1)
    with tf.GradientTape() as tape:
        value = model.log_marginal_likelihood()
    variables = kernel.trainable_variables
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
    mean, variance = model.predict_f(X[:3] + 0.1)
    assert np.isfinite(mean).all() and (variance.numpy() > 0).all()


def test_gradients_through_a_loop_over_the_differences(monkeypatch, rng):
    monkeypatch.setattr("cnn_gp.kernels.pooling.HELD", 1)
    weight = gpflow.Parameter(1.4, transform=gpflow.utilities.positive())
    network = Sequential(Conv(2, var_weight=weight), ExReLU(), AvgPool(2, 1), ExErf(), Dense())
    kernel, X = NTKKernel(network, [2, 5]), tf.constant(rng.normal(size=(2, 10)))

    def gradient():
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(kernel(X))
        return tape.gradient(value, kernel.trainable_variables)[0]

    np.testing.assert_allclose(tf.function(gradient, autograph=False)(), gradient(), rtol=1e-10)


def test_the_description_says_which_kernel_and_is_read_back():
    plain, kernel = (cls(convolutional(1), [1, 4, 4]) for cls in (NNGPKernel, NTKKernel))
    assert kernel.describe() == {**plain.describe(), "kernel": "ntk"}
    again = kernel_from_description(kernel.describe())
    assert type(again) is NTKKernel and again.describe() == kernel.describe()
    assert type(kernel_from_description(plain.describe())) is NNGPKernel


def test_the_first_layer_that_is_not_finite_is_named():
    network = Sequential(Conv(3), Conv(3, var_weight=1e30), Conv(3, var_weight=1e30), Dense())
    X = np.ones((2, 16), np.float32)
    assert NTKKernel(network, [1, 4, 4]).first_non_finite(X, X) == "layers[2] (Conv)"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: NTKKernel(Sequential(Conv(3), Sum(ExReLU(0), Conv(1)), Dense()), [1, 4, 4]),
            r"The step function, ExReLU\(exponent=0\), has no neural tangent kernel",
        ),
        (lambda: NTKKernel(Conv(3), [1, 4, 4]), r"ends in a map of shape \(4, 4\); expected no spatial axes left"),
        (lambda: NTKKernel(Dense(), [1, 4, 4])(np.ones((2, 15))), "have 15 columns; expected 16"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(make, said):
    with pytest.raises(UserError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)
