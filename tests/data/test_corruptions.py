"""Rotated, shifted and noisy images."""

import numpy as np
import pytest
from scipy import ndimage
from sklearn.datasets import load_digits

from cnn_gp.data.corruptions import KINDS, corrupted
from cnn_gp.errors import UserError

SHAPE = (2, 5, 5)
X = np.random.default_rng(0).random((3, 50)).astype(np.float32)


def images(x):
    return x.reshape(-1, *SHAPE)


def test_a_quarter_turn_is_counter_clockwise():
    turned = corrupted(X, SHAPE, "rotation", 90)
    np.testing.assert_allclose(images(turned), np.rot90(images(X), axes=(2, 3)), atol=1e-6)


def test_a_shift_is_to_the_right_and_what_comes_in_is_black():
    moved = images(corrupted(X, SHAPE, "shift", 2))
    np.testing.assert_allclose(moved[..., 2:], images(X)[..., :3], atol=1e-6)
    assert not moved[..., :2].any()


def test_interpolation_stays_in_the_range_and_blurs_less_than_linear():
    x = (load_digits().data / 16).astype(np.float32)
    turned = corrupted(x, (1, 8, 8), "rotation", 15)
    assert turned.min() == 0 and turned.max() <= 1
    linear = ndimage.rotate(x.reshape(-1, 8, 8), 15, axes=(1, 2), reshape=False, order=1)
    assert (linear**2).sum() < 0.9 * (turned**2).sum() < 0.9 * (x**2).sum()


def test_noise_has_its_deviation_and_stays_in_the_range():
    grey = np.full((40, 50), 0.5, np.float32)
    grey[0, :2] = -1, 3
    noisy = corrupted(grey, SHAPE, "noise", 0.01)
    # Of the range, which is 4.
    assert (noisy - grey)[1:].std() == pytest.approx(0.04, rel=0.05) and abs((noisy - grey)[1:].mean()) < 0.004
    np.testing.assert_array_equal(noisy, corrupted(grey, SHAPE, "noise", 0.01))
    strong = corrupted(grey, SHAPE, "noise", 10)
    assert strong.min() == -1 and strong.max() == 3


@pytest.mark.parametrize("kind", KINDS)
def test_no_change_is_the_same_images(kind):
    same = corrupted(X, SHAPE, kind, 0)
    assert same.dtype == np.float32
    np.testing.assert_allclose(same, X, atol=1e-6)


def test_what_is_no_picture_is_not_turned():
    with pytest.raises(UserError, match=r"shape \(50,\) can't be changed by rotation; expected \(C, H, W\)"):
        corrupted(X, (50,), "rotation", 90)
    assert corrupted(X, (50,), "noise", 0.1).shape == X.shape
    with pytest.raises(UserError, match="The change is 'blur'; expected one of rotation, shift, noise"):
        corrupted(X, SHAPE, "blur", 1)
