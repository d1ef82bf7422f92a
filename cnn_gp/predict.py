"""Predictions from the stored tiles and the solution of the linear system, and what they are worth."""

from dataclasses import dataclass

import numpy as np

from .errors import UserError
from .solve import Solution
from .store import RunDirectory


@dataclass(frozen=True)
class Predictions:
    """Posterior means [images, n_classes] of the Gaussian process with one output per class."""

    train: np.ndarray
    """[N_train, n_classes]"""
    vali: np.ndarray
    """[N_vali, n_classes]"""
    test: np.ndarray
    """[N_test, n_classes]"""
    relative_residual: float
    """|Y - (K + jitter I) alpha| / |Y| in Frobenius norms, with K as it is stored."""


def validation_labels(labels: dict[str, np.ndarray], N_train: int) -> np.ndarray:
    """The validation labels where only N_train images train: the training images cut off come first."""
    return np.concatenate([labels["Y"][N_train:], labels["Yv"]])


def predict(run: RunDirectory, solution: Solution, Y: np.ndarray, N_vali: int, N_test: int) -> Predictions:
    """
    The posterior means at the training, validation and test images, in one pass over the stored tiles.

    :param Y: [N, n_classes] the targets that the solution is for, of the first N training images. If more are stored,
        the others come first in the validation set.
    :param N_vali, N_test: how many of the validation and test images.
    """
    alpha = solution.alpha
    N = len(alpha)
    stored = _gram_times(run, alpha)
    residual = Y - stored[:N] - solution.jitter_absolute * alpha
    cut_off = stored[N:][:N_vali]
    return Predictions(
        train=stored[:N],
        vali=np.concatenate([cut_off, _cross_times(run, "Kxvx", alpha, N_vali - len(cut_off))]),
        test=_cross_times(run, "Kxtx", alpha, N_test),
        relative_residual=float(np.linalg.norm(residual) / np.linalg.norm(Y)),
    )


def _gram_times(run: RunDirectory, alpha: np.ndarray) -> np.ndarray:
    """Kxx[:, :N] alpha for all stored training images, from the upper triangle of blocks."""
    N = len(alpha)
    product = np.zeros((run.description().N_train, alpha.shape[1]))
    for row, entries in run.read_rows("Kxx"):
        if row.start >= N:
            break
        block = entries[: N - row.start].astype(np.float64)
        stop = row.start + len(block)
        product[row.start : stop] += block[:, : N - row.first_column] @ alpha[row.first_column :]
        product[stop:] += block[:, stop - row.first_column :].T @ alpha[row.start : stop]
    return product


def _cross_times(run: RunDirectory, matrix: str, alpha: np.ndarray, n_rows: int) -> np.ndarray:
    """The first rows of Kxvx or Kxtx, [n_rows, N], times alpha."""
    product = np.zeros((n_rows, alpha.shape[1]))
    for row, entries in run.read_rows(matrix):
        if row.start >= n_rows:
            break
        block = entries[: n_rows - row.start, : len(alpha)].astype(np.float64)
        product[row.start : row.start + len(block)] = block @ alpha
    return product


def error_percent(means: np.ndarray, labels: np.ndarray) -> float:
    """The share of images, in %, whose largest mean isn't at their label."""
    if len(means) != len(labels):
        raise UserError(f"There are {len(means)} predictions and {len(labels)} labels; expected as many of each.")
    return 100 * float(np.mean(np.argmax(means, axis=1) != labels))
