"""Runs side by side: networks with and without pools, and a page that shows them."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import rgb_to_hsv, to_rgb

from cnn_gp.evaluation.hyperparameters import readout_pool
from cnn_gp.evaluation.result_files import ResultFiles, read_all
from cnn_gp.kernels.architectures import build_kernel, run_name
from cnn_gp.regression.learning_curve import Point
from cnn_gp.report import comparison_figures
from cnn_gp.report.report import write_report
from helpers.results import PLAIN

SIZES = (500, 1000, 2000, 5000, 10_000, 20_000)


def result(model, pool, kernel="nngp", N_train=20_000, number=0):
    """A made result with the kernel of a network; the more pool the fewer errors."""
    errors = [(8 + number) / (i + 1) for i in range(len(SIZES))]
    return replace(
        PLAIN,
        run=run_name(model, 0, kernel, pool),
        model=model,
        kernel=build_kernel(model, [1, 28, 28], kernel=kernel, pool=pool).describe(),
        N_train=N_train,
        test_error=errors[-1],
        validation_error=errors[-1] + 0.1,
        learning_curve=tuple(Point(n, e + 0.1, e, -1.0) for n, e in zip(SIZES, errors, strict=True)),
    )


@pytest.fixture(scope="module")
def results():
    """As they are read, in the order of their names."""
    asked = [
        ("convnet_gp", None, "nngp"),
        ("convnet_gp", 5, "nngp"),
        ("convnet_gp", "global", "nngp"),
        ("convnet_gp", 3, "ntk"),
        ("convnet_gp", None, "ntk"),
        ("myrtle5", None, "nngp"),
        ("resnet_gp", None, "nngp"),
        ("resnet_gp", 2, "nngp"),
    ]
    made = [result(*one, number=i) for i, one in enumerate(asked)]
    return sorted(made, key=lambda r: r.run)


@pytest.mark.parametrize("pool", [None, 2, 5, "global"])
def test_the_pool_is_that_of_the_description(pool):
    for kernel in ("nngp", "ntk"):
        assert readout_pool(build_kernel("convnet_gp", [1, 28, 28], kernel=kernel, pool=pool).describe()) == pool


def test_pools_of_the_network_itself_are_none():
    assert readout_pool(build_kernel("myrtle5", [1, 28, 28]).describe()) == "global"
    assert readout_pool(PLAIN.kernel) is None


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}


def test_colour_is_the_network_and_style_the_pool(results):
    figure = comparison_figures.learning_curves(results)
    for axes, key in zip(figure.axes, ("test_error", "validation_error"), strict=True):
        shown = lines(axes)
        assert set(shown) == {r.run for r in results}
        for r in results:
            assert shown[r.run].get_xdata().tolist() == list(SIZES)
            assert shown[r.run].get_ydata().tolist() == [getattr(point, key) for point in r.learning_curve]
        for a, b in itertools.combinations(results, 2):
            same_network = comparison_figures.network(a) == comparison_figures.network(b)
            one, other = shown[a.run], shown[b.run]
            assert (one.get_color() == other.get_color()) == same_network
            styles = [(line.get_linestyle(), line.get_marker()) for line in (one, other)]
            assert (styles[0] == styles[1]) == (readout_pool(a.kernel) == readout_pool(b.kernel))


def test_an_ntk_has_a_lighter_shade_of_its_networks_colour():
    """The saturations of the shades differ, their hues don't; an NTK alone has a colour of its own."""
    models = ("convnet_gp", "resnet_gp", "residual_cnn_gp")
    shown = [result(model, None, kernel) for model in models for kernel in ("nngp", "ntk")][:-2]
    shown.append(result("residual_cnn_gp", None, "ntk"))
    (test, _) = comparison_figures.learning_curves(shown).axes
    colours = {name: rgb_to_hsv(to_rgb(line.get_color())) for name, line in lines(test).items()}
    for model in models[:2]:
        dark, light = colours[model], colours[f"{model}_ntk"]
        assert dark[0] == pytest.approx(light[0], abs=0.03) and dark[1] > light[1] + 0.2
    assert len({round(float(colour[0]), 1) for colour in colours.values()}) == 3
    assert colours["residual_cnn_gp_ntk"][1] > 0.7


def test_with_one_network_colours_are_its_pools(results):
    shown = [r for r in results if comparison_figures.network(r) == "convnet_gp"]
    (test, _) = comparison_figures.learning_curves(shown).axes
    assert len({line.get_color() for line in lines(test).values()}) == len(shown) == 3


def test_the_bars_are_the_standard_errors(results):
    shown = [r for r in results if comparison_figures.network(r) == "convnet_gp"]
    (axes,) = comparison_figures.by_pool(shown).axes
    bars = [(a[1], b[1]) for collection in axes.collections for a, b in collection.get_segments()]
    expected = []
    for r in shown:
        for error, n in ((r.test_error, r.N_test), (r.validation_error, r.N_vali)):
            deviation = 100 * (error / 100 * (1 - error / 100) / n) ** 0.5
            expected.append((error - deviation, error + deviation))
    np.testing.assert_allclose(sorted(bars), sorted(expected))


def test_nothing_overlaps(results):
    for figure in (comparison_figures.learning_curves(results), comparison_figures.by_pool(results)):
        figure.draw_without_rendering()
        (legend,) = figure.legends
        for axes in figure.axes:
            boxes = [tick.get_window_extent() for tick in axes.get_xticklabels()]
            assert not legend.get_window_extent().overlaps(axes.get_tightbbox())
            assert axes.get_xticklabels()[0].get_rotation() or all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))


def test_errors_against_the_pool(results):
    more = [*results, result("residual_cnn_gp", 9, N_train=500), result("residual_cnn_gp", None, N_train=1000)]
    (axes,) = comparison_figures.by_pool(more).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["none", "2", "3", "5", "global"]
    shown = lines(axes)
    # Myrtle5 has one pool, and the residual network's two runs have different numbers of images.
    assert set(shown) == {"convnet_gp", "convnet_gp_ntk", "resnet_gp", "test", "validation"}
    assert shown["convnet_gp"].get_xdata().tolist() == [0, 3, 4]
    by_run = {r.run: r for r in results}
    runs = [by_run[name] for name in ("convnet_gp", "convnet_gp_pool_5", "convnet_gp_pool_global")]
    assert shown["convnet_gp"].get_ydata().tolist() == [r.test_error for r in runs]
    assert [r.validation_error for r in runs] in [line.get_ydata().tolist() for line in axes.get_lines()]
    assert comparison_figures.by_pool([r for r in results if r.model == "myrtle5"]) is None


def test_the_titles_name_the_data_set_that_all_are_of_and_noise(results):
    without = [replace(r, noise=0.0) for r in results]
    mixed = [replace(without[0], dataset="another"), *without[1:]]
    for shown, title in ((results, "digits, with noise"), (without, "digits"), (mixed, "")):
        (axes,) = comparison_figures.by_pool(shown).axes
        assert axes.get_title() == ": ".join(["20,000 training images", *filter(None, [title])])
        assert comparison_figures.learning_curves(shown).get_suptitle() == title


def test_the_page_shows_both(results, tmp_path):
    for r in results:
        ResultFiles(tmp_path, r.run).write(r, {}, None)
        (tmp_path / f"{r.run}_predictions.npz").unlink()
    page, _ = write_report(tmp_path, tmp_path, read_all(tmp_path))
    assert "(figures/learning_curves.png)" in page.read_text() and "(figures/pools.png)" in page.read_text()
