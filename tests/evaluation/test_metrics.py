"""Class probabilities against sampling, and the scores of probabilities by hand."""

import numpy as np
import pytest

from cnn_gp.errors import UserError
from cnn_gp.evaluation.metrics import (
    Scores,
    brier_score,
    log_probabilities,
    negative_log_likelihood,
    output_scale,
    rejection,
    reliability,
    scaled_log_marginal_likelihood,
    scores,
)


def test_probabilities_against_sampling(rng):
    means = rng.normal(size=(6, 5))
    variances = np.array([0.01, 0.1, 0.5, 1.0, 4.0, 100.0])
    p = np.exp(log_probabilities(means, variances))
    n = 200_000
    draws = means[:, None, :] + np.sqrt(variances)[:, None, None] * rng.normal(size=(6, n, 5))
    counted = np.stack([np.bincount(d.argmax(1), minlength=5) / n for d in draws])
    # Five standard errors.
    assert (np.abs(p - counted) <= 5 * np.sqrt(p * (1 - p) / n) + 1e-9).all()
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-12)


def test_two_classes_in_closed_form():
    from scipy.special import ndtr

    gap = np.linspace(-6, 6, 25)
    means = np.stack([gap, np.zeros_like(gap)], 1)
    p = np.exp(log_probabilities(means, np.full(25, 2.0)))
    np.testing.assert_allclose(p[:, 0], ndtr(gap / 2), atol=1e-12)


def test_classes_that_are_all_but_impossible_in_closed_form(rng):
    """As of a confidently wrong image, which decides the mean of the negative log likelihood."""
    from scipy.special import log_ndtr

    gap = np.r_[1.0, 10.0, 40.0, 60.0, 300.0, 1e4]
    means = np.stack([gap, np.zeros_like(gap)], 1)
    np.testing.assert_allclose(log_probabilities(means, np.full(6, 0.5))[:, 1], log_ndtr(-gap), rtol=1e-12)


def test_three_classes_against_the_bivariate_normal():
    from scipy.stats import multivariate_normal

    # Of differences of independent values: each of variance 2, their covariance 1.
    gaps = np.array([[0.3, -0.4], [-3.0, -3.1], [-5.0, -6.5], [4.0, -4.0]])
    means = np.concatenate([np.zeros((4, 1)), -gaps], axis=1)
    expected = [multivariate_normal([0, 0], [[2, 1], [1, 2]]).cdf(gap) for gap in gaps]
    np.testing.assert_allclose(np.exp(log_probabilities(means, np.ones(4))[:, 0]), expected, rtol=1e-5)
    # Behind nine classes alike by G deviations: the exponent is near -9/10 G^2 / 2 in place of -G^2 / 4.
    behind = log_probabilities(np.r_[np.zeros(1), np.full(9, 40.0)][None], np.ones(1))[0, 0]
    assert -0.45 * 40**2 - 30 < behind < -0.45 * 40**2


def test_certainty_and_equality():
    means = np.array([[1.0, 0.0, -1.0], [0.2, 0.2, 0.2]])
    log_p = log_probabilities(means, np.array([0.0, 1e-12]))
    np.testing.assert_allclose(np.exp(log_p), [[1, 0, 0], [1 / 3] * 3], atol=1e-12)
    assert not np.isnan(log_p).any()
    # Far behind, but finite: what a negative log likelihood needs.
    assert np.isfinite(log_probabilities(np.array([[1.0, -1.0]]), np.array([1e-4]))).all()
    with pytest.raises(UserError, match="expected"):
        log_probabilities(means, np.ones(3))


LOG_P = np.log(np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]]))
LABELS = np.array([0, 1, 1, 1])


def test_scores_by_hand():
    assert negative_log_likelihood(LOG_P, LABELS) == pytest.approx(-np.log([0.9, 0.4, 0.8, 0.7]).mean())
    assert brier_score(LOG_P, LABELS) == pytest.approx(2 * np.mean([0.01, 0.36, 0.04, 0.09]))
    r = reliability(LOG_P, LABELS, n_bins=2)
    np.testing.assert_array_equal(r.counts, [0, 4])
    assert np.isnan(r.confidence[0]) and r.confidence[1] == pytest.approx(0.75) and r.accuracy[1] == 0.75
    assert r.expected_calibration_error == pytest.approx(0)
    fine = reliability(LOG_P, LABELS, n_bins=10)
    assert fine.expected_calibration_error == pytest.approx((0.1 + 0.6 + 0.2 + 0.3) / 4)
    values = [f(LOG_P, LABELS) for f in (negative_log_likelihood, brier_score, reliability)]
    assert scores(LOG_P, LABELS) == Scores(*values[:2], values[2].expected_calibration_error)


def test_rejection_by_hand():
    rejected, errors = rejection(LOG_P.max(axis=1), LOG_P.argmax(axis=1) != LABELS)
    np.testing.assert_allclose(rejected, [0, 0.25, 0.5, 0.75])
    np.testing.assert_allclose(errors, [25, 0, 0, 0])


def test_the_output_scale_maximises_the_marginal_likelihood(rng):
    from scipy.stats import multivariate_normal

    A = rng.normal(size=(6, 8))
    K, Y = A @ A.T, rng.normal(size=(6, 3))
    s = output_scale(Y, np.linalg.solve(K, Y))

    def likelihood(scale):
        return sum(multivariate_normal(cov=scale * K).logpdf(y) for y in Y.T)

    assert likelihood(s) > max(likelihood(0.99 * s), likelihood(1.01 * s))
    determinant = np.linalg.slogdet(K)[1]
    assert scaled_log_marginal_likelihood(Y, s, determinant) == pytest.approx(likelihood(s), rel=1e-9)
