"""The report's figures, from numbers; every function draws one and returns it."""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn import metrics

from ..errors import UserError
from ..evaluation.hyperparameters import PerAxis
from ..evaluation.metrics import rejection, reliability
from ..evaluation.results import Result
from ..store.atomic import write_atomically

try:
    import matplotlib
    import matplotlib.colors
    import matplotlib.image
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise UserError("Figures need Matplotlib: install the package with its [figures] extra.") from error

matplotlib.use("Agg")
# Names in an SVG are random without it.
matplotlib.rcParams["svg.hashsalt"] = "cnn_gp"


#: Up to this many classes, every class has a label and every count is printed.
_MANY = 20

#: Of fewer images than this an accuracy says little.
_FEW = 10


def _figure(width: float = 5.2, height: float = 3.8) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def colour(place: int, light: bool = False) -> str:
    """That of "C0", "C1", ..., by its place in this cycle of ten, or a lighter shade of it."""
    return matplotlib.colors.to_hex(matplotlib.colormaps["tab20"]((2 * place + light) % 20))


def save(figure: Figure, path: Path) -> None:
    """Write a figure, PNG or SVG by the path's ending; the same numbers give the same file."""
    kind = path.suffix[1:]
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    content = io.BytesIO()
    figure.savefig(content, format=kind, dpi=150, metadata=metadata)
    write_atomically(path, content.getvalue())


def label(run: str) -> str:
    """A run's name for a legend, which leaves out what begins with "_"."""
    return f" {run}" if run.startswith("_") else run


def shade(index: int, n: int) -> tuple[float, ...]:
    """The colour of one of n lines in an order, dark to light."""
    return matplotlib.colormaps["viridis"](0.9 * index / max(1, n - 1))


def scale_errors(axes: Axes, errors: Sequence[float]) -> None:
    """An axis of errors: logarithmic if none is 0, with plain numbers where its own ticks would be powers of ten."""
    if min(errors) <= 0:
        axes.set_ylim(bottom=0)
        return
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    levels = [m * 10.0**k for k in range(-3, 3) for m in (1, 1.5, 2, 3, 5, 7)]
    levels = [level for level in levels if low <= level <= high]
    if len(levels) < 4:
        levels = [float(level) for level in MaxNLocator(5).tick_values(low, high) if low <= level <= high]
    axes.set_yticks(levels, [f"{level:g}" for level in levels])
    axes.minorticks_off()


def reliability_diagram(log_p: np.ndarray, labels: np.ndarray, title: str) -> Figure:
    """Accuracy against confidence in bins, with how many images each holds below."""
    numbers = reliability(log_p, labels)
    figure = Figure(figsize=(4.6, 4.8), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    centres, width = (numbers.edges[:-1] + numbers.edges[1:]) / 2, numbers.edges[1]
    above.plot([0, 1], [0, 1], color="0.6", lw=1, label="perfectly calibrated")
    filled = numbers.counts > 0
    # Without a line, which would give a bin of one image the weight of one of thousands.
    for which, face, text in (
        (numbers.counts >= _FEW, "C0", "test images"),
        (filled & (numbers.counts < _FEW), "none", f"bins of fewer than {_FEW}"),
    ):
        if which.any():
            places = numbers.confidence[which], numbers.accuracy[which]
            above.plot(*places, "o", ms=4, mec="C0", mfc=face, label=text, clip_on=False)
    above.set(ylabel="accuracy", title=title, xlim=(0, 1), ylim=(0, 1.02))
    above.text(0.97, 0.05, f"expected calibration error {numbers.expected_calibration_error:.4f}", ha="right")
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    below.bar(centres[filled], numbers.counts[filled], 0.9 * width, color="C0")
    below.set(yscale="log", ylabel="images", xlabel="confidence (largest class probability)")
    return figure


def rejection_curves(curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """The error among the images kept, against the share of the least confident that are rejected."""
    figure, axes = _figure()
    for run, (log_p, labels) in curves.items():
        shares, errors = rejection(log_p.max(axis=1), log_p.argmax(axis=1) != labels)
        axes.step(100 * shares, errors, where="post", label=label(run))
    axes.set(xlabel="rejected test images in %", ylabel="error among the images kept, in %", xlim=(0, 50))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def confusion_matrix(means: np.ndarray, labels: np.ndarray, title: str) -> Figure:
    """
    How many test images of a class were taken for another; the diagonal is left uncoloured.

    Of more than 20 classes those are shown that occur, and numbers only where there is room.
    """
    predicted = means.argmax(axis=1)
    n_classes = means.shape[1]
    classes = np.arange(n_classes) if n_classes <= _MANY else np.union1d(labels, predicted)
    counts = metrics.confusion_matrix(labels, predicted, labels=classes)
    figure, axes = _figure(5.0, 4.6)
    wrong = counts.astype(float)
    np.fill_diagonal(wrong, 0)
    axes.imshow(wrong, cmap="Reds", vmin=0, vmax=max(1.0, 1.5 * wrong.max()))
    if len(classes) <= _MANY:
        for i, j in np.argwhere(counts):
            axes.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=7)
    axes.set(xlabel="predicted class", ylabel="true class", title=title)
    shown = np.arange(0, len(classes), math.ceil(len(classes) / _MANY))
    axes.set_xticks(shown, classes[shown], rotation=0 if classes[-1] < 100 else 90)
    axes.set_yticks(shown, classes[shown])
    return figure


def wrong_images(
    images: np.ndarray,
    means: np.ndarray,
    labels: np.ndarray,
    log_p: np.ndarray | None,
    wrong: np.ndarray,
    title: str,
    most: int = 40,
) -> Figure:
    """
    The test images that were taken for another class, the most confidently wrong first.

    :param wrong: their numbers in this order, at least one.
    :param images: [N, height, width] or [N, height, width, channels].
    """
    predicted = means.argmax(axis=1)
    shown = wrong[:most]
    n_columns = min(8, len(shown))
    n_rows = math.ceil(len(shown) / n_columns)
    figure = Figure(figsize=(max(4.0, 1.05 * n_columns), 1.45 * n_rows + 0.5), layout="constrained")
    grid = np.atleast_1d(figure.subplots(n_rows, n_columns)).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, index in zip(grid, shown, strict=False):
        axes.imshow(images[index], cmap="gray_r")
        text = f"{labels[index]} as {predicted[index]}"
        if log_p is not None:
            text += f"\n{math.exp(log_p[index, predicted[index]]):.2f}, {math.exp(log_p[index, labels[index]]):.2f}"
        axes.set_title(text, fontsize=7)
    what = "true class as predicted class"
    if log_p is not None:
        what += "; below, the probabilities of predicted and true class"
    first = f"{len(shown)} of " if len(shown) < len(wrong) else ""
    figure.suptitle(
        f"{title}: {first}the {len(wrong)} misclassified test images, most confident first\n({what})", fontsize=8
    )
    return figure


def thumbnail(image: np.ndarray) -> bytes:
    """An image [height, width] or [height, width, channels] as PNG, a pixel each; one channel dark on light."""
    content = io.BytesIO()
    matplotlib.image.imsave(content, image, cmap="gray_r", format="png")
    return content.getvalue()


def spectra(eigenvalues: dict[str, np.ndarray]) -> Figure:
    """The Gram matrices' eigenvalues, largest first, as shares of their sum."""
    figure, axes = _figure()
    for run, values in eigenvalues.items():
        # Rounding may leave the smallest below 0, which a logarithm can't show.
        shares = np.sort(values)[::-1] / values.sum()
        axes.plot(np.arange(1, len(shares) + 1), np.where(shares > 0, shares, np.nan), label=label(run))
    axes.set(xscale="log", yscale="log", xlabel="rank", ylabel="eigenvalue / sum of all")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def random_search(results: Sequence[Result]) -> Figure:
    """Validation error of the search's networks against depth, filter size and nonlinearity; residual ones hollow."""
    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    errors = [r.validation_error for r in results]
    networks = [r.hyperparameters for r in results]
    values: list[tuple[str, list]] = [
        ("convolutions", [h.n_convolutions for h in networks]),
        ("filter size in pixels", [_size(h.filter_sizes) for h in networks]),
        ("nonlinearity", [" ".join(h.nonlinearities) for h in networks]),
    ]
    residual = np.array([h.n_skips > 0 for h in networks], dtype=bool)
    for axes, (name, x) in zip(panels, values, strict=True):
        kinds = sorted(set(x)) if name == "nonlinearity" else []
        places = np.array([kinds.index(v) for v in x] if kinds else x, float)
        places += np.random.default_rng(0).uniform(-0.12, 0.12, len(places))
        for which, label, face in ((~residual, "plain", "C0"), (residual, "residual", "none")):
            if which.any():
                axes.scatter(places[which], np.array(errors)[which], s=22, facecolor=face, edgecolor="C0", label=label)
        axes.set(xlabel=name)
        axes.grid(alpha=0.3)
        if kinds:
            axes.set_xticks(range(len(kinds)), kinds)
            axes.set_xlim(-0.5, len(kinds) - 0.5)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].set_ylabel("validation error in %")
    scale_errors(panels[0], errors)
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize="small", loc="outside right upper")
    return figure


def _size(sizes: Sequence[PerAxis]) -> float:
    first = sizes[0] if sizes else 1
    return float(first[0] if isinstance(first, tuple) else first)
