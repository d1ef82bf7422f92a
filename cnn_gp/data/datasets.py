"""
Labelled images, split into training, validation and test sets.

A set has training rows and a test file. The training images are the first `N_train` of the training rows, the
validation images the next `N_vali`, the test images the first `N_test` of the test file.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import memory
from ..errors import UserError
from .images import flat_pixels, in_words, range_warning, small_pixels_warning
from .readers import (
    Source,
    read_cifar,
    read_digits,
    read_mnist_like,
    read_npz,
)
from .synthetic import draw_blobs

DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10", "synthetic")
"""The names that :func:`load` knows; it also takes a path ending in ``.npz``."""

_DEFAULT_SIZES = {
    "digits": (1000, 400, 397),
    "mnist": (50000, 10000, 10000),
    "fashion_mnist": (50000, 10000, 10000),
    "cifar10": (40000, 10000, 10000),
    "synthetic": (1000, 500, 500),
}

_Array = NDArray[Any]
_Sizes = tuple[int, int, int]


# Compared by identity: `==` of arrays has no single truth value.
@dataclass(frozen=True, eq=False)
class Dataset:
    """
    Training, validation and test images with their labels.

    :ivar name: the set's name; for a ``.npz`` file, its path's stem.
    :ivar X, Xv, Xt: training, validation and test images, float32 [N, D], each flattened channel first (channel,
        row, column). Eight-bit pixels are scaled to 0..1.
    :ivar Y, Yv, Yt: their labels, int64 [N], class numbers 0..n_classes-1.
    :ivar image_shape: (C, H, W), or (D,) for inputs that are not images.
    :ivar n_classes: 1 + the largest label of the whole set, whatever the sizes asked for.
    """

    name: str
    X: NDArray[np.float32]
    Y: NDArray[np.int64]
    Xv: NDArray[np.float32]
    Yv: NDArray[np.int64]
    Xt: NDArray[np.float32]
    Yt: NDArray[np.int64]
    image_shape: tuple[int, ...]
    n_classes: int

    @property
    def sizes(self) -> _Sizes:
        """(N_train, N_vali, N_test)."""
        return len(self.X), len(self.Xv), len(self.Xt)

    def in_words(self, float_type: str = "float32") -> list[str]:
        """
        Lines that say how the images were read, and what is suspicious about them.

        :param float_type: in which kernel entries are computed of them.
        """
        others = {f"{self.name}: the validation images": self.Xv, f"{self.name}: the test images": self.Xt}
        warnings = [range_warning(name, X, self.X) for name, X in others.items()]
        if float_type == "float32":
            all_sets = {f"{self.name}: the training images": self.X, **others}
            warnings += [small_pixels_warning(name, X) for name, X in all_sets.items()]
        return [f"{self.name}: {in_words(self.X, self.image_shape)}.", *filter(None, warnings)]

    def data_hash(self) -> str:
        """
        SHA-256, in hex, of the image shape and of the dtype, shape and values of X, Y, Xv, Yv, Xt, Yt in turn.

        The name is left out. Machines of either byte order agree.
        """
        digest = hashlib.sha256(repr(tuple(self.image_shape)).encode())
        arrays: tuple[_Array, ...] = (self.X, self.Y, self.Xv, self.Yv, self.Xt, self.Yt)
        for array in arrays:
            digest.update(f"{array.dtype.name}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
        return digest.hexdigest()


def load(
    dataset: str | Path,
    *,
    data_dir: str | Path | None = None,
    N_train: int | None = None,
    N_vali: int | None = None,
    N_test: int | None = None,
) -> Dataset:
    """
    Load a data set and split it.

    - `digits`: scikit-learn's 8x8 digits, pixels / 16; the training rows are 0..1399, the test file 1400..1796.
      Sizes 1000, 400, 397.
    - `mnist`, `fashion_mnist`: the training rows are 5000..59999 of the training file, then 0..4999. Sizes
      50000, 10000, 10000. Four IDX files, plain or gzipped, in ``data_dir/<dataset>`` or ``data_dir``.
    - `cifar10`: the training rows are the training batches in file order. Sizes 40000, 10000, 10000. Six binary
      batches in ``data_dir/cifar10``, ``data_dir/cifar-10-batches-bin`` or ``data_dir``.
    - `synthetic`: seeded 28x28 images of ten classes. Sizes 1000, 500, 500, or any larger: the first images stay.
    - ``FILE.npz``: x_train and y_train in file order are the training rows, x_test and y_test the test file. Images are
      [N, H, W], or [N, H, W, C] with the channels **last**, or [N, D] (no images: `image_shape` is (D,)); uint8, or
      finite floats, which are cast to float32 unscaled. Labels are [N] or [N, 1] whole numbers from 0 to 65535,
      without large gaps.
      Sizes: N_vali a sixth of the training rows, rounded down, N_train the rest, N_test all.

    Eight-bit pixels p become ``np.float32(p) * np.float32(1/255)``. Without a `data_dir`, `mnist`, `fashion_mnist`
    and `cifar10` come from Keras, which takes them from its cache or downloads them.

    :param dataset: a name in :data:`DATASETS`, or a path ending in ``.npz``.
    :param data_dir: where `mnist`, `fashion_mnist` or `cifar10` lies; the other sets have no use for it.
    :param N_train: number of training images, by default as above; they must show at least two classes.
    :param N_vali: number of validation images, at least 1.
    :param N_test: number of test images, at least 1.
    :raises UserError: the set is unknown, missing, damaged or not what its name says, or has too few images.
    """
    asked = (N_train, N_vali, N_test)
    _check_sizes(asked)
    dataset = str(dataset)
    folder = None if data_dir is None else Path(data_dir)
    if dataset.endswith(".npz"):
        source = read_npz(Path(dataset))
        n_vali = len(source.Y) // 6 if N_vali is None else N_vali
        # At least 1, so that a validation set of all training rows is reported as too many images asked for.
        sizes = _fill(asked, (max(1, len(source.Y) - n_vali), n_vali, len(source.Yt)))
        return _split(Path(dataset).stem, source, sizes)
    if dataset not in DATASETS:
        raise UserError(f"unknown data set {dataset!r}: expected {', '.join(DATASETS)} or a path ending in .npz")
    sizes = _fill(asked, _DEFAULT_SIZES[dataset])
    if dataset == "synthetic":
        n_train, n_vali, n_test = sizes
        # As 8-bit pixels, and scaled.
        memory.check(sum(sizes) * 28 * 28 * 5, f"{sum(sizes):,} synthetic images", "ask for fewer")
        source = Source(*draw_blobs(0, n_train + n_vali), *draw_blobs(1, n_test), n_classes=10)
    elif dataset == "digits":
        source = read_digits()
    elif dataset == "cifar10":
        source = read_cifar(folder)
    else:
        source = read_mnist_like(dataset, folder)
    return _split(dataset, source, sizes)


def _check_sizes(sizes: Sequence[int | None]) -> None:
    for key, n in zip(("N_train", "N_vali", "N_test"), sizes, strict=True):
        if n is not None and (isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1):
            raise UserError(f"{key} is {n}: give a whole number of at least 1")


def _fill(asked: Sequence[int | None], default: _Sizes) -> _Sizes:
    train, vali, test = (d if n is None else int(n) for n, d in zip(asked, default, strict=True))
    return train, vali, test


def _split(name: str, source: Source, sizes: _Sizes) -> Dataset:
    _check_sizes(sizes)
    n_train, n_vali, n_test = sizes
    if n_train + n_vali > len(source.X):
        raise UserError(
            f"{name} has {len(source.X)} images to train and validate on, but N_train + N_vali = {n_train} + "
            f"{n_vali} = {n_train + n_vali} were asked for: ask for fewer"
        )
    if n_test > len(source.Xt):
        raise UserError(f"{name} has {len(source.Xt)} test images, but N_test = {n_test} were asked for: ask for fewer")
    train, vali, test = slice(n_train), slice(n_train, n_train + n_vali), slice(n_test)
    seen = np.unique(source.Y[train])
    if len(seen) < 2:
        raise UserError(
            f"{name}: the first {n_train} training images are all of class {seen[0]}, expected at least two classes: "
            "give a larger N_train"
        )
    X, Xv, Xt = flat_pixels(source.X[train]), flat_pixels(source.X[vali]), flat_pixels(source.Xt[test])
    Y, Yv, Yt = source.Y[train], source.Y[vali], source.Yt[test]
    return Dataset(name, X, Y, Xv, Yv, Xt, Yt, source.X.shape[1:], source.n_classes)
