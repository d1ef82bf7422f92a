"""New images from a file, and the lines written for them."""

import numpy as np
import pytest

from cnn_gp.engines.choice import make_engine
from cnn_gp.errors import UserError
from cnn_gp.evaluation.predict_images import means_csv, posterior, read_images
from cnn_gp.kernels.architectures import build_kernel

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 6), np.uint8)
SHAPE = (3, 5, 6)


def read(tmp_path, shape=SHAPE, **arrays):
    np.savez(tmp_path / "new.npz", **arrays)
    return read_images(tmp_path / "new.npz", shape)


def test_every_layout_gives_the_same_flat_images(tmp_path):
    expected = IMAGES.reshape(4, -1) * np.float32(1 / 255)
    floating = IMAGES.astype(np.float64) * np.float32(1 / 255)
    for x in (IMAGES, IMAGES.reshape(4, -1), np.moveaxis(IMAGES, 1, -1), floating):
        found = read(tmp_path, x=x)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(read(tmp_path, x_test=IMAGES), expected)
    grey = IMAGES[:, 0]
    np.testing.assert_array_equal(read(tmp_path, (1, 5, 6), x=grey), grey.reshape(4, -1) * np.float32(1 / 255))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"y": IMAGES}, r"no array 'x' with images; expected \[N, 90\], or \[N, 5, 6, 3\]"),
        ({"x": IMAGES[:0]}, "no array 'x' with images"),
        ({"x": np.array(3.0)}, "no array 'x' with images"),
        ({"x": IMAGES[:, :2]}, r"images of shape \(2, 5, 6\); expected \(3, 5, 6\)"),
        ({"x": np.full((2, 90), "a")}, "x has type str32"),
        ({"x": np.full((2, 90), 1e300)}, "pixels that aren't finite"),
        ({"x": np.full((2, 90), np.nan)}, "pixels that aren't finite"),
        ({"x": np.zeros((2, 90), np.int64)}, "x has type int64: give uint8"),
        ({"x": np.zeros((2, 90), complex)}, "x has type complex128"),
        ({"x": np.zeros((2, 90), "M8[s]")}, r"x has type datetime64"),
        ({"x": np.zeros((2, 90), bool)}, r"x has type bool"),
    ],
)
def test_what_cant_be_used_is_refused(tmp_path, arrays, said):
    with pytest.raises(UserError, match=said):
        read(tmp_path, **arrays)


def test_the_means_are_the_kernels_times_the_solution():
    kernel = build_kernel("convnet_gp", [1, 6, 6])
    rng = np.random.default_rng(1)
    training, X, alpha = rng.random((5, 36)), rng.random((3, 36), np.float32), rng.normal(size=(5, 2))
    expected = kernel(X.astype(np.float64), training).numpy() @ alpha
    means, variances = posterior(make_engine("tensorflow", kernel), X, training, alpha)
    np.testing.assert_allclose(means, expected, rtol=1e-10)
    assert not variances.any()


def test_means_that_overflow_are_refused():
    kernel = build_kernel("convnet_gp", [1, 6, 6])
    X = np.ones((3, 36), np.float32)
    X[1] = 3e30
    with pytest.raises(UserError, match=r"kernel isn't finite at images whose values are from 3e.30 to 3e.30 and"):
        posterior(make_engine("tensorflow", kernel), X, np.ones((2, 36), np.float32), np.ones((2, 2)))


def test_the_lines_of_the_file():
    means = np.array([[0.5, -1.25], [1e-7 / 3, 2.0]])
    assert means_csv(means) == "image,class,mean_0,mean_1\r\n0,0,0.5,-1.25\r\n1,1,3.33333e-08,2\r\n"
