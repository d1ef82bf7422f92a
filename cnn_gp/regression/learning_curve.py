"""
Errors against the number of training images, from one stored kernel and one factorisation.

The factor of the leading n images is the leading part of the factor. The validation and test images are the same
whatever n is, so that the points of the curve can be compared.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from .gram_matrix import KernelMatrix
from .predict import error_percent, posterior_means
from .solve import Solution


@dataclass(frozen=True)
class Point:
    """One number of training images; errors in %."""

    N_train: int
    validation_error: float
    test_error: float
    log_marginal_likelihood: float
    """For each image and class."""


def default_sizes(N: int) -> list[int]:
    """500, 1000, 2000, 5000, 10000, ... up to N, which is the last; for fewer images from N / 10 on."""
    steps = [m * 10**k for k in range(1, 9) for m in (1, 2, 5)]
    return [n for n in steps if min(500, N / 10) <= n < N] + [N]


def learning_curve(
    solution: Solution,
    Y: np.ndarray,
    sizes: Sequence[int],
    validation: tuple[KernelMatrix, np.ndarray],
    test: tuple[KernelMatrix, np.ndarray],
) -> list[Point]:
    """
    The curve at some sizes.

    :param Y: [N, n_classes], the targets of the solution.
    :param validation: Kxvx, and the class numbers of its first rows, which are those that count.
    :param test: the same with Kxtx.
    """
    N = len(Y)
    for n in sizes:
        if not 1 <= n <= N:
            raise UserError(f"The learning curve is asked for at {n} images; expected 1 to {N}, which are solved for.")
    # One size after the other: without a factor, what is made for a size is made once.
    alphas, likelihoods = [], []
    for n in sizes:
        alphas.append(solution.alpha if n == N else solution.factor.solve(Y[:n], n))
        likelihoods.append(_log_likelihood(solution, Y[:n], alphas[-1]) / Y[:n].size)
    validation_errors, test_errors = (
        [error_percent(means, labels) for means in posterior_means(kernel, alphas, len(labels))]
        for kernel, labels in (validation, test)
    )
    return list(map(Point, sizes, validation_errors, test_errors, likelihoods))


def _log_likelihood(solution: Solution, Y: np.ndarray, alpha: np.ndarray) -> float:
    n, n_classes = Y.shape
    constant = solution.factor.log_determinant(n) + n * math.log(2 * math.pi)
    return -0.5 * (float(np.vdot(Y, alpha)) + n_classes * constant)
