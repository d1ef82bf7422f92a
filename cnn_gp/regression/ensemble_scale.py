"""
The output scale of an ensemble of trained networks: the factor of its variance, from the training images alone.

Trained networks whose outputs begin with a larger variance have the same mean and a larger variance. The marginal
likelihood of the neural tangent kernel says nothing of that variance, which is another kernel's. Leave-one-out does, in
closed form. With B = A^-1 the inverse of the system's matrix, the ensemble that is trained without image i errs there
by r_i = alpha_i / B_ii (Rasmussen & Williams 2006, equation 5.12). This error is linear in the initial outputs, with
the weights B_ij / B_ii for j = 1 ... N: its variance is v_i = (B K B)_ii / B_ii^2.
"""

import numpy as np

from ..progress import Progress
from .ensemble import images_at_a_time, quadratic_forms
from .gram_matrix import GramMatrix
from .predict import GATHERED
from .solve import Solution

#: Training images that are left out in turn, at most.
LEFT_OUT = 4000


def ensemble_output_scale(K_train: GramMatrix, solution: Solution) -> float:
    """
    The factor s of the ensemble's variances at which the left-out targets are most likely: the mean of r_i^2 / v_i.

    This is the maximum of the sum of log N(y_i; mean_i, s v_i) over the classes and over :data:`LEFT_OUT` training
    images, drawn with a seed, or all where there are no more.

    :param K_train: the Gaussian process's kernel of the training images.
    :param solution: of the neural tangent kernel, for the first N training images.
    """
    N = len(solution.alpha)
    # Drawn: the file's order may be one of classes.
    chosen = np.sort(np.random.default_rng(0).choice(N, n_left_out(N), replace=False))
    at_a_time = images_at_a_time(N, K_train.n_max)
    # Below the rounding of the stored entries nothing is known of a variance: of an image that is there twice, say.
    prior = K_train.diagonal()[chosen]
    smallest = np.finfo(prior.dtype).eps * prior.astype(np.float64)
    ratios = np.empty(len(chosen))
    with Progress(len(chosen), "training images left out of the ensemble") as progress:
        for first in range(0, len(chosen), at_a_time):
            images = chosen[first : first + at_a_time]
            weights = np.empty((N, len(images)), order="F")
            for left in range(0, len(images), GATHERED):
                some = images[left : left + GATHERED]
                columns = np.zeros((N, len(some)), order="F")
                columns[some, np.arange(len(some))] = 1
                weights[:, left : left + len(some)] = solution.factor.solve(columns)
                progress(len(some))
            precisions = weights[images, np.arange(len(images))]
            weights /= precisions
            group = slice(first, first + len(images))
            variances = np.maximum(quadratic_forms(K_train, weights), smallest[group])
            errors = solution.alpha[images] / precisions[:, None]
            ratios[group] = np.mean(errors**2, axis=1) / variances
    return float(ratios.mean())


def n_left_out(N: int) -> int:
    """How many of N training images are left out in turn; each takes as long as the variance of an image."""
    return min(N, LEFT_OUT)
