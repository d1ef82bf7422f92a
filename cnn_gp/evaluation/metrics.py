"""
Class probabilities from the regression's independent Gaussians, and how good they are.

Every class has a target, its latent function with the observation noise, with its own posterior mean and, as all share
the kernel, one variance. An image is of the class whose target is the largest; its probability is a one-dimensional
integral.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import entr, log_ndtr, logsumexp

from ..errors import UserError

#: Nodes of the Gauss-Hermite quadrature.
NODES = 96

#: Images whose integrals are computed at a time, for the memory's sake.
_AT_A_TIME = 4096

#: Below this argument the asymptotes of log Phi's derivatives are taken, of which the quotients overflow.
_FAR = -1e4


def output_scale(Y: np.ndarray, alpha: np.ndarray) -> float:
    """
    The factor of the kernel (noise included) of maximum marginal likelihood, for Y [N, C] and alpha = K^-1 Y.

    For Y of covariance s K the likelihood's maximum is at s = y^T K^-1 y / N, the mean over classes (Rasmussen &
    Williams 2006, equation 5.9 with the derivative by s set to 0). The means don't depend on it, the variances do.
    """
    return float(np.vdot(Y, alpha)) / Y.size


def scaled_log_marginal_likelihood(Y: np.ndarray, scale: float, log_determinant: float) -> float:
    """
    The log marginal likelihood of Y [N, C] at its :func:`output_scale`, over all classes.

    :param log_determinant: of the kernel with its noise, before scaling.
    """
    N, n_classes = Y.shape
    return -0.5 * n_classes * (log_determinant + N * (np.log(2 * np.pi * scale) + 1))


def log_probabilities(means: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """
    The logarithms [N, C] of the probabilities that a class's target is the largest.

    P(c) = integral phi(z) prod_{k != c} Phi((m_c - m_k) / s + z) dz, by Gauss-Hermite quadrature around the integrand's
    largest value, which for an improbable class is far from 0; normalised.

    :param means: [N, C]; ``variances``: [N], of each image, with the observation noise, the same for its classes.
    :raises UserError: where the shapes don't fit.
    """
    if len(means) != len(variances) or means.ndim != 2:
        raise UserError(f"There are means {means.shape} and variances {variances.shape}; expected [N, C] and [N].")
    # A variance of 0 is certainty; the smallest number keeps the quotient finite.
    deviations = np.sqrt(np.maximum(variances, 1e-300))[:, None]
    result = np.empty(means.shape)
    for c in range(means.shape[1]):
        gaps = np.clip((means[:, [c]] - np.delete(means, c, axis=1)) / deviations, -1e100, 1e100)
        for start in range(0, len(gaps), _AT_A_TIME):
            result[start : start + _AT_A_TIME, c] = _log_integrals(gaps[start : start + _AT_A_TIME])
    return result - logsumexp(result, axis=1, keepdims=True)


def _log_integrals(gaps: np.ndarray) -> np.ndarray:
    """log integral phi(z) prod_k Phi(g_k + z) dz for each row of gaps g [N, K]."""
    z, weights = np.polynomial.hermite_e.hermegauss(NODES)
    mode = _mode(gaps)[:, None]
    # With z + mode for z: phi(z + mode) = phi(z) exp(-mode z - mode^2 / 2).
    terms = log_ndtr((gaps + mode)[:, :, None] + z).sum(axis=1) - mode * z - mode**2 / 2
    return logsumexp(terms + np.log(weights / np.sqrt(2 * np.pi)), axis=1)


def _mode(gaps: np.ndarray) -> np.ndarray:
    """Where phi(z) prod_k Phi(g_k + z) is about largest, [N], by Newton's method, which comes from below."""
    z = np.zeros(len(gaps))
    for _ in range(30):
        x = gaps + z[:, None]
        near = np.maximum(x, _FAR)
        slopes = np.exp(-(near**2) / 2 - log_ndtr(near)) / np.sqrt(2 * np.pi)
        curvatures = np.where(x > _FAR, slopes * (near + slopes), 1)
        step = (np.where(x > _FAR, slopes, -x).sum(axis=1) - z) / (1 + curvatures.sum(axis=1))
        z += step
        if (step < 1e-3 * (1 + z)).all():
            break
    return z


@dataclass(frozen=True)
class Reliability:
    """Of the images in bins of confidence (the largest probability): how many, mean confidence, share correct."""

    edges: np.ndarray
    """[bins + 1]"""
    counts: np.ndarray
    confidence: np.ndarray
    """[bins]; not a number where a bin is empty, as ``accuracy``."""
    accuracy: np.ndarray

    @property
    def expected_calibration_error(self) -> float:
        """The mean distance of confidence and accuracy, weighted by the images."""
        filled = self.counts > 0
        gaps = np.abs(self.confidence - self.accuracy)[filled]
        return float(np.average(gaps, weights=self.counts[filled]))


def reliability(log_p: np.ndarray, labels: np.ndarray, n_bins: int = 15) -> Reliability:
    """The reliability diagram's numbers, in bins of equal width from 0 to 1."""
    p = np.exp(log_p)
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == labels
    edges = np.linspace(0, 1, n_bins + 1)
    bins = np.clip(np.digitize(confidence, edges[1:-1]), 0, n_bins - 1)
    counts = np.bincount(bins, minlength=n_bins)
    with np.errstate(invalid="ignore"):
        return Reliability(
            edges,
            counts,
            np.bincount(bins, confidence, n_bins) / counts,
            np.bincount(bins, correct, n_bins) / counts,
        )


def negative_log_likelihood(log_p: np.ndarray, labels: np.ndarray) -> float:
    """The mean of -log P(label), in nats; unlike scikit-learn's log_loss it clips no probability."""
    return float(-log_p[np.arange(len(labels)), labels].mean())


def brier_score(log_p: np.ndarray, labels: np.ndarray) -> float:
    """The mean squared distance of the probabilities from the label's: 0 is perfect, 2 the worst (Brier 1950)."""
    p = np.exp(log_p)
    p[np.arange(len(labels)), labels] -= 1
    return float((p**2).sum(axis=1).mean())


def entropy(log_p: np.ndarray) -> np.ndarray:
    """The entropies [N] of class probabilities, in nats: from 0, certainty, to log C, all classes alike."""
    return entr(np.exp(log_p)).sum(axis=1)


def rejection(confidence: np.ndarray, wrong: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    The error among the images that are kept where the least confident ones are rejected.

    :param confidence: [N], any number that is larger for images that are to be kept longer.
    :param wrong: [N], whether an image's class is wrong.
    :return: the shares rejected, 0 to just below 1 [N], and the error in % among the images that are kept [N].
    """
    order = np.argsort(confidence, kind="stable")[::-1]
    kept = np.arange(1, len(wrong) + 1)
    errors = 100 * np.cumsum(wrong[order]) / kept
    return 1 - kept[::-1] / len(wrong), errors[::-1]


@dataclass(frozen=True)
class Scores:
    """How good class probabilities are, in numbers."""

    negative_log_likelihood: float
    brier_score: float
    expected_calibration_error: float


def scores(log_p: np.ndarray, labels: np.ndarray) -> Scores:
    """The scores of class probabilities, given by their logarithms [N, C]."""
    return Scores(
        negative_log_likelihood(log_p, labels),
        brier_score(log_p, labels),
        reliability(log_p, labels).expected_calibration_error,
    )


def confidently_wrong(means: np.ndarray, labels: np.ndarray, log_p: np.ndarray | None) -> np.ndarray:
    """
    The indices of the images that were taken for another class, the most confidently wrong first.

    :param means: [N, n_classes], the posterior means; the largest decides.
    :param labels: [N], the true classes.
    :param log_p: [N, n_classes], the log probabilities, where there are any: of the predicted class, what is sorted by;
        else by how much its mean is larger than the true class's.
    """
    rows, predicted = np.arange(len(labels)), means.argmax(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    sure = log_p[rows, predicted] if log_p is not None else means[rows, predicted] - means[rows, labels]
    return wrong[np.argsort(-sure[wrong], kind="stable")]
