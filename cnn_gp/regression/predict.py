"""Predictions from the solution of the linear system: posterior means, and posterior variances where asked."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from ..progress import Progress
from .gram_matrix import GramMatrix, KernelMatrix, leading_rows
from .solve import Solution

#: Rows of the training matrix gathered at a time for the images cut off from it.
GATHERED = 500


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


class ValidationKernel:
    """
    The kernel between the validation images and the first N training images, [N_train - N + N_vali, N].

    The training images after the first N come first in the validation set; their entries lie in the Gram matrix, above
    its diagonal.
    """

    def __init__(self, Kxx: GramMatrix, Kxvx: KernelMatrix, N: int) -> None:
        self._Kxx, self._Kxvx, self._N = Kxx, Kxvx, N

    def rows(self) -> Iterator[tuple[int, np.ndarray]]:
        """:meth:`~cnn_gp.regression.gram_matrix.KernelMatrix.rows`"""
        n_cut_off = self._Kxx.N - self._N
        for first in range(0, n_cut_off, GATHERED):
            last = min(first + GATHERED, n_cut_off)
            gathered = np.empty((last - first, self._N))
            for start, entries in leading_rows(self._Kxx, self._N):
                columns = slice(self._N + first - start, self._N + last - start)
                gathered[:, start : start + len(entries)] = entries[:, columns].T
            yield first, gathered
        for start, entries in self._Kxvx.rows():
            yield n_cut_off + start, entries[:, : self._N]

    def diagonal(self) -> np.ndarray:
        """:meth:`~cnn_gp.regression.gram_matrix.KernelMatrix.diagonal`"""
        return np.concatenate([self._Kxx.diagonal()[self._N :], self._Kxvx.diagonal()])


def predict(solution: Solution, Kxvx: KernelMatrix, Kxtx: KernelMatrix, N_vali: int, N_test: int) -> Predictions:
    """
    The posterior means at the training, validation and test images, in one pass over Kxvx and Kxtx.

    :param solution: for the first N training images. If there are more, the others come first in the validation set.
    :param N_vali, N_test: how many of the validation and test images.
    """
    alpha, N = solution.alpha, len(solution.alpha)
    cut_off = solution.products[N:][:N_vali]
    return Predictions(
        train=solution.products[:N],
        vali=np.concatenate([cut_off, posterior_means(Kxvx, [alpha], N_vali - len(cut_off))[0]]),
        test=posterior_means(Kxtx, [alpha], N_test)[0],
    )


def posterior_means(kernel: KernelMatrix, alphas: list[np.ndarray], n_rows: int) -> list[np.ndarray]:
    """The matrix's first rows times each alpha [n, C], in one pass: of each row the first n columns count."""
    products = [np.zeros((n_rows, alpha.shape[1])) for alpha in alphas]
    with Progress(n_rows, "rows of the kernel multiplied") as progress:
        for start, rows in leading_float64(kernel, n_rows, max(map(len, alphas))):
            for product, alpha in zip(products, alphas, strict=True):
                product[start : start + len(rows)] = rows[:, : len(alpha)] @ alpha
            progress(len(rows))
    return products


def posterior_variances(kernel: KernelMatrix, solution: Solution, n_rows: int) -> np.ndarray:
    """
    The posterior variances of the latent function at the images of a matrix's first rows, the same for every class.

    k(x, x) - k(x, X) (K + (noise + jitter) mean_diagonal I)^-1 k(X, x) (Rasmussen & Williams 2006, equation 2.26).
    It takes N^2 operations for every image: 20,000 of them about as much as the factorisation at N = 50,000.
    """
    variances = kernel.diagonal()[:n_rows].astype(np.float64)
    with Progress(n_rows, "posterior variances") as progress:
        for start, rows in leading_float64(kernel, n_rows, len(solution.alpha)):
            variances[start : start + len(rows)] -= solution.factor.quadratic_forms(rows.T)
            progress(len(rows))
    # At a training image the variance is 0 up to rounding.
    return np.maximum(variances, 0)


def n_operations(N: int, n_images: int) -> float:
    """Floating-point operations that posterior variances take."""
    return float(N) ** 2 * n_images


def leading_float64(kernel: KernelMatrix, n_rows: int, N: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, rows [b, N] in float64) of the first rows and columns."""
    for start, entries in leading_rows(kernel, n_rows):
        yield start, entries[:, :N].astype(np.float64)


def error_percent(means: np.ndarray, labels: np.ndarray) -> float:
    """The share of images, in %, whose largest mean isn't at their label."""
    if len(means) != len(labels):
        raise UserError(f"There are {len(means)} predictions and {len(labels)} labels; expected as many of each.")
    return 100 * float(np.mean(np.argmax(means, axis=1) != labels))
