"""The posterior at new images: means from a stored solution, without a factor; with one also variances."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..data.images import flat_as_in_training
from ..engines.engine import Engine
from ..engines.gram import gram
from ..errors import UserError
from ..npz import read_npz
from ..regression import predict
from ..regression.solve import Solution
from .computed_gram import computed_kernels
from .tables import to_csv

if TYPE_CHECKING:
    from ..kernels.nngp import NNGPKernel


def read_images(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """
    The images of an .npz file, its array "x" or else "x_test".

    :param shape: [C, *positions] of the run's images. The array is [N, D] or [N, *shape], where the channels may come
        last, and one channel may be left out. Numbers of 8 bits are divided by 255.
    :return: [N, D], float32, flattened channel first.
    :raises UserError: where the file or its images can't be used.
    """
    arrays = read_npz(path, "save them as numpy.savez(FILE, x=images)", ("x", "x_test"))
    x = arrays.get("x", arrays.get("x_test"))
    D = int(np.prod(shape))
    last = (*shape[1:], shape[0])
    if x is None or not x.ndim or not len(x):
        raise UserError(f"{path} has no array 'x' with images; expected [N, {D}], or [N, {', '.join(map(str, last))}].")
    return flat_as_in_training(f"{path}: x", x, shape)


def posterior_means(kernel: "NNGPKernel", X: np.ndarray, training: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """
    The posterior means [N, n_classes], float64, at images X [N, D].

    :param training: [N_train, D], the images of the solution ``alpha`` [N_train, n_classes]; their dtype is the
        precision in which the kernel is computed.
    :raises UserError: where a mean isn't finite.
    """
    means = gram(kernel, X.astype(training.dtype), training).astype(np.float64) @ alpha
    _check_finite(means, X)
    return means


def posterior(
    engine: Engine, X: np.ndarray, training: np.ndarray, solution: Solution, *, variances: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """
    The posterior means [N, outputs] and variances [N], float64, at images X [N, D] of the dtype of the training images.

    :param training: [N_train, D], the images of the solution.
    :param variances: whether they are asked for; else they are 0.
    :raises UserError: where a kernel entry or a mean isn't finite.
    """
    means, found = [], []
    for kernel in computed_kernels(engine, X, training):
        n_rows = len(kernel.K)
        means += predict.posterior_means(kernel, [solution.alpha], n_rows)
        found.append(predict.posterior_variances(kernel, solution, n_rows) if variances else np.zeros(n_rows))
    result = np.concatenate(means)
    _check_finite(result, X)
    return result, np.concatenate(found)


def _check_finite(means: np.ndarray, X: np.ndarray) -> None:
    """:raises UserError: where one of the posterior means [N, n_classes] at images X [N, D] isn't finite."""
    bad = np.flatnonzero(~np.isfinite(means).all(axis=1))
    if len(bad):
        raise UserError(
            f"The posterior means of {len(bad)} images aren't finite, the first of them image {bad[0]}, whose values "
            f"are from {X[bad[0]].min():.3g} to {X[bad[0]].max():.3g}: scale the images as in training."
        )


def means_csv(means: np.ndarray) -> str:
    """A line for each image: its number, its class and the posterior means [N, n_classes], to six digits."""
    return to_csv(
        {"image": index, "class": int(row.argmax()), **{f"mean_{c}": f"{mean:.6g}" for c, mean in enumerate(row)}}
        for index, row in enumerate(means)
    )
