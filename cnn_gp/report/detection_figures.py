"""Figures of images unlike the training images: how well they are told apart, and accuracy against rejection."""

from collections.abc import Iterable, Mapping

import numpy as np

from ..data.corruptions import KINDS
from ..evaluation.out_of_distribution import OTHER, TEST, Detection, OutOfDistribution
from .figures import Figure, label, shade

_UNITS = {
    "rotation": "rotation, degrees",
    "shift": "shift, pixels",
    "noise": "noise / range of pixels",
    OTHER: "another data set",
}
_SCORES = {
    "auroc_entropy": "AUROC\nof entropy",
    "auroc_variance": "AUROC\nof variance",
    "auroc_relative_variance": "AUROC of variance\n/ prior variance",
}


def aurocs(runs: Mapping[str, OutOfDistribution]) -> Figure:
    """A column for each kind of images and a row for each score, and one for the errors; a colour for each run."""
    kinds = _kinds(found for run in runs.values() for found in run.sets)
    rows = [*_SCORES, "error"]
    figure = Figure(figsize=(1.6 + 2.5 * len(kinds), 1.9 * len(rows) + 0.3), layout="constrained")
    grid = figure.subplots(len(rows), len(kinds), squeeze=False, sharex="col", sharey="row")
    names = sorted({found.name for run in runs.values() for found in run.sets if found.kind == OTHER})
    for column, kind in zip(grid.T, kinds, strict=True):
        for score, axes in zip(rows, column, strict=True):
            for index, (name, run) in enumerate(runs.items()):
                # Unchanged images are the test images, which have an error and no AUROC.
                shown = [s for s in run.sets if s.kind == kind or (s.kind == TEST and kind != OTHER)]
                aside = 0.4 * (index + 0.5) / len(runs) - 0.2
                points = sorted(
                    (names.index(s.name) + aside if kind == OTHER else s.strength or 0.0, value)
                    for s in shown
                    if (value := getattr(s, score)) is not None
                )
                if points:
                    style = "o" if kind == OTHER else "o-"
                    axes.plot(*zip(*points, strict=True), style, ms=3.5, color=f"C{index}", label=label(name))
            axes.grid(alpha=0.3)
        if kind == OTHER:
            column[-1].set_xticks(range(len(names)), names, rotation=20, ha="right")
            column[-1].set_xlim(-0.5, len(names) - 0.5)
            column[-1].text(0.5, 0.5, "of no class", transform=column[-1].transAxes, ha="center", color="0.4")
        column[-1].set_xlabel(_UNITS[kind])
    for axes, name in zip(grid[:, 0], (*_SCORES.values(), "error in %"), strict=True):
        axes.set_ylabel(name)
    for row in grid[:-1]:
        low, _ = row[0].get_ylim()
        row[0].set_ylim(min(low, 0.45), 1.02)
        for axes in row:
            axes.axhline(0.5, color="0.6", lw=0.8, label="chance")
    grid[-1, 0].set_ylim(0, 103)
    figure.legend(*_all_labels(grid[0]), fontsize="small", loc="outside right upper")
    return figure


def accuracies(found: OutOfDistribution) -> Figure:
    """Accuracy among the images kept against the share rejected: a column for each kind, a row for each score."""
    kinds = _kinds(found.sets)
    scores = {"accuracy_by_entropy": "by entropy", "accuracy_by_relative_variance": "by variance / prior variance"}
    figure = Figure(figsize=(1.0 + 2.7 * len(kinds), 5.4), layout="constrained")
    grid = figure.subplots(len(scores), len(kinds), squeeze=False, sharex=True, sharey=True)
    (test,) = [s for s in found.sets if s.kind == TEST]
    for column, kind in zip(grid.T, kinds, strict=True):
        sets = sorted((s for s in found.sets if s.kind == kind), key=lambda s: (s.strength or 0.0, s.name))
        for score, axes in zip(scores, column, strict=True):
            for index, s in enumerate((test, *sets)):
                color = "0.4" if s is test else shade(index - 1, len(sets))
                named = s.name if s.strength is None else f"{s.strength:g}"
                axes.plot(
                    [point.rejected for point in s.rejection],
                    [getattr(point, score) for point in s.rejection],
                    color=color,
                    lw=1.2,
                    ls="--" if s is test else "-",
                    label="test images" if s is test else label(named),
                )
            axes.grid(alpha=0.3)
        column[0].set_title("test and other images together" if kind == OTHER else _UNITS[kind], fontsize="medium")
        column[-1].set_xlabel("rejected in %")
        column[-1].legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.22), ncol=3)
    for axes, name in zip(grid[:, 0], scores.values(), strict=True):
        axes.set_ylabel(f"accuracy in %,\nrejected {name}")
    grid[0, 0].set(xlim=(0, 95), ylim=(-2, 102))
    return figure


def _kinds(sets: Iterable[Detection]) -> list[str]:
    there = {found.kind for found in sets}
    return [kind for kind in (*KINDS, OTHER) if kind in there]


def _all_labels(row: np.ndarray) -> tuple[list, list]:
    """The handles and labels of some axes, each label once."""
    found = {text: handle for axes in row for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    return list(found.values()), list(found)
