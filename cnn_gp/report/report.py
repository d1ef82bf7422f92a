"""A working directory's results as a page with figures, in Markdown and in HTML."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError
from ..evaluation import comparisons, search_table
from ..evaluation.comparisons import Comparison
from ..evaluation.errors_table import errors_table, papers_footnote, percent
from ..evaluation.metrics import confidently_wrong
from ..evaluation.out_of_distribution import Files, table
from ..evaluation.result_files import ResultFiles
from ..evaluation.results import LeaveOneOutScores, Result
from ..evaluation.tables import Table, to_csv
from ..kernels.random_search import shrunk_seeds
from ..progress import duration
from ..store.atomic import remove_leftovers, write_atomically
from ..store.run_directory import RunDirectory
from . import comparison_figures, detection_figures, figures
from .html import as_html
from .page import Block, Gallery, Heading, Paragraph, Picture, Thumbnail, as_markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: In a page's first line: a file without it is someone's own.
MARKER = "<!-- Written by scripts/report.py, which writes it anew. -->"
_FIRST_LINES = {"report.md": MARKER, "report.html": f"<!doctype html>{MARKER}"}

#: Networks of the random search that get figures of their own.
_BEST = 3

#: How a noise was chosen, by a result's noise_by.
_CHOSEN = {"validation": "on the validation images", "loo": "by leave-one-out"}

_AUROC_EXPLAINED = (
    "AUROC: the probability that an image of the set has a larger entropy (or posterior variance) than a test image. "
    "0.5: not distinguished, 1: fully separated. For another data set, accuracy is over its images and as many test "
    "images; its own images count as errors."
)

#: Wrong images of a run that are shown one by one.
_MOST = 100


@dataclass(frozen=True)
class _Report:
    """What the page is made from, and where it is written."""

    workdir: Path
    folder: Path
    results: list[Result]
    compare_with: Path | None = None
    _arrays: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)

    @property
    def searched(self) -> list[Result]:
        """The runs of the random search."""
        return [r for r in self.results if r.model == "random"]

    @property
    def shown(self) -> list[Result]:
        """The runs that are looked at one by one: of the random search the best only."""
        best = [r.run for r in sorted(self.searched, key=lambda r: r.validation_error)[:_BEST]]
        return [r for r in self.results if r.model != "random" or r.run in best]

    @property
    def drawn(self) -> list[Result]:
        """Those of :attr:`shown` whose predictions are there, which are large and may have been left behind."""
        return [r for r in self.shown if ResultFiles(self.folder, r.run).arrays_path.exists()]

    def arrays(self, result: Result) -> dict[str, np.ndarray]:
        """What is in a run's predictions, read and verified once."""
        if result.run not in self._arrays:
            self._arrays[result.run] = ResultFiles(self.folder, result.run).read_arrays(result)
        return self._arrays[result.run]

    def figure(self, name: str, figure: "Figure", caption: str) -> Picture:
        """Write a figure; the block that shows it."""
        for kind in ("png", "svg"):
            figures.save(figure, self.folder / "figures" / f"{name}.{kind}")
        return Picture(name, caption)


def write_report(workdir: Path, folder: Path, results: list[Result], compare_with: Path | None = None) -> list[Path]:
    """
    Write ``FOLDER/report.md``, its figures, PNG and SVG, in ``FOLDER/figures``, and ``FOLDER/report.html`` with them.

    :param folder: where the results lie.
    :param results: :func:`cnn_gp.evaluation.result_files.read_all`'s.
    :param compare_with: another folder of results. Each run that has one there too is compared with itself, image by
        image.
    :return: the two pages' paths.
    :raises UserError: where nothing can be written, a page that isn't :func:`write_report`'s is there, a run's
        predictions can't be read, or no run can be compared with itself in the other folder.
    """
    for name, first_line in _FIRST_LINES.items():
        _check_ours(folder / name, first_line)
    for place in (folder, folder / "figures"):
        remove_leftovers(place)
    report = _Report(workdir, folder, results, compare_with)
    footnote = papers_footnote(results)
    blocks: list[Block] = [errors_table(results), *([] if footnote is None else [Paragraph(footnote)])]
    for section in _SECTIONS:
        blocks += section(report)
    pages = {
        "report.md": as_markdown("Results", blocks),
        "report.html": as_html("Results", blocks, folder / "figures"),
    }
    for name, page in pages.items():
        separator = "\n\n" if name.endswith(".md") else "\n"
        write_atomically(folder / name, _FIRST_LINES[name] + separator + page)
    return [folder / name for name in pages]


def _check_ours(page: Path, first_line: str) -> None:
    """:raises UserError: where another page lies there."""
    try:
        with page.open("rb") as file:
            if file.readline().rstrip() == first_line.encode():
                return
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{page} can't be read ({error.strerror}): move it away.") from error
    raise UserError(f"{page} wasn't written by report.py, or its first line was changed: move it away.")


def _learning_curves(report: _Report) -> list[Block]:
    curves = [r for r in report.shown if r.learning_curve and len(r.learning_curve) > 1]
    if not curves:
        return []
    figure = comparison_figures.learning_curves(curves)
    return [Heading("Learning curves"), report.figure("learning_curves", figure, "Errors against training images")]


def _pools(report: _Report) -> list[Block]:
    figure = comparison_figures.by_pool(report.shown)
    if figure is None:
        return []
    return [Heading("Pools"), report.figure("pools", figure, "Errors against the pool before the readout")]


def _comparisons(report: _Report) -> list[Block]:
    results = {r.run: r for r in report.drawn}
    found = comparisons.comparisons({run: report.arrays(r) for run, r in results.items()})
    elsewhere = [] if report.compare_with is None else _compared_with_themselves(report, report.compare_with)
    if not found and not elsewhere:
        return []
    write_atomically(report.folder / "comparisons.csv", comparisons.as_csv([*found, *elsewhere]))
    blocks: list[Block] = [Heading("Image by image")]
    if found:
        blocks += _compared_with_the_best(found, results)
    if elsewhere and report.compare_with is not None:
        name = report.compare_with.name
        said = (
            f"Each run beside its own result in {report.compare_with}, which is named {name}/RUN in `comparisons.csv`."
        )
        blocks += [comparisons.as_table_of_runs(elsewhere, f"in {name}"), Paragraph(said)]
    return blocks


def _compared_with_themselves(report: _Report, folder: Path) -> list[Comparison]:
    """:raises UserError: where there is no run to compare."""
    found = []
    for result in report.drawn:
        files = ResultFiles(folder, result.run)
        other = files.read_checked()
        if other is not None and files.arrays_path.exists():
            arrays = files.read_arrays(other)
            found += comparisons.compare(result.run, report.arrays(result), f"{folder.name}/{result.run}", arrays)
    if not found:
        raise UserError(
            f"No run has predictions of the same images in {report.folder} and in {folder}; expected --compare_with to "
            "name another folder of results of the same runs: check it and --csv_dir."
        )
    return found


def _compared_with_the_best(found: list[Comparison], results: dict[str, Result]) -> list[Block]:
    # Of those that are compared with another.
    names = {name for one in found for name in (one.run, one.other)}
    reference = min(sorted(names), key=lambda name: results[name].validation_error)
    said = (
        f"Images that a run classifies right and {reference}, which has the smallest validation error, doesn't, and "
        "the other way round; p is that of the two-sided sign test (McNemar's exact test). All pairs are in "
        "`comparisons.csv`."
    )
    return [comparisons.as_table(found, reference), Paragraph(said)]


def _random_search(report: _Report) -> list[Block]:
    searched = report.searched
    if len(searched) <= 2:
        return []
    least = min(r.validation_error for r in searched)
    best = [r for r in searched if r.validation_error == least]
    rows = search_table.rows(searched)
    write_atomically(report.folder / "random_search.csv", to_csv(rows))
    figure = figures.random_search(searched)
    input_shape = best[0].kernel["input_shape"]
    size = " x ".join(map(str, input_shape[1:]))
    shrunk = ", ".join(map(str, shrunk_seeds(input_shape[1:])))
    return [
        Heading("The random search"),
        Paragraph(
            f"Smallest validation error: {percent(least)} %, of "
            + " and ".join(f"{r.run} (test error {percent(r.test_error)} %)" for r in best)
            + "."
        ),
        report.figure("random_search", figure, "Validation errors of the random search"),
        search_table.as_table(rows),
        Paragraph(f"Without a kernel on {size} pixels, because a map shrinks below one pixel: {shrunk or 'none'}."),
    ]


def _noises(report: _Report) -> list[Block]:
    searches = [r for r in report.shown if len(r.noise_search) > 1]
    if not searches:
        return []
    header = ["run", "noise", "validation error", "leave-one-out error", "log predictive density", "chosen"]
    rows = [
        [
            r.run,
            f"{tried.noise:g}",
            percent(tried.validation_error),
            *_left_out(tried.leave_one_out, r.N_train),
            _CHOSEN[r.noise_by] if tried.noise == r.noise else "",
        ]
        for r in searches
        for tried in r.noise_search
    ]
    said = "Noise is relative to the kernel's mean diagonal, errors are in %, densities are of one image's targets."
    return [Heading("Observation noise"), Table(header, rows, "lrrrrl"), Paragraph(said)]


def _left_out(scores: LeaveOneOutScores | None, N: int) -> tuple[str, str]:
    return ("", "") if scores is None else (percent(scores.error), f"{scores.log_predictive_density / N:.4f}")


def _uncertainty(report: _Report) -> list[Block]:
    scored = [
        (r.run, kind, of_sets.test)
        for r in report.results
        for kind, of_sets in (
            ("trained ensemble" if "ensemble" in r.extras else "Gaussian process", r.scores),
            ("Gaussian process", r.gaussian_process_scores),
        )
        if of_sets is not None
    ]
    if not scored:
        return []
    header = ["run", "variance of", "NLL, nats", "Brier score", "expected calibration error"]
    rows = [[run, kind, *(f"{number:.4f}" for number in vars(scores).values())] for run, kind, scores in scored]
    text = "On the test images, with the output scale of maximum marginal likelihood"
    if any(r.ensemble_output_scale is not None for r in report.results):
        text += "; a trained ensemble's is that of maximum leave-one-out density"
    said = Paragraph(f"{text}.")
    blocks: list[Block] = [Heading("Uncertainty"), Table(header, rows, "llrrr"), said]
    arrays = {r.run: report.arrays(r) for r in report.drawn if r.scores is not None}
    curves = {run: (a["log_probabilities_test"], a["labels_test"]) for run, a in arrays.items()}
    if curves:
        blocks.append(report.figure("rejection", figures.rejection_curves(curves), "Error against rejection"))
    return blocks


def _out_of_distribution(report: _Report) -> list[Block]:
    there = [(r, found) for r in report.shown if (found := Files(report.folder, r.run).read()) is not None]
    runs = {r.run: found for r, found in there if found.is_of(r)}
    old = [r.run for r, found in there if not found.is_of(r)]
    blocks: list[Block] = [Heading("Images unlike the training images")] if there else []
    if runs:
        blocks += [
            table(runs),
            Paragraph(_AUROC_EXPLAINED),
            report.figure("out_of_distribution", detection_figures.aurocs(runs), "How well they are told apart"),
        ]
    for run, found in runs.items():
        blocks.append(
            report.figure(
                f"{run}_out_of_distribution",
                detection_figures.accuracies(found),
                f"{run}: accuracy against rejection",
            )
        )
    if old:
        blocks.append(Paragraph(f"Left out, because `classify_gp.py` has replaced their result: {', '.join(old)}."))
    return blocks


def _spectra(report: _Report) -> list[Block]:
    runs = [r for r in report.drawn if "spectrum" in r.extras]
    if not runs:
        return []
    figure = figures.spectra({r.run: report.arrays(r)["eigenvalues"] for r in runs})
    return [Heading("Spectra"), report.figure("spectra", figure, "Eigenvalues of the Gram matrices")]


def _runs(report: _Report) -> list[Block]:
    drawn = report.drawn
    blocks = [block for r in drawn for block in _run(report, r)]
    missing = [r.run for r in report.shown if r not in drawn]
    if missing:
        blocks.append(Paragraph(f"Without figures, because `RUN_predictions.npz` is missing: {', '.join(missing)}."))
    return blocks


def _run(report: _Report, r: Result) -> list[Block]:
    arrays = report.arrays(r)
    means, labels, log_p = arrays["test"], arrays["labels_test"], arrays.get("log_probabilities_test")
    confusion = figures.confusion_matrix(means, labels, f"{r.run}, test")
    blocks: list[Block] = [Heading(r.run), Paragraph(_facts(r))]
    blocks.append(report.figure(f"{r.run}_confusion", confusion, "Confusion matrix"))
    if log_p is not None:
        reliability = figures.reliability_diagram(log_p, labels, r.run)
        blocks.append(report.figure(f"{r.run}_reliability", reliability, "Reliability diagram"))
    images, wrong = _test_images(report.workdir, r.run), confidently_wrong(means, labels, log_p)
    if images is not None and len(wrong):
        figure = figures.wrong_images(images, means, labels, log_p, wrong, r.run)
        picture = report.figure(f"{r.run}_wrong", figure, "Misclassified test images")
        blocks.append(Gallery(picture, [_thumbnail(i, images, means, labels, log_p) for i in wrong[:_MOST]]))
    return blocks


def _thumbnail(
    index: int, images: np.ndarray, means: np.ndarray, labels: np.ndarray, log_p: np.ndarray | None
) -> Thumbnail:
    """A test image, its classes, and the largest of what decided: probabilities, or else posterior means."""
    predicted = means[index].argmax()
    of_classes = means[index] if log_p is None else np.exp(log_p[index])
    largest = [int(c) for c in np.argsort(-of_classes, kind="stable")[:3]]
    shown = largest if labels[index] in largest else [*largest, int(labels[index])]
    lines = [f"{labels[index]} as {predicted}", f"test image {index}"]
    lines.append("posterior means:" if log_p is None else "probabilities:")
    lines += [f"{c}: {of_classes[c]:.3f}" + (" (true)" if c == labels[index] else "") for c in shown]
    return Thumbnail(figures.thumbnail(images[index]), lines)


#: The page's sections in their order; each returns its blocks, none where it has nothing to show.
_SECTIONS: tuple[Callable[[_Report], list[Block]], ...] = (
    _learning_curves,
    _pools,
    _comparisons,
    _random_search,
    _noises,
    _uncertainty,
    _out_of_distribution,
    _spectra,
    _runs,
)


def _test_images(workdir: Path, name: str) -> np.ndarray | None:
    """[N, height, width] or [N, height, width, channels], or None where the run's images are gone or aren't images."""
    run = RunDirectory(workdir, name)
    try:
        shape = tuple(run.description().image_shape)
        X = run.raw_images()["Xt"]
    except UserError:
        return None
    if len(shape) != 3 or shape[0] not in (1, 3):
        return None
    images = np.moveaxis(X.reshape(-1, *shape), 1, -1)
    return images[..., 0] if shape[0] == 1 else np.clip(images, 0, 1)


def _facts(r: Result) -> str:
    who = ", ".join(sorted({f"the {record['engine']} engine" for record in r.kernel_computed_by}))
    facts = [
        f"{r.N_train:,} training, {r.N_vali:,} validation and {r.N_test:,} test images of {r.data}.",
        f"Kernel time {duration(r.times['kernel'])} on {who}; all of stage 2 {duration(r.solve_seconds)}, "
        f"{r.peak_memory_bytes / 1e9:.1f} GB of memory at most.",
    ]
    smallest, largest = r.extreme_eigenvalues
    if smallest > 0:
        facts.append(f"Eigenvalues from {smallest:.2g} to {largest:.2g}: condition number {largest / smallest:.1g}.")
    if r.noise:
        how = "" if len(r.noise_search) == 1 else f", chosen {_CHOSEN[r.noise_by]}"
        facts.append(f"Observation noise {r.noise:g} of the kernel's mean diagonal{how}.")
    if r.leave_one_out is not None:
        density = r.leave_one_out.log_predictive_density / r.N_train
        error = percent(r.leave_one_out.error)
        facts.append(f"Leave-one-out: error {error} %, log predictive density {density:.3f} an image.")
    return " ".join(facts)
