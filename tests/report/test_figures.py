"""What figures show of results that aren't ordinary."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from cnn_gp.regression.learning_curve import Point
from cnn_gp.report import comparison_figures, figures
from helpers.results import PLAIN


def drawn(figure):
    figure.draw_without_rendering()
    return figure


def test_of_many_classes_those_are_shown_that_occur():
    labels = np.repeat([0, 500, 900], 4)
    means = np.zeros((12, 901))
    means[np.arange(12), labels] = 1
    (axes,) = drawn(figures.confusion_matrix(means, labels, "made")).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "500", "900"]
    assert {(t.get_position(), t.get_text()) for t in axes.texts} == {((i, i), "4") for i in range(3)}


def test_labels_of_sixty_classes_dont_overlap():
    labels = np.arange(60)
    figure = drawn(figures.confusion_matrix(np.eye(60), labels, "made"))
    boxes = [tick.get_window_extent() for tick in figure.axes[0].get_xticklabels()]
    assert len(boxes) == 20 and all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))


@pytest.mark.parametrize("smallest", [0.0, 1.0])
def test_an_error_of_zero_stays_in_the_figure(smallest):
    points = (Point(10, 5.0, 4.0, -1.0), Point(20, 2.0, smallest, -1.0))
    curve = comparison_figures.learning_curves([replace(PLAIN, learning_curve=points)])
    runs = [replace(PLAIN, run=f"seed_{i}", validation_error=error) for i, error in enumerate((3.0, 2.0, smallest))]
    for figure in (curve, figures.random_search(runs)):
        axes = drawn(figure).axes[0]
        low, high = axes.get_ylim()
        assert low <= smallest <= high and axes.get_yscale() == ("log" if smallest else "linear")


def test_the_legend_of_the_search_covers_no_point():
    runs = [replace(PLAIN, run=f"seed_{i}", validation_error=error) for i, error in enumerate((1.0, 9.0, 9.0))]
    figure = drawn(figures.random_search(runs))
    (legend,) = figure.legends
    assert not any(legend.get_window_extent().overlaps(axes.get_window_extent()) for axes in figure.axes)


def test_a_run_whose_name_begins_with_an_underscore_is_in_the_legend():
    (axes,) = figures.spectra({"_mine": np.array([1.0, 2.0])}).axes
    assert [text.get_text().strip() for text in axes.get_legend().get_texts()] == ["_mine"]
