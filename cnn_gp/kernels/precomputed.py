"""A kernel whose matrix is there already: GPflow's models on what ``save_kernels.py`` computed."""

from collections.abc import Sequence
from typing import Any, Protocol

import gpflow
import numpy as np
import tensorflow as tf
from check_shapes import check_shapes
from gpflow.base import TensorType

from ..errors import UserError

#: The sets of images of a run, in the order of their numbers, each with the matrix whose rows they are.
_SETS = {"X": "Kxx", "Xv": "Kxvx", "Xt": "Kxtx"}


class Run(Protocol):
    """What :func:`cnn_gp.open_run` returns."""

    def matrix(self, matrix: str) -> np.ndarray:
        """Its entries."""

    def diagonal(self, matrix: str) -> np.ndarray:
        """The kernel of its rows' images with themselves."""


class PrecomputedKernel(gpflow.kernels.Kernel):
    """
    A kernel of numbered images, from a matrix that is given: its inputs X [N, 1] are rows of it.

    A run has no entries of two different validation or test images, so that ``predict_f`` works there, but not with
    ``full_cov=True``. The matrix is held in memory as a constant, in GPflow's default dtype. There is nothing to train;
    fix inducing inputs, which are numbers of images, by ``gpflow.set_trainable(model.inducing_variable, False)``.

    :param gram: a finished run (:func:`cnn_gp.open_run`), whose images are numbered in the order training, validation,
        test; or an array [M, N], M >= N: in rows N training images, then M - N others, in columns the training images.
    :param diagonal: [M], with an array with M > N: the kernel of each image with itself.
    :raises UserError: by the constructor, where the arrays are of other shapes, not finite, or not symmetric; outside
        of ``tf.function`` also where an input isn't such a row, or an entry isn't known. Within, these entries are NaN.

    >>> kernel = PrecomputedKernel(np.array([[2.0, 1.0], [1.0, 3.0]]))
    >>> kernel(np.array([[1.0], [0.0]]), full_cov=False).numpy()
    array([3., 2.])
    """

    def __init__(self, gram: Run | np.ndarray, diagonal: Any | None = None, name: str | None = None) -> None:
        super().__init__(name=name)
        sizes: Sequence[int]
        if not isinstance(gram, np.ndarray) and hasattr(gram, "matrix"):
            parts = [gram.matrix(matrix) for matrix in _SETS.values()]
            entries = np.concatenate(parts)
            diagonal = np.concatenate([gram.diagonal(matrix) for matrix in _SETS.values()])
            sizes = [len(part) for part in parts]
        else:
            entries = np.asarray(gram)
            sizes = [len(entries)] if entries.ndim else []
        entries, diagonal = _checked(entries, diagonal)
        dtype = gpflow.default_float()
        self.entries, self.diagonal = tf.constant(entries, dtype), tf.constant(diagonal, dtype)
        bounds = np.cumsum([0, *sizes])
        #: The inputs of each set of images: "X", of a run also "Xv" and "Xt".
        self.inputs: dict[str, np.ndarray] = {
            key: np.arange(start, stop, dtype=dtype)[:, None]
            for key, start, stop in zip(_SETS, bounds, bounds[1:], strict=False)
        }

    @check_shapes("X: [N, 1]", "X2: [N2, 1]", "return: [N, N2] if X2 is not None", "return: [N, N] if X2 is None")
    def K(self, X: TensorType, X2: TensorType | None = None) -> tf.Tensor:
        """The entries of these rows."""
        i, is_row = self._rows(X)
        j, is_column = (i, is_row) if X2 is None else self._rows(X2)
        i, j = i[:, None], j[None, :]
        later, earlier = tf.maximum(i, j), tf.minimum(i, j)
        n = self.entries.shape[1]
        entries = tf.gather_nd(self.entries, tf.stack([later, tf.minimum(earlier, n - 1)], -1))
        entries = tf.where(i == j, tf.gather(self.diagonal, later), entries)
        known = ((earlier < n) | (i == j)) & is_row[:, None] & is_column[None, :]
        if tf.executing_eagerly() and not bool(tf.reduce_all(known)):
            raise UserError(
                f"Entries of two images from number {n} on aren't known; expected a training image, of number below "
                f"{n}, in each pair: predict without full_cov."
            )
        return _known(entries, known)

    @check_shapes("X: [N, 1]", "return: [N]")
    def K_diag(self, X: TensorType) -> tf.Tensor:
        """The diagonal's entries of these rows."""
        i, is_row = self._rows(X)
        return _known(tf.gather(self.diagonal, i), is_row)

    def _rows(self, X: TensorType) -> tuple[tf.Tensor, tf.Tensor]:
        """The rows [N], and whether each is one."""
        number = tf.cast(tf.convert_to_tensor(X)[:, 0], tf.float64)
        m = self.entries.shape[0]
        is_row = (number == tf.round(number)) & (number >= 0) & (number < m)
        if tf.executing_eagerly() and not bool(tf.reduce_all(is_row)):
            raise UserError(
                f"An input is {tf.boolean_mask(number, ~is_row)[0].numpy():g}; expected the number of an image, whole "
                f"and from 0 to {m - 1}: take kernel.inputs."
            )
        return tf.cast(tf.where(is_row, number, 0), tf.int64), is_row


def _known(entries: tf.Tensor, known: tf.Tensor) -> tf.Tensor:
    return tf.where(known, entries, tf.constant(np.nan, entries.dtype))


def _checked(entries: np.ndarray, diagonal: Any | None) -> tuple[np.ndarray, np.ndarray]:
    if entries.ndim != 2 or not entries.shape[0] >= entries.shape[1] >= 1 or entries.dtype.kind != "f":
        raise UserError(
            f"The matrix is of shape {entries.shape} and dtype {entries.dtype}; expected floating-point numbers "
            "[M, N], M >= N, or a run: open it with cnn_gp.open_run(path)."
        )
    m, n = entries.shape
    if diagonal is None and m > n:
        raise UserError(f"The matrix is {m} x {n} without a diagonal; expected diagonal= of {m} entries, too.")
    diagonal = np.asarray(np.diagonal(entries) if diagonal is None else diagonal)
    if diagonal.shape != (m,):
        raise UserError(f"The diagonal has shape {diagonal.shape}; expected {(m,)}, one entry for each row.")
    square = entries[:n]
    if not (np.isfinite(entries).all() and np.isfinite(diagonal).all()):
        raise UserError("The matrix or its diagonal isn't finite; expected finite numbers.")
    if not (np.array_equal(square, square.T) and np.array_equal(np.diagonal(square), diagonal[:n])):
        raise UserError(
            f"The first {n} rows aren't symmetric with the given diagonal; expected exactly so: take (K + K.T) / 2."
        )
    return entries, diagonal
