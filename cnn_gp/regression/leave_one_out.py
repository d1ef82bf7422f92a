"""Leave-one-out cross-validation from one factorisation (Rasmussen & Williams 2006, section 5.4.2)."""

import math
from dataclasses import dataclass

import numpy as np

from ..progress import Progress
from .solve import Solution


@dataclass(frozen=True)
class LeaveOneOut:
    """What each training image's target would have been predicted to be, had it been left out."""

    means: np.ndarray
    """[N, n_classes], equation 5.12."""
    variances: np.ndarray
    """[N], of the observation, noise included, for an output scale of 1."""

    def log_predictive_density(self, Y: np.ndarray, output_scale: float | np.ndarray = 1.0) -> float:
        """
        The sum over images and classes of log p(y_i | the others), equation 5.10 and 5.11.

        :param output_scale: of all outputs, or of each, [n_classes].
        """
        variances = output_scale * self.variances[:, None]
        densities = -0.5 * np.log(2 * math.pi * variances) - 0.5 * (Y - self.means) ** 2 / variances
        return float(densities.sum())


def leave_one_out(solution: Solution, Y: np.ndarray) -> LeaveOneOut:
    """
    All N of them, for Y [N, n_classes]: N^3 / 3 operations, as many as the factorisation.

    The jitter counts as noise.
    """
    with Progress(len(solution.factor.bounds), "blocks of the inverse's diagonal") as progress:
        precision = solution.factor.inverse_diagonal(progress)
    return LeaveOneOut(Y - solution.alpha / precision[:, None], 1 / precision)
