"""GPflow's models on matrices that are there already, of an array and of a stored run."""

import gpflow
import numpy as np
import pytest
import tensorflow as tf

import cnn_gp
from cnn_gp import PrecomputedKernel, Scaled, UserError
from helpers.small_runs import complete, make_data


def squared_exponential(X, X2):
    distances = ((X[:, None].astype(np.float64) - X2[None]) ** 2).sum(-1)
    return 2 * np.exp(-0.5 * distances)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The data and the kernel of its stored run, which is a squared exponential of variance 2."""
    data = make_data(20, 6, 5)
    folder = tmp_path_factory.mktemp("runs")
    complete(folder, data)
    return data, PrecomputedKernel(cnn_gp.open_run(folder / "small"))


def test_the_inputs_of_a_run_are_its_images(run):
    data, kernel = run
    assert {key: rows[:, 0].tolist() for key, rows in kernel.inputs.items()} == {
        "X": [*range(20)],
        "Xv": [*range(20, 26)],
        "Xt": [*range(26, 31)],
    }
    X, Xv, Xt = (kernel.inputs[key] for key in ("X", "Xv", "Xt"))
    np.testing.assert_array_equal(kernel(X), squared_exponential(data.X, data.X))
    np.testing.assert_array_equal(kernel(Xt, X), squared_exponential(data.Xt, data.X))
    np.testing.assert_array_equal(kernel(X[3:5], Xv), squared_exponential(data.X[3:5], data.Xv))
    np.testing.assert_array_equal(kernel(Xv, full_cov=False), np.full(6, 2.0))
    np.testing.assert_array_equal(kernel(Xv[:1]), [[2.0]])
    np.testing.assert_array_equal(kernel(tf.constant([[2], [1]])), squared_exponential(data.X[[2, 1]], data.X[[2, 1]]))


def test_gpr_predicts_as_with_the_images(run):
    data, kernel = run
    Y = np.eye(3)[data.Y]
    model = gpflow.models.GPR((kernel.inputs["X"], Y), kernel, noise_variance=0.1)
    X, Xt = data.X.astype(float), data.Xt.astype(float)
    plain = gpflow.models.GPR((X, Y), gpflow.kernels.SquaredExponential(2.0), noise_variance=0.1)
    np.testing.assert_allclose(model.predict_f(kernel.inputs["Xt"]), plain.predict_f(Xt), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(model.log_marginal_likelihood(), plain.log_marginal_likelihood(), rtol=1e-6)
    gpflow.optimizers.Scipy().minimize(model.training_loss, model.trainable_variables, options={"maxiter": 10})
    assert model.log_marginal_likelihood() > plain.log_marginal_likelihood()


@pytest.mark.parametrize("kind", ["VGP", "SVGP"])
def test_variational_models_classify(run, kind):
    data, kernel = run
    X, likelihood = kernel.inputs["X"], gpflow.likelihoods.MultiClass(3)
    if kind == "VGP":
        model = gpflow.models.VGP((X, data.Y[:, None].astype(float)), Scaled(kernel, 4.0), likelihood, num_latent_gps=3)
        loss = model.training_loss
    else:
        model = gpflow.models.SVGP(Scaled(kernel, 4.0), likelihood, X[::2].copy(), num_latent_gps=3)
        gpflow.set_trainable(model.inducing_variable, False)
        loss = model.training_loss_closure((X, data.Y[:, None].astype(float)))
    before = loss()
    gpflow.optimizers.Scipy().minimize(loss, model.trainable_variables, options={"maxiter": 50})
    assert loss() < 0.6 * before
    probabilities, _ = model.predict_y(kernel.inputs["Xt"])
    assert np.mean(np.argmax(probabilities, axis=1) == data.Yt) >= 0.8


def test_within_a_function_what_is_not_known_is_nan(run):
    _, kernel = run
    X = np.array([[3.0], [22.0], [23.0]])
    with pytest.raises(UserError, match=r"two images from number 20 on aren't known.*without full_cov"):
        kernel(X)
    known = [[True, True, True], [True, True, False], [True, False, True]]
    for compiled in (False, True):
        K = tf.function(kernel.K, jit_compile=compiled, autograph=False)(tf.constant(X)).numpy()
        np.testing.assert_array_equal(np.isfinite(K), known)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: PrecomputedKernel("runs/digits"), r"expected floating-point.*a run: open it with cnn_gp.open_run"),
        (lambda: PrecomputedKernel(np.ones((2, 3))), r"shape \(2, 3\)"),
        (lambda: PrecomputedKernel(np.eye(2, dtype=int)), "dtype int64"),
        (lambda: PrecomputedKernel(np.ones((3, 2))), "3 x 2 without a diagonal"),
        (lambda: PrecomputedKernel(np.ones((3, 2)), np.ones(2)), r"diagonal has shape \(2,\); expected \(3,\)"),
        (lambda: PrecomputedKernel(np.array([[1, np.nan], [np.nan, 1]])), "isn't finite"),
        (lambda: PrecomputedKernel(np.array([[1.0, 0.5], [0.4, 1.0]])), r"2 rows aren't symmetric.*\(K \+ K.T\) / 2"),
        (lambda: PrecomputedKernel(np.eye(2), np.full(2, 2.0)), "aren't symmetric with the given diagonal"),
        (lambda: PrecomputedKernel(np.eye(2))(np.array([[2.0]])), "An input is 2; expected the number.*from 0 to 1"),
        (lambda: PrecomputedKernel(np.eye(2))(np.array([[0.5]]), full_cov=False), "An input is 0.5"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(make, said):
    with pytest.raises(UserError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)
