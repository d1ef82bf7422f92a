"""Figures of several runs side by side: errors against training images, and against the pool before the readout."""

import re
from collections.abc import Iterable, Sequence

import numpy as np

from ..evaluation.hyperparameters import readout_pool
from ..evaluation.results import Result
from .figures import Figure, colour, label, scale_errors

#: Of no pool and of the others in their order.
_STYLES = ("-", "--", ":", "-.", (0, (6, 1)), (0, (3, 1, 1, 1)), (0, (1, 3)))
_MARKERS = "os^Dv<>"


def learning_curves(results: Sequence[Result]) -> Figure:
    """
    Test and validation errors against the number of training images, in two panels.

    Runs of one network have one colour, its NTK a lighter one; line and marker say which pool is before its readout.
    With one network its pools have colours too.
    """
    figure = Figure(figsize=(9.0, 4.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    colours, pools = _colours(_in_order(map(network, results))), _pools(results)
    for axes, (name, key) in zip(panels, (("test", "test_error"), ("validation", "validation_error")), strict=True):
        for r in _by_network(results):
            points = r.learning_curve or ()
            place = pools.index(_pool(r)) % len(_STYLES)
            axes.plot(
                [point.N_train for point in points],
                [getattr(point, key) for point in points],
                ls=_STYLES[place],
                marker=_MARKERS[place],
                ms=4,
                color=colours[network(r)] if len(colours) > 1 else f"C{pools.index(_pool(r))}",
                label=label(r.run),
            )
        axes.set(xscale="log", xlabel="training images", title=f"{name} images")
        ticks = sorted({point.N_train for r in results for point in r.learning_curve or ()})
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], rotation=60, ha="right", rotation_mode="anchor")
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("error in %")
    figure.suptitle(_of_what(results), fontsize="medium")
    all_points = [point for r in results for point in r.learning_curve or ()]
    scale_errors(panels[0], [error for point in all_points for error in (point.test_error, point.validation_error)])
    # Long enough for the longest dashes.
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, fontsize="small", loc="outside right upper", handlelength=3.5)
    return figure


def by_pool(results: Sequence[Result]) -> Figure | None:
    """
    Test and validation errors (dashed) against the pool before the readout, for each network of several pools.

    Bars are standard errors, those of a share among the images.

    :return: None where no network has two pools with one number of training images.
    """
    groups: dict[tuple[str, int], list[Result]] = {}
    for r in _by_network(results):
        groups.setdefault((network(r), r.N_train), []).append(r)
    groups = {key: runs for key, runs in groups.items() if len(set(map(_pool, runs))) > 1}
    if not groups:
        return None
    figure = Figure(figsize=(7.4, 4.0), layout="constrained")
    axes = figure.subplots()
    shown = [r for runs in groups.values() for r in runs]
    pools = _pools(shown)
    sizes = {N_train for _, N_train in groups}
    for index, ((name, N_train), runs) in enumerate(groups.items()):
        runs = sorted(runs, key=lambda r: pools.index(_pool(r)))
        places = [pools.index(_pool(r)) for r in runs]
        named = name if len(sizes) == 1 else f"{name}, {N_train:,} images"
        for beside, style, size, key, n_key, text in (
            (-0.02, "o-", 4, "test_error", "N_test", label(named)),
            (0.02, "s--", 3, "validation_error", "N_vali", None),
        ):
            errors = np.array([getattr(r, key) for r in runs])
            deviations = np.sqrt(errors * (100 - errors) / [getattr(r, n_key) for r in runs])
            axes.plot(places, errors, style, ms=size, color=f"C{index}", label=text)
            shifted = np.array(places) + beside
            axes.vlines(shifted, errors - deviations, errors + deviations, color=f"C{index}", lw=0.8, alpha=0.6)
    axes.set_xticks(range(len(pools)), [_in_words(pool) for pool in pools])
    axes.set(xlabel="average pool before the readout, positions on a side", ylabel="error in %")
    if len(sizes) == 1:
        title = [f"{sizes.pop():,} training images", *filter(None, [_of_what(shown)])]
        axes.set_title(": ".join(title), fontsize="medium")
    scale_errors(axes, [error for r in shown for error in (r.test_error, r.validation_error)])
    axes.grid(alpha=0.3)
    axes.plot([], [], "o-", color="0.4", ms=4, label="test")
    axes.plot([], [], "s--", color="0.4", ms=3, label="validation")
    axes.vlines([], [], [], color="0.4", lw=0.8, label="standard error")
    figure.legend(fontsize="small", loc="outside right upper")
    return figure


def network(result: Result) -> str:
    """A run's name without its pool: the same of the runs of a network that differ by it."""
    return re.sub(r"_pool_?(\d+|global)", "", result.run)


def _of_what(results: Sequence[Result]) -> str:
    """For a title: the data set where all are of one, and whether they have noise, as "mnist, with noise"."""
    found = {r.dataset for r in results}
    return ", ".join([*(found if len(found) == 1 else ()), *(["with noise"] if any(r.noise for r in results) else ())])


def _pool(result: Result) -> int | str | None:
    return readout_pool(result.kernel)


def _pools(results: Iterable[Result]) -> list[int | str | None]:
    """From none over the sizes to global."""
    pools = set(map(_pool, results))
    sizes = sorted(pool for pool in pools if isinstance(pool, int))
    return [*({None} & pools), *sizes, *({"global"} & pools)]


def _by_network(results: Iterable[Result]) -> list[Result]:
    """The runs of a network one after another, those of smaller pools first."""
    results = list(results)
    networks, pools = _in_order(map(network, results)), _pools(results)
    return sorted(results, key=lambda r: (networks.index(network(r)), pools.index(_pool(r))))


def _colours(networks: Sequence[str]) -> dict[str, str]:
    """Of each: those of an NTK and of the same network's NNGP, where both are there, are two shades of one colour."""

    def nngp(name: str) -> str:
        other = name.removesuffix("_ntk")
        return other if other in networks else name

    order = _in_order(map(nngp, networks))
    return {name: colour(order.index(nngp(name)), light=nngp(name) != name) for name in networks}


def _in_order(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _in_words(pool: int | str | None) -> str:
    return "none" if pool is None else str(pool)
