"""
Errors with several training sets that have no image in common, from one stored kernel.

How much an error depends on which images are trained on: its spread over the sets. The validation and the test images
are the same for all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from ..progress import Progress, silent
from .gram_matrix import ArrayGram, GramMatrix, KernelMatrix
from .predict import leading_float64
from .solve import solve


@dataclass(frozen=True)
class TrainingSet:
    """One training set; errors in %."""

    N_train: int
    first: int
    """The first of its images, which follow each other, among the run's training images, from 0 on."""
    validation_error: float
    test_error: float
    jitter: float
    """That its solve took, relative to the mean diagonal of its kernel."""


def disjoint_sets(N: int, sizes: Sequence[int], most: int) -> list[tuple[int, int]]:
    """
    (N_train, first) of the first ``most`` disjoint sets of each size among N training images, in order.

    :raises UserError: where a size isn't from 1 to N.
    """
    for n in sizes:
        if not 1 <= n <= N:
            raise UserError(
                f"Training sets of {n:,} images are asked for; expected 1 to {N:,}, the run's training images."
            )
    return [(n, first * n) for n in sizes for first in range(min(most, N // n))]


def errors_of_training_sets(
    gram: GramMatrix,
    Y: np.ndarray,
    sets: Sequence[tuple[int, int]],
    validation: tuple[KernelMatrix, np.ndarray],
    test: tuple[KernelMatrix, np.ndarray],
    jitter: float = 0.0,
    noise: float = 0.0,
    say: Callable[[str], None] = lambda line: None,
) -> list[TrainingSet]:
    """
    The errors with each training set.

    :param Y: [N, n_classes], the targets of all training images.
    :param sets: :func:`disjoint_sets`'s.
    :param validation: Kxvx, and the class numbers of its first rows, which are those that count.
    :param test: the same with Kxtx.
    :param jitter, noise: as :func:`~cnn_gp.regression.solve.solve` has them, relative to the mean diagonal of each
        set's own kernel.
    :raises UserError: where the kernel can't be read, or a system can't be solved.
    """
    alphas, jitters = [], []
    with Progress(len(sets), "training sets solved for") as progress:
        for n, first in sets:
            stop = first + n
            with silent():
                block = ArrayGram(gram.block(first, stop, first, stop), gram.n_max)
                solution = solve(block, np.asfortranarray(Y[first:stop]), jitter, noise, say)
            alphas.append(solution.alpha)
            jitters.append(solution.jitter)
            progress(1)
    firsts = [first for _, first in sets]
    errors = [_errors(kernel, labels, firsts, alphas) for kernel, labels in (validation, test)]
    return [TrainingSet(*one) for one in zip(*zip(*sets, strict=True), *errors, jitters, strict=True)]


def _errors(
    kernel: KernelMatrix, labels: np.ndarray, firsts: Sequence[int], alphas: Sequence[np.ndarray]
) -> list[float]:
    """In % for each set, in one pass over the matrix."""
    wrong = np.zeros(len(alphas), int)
    n_columns = max((first + len(alpha) for first, alpha in zip(firsts, alphas, strict=True)), default=0)
    with Progress(len(labels), "rows of the kernel multiplied") as progress:
        for start, rows in leading_float64(kernel, len(labels), n_columns):
            its_labels = labels[start : start + len(rows)]
            for place, (first, alpha) in enumerate(zip(firsts, alphas, strict=True)):
                means = rows[:, first : first + len(alpha)] @ alpha
                wrong[place] += np.count_nonzero(means.argmax(axis=1) != its_labels)
            progress(len(rows))
    return [100 * float(count / len(labels)) for count in wrong]
