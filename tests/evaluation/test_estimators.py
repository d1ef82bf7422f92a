"""The scikit-learn estimators: what both stages compute, in scikit-learn's conventions."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks

from cnn_gp import (
    Conv,
    Dense,
    ExReLU,
    NNGPClassifier,
    NNGPKernel,
    NNGPRegressor,
    Sequential,
    build_kernel,
    gram,
    memory,
)
from cnn_gp.compute.compute_kernels import Request, compute_kernels
from cnn_gp.engines.choice import make_engine
from cnn_gp.evaluation import classify
from cnn_gp.evaluation.computed_gram import ComputedGram
from cnn_gp.evaluation.noise_choice import NOISES
from cnn_gp.evaluation.result_files import ResultFiles
from cnn_gp.regression.iterative import IterativeFactor

DIGITS = load_digits()
X, Y = DIGITS.images / 16, DIGITS.target
TRAIN, TEST = slice(120), slice(1400, 1440)
CONVNET = build_kernel("convnet_gp", [1, 8, 8])
CONVNET_NTK = build_kernel("convnet_gp", [1, 8, 8], kernel="ntk")


def vectors_network():
    return Sequential(Dense(2.0, 0.1), ExReLU(), Dense())


def unit_vectors(N, D=4, seed=0):
    """On which the kernel of a network has a constant diagonal, so that noise is the same of any of them."""
    x = np.random.default_rng(seed).normal(size=(N, D))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@parametrize_with_checks([NNGPClassifier(), NNGPRegressor()])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """A run, its result, and the result's arrays."""
    path = tmp_path_factory.mktemp("stages")
    request = Request(path, "convnet_gp", dataset="digits", N_train=120, N_vali=30, N_test=40)
    run = compute_kernels(request, lambda line: None)
    files = ResultFiles(path / "results", run.name)
    asked = classify.Request(120, 30, 40, noises=(1e-3,), variances=True, leave_one_out=True)
    result = classify.classify(run, asked, files, "none", lambda line: None)
    return run, result, files.read_arrays(result)


@pytest.mark.parametrize("from_run", [False, True])
def test_a_classifier_is_both_stages(stages, from_run):
    run, result, arrays = stages
    if from_run:
        classifier = NNGPClassifier.from_run(run.folder, noise=1e-3)
    else:
        classifier = NNGPClassifier("convnet_gp", noise=1e-3).fit(X[TRAIN], Y[TRAIN])
    np.testing.assert_allclose(classifier.alpha_, arrays["alpha"], rtol=1e-9)
    test = X[TEST]
    probabilities = np.exp(arrays["log_probabilities_test"])
    np.testing.assert_allclose(classifier.predict_proba(test), probabilities, rtol=1e-6, atol=1e-12)
    np.testing.assert_array_equal(classifier.predict(test), arrays["test"].argmax(axis=1))
    assert 100 * (1 - classifier.score(test, Y[TEST])) == pytest.approx(result.test_error)
    assert classifier.log_marginal_likelihood_ == pytest.approx(result.log_marginal_likelihood, rel=1e-9)
    assert 100 * (1 - classifier.loo_score_) == pytest.approx(result.leave_one_out.error)
    density = result.leave_one_out.log_predictive_density
    assert classifier.loo_log_predictive_density_ == pytest.approx(density, rel=1e-9)
    assert (classifier.noise_, classifier.jitter_) == (1e-3, 0)


def test_the_noise_of_a_run_is_chosen_on_its_validation_images(stages, tmp_path):
    run, _, _ = stages
    found = NNGPClassifier.from_run(run.folder, noise="validation")
    asked = classify.Request(120, 30, 40, noises=NOISES)
    result = classify.classify(run, asked, ResultFiles(tmp_path, run.name), "none", lambda line: None)
    assert [100 * loss for loss in found.noise_search_.values()] == [
        pytest.approx(100 * tried.validation_error) for tried in result.noise_search
    ]
    assert found.noise_ == result.noise


def test_leave_one_out_is_brute_force():
    x, rng = unit_vectors(12), np.random.default_rng(1)
    y = rng.normal(size=(12, 2))
    whole = NNGPRegressor(vectors_network(), noise=0.1).fit(x, y)
    means, density = [], 0.0
    kept = [np.arange(12) != i for i in range(12)]
    scale = whole._output_scale(whole.alpha_)
    mean_diagonal = whole._solution.mean_diagonal
    for i, others in enumerate(kept):
        one = NNGPRegressor(vectors_network(), noise=0.1).fit(x[others], y[others])
        mean, variance = one._posterior(x[[i]], variances=True)
        variance = scale * (variance[0] + 0.1 * mean_diagonal)
        density += (-0.5 * np.log(2 * np.pi * variance) - 0.5 * (y[i] - mean[0]) ** 2 / variance).sum()
        means.append(mean[0])
    np.testing.assert_allclose(whole.loo_predictions_, means, rtol=1e-4)
    assert whole.loo_log_predictive_density_ == pytest.approx(density, rel=1e-5)


def test_loo_takes_the_noise_of_the_largest_density():
    rng = np.random.default_rng(2)
    x = unit_vectors(80, 3)
    y = x[:, 0] + 0.3 * rng.normal(size=80)
    chosen = NNGPRegressor(vectors_network(), noise="loo").fit(x, y)
    densities = {
        noise: NNGPRegressor(vectors_network(), noise=noise).fit(x, y).loo_log_predictive_density_ for noise in NOISES
    }
    assert chosen.noise_ == max(NOISES, key=densities.__getitem__) > 0
    assert {noise: -loss for noise, loss in chosen.noise_search_.items()} == pytest.approx(densities)
    assert chosen.loo_log_predictive_density_ == pytest.approx(densities[chosen.noise_])


def test_validation_holds_out_every_sixth_image_and_trains_on_all():
    rng = np.random.default_rng(3)
    x = unit_vectors(60, 3)
    y = x[:, 0] + 0.3 * rng.normal(size=60)
    held_out = np.arange(60) % 6 == 5
    losses = {}
    for noise in NOISES:
        model = NNGPRegressor(vectors_network(), noise=noise).fit(x[~held_out], y[~held_out])
        losses[noise] = np.mean((model.predict(x[held_out]) - y[held_out]) ** 2)
    chosen = NNGPRegressor(vectors_network(), noise="validation").fit(x, y)
    assert chosen.noise_search_ == pytest.approx(losses)
    whole = NNGPRegressor(vectors_network(), noise=chosen.noise_).fit(x, y)
    np.testing.assert_allclose(chosen.predict(x), whole.predict(x), rtol=1e-7)
    np.testing.assert_allclose(chosen.loo_predictions_, whole.loo_predictions_, rtol=1e-7)


def test_return_std_is_the_scaled_posterior():
    x, new = unit_vectors(20), unit_vectors(5, seed=7)
    y = np.stack([x[:, 0], 10 * x[:, 0]], axis=1)
    model = NNGPRegressor(vectors_network(), noise=0.01).fit(x, y)
    mean, std = model.predict(new, return_std=True)
    K = gram(NNGPKernel(vectors_network(), [4]), np.concatenate([x, new]).astype(np.float32)).astype(float)
    system = K[:20, :20] + 0.01 * np.diagonal(K)[:20].mean() * np.eye(20)
    variance = np.diagonal(K[20:, 20:] - K[20:, :20] @ np.linalg.solve(system, K[:20, 20:]))
    scale = np.einsum("ij,ij->j", y, np.linalg.solve(system, y)) / 20
    np.testing.assert_allclose(mean, K[20:, :20] @ np.linalg.solve(system, y), rtol=1e-6)
    np.testing.assert_allclose(std, np.sqrt(variance[:, None] * scale), rtol=1e-6)
    np.testing.assert_allclose(std[:, 1], 10 * std[:, 0], rtol=1e-9)
    one, one_std = NNGPRegressor(vectors_network(), noise=0.01).fit(x, y[:, 0]).predict(new, return_std=True)
    assert one.shape == one_std.shape == (5,)


def test_targets_that_are_all_zero():
    model = NNGPRegressor(vectors_network(), noise="loo").fit(unit_vectors(8), np.zeros(8))
    mean, std = model.predict(unit_vectors(3), return_std=True)
    np.testing.assert_array_equal(mean, 0)
    assert (std < 1e-100).all()


def test_images_of_every_layout_and_8_bits_are_the_same():
    grey = (DIGITS.images[TRAIN] * 15).astype(np.uint8)
    expected = NNGPClassifier("convnet_gp").fit(grey * np.float32(1 / 255), Y[TRAIN])
    new = grey[:7]
    means = expected._posterior(new, variances=False)[0]
    for images, image_shape in (
        (grey, None),
        (grey[..., None], None),
        (grey.reshape(len(grey), -1), (1, 8, 8)),
        (grey.reshape(len(grey), -1), (8, 8)),
        (grey, (8, 8)),
    ):
        found = NNGPClassifier("convnet_gp", image_shape=image_shape).fit(images, Y[TRAIN])
        np.testing.assert_array_equal(found.X_train_, expected.X_train_)
        assert found.image_shape_ == (1, 8, 8)
        for one in (new, new[..., None], new.reshape(7, -1), new * np.float32(1 / 255)):
            np.testing.assert_array_equal(found._posterior(one, variances=False)[0], means)
    colour = np.random.default_rng(0).integers(0, 256, (12, 5, 6, 3), np.uint8)
    network = Sequential(*build_kernel("convnet_gp", [3, 5, 6]).network.layers)
    found = NNGPRegressor(network).fit(colour, np.arange(12.0))
    np.testing.assert_array_equal(found.X_train_, np.moveaxis(colour, -1, 1).reshape(12, -1) * np.float32(1 / 255))


@pytest.mark.parametrize(
    "labels", [np.array(["zero", "one", "two"]), np.array([-7, 3, 1000]), np.array(["a", "b", "c"], object)]
)
def test_classes_of_any_type(labels):
    few = Y[:150] < 3
    model = NNGPClassifier("convnet_gp").fit(X[:150][few], labels[Y[:150][few]])
    np.testing.assert_array_equal(model.classes_, np.unique(labels))
    new = Y[150:300] < 3
    predicted = model.predict(X[150:300][new])
    assert np.mean(predicted == labels[Y[150:300][new]]) > 0.9
    p = model.predict_proba(X[150:300][new])
    np.testing.assert_array_equal(model.classes_[p.argmax(axis=1)], predicted)
    assert set(model.loo_predictions_) <= set(labels)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"kernel": "convnet_gp", "pool": 2, "ntk": True}, build_kernel("convnet_gp", [1, 8, 8], pool=2, kernel="ntk")),
        ({"kernel": CONVNET.network}, CONVNET),
        (
            {"kernel": build_kernel("convnet_gp", [1, 8, 8], kernel="ntk")},
            build_kernel("convnet_gp", [1, 8, 8], kernel="ntk"),
        ),
        (
            {"kernel": CONVNET.network, "pool": "global"},
            build_kernel("convnet_gp", [1, 8, 8], pool="global"),
        ),
        ({}, build_kernel("resnet_gp", [1, 8, 8])),
    ],
)
def test_the_kernel_that_is_asked_for(arguments, expected):
    model = NNGPClassifier(**arguments).fit(X[:10], Y[:10])
    assert model.kernel_description_ == expected.describe()
    flat = NNGPClassifier(**arguments, image_shape=(1, 8, 8)).fit(X[:10].reshape(10, -1), Y[:10])
    np.testing.assert_array_equal(flat.alpha_, model.alpha_)


def test_a_kernel_over_one_axis_takes_flat_inputs():
    x = np.random.default_rng(0).random((9, 6)).astype(np.float32)
    kernel = NNGPKernel(Sequential(Conv(3), ExReLU(), Dense()), [2, 3])
    model = NNGPRegressor(kernel, noise=0.1).fit(x, x[:, 0])
    assert model.image_shape_ == (2, 3)
    K = kernel(x.astype(np.float64)).numpy()
    alpha = np.linalg.solve(K + 0.1 * np.diag(K).mean() * np.eye(9), x[:, 0])
    np.testing.assert_allclose(model.alpha_[:, 0], alpha, rtol=1e-4)


@pytest.mark.parametrize("kernel", [vectors_network(), NNGPKernel(vectors_network(), [4]), None])
def test_a_fitted_one_pickles_without_tensorflow(kernel):
    x = unit_vectors(15)
    model = NNGPRegressor(kernel, noise="loo").fit(x, x[:, 0])
    content = pickle.dumps(model)
    assert b"tensorflow" not in content and b"gpflow" not in content
    assert model.kernel is kernel
    again = pickle.loads(content)
    for before, after in zip(model.predict(x, return_std=True), again.predict(x, return_std=True), strict=True):
        np.testing.assert_array_equal(before, after)
    assert again.loo_score_ == model.loo_score_
    assert clone(again).fit(x, x[:, 0]).kernel_description_ == model.kernel_description_


def test_a_grid_search_and_a_pipeline():
    scaled = make_pipeline(FunctionTransformer(np.sqrt), NNGPClassifier(vectors_network()))
    grid = {"nngpclassifier__noise": [0.0, 0.1], "nngpclassifier__ntk": [False, True]}
    search = GridSearchCV(scaled, grid, cv=2, scoring="neg_log_loss").fit(X[TRAIN].reshape(120, -1), Y[TRAIN])
    assert search.score(X[TEST].reshape(40, -1), Y[TEST]) > -1
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_a_fit_that_fails_leaves_no_other_behind():
    model = NNGPClassifier(vectors_network()).fit(unit_vectors(8), np.arange(8) % 2)
    with pytest.raises(ValueError, match="noise is 'best'"):
        model.set_params(noise="best").fit(unit_vectors(9), np.arange(9) % 2)
    with pytest.raises(ValueError, match="not fitted yet"):
        model.predict(unit_vectors(8))


@pytest.mark.parametrize(
    ("arguments", "x", "y", "said"),
    [
        ({"kernel": "convnet_gp"}, X[:10].reshape(10, -1), Y[:10], r"shape \[N, 64\], and the kernel convnet_gp is"),
        ({"kernel": "resnet"}, X[:10], Y[:10], "The model is 'resnet'; expected one of"),
        ({"kernel": 3}, X[:10], Y[:10], "kernel is a int; expected a model's name"),
        ({"kernel": CONVNET, "pool": 2}, X[:10], Y[:10], "pool or ntk is given with a kernel"),
        ({"kernel": build_kernel("convnet_gp", [1, 9, 9])}, X[:10], Y[:10], r"shape \(1, 8, 8\) and the kernel's are"),
        ({"image_shape": (1, 9, 9)}, X[:10], Y[:10], r"shape \(1, 8, 8\); image_shape is \(1, 9, 9\)"),
        ({"image_shape": (1, 9, 9)}, X[:10].reshape(10, -1), Y[:10], r"shape \(64,\); expected \(1, 9, 9\)"),
        ({"image_shape": 8}, X[:10].reshape(10, -1), Y[:10], "image_shape is 8; expected whole numbers"),
        ({"image_shape": (1, 8.5, 8)}, X[:10].reshape(10, -1), Y[:10], r"image_shape is \(1, 8.5, 8\); expected whole"),
        ({"image_shape": ()}, X[:10].reshape(10, -1), Y[:10], r"image_shape is \(\); expected whole"),
        ({"kernel": Sequential(ExReLU()), "pool": 2}, X[:10], Y[:10], r"the network has no Dense\(\)"),
        ({"pool": 0}, X[:10], Y[:10], "size is 0 on a map"),
        ({"noise": -1}, X[:10], Y[:10], "noise is -1; expected a number of at least 0, 'loo' or 'validation'"),
        ({"noise": None}, X[:10], Y[:10], "noise is None; expected a number"),
        ({"noise": np.nan}, X[:10], Y[:10], "noise is nan; expected a number"),
        ({"noise": "validation"}, X[:5], Y[:5], "There are 5 images; noise='validation' needs 6"),
        ({"kernel": CONVNET, "engine": "fast"}, X[:10], Y[:10], "The engine is 'fast'"),
        ({"kernel": CONVNET, "n_threads": 0}, X[:10], Y[:10], "n_threads is 0"),
        ({"kernel": CONVNET, "n_threads": 2.5}, X[:10], Y[:10], "n_threads is 2.5; expected a whole number"),
        ({}, X[:10].astype(int), Y[:10], "X has type int64: give uint8"),
        ({}, X[:10] * 0, Y[:10], "mean diagonal over 10 images is 0"),
        ({}, X[:10] * 1e30, Y[:10], "The kernel isn't finite at images whose values are from 0 to 9.37e"),
        ({}, X[:10], np.zeros(10), "y has one class, .*0.0"),
    ],
)  # fmt: skip
def test_what_cant_be_used_is_refused_in_one_line(arguments, x, y, said):
    with pytest.raises(ValueError, match=said) as caught:
        NNGPClassifier(**arguments).fit(x, y)
    assert "\n" not in str(caught.value)


def test_new_images_of_another_scale_are_remarked_on():
    model = NNGPClassifier("convnet_gp").fit(X[:20], Y[:20])
    with pytest.warns(UserWarning, match=r"^the images have values from 0 to 255, the training images from 0 to 1"):
        model.predict(X[20:30] * 255)


def test_verbose_says_which_jitter_is_needed(capsys):
    twice = np.concatenate([unit_vectors(5)] * 2)
    model = NNGPRegressor(vectors_network()).fit(twice, np.arange(10.0) % 5)
    assert model.jitter_ > 0 and capsys.readouterr().out == ""
    NNGPRegressor(vectors_network(), verbose=True).fit(twice, np.arange(10.0) % 5)
    assert "isn't positive definite at relative jitter 0" in capsys.readouterr().out


def test_half_of_the_gram_matrix_is_the_whole():
    kernel = build_kernel("convnet_gp", [1, 8, 8])
    images = X[:30].reshape(30, -1).astype(np.float32)
    K = gram(kernel, images)
    half = ComputedGram(make_engine("fused", kernel), images, n_max=7)
    assert (half.N, half.n_max) == (30, 7)
    np.testing.assert_array_equal(half.diagonal(), np.diagonal(K))
    for start, entries in half.rows():
        np.testing.assert_array_equal(entries, K[start : start + 7, start:])
    for start, stop, left, right in ((5, 20, 5, 20), (3, 9, 12, 30), (0, 30, 0, 30)):
        np.testing.assert_array_equal(half.block(start, stop, left, right), K[start:stop, left:right])


def test_a_fit_that_memory_lacks_is_refused_before_the_kernel_is_computed(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 100_000)
    with pytest.raises(ValueError, match=r"Fitting 200 images needs 0.0 GB .*: fit fewer, or take save_kernels.py"):
        NNGPClassifier().fit(X[:200], Y[:200])


@pytest.mark.parametrize("from_run", [False, True])
def test_conjugate_gradients_predict_what_the_factorisation_predicts(stages, from_run):
    run, test = stages[0], X[TEST]

    def fitted(solver):
        if from_run:
            return NNGPClassifier.from_run(run.folder, noise=1e-2, solver=solver)
        return NNGPClassifier("convnet_gp", noise=1e-2, solver=solver).fit(X[TRAIN], Y[TRAIN])

    exact, found = fitted("cholesky"), fitted("cg")
    assert isinstance(found._solution.factor, IterativeFactor)
    assert not isinstance(exact._solution.factor, IterativeFactor)
    again = pickle.loads(pickle.dumps(found))
    for classifier in (found, again):
        np.testing.assert_allclose(classifier.predict_proba(test), exact.predict_proba(test), atol=1e-5)
    assert found.loo_score_ == exact.loo_score_
    assert found.log_marginal_likelihood_ == pytest.approx(exact.log_marginal_likelihood_, rel=0.05)


@pytest.mark.parametrize("noise", ["loo", "validation"])
def test_conjugate_gradients_choose_the_noise_that_the_factorisation_chooses(noise):
    exact, found = (NNGPClassifier(noise=noise, solver=solver).fit(X[:60], Y[:60]) for solver in ("cholesky", "cg"))
    assert found.noise_ == exact.noise_
    losses = list(found.noise_search_.values()), list(exact.noise_search_.values())
    np.testing.assert_allclose(*losses, rtol=1e-3)


def test_auto_is_the_factorisation_where_its_memory_fits(monkeypatch, capsys):
    assert not isinstance(NNGPClassifier(verbose=True).fit(X[:60], Y[:60])._solution.factor, IterativeFactor)
    assert "conjugate" not in capsys.readouterr().out
    monkeypatch.setattr("cnn_gp.evaluation.estimator.n_bytes", lambda *sizes: 10**15)
    assert isinstance(NNGPClassifier(verbose=True).fit(X[:60], Y[:60])._solution.factor, IterativeFactor)
    said = capsys.readouterr().out
    assert "Solving for 60 images by conjugate gradients; a factorisation takes 1000000.00 GB of memory" in said
    assert "GB are there" in said
    assert not isinstance(NNGPClassifier(solver="cholesky").fit(X[:60], Y[:60])._solution.factor, IterativeFactor)
    with pytest.raises(ValueError, match=r"solver is 'lu'; expected 'auto', 'cholesky' or 'cg'"):
        NNGPClassifier(solver="lu").fit(X[:60], Y[:60])


def test_the_memory_of_a_factor_is_asked_for_only_where_there_is_to_be_one(monkeypatch):
    checked: list[int] = []
    monkeypatch.setattr(memory, "check", lambda n, *texts: checked.append(n))
    for solver in ("cholesky", "cg", "auto"):
        NNGPClassifier(solver=solver)._check_memory(20_000, 10)
    assert checked[1] < checked[0] and checked[2] == checked[1]


def test_the_tensorflow_engine_in_float32_and_float64(tmp_path):
    x = unit_vectors(20)
    fused, tensorflow = (NNGPRegressor(engine=name).fit(x, x[:, 0]) for name in ("fused", "tensorflow"))
    np.testing.assert_allclose(tensorflow.predict(x[:5]), fused.predict(x[:5]), rtol=1e-4)
    np.savez(
        tmp_path / "vectors.npz",
        **{f"x_{part}": unit_vectors(n, seed=n) for part, n in (("train", 30), ("test", 9))},
        **{f"y_{part}": np.arange(n) % 3 for part, n in (("train", 30), ("test", 9))},
    )
    request = Request(tmp_path, "random", seed=15, dataset=str(tmp_path / "vectors.npz"), float_type="float64")
    run = compute_kernels(request, lambda line: None)
    model = NNGPClassifier.from_run(run.folder)
    assert model.X_train_.dtype == np.float64
    K = build_kernel("random", [4], seed=15)(unit_vectors(9, seed=9).astype(np.float32).astype(float), model.X_train_)
    means, _ = model._posterior(unit_vectors(9, seed=9), variances=False)
    np.testing.assert_allclose(means, K.numpy() @ model.alpha_, rtol=1e-9)
