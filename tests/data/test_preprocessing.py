"""Whitening, standardisation, and more training images."""

import pickle

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from cnn_gp.data.datasets import load
from cnn_gp.data.preprocessing import ZCA, Standardize, with_flips, with_flips_of_training, with_shifts
from cnn_gp.errors import UserError

RNG = np.random.default_rng(0)
IMAGES = RNG.random((40, 3, 4, 2)) @ np.array([[1.0, 0.5], [0.0, 2.0]])


@parametrize_with_checks([ZCA(), Standardize()])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("regularization", [1e-2, 1.0])
def test_whitened_training_images_have_the_regularised_covariance(regularization):
    x = IMAGES.reshape(40, -1)
    zca = ZCA(regularization).fit(IMAGES)
    whitened = zca.transform(IMAGES)
    assert whitened.shape == IMAGES.shape and whitened.dtype == np.float32
    eigenvalues, U = np.linalg.eigh(np.cov(x.T, bias=True))
    expected = (U * (eigenvalues / (eigenvalues + regularization * eigenvalues.mean()))) @ U.T
    np.testing.assert_allclose(np.cov(whitened.reshape(40, -1).T, bias=True), expected, atol=1e-5)
    np.testing.assert_allclose(whitened.mean(axis=0), 0, atol=1e-5)
    # ZCA, of all whitenings, is the symmetric one.
    np.testing.assert_allclose(zca.whitening_, zca.whitening_.T, atol=1e-12)


def test_whitening_is_of_the_training_images_alone():
    zca = ZCA().fit(IMAGES[:30])
    whole = zca.transform(IMAGES)
    np.testing.assert_allclose(zca.transform(IMAGES[35:36]), whole[35:36], rtol=1e-5, atol=1e-6)
    assert not np.allclose(ZCA().fit(IMAGES).transform(IMAGES), whole, atol=1e-2)


def test_pixels_that_never_vary_stay_exactly_0_and_follow_the_formula_elsewhere():
    x = np.concatenate([RNG.random((30, 5)), np.full((30, 2), 0.7)], axis=1).astype(np.float32)
    zca = ZCA(0.1).fit(x)
    assert (zca.transform(x)[:, 5:] == 0).all()
    x[0, 5] += 1
    added = 0.1 * np.trace(np.cov(x[:, :5].T, bias=True)) / 7
    assert zca.transform(x)[0, 5] == pytest.approx(1 / np.sqrt(added), rel=2e-2)
    assert zca.transform(x)[0, 6] == 0


def test_8_bit_images_are_scaled():
    eight = RNG.integers(0, 256, (20, 3, 3), np.uint8)
    for one in (ZCA(), Standardize()):
        expected = one.fit(eight / np.float32(255)).transform(eight / np.float32(255))
        np.testing.assert_allclose(one.fit(eight).transform(eight), expected, rtol=1e-4, atol=1e-5)


def test_standardised_images():
    images = np.concatenate([IMAGES, np.full((1, 3, 4, 2), 0.1)])
    found = Standardize().fit(images).transform(images).reshape(41, -1)
    np.testing.assert_allclose(found[:-1].mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(found[:-1].std(axis=1), 1, rtol=1e-6)
    assert (found[-1] == 0).all()


def test_a_pipeline_pickles():
    both = make_pipeline(Standardize(), ZCA()).fit(IMAGES)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(both)).transform(IMAGES), both.transform(IMAGES))


def test_flips_and_shifts():
    x = np.arange(24.0).reshape(2, 3, 4)
    y = np.array(["a", "b"])
    flipped, labels = with_flips(x, y)
    np.testing.assert_array_equal(flipped, np.stack([x[0], x[0, :, ::-1], x[1], x[1, :, ::-1]]))
    assert labels.tolist() == ["a", "a", "b", "b"]
    shifted, targets = with_shifts(x[..., None], np.eye(2), 2)
    assert shifted.shape == (10, 3, 4, 1) and targets.shape == (10, 2)
    up, down, left, right = np.zeros((4, 3, 4))
    up[0], down[2], left[:, :2], right[:, 2:] = x[1, 2], x[1, 0], x[1, :, 2:], x[1, :, :2]
    np.testing.assert_array_equal(shifted[5:, ..., 0], [x[1], up, down, left, right])


def test_a_data_set_with_flips():
    data = load("digits", N_train=50, N_vali=10, N_test=10)
    both = with_flips_of_training(data)
    assert both.sizes == (100, 10, 10)
    x, y = with_flips(data.X.reshape(-1, 8, 8), data.Y)
    np.testing.assert_array_equal(both.X, x.reshape(100, 64))
    np.testing.assert_array_equal(both.Y, y)
    assert both.data_hash() != data.data_hash()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: ZCA(0).fit(IMAGES), "regularization is 0; expected a finite number above 0"),
        (lambda: ZCA().fit(np.ones((5, 3))), r"All images are equal \(n_samples=5\)"),
        (lambda: ZCA().fit(np.ones((5, 3, 3), int)), "X has type int64: give uint8"),
        (lambda: with_flips(IMAGES[0, 0], np.zeros(4)), r"X has shape \(4, 2\) and y \(4,\); expected \[N, H, W\]"),
        (lambda: with_flips(IMAGES, np.zeros(4)), r"y \(4,\); expected"),
        (lambda: with_shifts(IMAGES, np.zeros(40), 3), r"pixels is 3 for images of \(3, 4\)"),
        (lambda: with_shifts(IMAGES, np.zeros(40), 0), "pixels is 0"),
    ],
)
def test_what_cant_be_used_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_vectors_have_no_mirror_image(tmp_path):
    np.savez(tmp_path / "v.npz", **{f"{k}_{s}": v for s in ("train", "test") for k, v in VECTORS.items()})
    with pytest.raises(UserError, match=r"--flip mirrors images, and v has inputs of shape \(5,\)"):
        with_flips_of_training(load(tmp_path / "v.npz"))


VECTORS = {"x": RNG.random((12, 5)), "y": np.arange(12) % 2}
