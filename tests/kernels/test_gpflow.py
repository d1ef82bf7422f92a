"""The kernels in GPflow's machinery: compiled, copied, stored, combined (docs/gpflow.md has examples)."""

import copy
import pickle

import gpflow
import numpy as np
import pytest
import tensorflow as tf

from cnn_gp import (
    GELU,
    Abs,
    AvgPool,
    Conv,
    Cos,
    Dense,
    ElementwiseNumerical,
    ExReLU,
    LeakyReLU,
    NNGPKernel,
    NTKKernel,
    Scaled,
    Sequential,
    Sin,
)

NONLINEARITIES = [GELU(), Abs(), LeakyReLU(0.2), Sin(b=0.5), Cos(), ExReLU(2), ElementwiseNumerical(tf.sin, degree=16)]


def network(nonlinearity, *pools):
    shared = [gpflow.Parameter(v, transform=gpflow.utilities.positive()) for v in (1.4, 0.3)]
    return Sequential(Conv(2, 1, "SAME", *shared, divide_by_patch=True), nonlinearity, *pools, Dense(*shared))


@pytest.mark.parametrize("kind", [NNGPKernel, NTKKernel])
@pytest.mark.parametrize("layer", NONLINEARITIES, ids=lambda layer: type(layer).__name__)
def test_gradients_are_the_finite_differences_also_at_identical_and_black_images(kind, layer, rng):
    kernel, X = kind(network(layer, AvgPool(2)), [1, 3, 3]), rng.normal(size=(4, 9))
    X[1], X[2] = X[0], 0
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(kernel(X) * np.arange(16.0).reshape(4, 4))
    for variable, gradient in zip(
        kernel.trainable_variables, tape.gradient(value, kernel.trainable_variables), strict=True
    ):
        at, ends = variable.numpy(), []
        for h in (1e-5, -1e-5):
            variable.assign(at + h)
            ends.append(np.sum(kernel(X) * np.arange(16.0).reshape(4, 4)))
        variable.assign(at)
        assert gradient.numpy() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("kind", [NNGPKernel, NTKKernel])
@pytest.mark.parametrize("layer", NONLINEARITIES, ids=lambda layer: type(layer).__name__)
def test_the_matrix_is_exactly_symmetric_with_the_diagonal_of_its_own(kind, layer, rng):
    kernel, X = kind(network(layer), [1, 3, 3]), rng.normal(size=(5, 9)).astype(np.float32)
    X[1], X[2], X[3, :5] = X[0], 0, 0
    K = kernel(X).numpy()
    np.testing.assert_array_equal(K, K.T)
    np.testing.assert_array_equal(np.diag(K), kernel(X, full_cov=False))
    np.testing.assert_array_equal(np.diag(kernel(X, X)), kernel(X, full_cov=False))
    assert np.isfinite(K).all() and K[0, 1] == K[0, 0]
    # Of different images. Measured: 4e-7.
    scale = np.sqrt(np.outer(np.diag(K), np.diag(K)))
    assert np.max(np.abs(K - kernel(X.astype(np.float64))) / scale) < 2e-6


@pytest.mark.parametrize(("kind", "compiled"), [(NNGPKernel, False), (NTKKernel, True)])
def test_compiled_it_is_the_same_and_reads_its_parameters(kind, compiled, rng):
    kernel, X = Scaled(kind(network(GELU(), AvgPool(2)), [1, 4, 4]), 0.5), tf.constant(rng.normal(size=(3, 16)))
    function = tf.function(kernel.K, jit_compile=compiled, autograph=False)
    for factor in (0.5, 2.0):
        kernel.factor.assign(factor)
        np.testing.assert_allclose(function(X), kernel(X), rtol=1e-12)
        np.testing.assert_allclose(function(X, X[:2]), kernel(X)[:, :2], rtol=1e-12)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda kernel: pickle.loads(pickle.dumps(kernel))])
def test_a_copy_has_parameters_of_its_own_which_its_layers_share(copied, rng):
    kernel, X = NTKKernel(network(ExReLU()), [1, 4, 4], active_dims=[*range(1, 17)]), rng.normal(size=(3, 17))
    again, before = copied(kernel), kernel(X)
    assert len(again.trainable_variables) == 2
    kernel.network.layers[0].var_bias.assign(5.0)
    np.testing.assert_array_equal(again(X), before)
    assert (kernel(X).numpy() > before.numpy()).all()


def test_a_checkpoint_and_a_dictionary_bring_the_values_back(tmp_path, rng):
    X = rng.normal(size=(4, 16))
    kernel = Scaled(NNGPKernel(network(ExReLU()), [1, 4, 4]), 0.5)
    model = gpflow.models.GPR((X, X[:, :1]), kernel)
    mean = model.predict_f(X)[0]
    values, path = gpflow.utilities.read_values(model), tf.train.Checkpoint(model=model).save(tmp_path / "model")
    for bring_back in (
        lambda: tf.train.Checkpoint(model=model).restore(path),
        lambda: gpflow.utilities.multiple_assign(model, values),
    ):
        kernel.kernel.network.layers[0].var_weight.assign(7.0)
        kernel.factor.assign(3.0)
        assert not np.allclose(model.predict_f(X)[0], mean)
        bring_back()
        np.testing.assert_array_equal(model.predict_f(X)[0], mean)


def test_inducing_images_are_trained(rng):
    X = rng.normal(size=(12, 16))
    kernel = NNGPKernel(network(ExReLU()), [1, 4, 4])
    model = gpflow.models.SGPR((X, X[:, :1]), kernel, X[:3].copy(), noise_variance=0.1)
    before = model.elbo()
    gpflow.set_trainable(kernel, False)
    gpflow.optimizers.Scipy().minimize(model.training_loss, model.trainable_variables, options={"maxiter": 5})
    assert model.elbo() > before + 1
    assert not np.allclose(model.inducing_variable.Z, X[:3])


def test_sums_and_products_of_two_precisions(rng):
    kernel, X = NNGPKernel(network(ExReLU()), [1, 4, 4]), rng.normal(size=(3, 16))
    other = gpflow.kernels.RBF()
    np.testing.assert_allclose((kernel + other)(X), kernel(X) + other(X))
    np.testing.assert_allclose((kernel * other)(X, X[:2]), kernel(X, X[:2]) * other(X, X[:2]))
    with gpflow.config.as_context(gpflow.config.Config(float=np.float32)):
        single = (kernel + gpflow.kernels.RBF())(X.astype(np.float32))
    assert single.dtype == tf.float32
    np.testing.assert_allclose(single, (kernel + other)(X), rtol=1e-5)
