"""Finite networks: their sample covariance converges to the kernel, and they can be trained."""

import gc
import weakref

import numpy as np
import pytest
import tensorflow as tf

from cnn_gp import (
    GELU,
    AvgPool,
    ChannelMix,
    Conv,
    DeepKernel,
    Dense,
    ElementwiseNumerical,
    ExErf,
    ExReLU,
    FiniteNetwork,
    GlobalAvgPool,
    NNGPKernel,
    NTKKernel,
    ResnetKernel,
    Sequential,
    Sin,
    Sum,
)
from cnn_gp.errors import UserError
from cnn_gp.kernels.layer import layer_from_description

BATCHES = 20
WIDTH = 20

# The bias of a finite network's second moments is at most BIAS / width times the two standard deviations. Measured with
# 30,000 networks of width 6 of each kind: 0.10 +- 0.03 where it's largest (fully connected, off the diagonal).
BIAS = 0.2

KERNELS = {
    "convnet": (lambda nl: DeepKernel([2, 5, 4], [3, 2], nl, 1.5, 0.4, strides=[1, 2]), ExReLU(multiply_by_sqrt2=True)),
    "residual": (lambda nl: DeepKernel([2, 4, 4], [3, 3, 2], nl, 0.4, 0.3, skip_freq=1), ExReLU()),
    "every other layer": (
        lambda nl: DeepKernel([1, 4, 4], [3, 2, 3, 2], nl, 0.3, 0.2, skip_freq=2),
        ExReLU(),
    ),
    "resnet": (lambda nl: ResnetKernel([2, 5, 5], [2, 2], [1, 2], 3, nl, 1.3, 0.2), ExReLU()),
    "circular": (lambda nl: DeepKernel([2, 5, 3], [4, 3], nl, 0.9, 0.2, "CIRCULAR", [2, 1]), ExReLU()),
    "erf": (lambda nl: DeepKernel([1, 4, 4], [3, 2], nl, 0.9, 0.5, padding="VALID"), ExErf()),
    "gelu": (lambda nl: DeepKernel([1, 3, 3], [2], nl, 1.4, 0.3), GELU()),
    "sine": (lambda nl: DeepKernel([1, 3, 3], [2], nl, 0.9, 0.3), Sin(1.2, 0.8, 0.3)),
    "tanh": (lambda nl: DeepKernel([4], [[]], nl, 1.2, 0.3), ElementwiseNumerical(tf.math.tanh)),
    "step": (lambda nl: DeepKernel([3, 6], [3, 3], nl, 0.9, 0.5), ExReLU(0)),
    "fully connected": (lambda nl: DeepKernel([5], [[], []], nl, 1.6, 0.5), ExReLU()),
}


def images(kernel):
    return np.random.default_rng(1).normal(size=(3, kernel.input_size))


def sampled_covariance(network, X, input_shape, draws=250, outputs=16):
    """The sample second moments of the outputs [N, N] and their Monte Carlo errors, from independent batches."""
    batches = []
    for seed in range(BATCHES):
        values = network.finite(WIDTH, input_shape, draws=draws, outputs=outputs, seed=seed)(X).numpy()
        batches.append(np.einsum("dno,dmo->nm", values, values) / (draws * outputs))
    return np.mean(batches, axis=0), np.std(batches, axis=0, ddof=1) / np.sqrt(BATCHES)


def deviation(sample, K):
    """The largest difference from the kernel in Monte Carlo errors, the O(1/width) bias allowed for."""
    mean, error = sample
    bias = BIAS * np.sqrt(np.outer(np.diag(K), np.diag(K))) / WIDTH
    return np.max((np.abs(mean - K) - bias) / error)


@pytest.mark.parametrize("name", KERNELS)
def test_sample_covariance_is_the_kernel_and_not_one_with_another_variance(name):
    make, nonlinearity = KERNELS[name]
    kernel = make(nonlinearity)
    X = images(kernel)
    sample = sampled_covariance(kernel.network, X, kernel.input_shape)
    assert deviation(sample, kernel(X).numpy()) < 5
    kernel.var_weight.assign(1.2 * kernel.var_weight)
    assert deviation(sample, kernel(X).numpy()) > 6


def conv(size, stride=1):
    return Conv(size, stride, "SAME", 1.7, 0.3, divide_by_patch=True)


# Every pool is followed by weights before the next nonlinearity, as every sum is.
POOLED = {
    "in the middle": [conv(3), ExReLU(), AvgPool(2, 1, "SAME"), conv(2), ExReLU(), Dense(1.2, 0.1)],
    "two": [conv(3), ExReLU(multiply_by_sqrt2=True), AvgPool(2), conv(2), ExErf(), GlobalAvgPool(), Dense(1.2, 0.1)],
    "in a branch": [
        conv(3),
        Sum(Sequential(), Sequential(ExReLU(), AvgPool(3, 1, "SAME"), conv(2))),
        ExReLU(),
        GlobalAvgPool(),
        Dense(1.2, 0.1),
    ],
}


@pytest.mark.parametrize("name", POOLED)
def test_sample_covariance_of_pooled_networks_is_the_kernel_and_not_that_without_pools(name):
    network, shape = Sequential(*POOLED[name]), [2, 4, 4]
    X = np.random.default_rng(1).normal(size=(3, 32))
    sample = sampled_covariance(network, X, shape)
    assert deviation(sample, NNGPKernel(network, shape)(X).numpy()) < 5
    unpooled = without_pools(network)
    assert deviation(sample, NNGPKernel(unpooled, shape)(X).numpy()) > 8


def without_pools(layer):
    """The network whose pools are left out."""
    if isinstance(layer, Sequential):
        return Sequential(
            *(without_pools(child) for child in layer.layers if not isinstance(child, (AvgPool, GlobalAvgPool)))
        )
    return Sum(*map(without_pools, layer.branches)) if isinstance(layer, Sum) else layer


# As BIAS, of the neural tangent kernel: measured 0.37 +- 0.05, at the plain network.
NTK_BIAS = 0.5

TRAINED = {
    "plain": [conv(3), ExReLU(), conv(2, 2), ExErf(), Dense(1.2, 0.1)],
    "residual": [conv(3), Sum(Sequential(), Sequential(ExReLU(), conv(3))), ExReLU(), Dense(1.2, 0.1)],
    "mixed": [ChannelMix(), Sum(Sequential(), Sequential(conv(2), ExReLU(), ChannelMix())), Dense()],
    "pooled": POOLED["two"],
}


@pytest.mark.parametrize("name", TRAINED)
def test_empirical_ntk_converges_to_the_kernel(name):
    network, shape = Sequential(*TRAINED[name]), [2, 4, 4]
    X = np.random.default_rng(1).normal(size=(3, 32))
    samples = []
    for seed in range(BATCHES):
        finite = network.finite(WIDTH, shape, draws=40, outputs=2, seed=seed)
        samples.append(np.mean(finite.ntk(X), axis=0))
    T = NTKKernel(network, shape)(X).numpy()
    mean, error = np.mean(samples, axis=0), np.std(samples, axis=0, ddof=1) / np.sqrt(BATCHES)
    deviations = np.sqrt(np.outer(np.diag(T), np.diag(T)))
    assert (np.abs(mean - T) < 5 * error + NTK_BIAS * deviations / WIDTH).all()
    # The bound is narrow enough to tell the kernel from its parts.
    without_bias = NTKKernel(layer_from_description(without_biases(network.describe())), shape)(X).numpy()
    assert (np.abs(mean - without_bias) > 5 * error + NTK_BIAS * deviations / WIDTH).any()


def without_biases(description):
    if isinstance(description, list):
        return [without_biases(child) for child in description]
    if isinstance(description, dict):
        return {key: 0.0 if key == "var_bias" else without_biases(value) for key, value in description.items()}
    return description


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_empirical_ntk_by_finite_differences(dtype):
    network = Sequential(Conv(2, var_weight=1.3, var_bias=0.4), ExErf(), AvgPool((1, 2), 1), Conv(2), ExErf(), Dense())
    module = FiniteNetwork(network, 2, [1, 2, 3], draws=2, outputs=2, seed=3, dtype=dtype)
    rng = np.random.default_rng(0)
    X, X2 = rng.normal(size=(2, 6)), rng.normal(size=(3, 6))
    ntk = module.ntk(X, X2)
    assert ntk.shape == (2, 2, 3) and ntk.dtype == dtype
    np.testing.assert_allclose(module.ntk(X), module.ntk(X, X), rtol=1e-5)
    exact = FiniteNetwork(network, 2, [1, 2, 3], draws=2, outputs=2, seed=3, dtype=tf.float64)
    for weight, other in zip(exact.weights, module.weights, strict=True):
        weight.variable.assign(tf.cast(other.variable, tf.float64))
    expected = np.zeros([2, 2, 3])
    for variable, variance in exact.weights:
        values = variable.numpy()
        for place in np.ndindex(*values.shape[1:]):
            slopes = []
            for h in (1e-5, -1e-5):
                moved = values.copy()
                moved[(slice(None), *place)] += h
                variable.assign(moved)
                slopes.append([exact(x).numpy() / h / 2 for x in (X, X2)])
            variable.assign(values)
            a, b = (up + down for up, down in zip(*slopes, strict=True))
            expected += variance * np.einsum("dno,dmo->dnm", a, b) / 2
    np.testing.assert_allclose(ntk, expected, rtol=1e-4 if dtype == tf.float32 else 1e-7)


@pytest.mark.parametrize(("size", "stride", "padding"), [(2, None, "VALID"), ((3, 2), 1, "SAME"), (3, (2, 1), "VALID")])
def test_pools_are_tensorflows(size, stride, padding):
    """Apart from the edge, where TensorFlow divides by the pixels that are there."""
    X = np.random.default_rng(0).normal(size=(3, 2, 7, 6))
    module = FiniteNetwork(Sequential(AvgPool(size, stride, padding), Dense()), 1, [2, 7, 6], dtype=tf.float64)
    sizes = (size, size) if isinstance(size, int) else size
    strides = size if stride is None else stride
    filters = np.zeros([*sizes, 2, 2])
    filters[:, :, [0, 1], [0, 1]] = 1 / np.prod(sizes)
    maps = tf.nn.conv2d(np.moveaxis(X, 1, -1), filters, strides, padding)
    dense = tf.reshape(module.weights[0].variable, [-1, 1])
    np.testing.assert_allclose(module(X)[0], tf.reshape(maps, [3, -1]) @ dense, rtol=1e-12)


def test_sums_without_the_channel_mix_have_another_covariance():
    kernel = DeepKernel([1, 4, 4], [3, 2, 3], ExReLU(), 0.9, 0.6, skip_freq=1)
    mix, *blocks = kernel.network.layers
    unmixed = [mix]  # the input's, for the channels to agree
    for block in blocks:
        if isinstance(block, Sum):
            inner = [layer for layer in block.branches[1].layers if not isinstance(layer, ChannelMix)]
            block = Sum(Sequential(), Sequential(*inner))
        unmixed.append(block)
    X = images(kernel)
    assert deviation(sampled_covariance(Sequential(*unmixed), X, kernel.input_shape), kernel(X).numpy()) > 8


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("size", "stride"), [((3, 3), 1), ((4, 2), 1), ((4, 3), 2), ((2, 5), (3, 2)), ((1, 1), 2)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])  # two ways to convolve
def test_convolution_is_tensorflows(padding, size, stride, dtype):
    """The first convolution has images that all draws share, the second maps of each draw's own."""
    network = Sequential(Conv(2), Conv(size, stride, padding, var_bias=0.3), Dense())
    module = FiniteNetwork(network, 7, [3, 8, 9], draws=2, seed=5, dtype=tf.as_dtype(dtype))
    X = np.random.default_rng(0).normal(size=(4, 3, 8, 9)).astype(dtype)
    outputs = module(X)
    first, filters, bias, dense, *rest = (w.variable for w in module.weights)
    assert rest == []
    strides = [stride, stride] if isinstance(stride, int) else list(stride)
    for draw in range(2):
        maps = tf.nn.conv2d(np.moveaxis(X, 1, -1), first[draw], 1, "SAME")
        maps = tf.nn.conv2d(maps, filters[draw], strides, padding) + bias[draw]
        expected = tf.reshape(maps, [4, -1]) @ tf.reshape(dense[draw], [-1, 1])
        tolerance = 2e-4 if dtype == "float32" else 1e-12
        np.testing.assert_allclose(outputs[draw], expected, rtol=tolerance, atol=0.1 * tolerance)


def test_fixed_padding_does_not_depend_on_the_size():
    X = np.random.default_rng(0).normal(size=(2, 1, 8, 8)).astype(np.float32)
    module = Sequential(Conv(4, 2, "FIXED"), Dense()).finite(3, [1, 8, 8])
    filters, dense = (w.variable for w in module.weights)
    padded = np.pad(X, [(0, 0), (0, 0), (1, 2), (1, 2)])
    maps = tf.nn.conv2d(np.moveaxis(padded, 1, -1), filters[0], 2, "VALID")
    np.testing.assert_allclose(
        module(X)[0], tf.reshape(maps, [2, -1]) @ tf.reshape(dense[0], [-1, 1]), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("input_shape", [[3], [2, 6], [2, 4, 5], [1, 3, 4, 3]])
def test_shapes_for_every_number_of_axes(input_shape):
    network = Sequential(Conv(2, 2), ExReLU(), Dense())
    X = np.ones((4, int(np.prod(input_shape))), np.float32)
    assert network.finite(6, input_shape, draws=3, outputs=2)(X).shape == (3, 4, 2)


def test_the_seed_decides_and_the_draws_differ():
    network = Sequential(Conv(3), ExReLU(), Dense())
    X = np.ones((1, 16), np.float32)
    outputs = network.finite(5, [1, 4, 4], draws=4, seed=3)(X).numpy().ravel()
    np.testing.assert_array_equal(outputs, network.finite(5, [1, 4, 4], draws=4, seed=3)(X).numpy().ravel())
    assert len(set(outputs)) == 4
    assert not np.isin(network.finite(5, [1, 4, 4], draws=4, seed=4)(X).numpy(), outputs).any()


def test_the_weights_are_freed_without_the_garbage_collector():
    # Thousands of networks are drawn one after the other: waiting for it has cost all of a machine's memory.
    block = Sum(Sequential(ChannelMix()), Conv(3, var_weight=1.0, var_bias=1.0))
    gc.collect()
    gc.disable()
    try:
        networks = Sequential(block, ExReLU(), Dense(1.0, 1.0)).finite(4, [1, 5, 5], draws=2)
        networks(np.ones((3, 25)))
        left = [weakref.ref(networks), *(weakref.ref(weight.variable) for weight in networks.weights)]
        del networks
        assert len(left) == 6 and not any(reference() is not None for reference in left)
    finally:
        gc.enable()


def test_compiled_equals_eager():
    network = ResnetKernel([1, 6, 6], [1, 1], [1, 2], 3, ExReLU(), 1.0, 0.1).network
    module = network.finite(8, [1, 6, 6], draws=3, seed=1)
    X = tf.constant(np.random.default_rng(0).normal(size=(5, 36)).astype(np.float32))
    compiled = tf.function(module.__call__, jit_compile=True, autograph=False)
    np.testing.assert_allclose(compiled(X), module(X), rtol=1e-4, atol=1e-5)

    def gradients():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(module(X) ** 2) + tf.reduce_sum(module.l2_penalty())
        return tape.gradient(loss, module.trainable_variables)

    pairs = zip(tf.function(gradients, jit_compile=True, autograph=False)(), gradients(), strict=True)
    for compiled_gradient, gradient in pairs:
        np.testing.assert_allclose(compiled_gradient, gradient, rtol=1e-3, atol=1e-4)


def test_weights_have_the_priors_variance_and_zero_bias_has_none():
    network = Sequential(Conv(3, var_weight=1.8, var_bias=0.7, divide_by_patch=True), ExReLU(), Dense(2.0))
    module = network.finite(40, [2, 5, 5], draws=60, outputs=3)
    shapes = [w.variable.shape.as_list() for w in module.weights]
    assert shapes == [[60, 3, 3, 2, 40], [60, 40], [60, 25, 40, 3]]
    assert [w.variance for w in module.weights] == pytest.approx([1.8 / 9 / 2, 0.7, 2.0 / 1000])
    for w in module.weights:
        n = w.variable.shape.num_elements()
        assert np.var(w.variable) == pytest.approx(w.variance, rel=5 * np.sqrt(2 / n))
    by_hand = sum(np.sum(np.asarray(w.variable[7]) ** 2) / (2 * w.variance) for w in module.weights)
    assert module.l2_penalty().shape == (60,)
    assert module.l2_penalty()[7].numpy() == pytest.approx(by_hand, rel=1e-4)
    assert len(module.trainable_variables) == 3


def test_a_weight_variance_of_zero_leaves_the_biases():
    module = Sequential(Conv(3, var_weight=0.0, var_bias=1.0), Dense()).finite(3, [1, 4, 4], draws=2)
    assert len(module.trainable_variables) == 2
    X = np.random.default_rng(0).normal(size=(2, 16))
    outputs = module(X).numpy()
    np.testing.assert_allclose(outputs[:, 0], outputs[:, 1], rtol=1e-5)
    _, bias, dense = (w.variable.numpy().reshape(2, -1) for w in module.weights)
    by_hand = np.sum(bias**2, axis=1) / 2 + np.sum(dense**2, axis=1) * 16 * 3 / 2
    np.testing.assert_allclose(module.l2_penalty(), by_hand, rtol=1e-5)


def test_images_may_be_flat_or_not_and_the_precision_is_the_networks():
    module = FiniteNetwork(Sequential(Conv(3), Dense()), 3, [2, 4, 5], dtype=tf.float64)
    X = np.random.default_rng(0).normal(size=(3, 2, 4, 5)).astype(np.float32)
    assert module(X).dtype == tf.float64
    np.testing.assert_array_equal(module(X), module(X.reshape(3, -1)))


def test_training_reduces_the_loss():
    rng = np.random.default_rng(0)
    Y = np.arange(20) % 2
    X = (rng.normal(size=(20, 1, 6, 6)) + 1.5 * Y[:, None, None, None]).astype(np.float32)
    targets = tf.constant(2.0 * Y[None, :, None] - 1, tf.float32)
    network = Sequential(Conv(3, 2, var_bias=0.1), ExReLU(multiply_by_sqrt2=True), Dense(var_bias=0.1))
    module = network.finite(8, [1, 6, 6], draws=2)

    def loss():
        return tf.reduce_sum((module(X) - targets) ** 2) + 1e-3 * tf.reduce_sum(module.l2_penalty())

    before = loss()
    for _ in range(30):
        with tf.GradientTape() as tape:
            value = loss()
        gradients = tape.gradient(value, module.trainable_variables)
        assert all(g is not None for g in gradients)
        for variable, gradient in zip(module.trainable_variables, gradients, strict=True):
            variable.assign_sub(2e-4 * gradient)
    assert loss() < 0.3 * before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"width": 0}, "width is 0"),
        ({"draws": 0}, "draws is 0"),
        ({"outputs": -1}, "outputs is -1"),
        ({"input_shape": [0, 4]}, "input_shape is"),
    ],
)
def test_bad_sizes_are_refused(arguments, said):
    with pytest.raises(UserError, match=said):
        Sequential(Dense()).finite(**{"width": 3, "input_shape": [1, 4, 4], **arguments})


@pytest.mark.parametrize("shape", [(2, 31), (32,), (2, 4, 4, 2), (2, 2, 16)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(UserError, match=r"X has shape .*; expected N images of shape \[2, 4, 4\], or flat, of \[32\]"):
        Sequential(Dense()).finite(3, [2, 4, 4])(np.ones(shape, np.float32))


def test_sums_of_different_channels_are_refused():
    with pytest.raises(UserError, match="A sum adds maps of 1 and 3 channels"):
        Sequential(Sum(Sequential(), Conv(3)), Dense()).finite(3, [1, 4, 4])


def test_sums_of_different_map_sizes_are_refused():
    with pytest.raises(UserError, match=r"A sum adds maps of different sizes: \(2, 2\), \(4, 4\)"):
        Sequential(Sum(Conv(3, 2), Conv(3)), Dense()).finite(3, [1, 4, 4])


def test_a_network_without_weights_is_refused():
    with pytest.raises(UserError, match="The network has no weights"):
        Sequential(ExReLU()).finite(3, [1])


def test_a_network_without_a_readout_is_refused():
    with pytest.raises(UserError, match="expected a Dense"):
        Sequential(Conv(3)).finite(3, [1, 4, 4])
