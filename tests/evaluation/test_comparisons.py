"""Runs compared image by image, against counting and the binomial distribution."""

import math

import numpy as np
import pytest

from cnn_gp.evaluation.comparisons import Comparison, as_csv, as_table, comparisons, sign_test


def predictions(right, labels, sets=("vali", "test")):
    """Arrays of a run that is right about some images, and takes the others for the next class."""
    predicted = np.where(right, labels, (labels + 1) % 3)
    return {key: value for name in sets for key, value in ((name, np.eye(3)[predicted]), (f"labels_{name}", labels))}


@pytest.fixture
def three():
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=40)
    return labels, {name: rng.random(40) < share for name, share in (("a", 0.9), ("b", 0.6), ("c", 0.6))}


def test_the_counts_are_those_of_the_images(three):
    labels, right = three
    found = comparisons({name: predictions(of_run, labels) for name, of_run in right.items()})
    assert [(one.run, one.other, one.images) for one in found] == [
        (*pair, images) for pair in ("ab", "ac", "bc") for images in ("validation", "test")
    ]
    for one in found:
        a, b = right[one.run], right[one.other]
        assert one.number == 40
        assert one.only_run_right == sum(x and not y for x, y in zip(a, b, strict=True))
        assert one.only_other_right == sum(y and not x for x, y in zip(a, b, strict=True))
        assert one.p_value == sign_test(one.only_run_right, one.only_other_right)


@pytest.mark.parametrize("counts", [(0, 0), (3, 3), (7, 1), (1, 7), (15, 28)])
def test_the_sign_test_sums_the_binomial_distribution(counts):
    n = sum(counts)
    tail = sum(math.comb(n, k) for k in range(max(counts), n + 1)) / 2**n
    assert sign_test(*counts) == pytest.approx(min(1, 2 * tail))


def test_only_runs_on_the_same_images_are_compared(three):
    labels, right = three
    runs = {
        "a": predictions(right["a"], labels),
        "fewer": predictions(right["b"][:20], labels[:20]),
        "other labels": predictions(right["b"], (labels + 1) % 3),
        "test only": predictions(right["c"], labels, sets=("test",)),
    }
    assert [(one.run, one.other, one.images) for one in comparisons(runs)] == [("a", "test only", "test")]


def test_the_table_has_each_run_beside_the_reference():
    found = [
        Comparison("a", "b", "validation", 1000, 17, 32, 0.0444),
        Comparison("a", "b", "test", 1000, 1015, 28, 0.066),
        Comparison("a", "c", "test", 1000, 1, 2, 1.0),
        Comparison("b", "c", "test", 1000, 5, 4, 1.0),
    ]
    table = as_table(found, "b")
    assert table.header[:4] == ["run", "validation: only it right", "only b right", "p"]
    assert table.rows == [["a", "17", "32", "0.044", "1,015", "28", "0.066"], ["c", "", "", "", "4", "5", "1"]]
    assert as_csv(found).splitlines()[1] == "a,b,validation,1000,17,32,0.0444"
