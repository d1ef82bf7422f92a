"""Data sets: the split and order that decide the numbers, and one clear line for each thing that can be wrong."""

import gzip

import numpy as np
import pytest

from cnn_gp.data import readers
from cnn_gp.data.datasets import load
from cnn_gp.errors import UserError
from helpers.idx import idx

MNIST_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def small_mnist(folder, n=(12, 7), compress=True, balanced=False):
    """IDX files of made 2x3 images."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = []
    for rows in n:
        arrays.append(rng.integers(0, 256, (rows, 2, 3), np.uint8))
        arrays.append((np.arange(rows) % 3).astype(np.uint8))
    for name, array in zip(MNIST_NAMES, arrays, strict=True):
        path = folder / (name + ".gz" if compress else name)
        path.write_bytes(gzip.compress(idx(array)) if compress else idx(array))
    return arrays


@pytest.fixture
def of_small_mnist(monkeypatch):
    """Let MNIST have 12 training and 7 test images, whose training rows start at row 8, and any labels."""
    monkeypatch.setattr(readers, "_MNIST_ROWS", (12, 7))
    monkeypatch.setattr(readers, "_MNIST_FIRST_ROW", 8)
    monkeypatch.setattr(readers, "_check_mnist_labels", lambda *arguments: None)


def npz(path, **changes):
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (12, 4, 5), np.uint8),
        "y_train": np.arange(12) % 3,
        "x_test": rng.integers(0, 256, (6, 4, 5), np.uint8),
        "y_test": np.arange(6) % 3,
        **changes,
    }
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return arrays


def refused(said, *arguments, **sizes):
    with pytest.raises(UserError, match=said) as caught:
        load(*arguments, **sizes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("subfolder", ["mnist", "."])
def test_mnist_like_order_and_pixels(tmp_path, of_small_mnist, compress, subfolder):
    X, Y, Xt, Yt = small_mnist(tmp_path / subfolder, compress=compress)
    data = load("mnist", data_dir=tmp_path, N_train=6, N_vali=5, N_test=4)
    rows = [8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 6, 7]
    scaled = X.reshape(12, 6).astype(np.float32) * np.float32(1 / 255)
    np.testing.assert_array_equal(data.X, scaled[rows[:6]])
    np.testing.assert_array_equal(data.Xv, scaled[rows[6:11]])
    np.testing.assert_array_equal(data.Y, Y[rows[:6]])
    np.testing.assert_array_equal(data.Yv, Y[rows[6:11]])
    np.testing.assert_array_equal(data.Xt, Xt.reshape(7, 6)[:4].astype(np.float32) * np.float32(1 / 255))
    np.testing.assert_array_equal(data.Yt, Yt[:4])
    assert data.X.dtype == np.float32 and data.Y.dtype == np.int64
    assert data.image_shape == (1, 2, 3) and data.n_classes == 3 and data.sizes == (6, 5, 4)


def test_the_real_mnist(mnist_dir):
    data = load("mnist", data_dir=mnist_dir, N_train=54_990, N_vali=20, N_test=100)
    raw = gzip.decompress((mnist_dir / "train-images-idx3-ubyte.gz").read_bytes())
    images = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 784)
    np.testing.assert_array_equal(data.X[0], images[5000] * np.float32(1 / 255))
    np.testing.assert_array_equal(data.Xv[9], images[59_999] * np.float32(1 / 255))
    np.testing.assert_array_equal(data.Xv[10], images[0] * np.float32(1 / 255))
    assert data.n_classes == 10
    # The published labels of the first training images are 5, 0, 4, 1, 9.
    assert data.Yv[10:15].tolist() == [5, 0, 4, 1, 9]


def test_mnists_files_as_fashion_mnist_are_noticed(mnist_dir):
    refused("fashion_mnist: the training labels are MNIST's", "fashion_mnist", data_dir=mnist_dir)


def test_other_labels_as_mnist_are_noticed(tmp_path, monkeypatch):
    small_mnist(tmp_path)
    monkeypatch.setattr(readers, "_MNIST_ROWS", (12, 7))
    refused("mnist: the training labels are not MNIST's, but perhaps Fashion-MNIST's", "mnist", data_dir=tmp_path)


def test_unbalanced_labels_as_fashion_mnist_are_noticed(tmp_path, monkeypatch):
    small_mnist(tmp_path)
    monkeypatch.setattr(readers, "_MNIST_ROWS", (12, 7))
    refused("labels are not Fashion-MNIST's", "fashion_mnist", data_dir=tmp_path)


def test_another_number_of_images_as_mnist(tmp_path):
    small_mnist(tmp_path)
    refused(r"\(12, 7\) training and test images here, expected \(60000, 10000\)", "mnist", data_dir=tmp_path)


def damage(path, change):
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(change(content)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda b: b[:-1], "is truncated, .* bytes, expected"),
        (lambda b: b + b"x", "has trailing bytes"),
        (lambda b: b[:6], "is truncated, 6 bytes, expected 16"),
        (lambda b: b"\0\0\x08\x01" + b[4:], "magic number 2049, expected 2051"),
    ],
)
def test_damaged_idx_files(tmp_path, change, said):
    small_mnist(tmp_path)
    damage(tmp_path / "train-images-idx3-ubyte.gz", change)
    refused(said, "mnist", data_dir=tmp_path)


def test_a_truncated_gzip_stream(tmp_path):
    small_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-12])
    refused("is truncated, its gzip stream has no end", "mnist", data_dir=tmp_path)


def test_labels_and_images_of_different_length(tmp_path):
    small_mnist(tmp_path)
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(idx(np.zeros(11, np.uint8))))
    refused("12 training images but 11 labels", "mnist", data_dir=tmp_path)


def test_missing_files_and_folders(tmp_path):
    refused("there is no directory", "mnist", data_dir=tmp_path / "nowhere")
    refused("found none of the files train-images-idx3-ubyte", "mnist", data_dir=tmp_path)
    small_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    refused("lacks t10k-labels-idx1-ubyte", "mnist", data_dir=tmp_path)


def test_without_files_a_failed_download_is_one_line(monkeypatch):
    class NoNetwork:
        class datasets:
            class fashion_mnist:
                @staticmethod
                def load_data():
                    raise Exception("URL fetch failure\non example")

    monkeypatch.setattr(readers.importlib, "import_module", lambda name: NoNetwork)
    refused("Keras could not load it .*download the files train-images.* and give their --data_dir", "fashion_mnist")


def test_digits_are_in_file_order():
    from sklearn.datasets import load_digits

    data = load("digits")
    raw = load_digits()
    assert data.sizes == (1000, 400, 397) and data.image_shape == (1, 8, 8)
    np.testing.assert_array_equal(data.X, raw.data[:1000].astype(np.float32) / np.float32(16))
    np.testing.assert_array_equal(data.Xv, raw.data[1000:1400].astype(np.float32) / np.float32(16))
    np.testing.assert_array_equal(data.Yt, raw.target[1400:])
    cut = load("digits", N_train=500, N_vali=100, N_test=10)
    np.testing.assert_array_equal(cut.Xv, data.X[500:600])


def cifar(folder, names):
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    records = {}
    for name in names:
        records[name] = rng.integers(0, 256, (4, 3073), np.uint8)
        records[name][:, 0] %= 10
        (folder / name).write_bytes(records[name].tobytes())
    return records


CIFAR_NAMES = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]


@pytest.mark.parametrize("subfolder", ["cifar10", "cifar-10-batches-bin", "."])
def test_cifar_batches(tmp_path, monkeypatch, subfolder):
    monkeypatch.setattr(readers, "_CIFAR_BATCH", 4)
    records = cifar(tmp_path / subfolder, CIFAR_NAMES)
    data = load("cifar10", data_dir=tmp_path, N_train=15, N_vali=5, N_test=4)
    rows = np.concatenate([records[name] for name in CIFAR_NAMES[:5]])
    np.testing.assert_array_equal(data.X, rows[:15, 1:].astype(np.float32) * np.float32(1 / 255))
    np.testing.assert_array_equal(data.Yv, rows[15:, 0])
    assert data.image_shape == (3, 32, 32)


def test_a_truncated_cifar_batch(tmp_path):
    cifar(tmp_path, CIFAR_NAMES)
    refused(r"data_batch_1.bin is truncated, 12292 bytes, expected 30730000", "cifar10", data_dir=tmp_path)


def test_synthetic_images_do_not_depend_on_the_sizes():
    few, many = load("synthetic", N_train=30, N_vali=5, N_test=4), load("synthetic", N_train=33, N_vali=9, N_test=6)
    np.testing.assert_array_equal(many.X[:30], few.X)
    np.testing.assert_array_equal(many.X[30:33], few.Xv[:3])
    np.testing.assert_array_equal(many.Xt[:4], few.Xt)
    assert few.image_shape == (1, 28, 28) and few.n_classes == 10
    assert few.data_hash() == load("synthetic", N_train=30, N_vali=5, N_test=4).data_hash() != many.data_hash()


@pytest.mark.parametrize(
    ("shape", "image_shape"), [((12, 4, 5), (1, 4, 5)), ((12, 4, 5, 3), (3, 4, 5)), ((12, 9), (9,))]
)
def test_a_users_file(tmp_path, shape, image_shape):
    path = tmp_path / "mine.npz"
    x = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    npz(path, x_train=x, x_test=x[:6])
    data = load(str(path))
    assert data.name == "mine" and data.image_shape == image_shape and data.sizes == (10, 2, 6)
    expected = np.moveaxis(x, -1, 1) if len(shape) == 4 else x
    np.testing.assert_array_equal(data.X, expected[:10].reshape(10, -1).astype(np.float32) * np.float32(1 / 255))


def test_a_users_floats_are_not_scaled(tmp_path):
    x = np.random.default_rng(0).normal(size=(12, 4, 5))
    npz(tmp_path / "mine.npz", x_train=x, x_test=x[:6], y_train=np.arange(12.0)[:, None] % 3)
    np.testing.assert_array_equal(load(str(tmp_path / "mine.npz")).X, x[:10].reshape(10, -1).astype(np.float32))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"x_test": None}, "lacks x_test"),
        ({"y_train": np.arange(11) % 3}, "12 training images but 11 labels"),
        ({"y_train": np.arange(12) - 1}, "has the label -1"),
        ({"y_train": np.arange(12) / 2}, "has the label 0.5"),
        ({"y_train": np.eye(12)}, "not one-hot rows"),
        ({"y_train": np.int64(1)}, r"shape \(\): give one class number an image"),
        ({"y_train": np.array(["a", "b"] * 6)}, "not one-hot rows or names"),
        ({"y_train": np.full(12, 2)}, "are all of class 2, expected at least two classes"),
        ({"x_test": np.zeros((6, 4, 6), np.uint8)}, r"training images of shape .* but test images of \(1, 4, 6\)"),
        ({"x_train": np.full((12, 4, 5), np.nan)}, "pixels that aren't finite float32 numbers"),
        ({"x_train": np.zeros((12, 4, 5), np.int64)}, "has type int64: give uint8"),
        ({"x_train": np.zeros((0, 4, 5), np.uint8), "y_train": np.zeros(0, int)}, "has no training images"),
        ({"x_train": np.zeros(12, np.uint8)}, r"has shape \(12,\)"),
        ({"x_train": np.zeros((12, 4, 5), complex)}, "has type complex128: give uint8"),
        ({"x_train": np.zeros((12, 4, 5), "M8[s]")}, r"has type datetime64\[s\]: give uint8"),
        ({"x_train": np.zeros((12, 4, 5), [("a", "f4")])}, "has type void32: give uint8"),
        ({"x_train": np.full((12, 4, 5), None)}, "x_train.npy holds Python objects"),
        ({"x_train": np.zeros((12, 3, 9, 8), np.uint8)}, r"shape \(12, 3, 9, 8\), with channels first as it seems"),
        ({"y_train": np.arange(12) % 2 * 60000}, "labels up to 60000, of which 4 occur: number these from 0 on"),
    ],
)
def test_bad_files_of_a_user(tmp_path, changes, said):
    npz(tmp_path / "mine.npz", **changes)
    refused(said, str(tmp_path / "mine.npz"))


def test_not_an_npz_file(tmp_path):
    path = tmp_path / "mine.npz"
    refused("there is no file", str(path))
    path.write_text("hello")
    refused("isn't a zip archive", str(path))
    npz(path)
    path.write_bytes(path.read_bytes()[:-40])
    refused("can't be read", str(path))
    with path.open("wb") as file:
        np.save(file, np.zeros((12, 4, 5)))
    refused("one array without a name", str(path))


def test_how_a_users_file_was_read_is_said(tmp_path):
    path = tmp_path / "mine.npz"
    x = np.linspace(0, 1, 12 * 60).reshape(12, 4, 5, 3)
    npz(path, x_train=x, x_test=x[:6])
    # By Path, too.
    assert load(path).in_words() == ["mine: images of 4 x 5 pixels, 3 channels, values from 0 to 0.833."]
    npz(path, x_train=x[..., 0], x_test=x[:6, ..., 0] * 255)
    said = load(path).in_words()
    assert said[0] == "mine: images of 4 x 5 pixels, 1 channel, values from 0 to 0.83."
    assert said[1].startswith("warning: mine: the test images have values from 0 to 127, the training images from 0 to")
    npz(path, x_train=x.reshape(12, 60), x_test=x[:6].reshape(6, 60))
    assert load(path).in_words()[0].startswith("mine: flat images of 60 numbers, values from 0 to 0.833; no layer conv")


def test_pixels_whose_squares_float32_cannot_hold_are_told(tmp_path):
    """The smallest pixel whose square it holds is not among them, nor is 0."""
    path = tmp_path / "mine.npz"
    x = np.random.default_rng(0).random((12, 4, 5)).astype(np.float32)
    x[:, 0, 0], x[:, 0, 1] = 1.1e-19, 0
    npz(path, x_train=x, x_test=x[:6])
    assert len(load(path).in_words()) == 1
    x[[2, 4, 11], 1, 1] = [1e-19, -1e-19, 1e-44]
    npz(path, x_train=x, x_test=x[:6])
    _, training, validation, test = load(path).in_words()
    said = "have pixels between 0 and 1.1e-19, whose squares float32 can't hold: correlations of patches of such pixels"
    assert training.startswith(f"warning: 2 of mine: the training images {said}")
    assert validation.startswith("warning: 1 of mine: the validation images")
    assert test.startswith("warning: 2 of mine: the test images") and test.endswith("(--float_type=float64).")
    # Where it is done as it says, it is silent.
    assert len(load(path).in_words("float64")) == 1


def test_more_synthetic_images_than_fit_into_memory():
    refused("1,000,001,000 synthetic images needs .* GB of memory", "synthetic", N_train=10**9)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"N_train": 0}, "N_train is 0: give a whole number of at least 1"),
        ({"N_vali": 0}, "N_vali is 0"),
        ({"N_test": -3}, "N_test is -3"),
        ({"N_train": 1300, "N_vali": 101}, r"1400 images .*1300 \+ 101 = 1401"),
        ({"N_test": 398}, "397 test images, but N_test = 398"),
    ],
)
def test_bad_sizes(sizes, said):
    refused(said, "digits", **sizes)


def test_an_unknown_name():
    refused("unknown data set 'MNIST': expected digits, mnist", "MNIST")


def test_the_hash_knows_of_images_and_labels():
    data = load("digits", N_train=50, N_vali=5, N_test=5)
    same = load("digits", N_train=50, N_vali=5, N_test=5)
    assert data.data_hash() == same.data_hash()
    same.Yt[0] += 1
    assert data.data_hash() != same.data_hash()
    same.Yt[0] -= 1
    same.X[3, 3] += 1e-6
    assert data.data_hash() != same.data_hash()
