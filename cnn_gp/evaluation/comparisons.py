"""
Runs compared image by image: which images one classifies right and the other doesn't.

Two kernels mostly get the same images wrong, so that their errors differ by far less than each error's own standard
error. The sign test, which for two classifiers is McNemar's exact test, looks at the images on which they differ alone.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import binomtest

from .tables import Table, to_csv

#: The sets of images, as the arrays of a run's predictions name them, and in words.
SETS = {"vali": "validation", "test": "test"}


@dataclass(frozen=True)
class Comparison:
    """Two runs on the same images."""

    run: str
    other: str
    images: str
    """"validation" or "test"."""
    number: int
    """Of images."""
    only_run_right: int
    only_other_right: int
    p_value: float
    """Two-sided: how probable so uneven a split is where both are right equally often."""


def comparisons(predictions: Mapping[str, Mapping[str, np.ndarray]]) -> list[Comparison]:
    """
    All pairs of runs whose images have the same labels, for the validation and for the test images.

    :param predictions: of each run the arrays "vali", "test" [N, classes], posterior means, and "labels_vali",
        "labels_test" [N], as :meth:`~cnn_gp.evaluation.result_files.ResultFiles.read_arrays` gives them; a set may be
        missing.
    """
    return [
        one
        for run, other in itertools.combinations(predictions, 2)
        for one in compare(run, predictions[run], other, predictions[other])
    ]


def compare(
    run: str, of_run: Mapping[str, np.ndarray], other: str, of_other: Mapping[str, np.ndarray]
) -> list[Comparison]:
    """
    Two runs, on the sets of images whose labels are the same in both.

    :param of_run, of_other: arrays as :func:`comparisons` takes them.
    """
    found = []
    for key, name in SETS.items():
        if key not in of_run or key not in of_other:
            continue
        labels = of_run[f"labels_{key}"]
        if not np.array_equal(labels, of_other[f"labels_{key}"]):
            continue
        right, other_right = (arrays[key].argmax(axis=1) == labels for arrays in (of_run, of_other))
        counts = int(np.sum(right & ~other_right)), int(np.sum(other_right & ~right))
        found.append(Comparison(run, other, name, len(labels), *counts, sign_test(*counts)))
    return found


def sign_test(first: int, second: int) -> float:
    """The two-sided probability of a split at least as uneven, where both sides are equally probable."""
    return float(binomtest(first, first + second).pvalue) if first + second else 1.0


def as_csv(found: Sequence[Comparison]) -> str:
    """A line for each pair of runs and set of images."""
    return to_csv(map(vars, found))


def as_table(found: Sequence[Comparison], reference: str) -> Table:
    """A line for each run that is compared with a reference: on each set, images that only one of the two has right."""
    turned = [
        one
        if one.other == reference
        else replace(
            one,
            run=one.other,
            other=one.run,
            only_run_right=one.only_other_right,
            only_other_right=one.only_run_right,
        )
        for one in found
        if reference in (one.run, one.other)
    ]
    return as_table_of_runs(turned, reference)


def as_table_of_runs(found: Sequence[Comparison], other: str) -> Table:
    """A line for each run: on each set, images that only it has right, and only what it is compared with, ``other``."""
    header = ["run"]
    for name in SETS.values():
        header += [f"{name}: only it right", f"only {other} right", "p"]
    rows: dict[str, list[str]] = {}
    for one in found:
        cells = rows.setdefault(one.run, [""] * (len(header) - 1))
        first = 3 * list(SETS.values()).index(one.images)
        cells[first : first + 3] = [f"{one.only_run_right:,}", f"{one.only_other_right:,}", f"{one.p_value:.2g}"]
    return Table(header, [[run, *cells] for run, cells in rows.items()], "l" + "r" * (len(header) - 1))
