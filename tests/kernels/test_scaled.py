"""A kernel times a number: its values, in `gram`, and trained."""

import gpflow
import numpy as np
import pytest

from cnn_gp import Conv, Dense, ExReLU, NNGPKernel, NTKKernel, Scaled, Sequential, UserError, build_kernel, gram


@pytest.mark.parametrize("kind", [NNGPKernel, NTKKernel])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("engine", ["auto", "tensorflow"])
def test_it_is_the_kernel_times_the_factor_also_in_gram(kind, dtype, engine, rng):
    kernel = kind(Sequential(Conv(3, var_bias=0.1), ExReLU(), Dense()), [1, 4, 4], active_dims=[*range(2, 18)])
    scaled, X = Scaled(kernel, 0.3), rng.random((5, 18)).astype(dtype)
    K = scaled(X).numpy()
    factor = dtype(scaled.factor.numpy())
    assert factor == pytest.approx(0.3, rel=1e-6 if dtype == np.float32 else 1e-14)
    np.testing.assert_array_equal(K, factor * kernel(X).numpy(), strict=True)
    np.testing.assert_array_equal(np.diag(K), scaled(X, full_cov=False))
    np.testing.assert_allclose(scaled(X, X[:2] + 1), 0.3 * kernel(X, X[:2] + 1).numpy(), rtol=1e-6)
    G = gram(scaled, X, engine=engine)
    np.testing.assert_array_equal(G, factor * gram(kernel, X, engine=engine), strict=True)
    np.testing.assert_allclose(gram(scaled, X, X[:2], engine=engine), G[:, :2], rtol=1e-6)


def test_a_kernel_of_the_random_search_has_a_prior_variance_of_one(rng):
    kernel, X = build_kernel("convnet_gp", [1, 8, 8]), rng.random((4, 64))
    variances = kernel(X, full_cov=False).numpy()
    assert variances.mean() > 1e4
    scaled = Scaled(kernel, 1 / variances.mean())
    assert np.mean(scaled(X, full_cov=False)) == pytest.approx(1, rel=1e-12)
    # Fixed by default: it would be one more scale beside the last layer's variances.
    assert scaled.factor not in gpflow.utilities.parameter_dict(kernel).values()
    assert len(scaled.trainable_variables) == len(kernel.trainable_variables)


def test_a_trainable_factor_is_trained(rng):
    X = rng.random((6, 3))
    fixed = NNGPKernel(Sequential(Dense(), ExReLU(), Dense()), [3])
    gpflow.set_trainable(fixed, False)
    model = gpflow.models.GPR((X, 10 * X[:, :1]), Scaled(fixed, 1.0, trainable=True), noise_variance=0.1)
    gpflow.set_trainable(model.likelihood, False)
    before = model.log_marginal_likelihood()
    gpflow.optimizers.Scipy().minimize(model.training_loss, model.trainable_variables)
    assert model.kernel.factor.numpy() > 5
    assert model.log_marginal_likelihood() > before + 10


@pytest.mark.parametrize("factor", [0, -1.0, float("nan"), float("inf")])
def test_a_bad_factor_is_refused_in_one_line(factor):
    with pytest.raises(UserError, match=r"^factor is .*; expected a positive, finite number[^\n]*$"):
        Scaled(gpflow.kernels.RBF(), factor)
