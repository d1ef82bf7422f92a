"""Predictions from the stored tiles and the solution of the linear system: means, and variances where asked."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from ..progress import Progress
from ..store.run_directory import RunDirectory
from .solve import Solution

#: Rows of the training matrix gathered at a time for the variances of images cut off from it.
_GATHERED = 500


@dataclass(frozen=True)
class Predictions:
    """Posterior means [images, n_classes] of the Gaussian process with one output per class."""

    train: np.ndarray
    """[N_train, n_classes]"""
    vali: np.ndarray
    """[N_vali, n_classes]"""
    test: np.ndarray
    """[N_test, n_classes]"""


def validation_labels(labels: dict[str, np.ndarray], N_train: int) -> np.ndarray:
    """The validation labels where only N_train images train: the training images cut off come first."""
    return np.concatenate([labels["Y"][N_train:], labels["Yv"]])


def predict(run: RunDirectory, solution: Solution, N_vali: int, N_test: int) -> Predictions:
    """
    The posterior means at the training, validation and test images, in one pass over the stored Kxvx and Kxtx.

    :param solution: for the first N training images. If more are stored, the others come first in the validation set.
    :param N_vali, N_test: how many of the validation and test images.
    """
    alpha, N = solution.alpha, len(solution.alpha)
    cut_off = solution.products[N:][:N_vali]
    return Predictions(
        train=solution.products[:N],
        vali=np.concatenate([cut_off, cross_times(run, "Kxvx", [alpha], N_vali - len(cut_off))[0]]),
        test=cross_times(run, "Kxtx", [alpha], N_test)[0],
    )


def cross_times(run: RunDirectory, matrix: str, alphas: list[np.ndarray], n_rows: int) -> list[np.ndarray]:
    """The first rows of Kxvx or Kxtx times each alpha [n, C], in one pass: of each the first n columns count."""
    products = [np.zeros((n_rows, alpha.shape[1])) for alpha in alphas]
    with Progress(n_rows, f"rows of {matrix} multiplied") as progress:
        for start, block in _cross_blocks(run, matrix, max(map(len, alphas)), n_rows):
            for product, alpha in zip(products, alphas, strict=True):
                product[start : start + len(block)] = block[:, : len(alpha)] @ alpha
            progress(len(block))
    return products


def variances(run: RunDirectory, solution: Solution, N_vali: int, N_test: int) -> tuple[np.ndarray, np.ndarray]:
    """
    The posterior variances of the latent function at the validation and test images, the same for every class.

    k(x, x) - k(x, X) (K + (noise + jitter) scale I)^-1 k(X, x), from the diagonals that are stored beside the tiles.
    It takes N^2 operations for every image: 20,000 of them about as much as the factorisation at N = 50,000.
    """
    N = len(solution.alpha)
    n_stored = run.description().N_train
    n_cut_off = min(n_stored - N, N_vali)
    cut_off = run.read_diagonal("Kxx")[N : N + n_cut_off]
    vali = np.concatenate([cut_off, run.read_diagonal("Kxvx")[: N_vali - n_cut_off]]).astype(np.float64)
    test = run.read_diagonal("Kxtx")[:N_test].astype(np.float64)
    with Progress(N_vali + N_test, "variances") as progress:
        for start, block in _cut_off_blocks(run, N, n_cut_off):
            vali[start : start + len(block)] -= _explained(solution, block)
            progress(len(block))
        for result, matrix, before in ((vali, "Kxvx", n_cut_off), (test, "Kxtx", 0)):
            for start, block in _cross_blocks(run, matrix, N, len(result) - before):
                result[before + start : before + start + len(block)] -= _explained(solution, block)
                progress(len(block))
    # At a training image the variance is 0 up to rounding.
    return np.maximum(vali, 0), np.maximum(test, 0)


def n_operations(N: int, n_images: int) -> float:
    """Floating-point operations that variances take."""
    return float(N) ** 2 * n_images


def _explained(solution: Solution, block: np.ndarray) -> np.ndarray:
    """[b]: k(x, X) (K + ...)^-1 k(X, x) for rows k(x, X) [b, N]."""
    columns = solution.factor.forward(block.T)
    return np.einsum("ij,ij->j", columns, columns)


def _cross_blocks(run: RunDirectory, matrix: str, N: int, n_rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, rows [b, N] in float64) of the first rows of Kxvx or Kxtx."""
    if n_rows <= 0:
        return
    for row, entries in run.read_rows(matrix):
        if row.start >= n_rows:
            break
        yield row.start, entries[: n_rows - row.start, :N].astype(np.float64)


def _cut_off_blocks(run: RunDirectory, N: int, n_rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """The same of the training images after the first N, whose entries lie above the diagonal."""
    for start in range(0, n_rows, _GATHERED):
        stop = min(start + _GATHERED, n_rows)
        block = np.empty((stop - start, N))
        for row, entries in run.read_rows("Kxx"):
            if row.start >= N:
                break
            columns = slice(N + start - row.first_column, N + stop - row.first_column)
            block[:, row.start : min(row.stop, N)] = entries[: N - row.start, columns].T
        yield start, block


def error_percent(means: np.ndarray, labels: np.ndarray) -> float:
    """The share of images, in %, whose largest mean isn't at their label."""
    if len(means) != len(labels):
        raise UserError(f"There are {len(means)} predictions and {len(labels)} labels; expected as many of each.")
    return 100 * float(np.mean(np.argmax(means, axis=1) != labels))
