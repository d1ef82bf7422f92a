"""The posterior at new images: means from a stored solution, without a factor; with one also variances."""

from pathlib import Path

import numpy as np

from ..cli import without_startup_messages
from ..data.images import flat_as_in_training
from ..engines.engine import Engine
from ..errors import UserError
from ..npz import read_npz
from ..progress import silent
from ..regression import predict
from ..regression.solve import Solution
from ..store.description import Description
from .computed_gram import computed_kernels
from .tables import to_csv


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


def engine_of(description: Description) -> Engine:
    """What computes a run's kernel on this machine, on all GPUs that there are."""
    with without_startup_messages():
        from ..engines.choice import make_engine
        from ..engines.tensorflow import n_gpus_seen
        from ..kernels.description import kernel_from_description

        kernel = kernel_from_description(description.kernel)
        return make_engine("auto", kernel, n_gpus=n_gpus_seen(), float_type=description.float_type)


def posterior(
    engine: Engine, X: np.ndarray, training: np.ndarray, alpha: np.ndarray, solution: Solution | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """
    The posterior means [N, outputs] and variances [N], float64, at images X [N, D].

    The kernel is computed some rows at a time, in the precision of the training images.

    :param training: [N_train, D], the images of the solution ``alpha`` [N_train, outputs].
    :param solution: with its factor, for the variances; without it they are 0.
    :raises UserError: where a kernel entry or a mean isn't finite.
    """
    means, found = [], []
    for kernel in computed_kernels(engine, X.astype(training.dtype, copy=False), training):
        n_rows = len(kernel.K)
        with silent():
            means += predict.posterior_means(kernel, [alpha], n_rows)
            variances = None if solution is None else predict.posterior_variances(kernel, solution, n_rows)
        found.append(np.zeros(n_rows) if variances is None else variances)
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
