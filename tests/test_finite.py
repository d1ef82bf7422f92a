"""Finite networks: their sample covariance converges to the kernel, and they can be trained."""

import numpy as np
import pytest
import tensorflow as tf

from cnn_gp import ChannelMix, Conv, DeepKernel, Dense, ExErf, ExReLU, ResnetKernel, Sequential, Sum
from cnn_gp.errors import UserError

BATCHES = 20

KERNELS = {
    "convnet": (lambda nl: DeepKernel([2, 5, 4], [3, 2], nl, 1.5, 0.4, strides=[1, 2]), ExReLU(multiply_by_sqrt2=True)),
    "residual": (lambda nl: DeepKernel([2, 4, 4], [3, 3, 2], nl, 0.4, 0.3, skip_freq=1), ExReLU()),
    "every other layer": (
        lambda nl: DeepKernel([1, 4, 4], [3, 2, 3, 2], nl, 0.3, 0.2, skip_freq=2),
        ExReLU(),
    ),
    "resnet": (lambda nl: ResnetKernel([2, 5, 5], [2, 2], [1, 2], 3, nl, 1.3, 0.2), ExReLU()),
    "erf": (lambda nl: DeepKernel([1, 4, 4], [3, 2], nl, 0.9, 0.5, padding="VALID"), ExErf()),
    "step": (lambda nl: DeepKernel([3, 6], [3, 3], nl, 0.9, 0.5), ExReLU(0)),
    "fully connected": (lambda nl: DeepKernel([5], [[], []], nl, 1.6, 0.5), ExReLU()),
}


def sampled_covariance(network, X, input_shape, width, draws=600, outputs=4):
    """The sample second moments of the outputs [N, N] and their Monte Carlo errors."""
    batches = []
    for seed in range(BATCHES):
        values = network.finite(width, input_shape, draws=draws, outputs=outputs, seed=seed)(X).numpy()
        batches.append(np.einsum("dno,dmo->nm", values, values) / (draws * outputs))
    return np.mean(batches, axis=0), np.std(batches, axis=0, ddof=1) / np.sqrt(BATCHES)


def deviations(kernel, width, network=None):
    """Differences from the kernel in Monte Carlo errors, the O(1/width) bias allowed for."""
    X = np.random.default_rng(1).normal(size=(3, kernel.input_size))
    K = kernel(X).numpy()
    sampled, error = sampled_covariance(network or kernel.network, X, kernel.input_shape, width)
    bias = 0.5 * np.sqrt(np.outer(np.diag(K), np.diag(K))) / width
    return np.maximum(np.abs(sampled - K) - bias, 0) / error


@pytest.mark.parametrize("name", KERNELS)
def test_sample_covariance_converges_to_the_kernel(name):
    make, nonlinearity = KERNELS[name]
    assert deviations(make(nonlinearity), width=24).max() < 5


def test_the_comparison_would_notice_a_variance_ten_percent_off():
    right = DeepKernel([2, 5, 4], [3], ExReLU(), 1.5, 0.4)
    wrong = DeepKernel([2, 5, 4], [3], ExReLU(), 1.65, 0.4)
    assert deviations(right, 24).max() < 5
    assert deviations(right, 24, network=wrong.network).max() > 5


def test_the_comparison_would_notice_sums_without_the_channel_mix():
    kernel = DeepKernel([1, 4, 4], [3, 2, 3], ExReLU(), 0.9, 0.6, skip_freq=1)
    layers = [Conv(1)]  # the input's mix is needed for the channels to agree
    for block in kernel.network.layers[1:]:
        if isinstance(block, Sum):
            inner = [layer for layer in block.branches[1].layers if not isinstance(layer, ChannelMix)]
            block = Sum(Sequential(), Sequential(*inner))
        layers.append(block)
    unmixed = Sequential(*layers)
    assert deviations(kernel, 24).max() < 5
    assert deviations(kernel, 24, network=unmixed).max() > 8


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("size", "stride"), [((3, 3), 1), ((4, 2), 1), ((4, 3), 2), ((2, 5), (3, 2)), ((1, 1), 2)])
def test_convolution_is_tensorflows(padding, size, stride):
    network = Sequential(Conv(size, stride, padding, var_bias=0.3), Dense())
    module = network.finite(7, [3, 8, 9], draws=2, seed=5)
    X = np.random.default_rng(0).normal(size=(4, 3, 8, 9)).astype(np.float32)
    outputs = module(X)
    filters, bias, dense, *rest = (w.variable for w in module.weights)
    assert rest == []
    strides = [stride, stride] if isinstance(stride, int) else list(stride)
    for draw in range(2):
        maps = tf.nn.conv2d(np.moveaxis(X, 1, -1), filters[draw], strides, padding) + bias[draw]
        expected = tf.reshape(maps, [4, -1]) @ dense[draw]
        np.testing.assert_allclose(outputs[draw], expected, rtol=2e-4, atol=2e-5)


def test_fixed_padding_does_not_depend_on_the_size():
    X = np.random.default_rng(0).normal(size=(2, 1, 8, 8)).astype(np.float32)
    module = Sequential(Conv(4, 2, "FIXED"), Dense()).finite(3, [1, 8, 8])
    filters, dense = (w.variable for w in module.weights)
    padded = np.pad(X, [(0, 0), (0, 0), (1, 2), (1, 2)])
    maps = tf.nn.conv2d(np.moveaxis(padded, 1, -1), filters[0], 2, "VALID")
    np.testing.assert_allclose(module(X)[0], tf.reshape(maps, [2, -1]) @ dense[0], rtol=1e-4, atol=1e-6)


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


def test_compiled_equals_eager():
    network = ResnetKernel([1, 6, 6], [1, 1], [1, 2], 3, ExReLU(), 1.0, 0.1).network
    module = network.finite(8, [1, 6, 6], draws=3, seed=1)
    X = tf.constant(np.random.default_rng(0).normal(size=(5, 36)).astype(np.float32))
    compiled = tf.function(module.__call__, jit_compile=True, autograph=False)
    np.testing.assert_allclose(compiled(X), module(X), rtol=1e-4, atol=1e-5)


def test_weights_have_the_priors_variance_and_zero_bias_has_none():
    network = Sequential(Conv(3, var_weight=1.8, var_bias=0.7, divide_by_patch=True), ExReLU(), Dense(2.0))
    module = network.finite(40, [2, 5, 5], draws=60, outputs=3)
    shapes = [w.variable.shape.as_list() for w in module.weights]
    assert shapes == [[60, 3, 3, 2, 40], [60, 40], [60, 25 * 40, 3]]
    assert [w.variance for w in module.weights] == pytest.approx([1.8 / 9 / 2, 0.7, 2.0 / 1000])
    for w in module.weights:
        n = w.variable.shape.num_elements()
        assert np.var(w.variable) == pytest.approx(w.variance, rel=5 * np.sqrt(2 / n))
    by_hand = sum(np.sum(np.asarray(w.variable[7]) ** 2) / (2 * w.variance) for w in module.weights)
    assert module.l2_penalty().shape == (60,)
    assert module.l2_penalty()[7].numpy() == pytest.approx(by_hand, rel=1e-4)
    assert len(module.trainable_variables) == 3


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


def test_images_of_another_size_are_refused():
    with pytest.raises(UserError, match=r"The images have shape \[15\]; expected \[1, 4, 4\]"):
        Sequential(Dense()).finite(3, [1, 4, 4])(np.ones((2, 15), np.float32))


def test_sums_of_different_channels_are_refused():
    with pytest.raises(UserError, match="A sum adds maps of 1 and 3 channels"):
        Sequential(Sum(Sequential(), Conv(3)), Dense()).finite(3, [1, 4, 4])


def test_a_network_without_a_readout_is_refused():
    with pytest.raises(UserError, match="expected a Dense"):
        Sequential(Conv(3)).finite(3, [1, 4, 4])
