"""Figures of finite networks of several widths beside the kernel that they converge to."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from .convergence import Samples, standardised
from .figures import Axes, Figure


def outputs_figure(samples: Sequence[Samples], K: np.ndarray, title: str) -> Figure:
    """
    A column for each width: histogram and quantiles of one image's output, second moments against the kernel.

    The second moments are relative to the kernel's mean diagonal.

    :param K: [n_images, n_images], the kernel.
    """
    figure = Figure(figsize=(2.6 * len(samples), 8.2), layout="constrained")
    rows = figure.subplots(3, len(samples), squeeze=False)
    grid = np.linspace(-4, 4, 201)
    for (above, middle, below), s in zip(rows.T, samples, strict=True):
        z = standardised(s, K)
        above.hist(z, bins=np.linspace(-4, 4, 49), density=True, color="0.75")
        above.plot(grid, stats.norm.pdf(grid), color="C3", lw=1)
        above.set(title=f"width {s.plan.width}", xlim=(-4, 4), ylim=(0, 0.75), xlabel="output / limit's deviation")
        quantiles = stats.norm.ppf((np.arange(len(z)) + 0.5) / len(z))
        middle.plot([-4, 4], [-4, 4], color="C3", lw=1)
        middle.plot(quantiles, np.sort(z), ".", ms=2, color="C0", rasterized=True)
        middle.set(xlim=(-4, 4), ylim=(-6, 6), xlabel="quantile of N(0, 1)")
        _sampled_against_limit(below, s, K)
    labels = ("density", "quantile of the output", "sampled covariance / mean variance")
    for axes, label in zip(rows[:, 0], labels, strict=True):
        axes.set_ylabel(label)
    for axes in rows[:2, 1:].ravel():
        axes.tick_params(labelleft=False)
    figure.suptitle(title)
    return figure


def tangent_kernels_figure(samples: Sequence[Samples], K: np.ndarray, title: str) -> Figure:
    """
    A column for each width: histogram of networks' tangent kernels at one image, their mean against the limit.

    :param samples: of tangent kernels.
    :param K: [n_images, n_images], the neural tangent kernel.
    """
    figure = Figure(figsize=(2.6 * len(samples), 5.6), layout="constrained")
    rows = figure.subplots(2, len(samples), squeeze=False)
    ratios = [s.outputs.astype(float) / float(K[0, 0]) for s in samples]
    # The narrowest networks' largest are far away.
    right = float(max(np.quantile(ratio, 0.98) for ratio in ratios))
    for (above, below), s, ratio in zip(rows.T, samples, ratios, strict=True):
        above.hist(ratio, bins=np.linspace(0, max(right, 1.5), 49), density=True, color="0.75")
        above.axvline(1, color="C3", lw=1)
        above.set(title=f"width {s.plan.width}", xlim=(0, max(right, 1.5)), xlabel="tangent kernel / limit")
        _sampled_against_limit(below, s, K)
    for axes, label in zip(rows[:, 0], ("density", "sampled / mean diagonal"), strict=True):
        axes.set_ylabel(label)
    figure.suptitle(title)
    return figure


def _sampled_against_limit(axes: Axes, samples: Samples, K: np.ndarray) -> None:
    """The samples' mean matrix with two standard errors against the kernel, both over the kernel's mean diagonal."""
    upper = np.triu_indices(len(K))
    mean_diagonal = float(np.diag(K).mean(dtype=np.float64))
    limit = K.astype(float)[upper] / mean_diagonal
    ends = _with_margin(min(0.0, float(limit.min())), float(limit.max()))
    sampled, error = samples.covariance[upper] / mean_diagonal, 2 * samples.standard_error[upper] / mean_diagonal
    axes.errorbar(limit, sampled, error, fmt="none", ecolor="0.8", elinewidth=0.5, zorder=1, rasterized=True)
    axes.plot(limit, sampled, ".", ms=1.5, color="C0", zorder=2, rasterized=True)
    axes.plot(ends, ends, color="C3", lw=1, zorder=3)
    # Narrow networks' moments can be several times the limit's: a range of their own leaves the others theirs.
    heights = _with_margin(min(0.0, float(limit.min())), max(float(limit.max()), float(np.quantile(sampled, 0.999))))
    axes.set(xlim=ends, ylim=heights, xlabel=f"kernel ({samples.n_all:,} networks)")
    axes.locator_params(nbins=4)


def _with_margin(low: float, high: float) -> tuple[float, float]:
    return low - 0.03 * (high - low), high + 0.03 * (high - low)
