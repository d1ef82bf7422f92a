"""
Labelled images as they lie in files: IDX, CIFAR's binary batches, ``.npz``, Keras's cache, scikit-learn's digits.

Whatever is wrong with a file is said in one line, a :class:`UserError`.
"""

import gzip
import hashlib
import importlib
import math
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import npz
from ..errors import UserError
from .images import channels_first

_DIGITS_TRAINING_ROWS = 1400
_MNIST_ROWS = (60000, 10000)
_MNIST_FIRST_ROW = 5000
_MNIST_STEMS = (
    "train-images{}idx3-ubyte",
    "train-labels{}idx1-ubyte",
    "t10k-images{}idx3-ubyte",
    "t10k-labels{}idx1-ubyte",
)
_MNIST_FILES = [[stem.format(mark) + end for mark in "-." for end in ("", ".gz")] for stem in _MNIST_STEMS]
# SHA-256 of the label values, a byte each: Fashion-MNIST's files have the same names and shapes as MNIST's.
_MNIST_LABELS = (
    "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
    "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
)
_CIFAR_SHAPE = (3, 32, 32)
_CIFAR_BATCH = 10000
_CIFAR_FILES = [[f"data_batch_{i}.bin"] for i in range(1, 6)] + [["test_batch.bin"]]
_NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")
# Class numbers become columns of targets: an identifier taken for one would ask for a huge matrix.
_MAX_LABEL = 65535
# So many classes may be without images: each costs a column of zeros in everything.
_MAX_GAPS = 1000

_Array = NDArray[Any]


class Source(NamedTuple):
    """A whole set: images [N, C, H, W] or [N, D], uint8 still to be scaled or float32; labels int64 [N]."""

    X: _Array
    Y: NDArray[np.int64]
    Xt: _Array
    Yt: NDArray[np.int64]
    n_classes: int


def _source(name: str, X: _Array, Y: _Array, Xt: _Array, Yt: _Array) -> Source:
    Y, Yt = _labels(name, Y), _labels(name, Yt)
    for part, images, labels in (("training", X, Y), ("test", Xt, Yt)):
        if images.size == 0 or labels.size == 0:
            raise UserError(f"{name} has no {part} images or labels (shapes {images.shape}, {labels.shape}): give some")
        if len(images) != len(labels):
            raise UserError(f"{name} has {len(images)} {part} images but {len(labels)} labels: give a label an image")
    if X.shape[1:] != Xt.shape[1:]:
        raise UserError(
            f"{name} has training images of shape {X.shape[1:]} but test images of {Xt.shape[1:]}: make them the same"
        )
    n_classes, used = 1 + int(max(Y.max(), Yt.max())), len(np.unique(np.concatenate([Y, Yt])))
    if n_classes > max(_MAX_GAPS, 2 * used):
        raise UserError(f"{name} has labels up to {n_classes - 1}, of which {used} occur: number these from 0 on")
    return Source(X, Y, Xt, Yt, n_classes)


def _labels(name: str, labels: _Array) -> NDArray[np.int64]:
    if labels.ndim == 0 or labels.shape[1:] not in ((), (1,)) or labels.dtype.kind not in "iuf":
        raise UserError(
            f"{name} has labels of type {labels.dtype} and shape {labels.shape}: give one class number an image, "
            "not one-hot rows or names"
        )
    labels = labels.reshape(-1)
    # Written so that NaN is wrong too.
    wrong = labels[~((labels >= 0) & (labels <= _MAX_LABEL) & (labels == np.floor(labels)))]
    if wrong.size:
        raise UserError(f"{name} has the label {wrong[0]}: give whole class numbers from 0 to {_MAX_LABEL}")
    return labels.astype(np.int64)


def _find(dataset: str, data_dir: Path, subdirs: Sequence[str], wanted: Sequence[Sequence[str]]) -> list[Path]:
    """One path for each wanted file, of the names that it may have, all from the first folder that has any."""
    names = ", ".join(alternatives[0] for alternatives in wanted)
    if not os.path.isdir(data_dir):
        raise UserError(f"{dataset}: there is no directory {data_dir}: give as --data_dir one that holds {names}")
    folders = [data_dir / subdir for subdir in subdirs]
    for folder in folders:
        found = [[folder / n for n in alternatives if os.path.isfile(folder / n)] for alternatives in wanted]
        missing = [alternatives[0] for alternatives, paths in zip(wanted, found, strict=True) if not paths]
        if not missing:
            return [paths[0] for paths in found]
        # Never completed from another folder, which may hold another set under the same names.
        if len(missing) < len(wanted):
            raise UserError(f"{dataset}: {folder} lacks {', '.join(missing)}: add what is missing")
    raise UserError(
        f"{dataset}: found none of the files {names}{' (or .gz)' * (len(wanted[0]) > 1)} in "
        f"{', '.join(map(str, folders))}: put them there or give another --data_dir"
    )


def _from_keras(dataset: str, wanted: Sequence[Sequence[str]]) -> tuple[_Array, _Array, _Array, _Array]:
    try:
        (X, Y), (Xt, Yt) = getattr(importlib.import_module("keras").datasets, dataset).load_data()
    # Keras raises a plain Exception where it cannot download, and others where it, or its cache, is broken.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        names = ", ".join(alternatives[0] for alternatives in wanted)
        raise UserError(
            f"{dataset}: Keras could not load it ({reason}): download the files {names} and give their --data_dir"
        ) from error
    return np.asarray(X), np.asarray(Y), np.asarray(Xt), np.asarray(Yt)


def _read_bytes(path: Path) -> bytes:
    """The file's bytes, decompressed if its content (not its name) says that it is gzipped."""
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except EOFError as error:
        raise UserError(f"{path} is truncated, its gzip stream has no end: download it again") from error
    except (OSError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}): download it again or check its permissions") from error


def _check_length(path: Path, data: bytes, expected: int, what: str) -> None:
    if len(data) != expected:
        state = "is truncated" if len(data) < expected else "has trailing bytes"
        raise UserError(f"{path} {state}, {len(data)} bytes, expected {expected} ({what}): download it again")


def _read_idx(path: Path, n_axes: int) -> NDArray[np.uint8]:
    """The array of an IDX file of unsigned bytes: big-endian magic number and lengths of the axes, then values."""
    data = _read_bytes(path)
    start = 4 * (1 + n_axes)
    _check_length(path, data[:start], start, "for the header")
    magic, *shape = struct.unpack(f">{1 + n_axes}I", data[:start])
    expected = 0x0800 + n_axes
    if magic != expected:
        raise UserError(f"{path} has the magic number {magic}, expected {expected}: give the file that it is named for")
    _check_length(path, data, start + math.prod(shape), f"for shape {tuple(shape)}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def read_digits() -> Source:
    """scikit-learn's 8x8 digits, pixels from 0 to 1; rows 1400 on are the test set."""
    digits = importlib.import_module("sklearn.datasets").load_digits()
    X, Y = digits.images[:, None].astype(np.float32) / np.float32(16), digits.target
    return _source(
        "digits",
        X[:_DIGITS_TRAINING_ROWS],
        Y[:_DIGITS_TRAINING_ROWS],
        X[_DIGITS_TRAINING_ROWS:],
        Y[_DIGITS_TRAINING_ROWS:],
    )


def read_mnist_like(dataset: str, data_dir: Path | None) -> Source:
    """
    MNIST or Fashion-MNIST, in the order in which training images are taken.

    :param data_dir: the folder of the IDX files, or of a folder with the set's name; None for Keras's.
    """
    if data_dir is None:
        X, Y, Xt, Yt = _from_keras(dataset, _MNIST_FILES)
    else:
        paths = _find(dataset, data_dir, (dataset, ""), _MNIST_FILES)
        X, Y, Xt, Yt = (_read_idx(path, n_axes) for path, n_axes in zip(paths, (3, 1, 3, 1), strict=True))
    source = _source(dataset, X[:, None], Y, Xt[:, None], Yt)
    rows = (len(source.Y), len(source.Yt))
    if rows != _MNIST_ROWS:
        raise UserError(
            f"{dataset} has {rows} training and test images here, expected {_MNIST_ROWS}: download its files again, "
            "or save images of your own as a .npz file"
        )
    for part, labels, digest in zip(("training", "test"), (source.Y, source.Yt), _MNIST_LABELS, strict=True):
        _check_mnist_labels(dataset, part, labels, digest)
    X, Y = (np.concatenate((a[_MNIST_FIRST_ROW:], a[:_MNIST_FIRST_ROW])) for a in (source.X, source.Y))
    return source._replace(X=X, Y=Y)


def _check_mnist_labels(dataset: str, part: str, labels: NDArray[np.int64], mnist_digest: str) -> None:
    """Tell MNIST, known by a digest, from Fashion-MNIST, known by having as many images of each class."""
    is_mnist = hashlib.sha256(labels.astype(np.uint8).tobytes()).hexdigest() == mnist_digest
    is_balanced = np.array_equal(np.bincount(labels, minlength=10), [len(labels) // 10] * 10)
    advice = "whose files have the same names: check the --data_dir"
    if dataset == "mnist" and not is_mnist:
        raise UserError(f"mnist: the {part} labels are not MNIST's, but perhaps Fashion-MNIST's, {advice}")
    if dataset == "fashion_mnist" and is_mnist:
        raise UserError(f"fashion_mnist: the {part} labels are MNIST's, {advice}")
    if dataset == "fashion_mnist" and not is_balanced:
        raise UserError(
            f"fashion_mnist: the {part} labels are not Fashion-MNIST's, which has {len(labels) // 10} images of each "
            f"of its ten classes, but perhaps MNIST's, {advice}"
        )


def read_cifar(data_dir: Path | None) -> Source:
    """CIFAR-10, from the binary batches in a folder (or in one of two in it), or from Keras."""
    if data_dir is None:
        X, Y, Xt, Yt = _from_keras("cifar10", _CIFAR_FILES)
        # Keras puts the channels where its configuration says.
        if X.shape[1:] != _CIFAR_SHAPE:
            X, Xt = np.moveaxis(X, -1, 1), np.moveaxis(Xt, -1, 1)
    else:
        paths = _find("cifar10", data_dir, ("cifar10", "cifar-10-batches-bin", ""), _CIFAR_FILES)
        *batches, (Xt, Yt) = (_read_cifar_batch(path) for path in paths)
        X, Y = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    source = _source("cifar10", X, Y, Xt, Yt)
    if source.n_classes > 10:
        raise UserError(f"cifar10 has the label {source.n_classes - 1}, expected 0 to 9: download its files again")
    return source


def _read_cifar_batch(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images and labels of records of one label byte, then the red, green and blue planes."""
    data = _read_bytes(path)
    record = 1 + math.prod(_CIFAR_SHAPE)
    _check_length(path, data, _CIFAR_BATCH * record, f"for {_CIFAR_BATCH} records")
    records = np.frombuffer(data, np.uint8).reshape(_CIFAR_BATCH, record)
    return records[:, 1:].reshape(_CIFAR_BATCH, *_CIFAR_SHAPE), records[:, 0]


def read_npz(path: Path) -> Source:
    """A file with x_train, y_train, x_test and y_test, as :func:`cnn_gp.data.datasets.load` describes it."""
    if not os.path.isfile(path):
        raise UserError(f"there is no file {path}: give a .npz file that holds {', '.join(_NPZ_KEYS)}")
    arrays = npz.read_npz(path, "write it with numpy.savez", _NPZ_KEYS)
    missing = [key for key in _NPZ_KEYS if key not in arrays]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: give the arrays {', '.join(_NPZ_KEYS)}")
    X, Y, Xt, Yt = (arrays[key] for key in _NPZ_KEYS)
    return _source(str(path), channels_first(f"{path}: x_train", X), Y, channels_first(f"{path}: x_test", Xt), Yt)
