"""A working directory's results as a Markdown page with figures."""

import functools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ..errors import UserError
from ..evaluation import search_table
from ..evaluation.results import ResultFiles
from ..kernels.architectures import PAPER_ERRORS
from ..kernels.random_search import shrunk_seeds
from ..progress import duration
from ..regression.learning_curve import Point
from ..store.atomic import write_atomically
from ..store.run_directory import RunDirectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure


#: Networks of the random search that get figures of their own.
_BEST = 3


def write_report(workdir: Path, folder: Path, results: list[dict[str, Any]]) -> Path:
    """
    Write ``FOLDER/report.md`` and its figures, PNG and SVG, in ``FOLDER/figures``.

    :param folder: where the results lie.
    :param results: :func:`cnn_gp.evaluation.results.read_all`'s.
    :return: the page's path.
    :raises UserError: where Matplotlib isn't installed, or nothing can be written.
    """
    try:
        from . import figures
    except ImportError as error:
        raise UserError("Figures need Matplotlib: install the package with its [figures] extra.") from error

    def save(name: str, figure: "Figure | None", caption: str) -> list[str]:
        if figure is None:
            return []
        for kind in ("png", "svg"):
            figures.save(figure, folder / "figures" / f"{name}.{kind}")
        return [f"![{caption}](figures/{name}.png)", ""]

    lines = ["# Results", "", *_errors(results), ""]
    shown = _shown(results)
    curves: dict[str, Sequence[Point]] = {
        r["run"]: [Point(**point) for point in r["learning_curve"]]
        for r in shown
        if len(r.get("learning_curve", ())) > 1
    }
    if curves:
        lines += ["## Learning curves", ""]
        lines += save("learning_curves", figures.learning_curves(curves), "Errors against training images")
    searched = [r for r in results if r["model"] == "random"]
    if len(searched) > 2:
        lines += ["## The random search", ""]
        best = min(searched, key=lambda r: r["validation_error"])
        lines += [
            f"The validation error picks {best['run']}: {_percent(best['validation_error'])} % there, and "
            f"{_percent(best['test_error'])} % on the test images.",
            "",
        ]
        lines += save("random_search", figures.random_search(searched), "Validation errors of the random search")
        found = search_table.rows(searched)
        write_atomically(folder / "random_search.csv", functools.partial(_write, search_table.to_csv(found).encode()))
        lines += [*search_table.to_markdown(found), "", *_without_kernel(workdir, searched[0]["run"])]
    calibrated = {}
    for r in shown:
        if "scores" in r:
            arrays = ResultFiles(folder, r["run"]).read_arrays()
            calibrated[r["run"]] = (arrays["log_probabilities_test"], arrays["labels_test"])
    if calibrated:
        lines += ["## Uncertainty", "", *_scores(r for r in results if "scores" in r), ""]
        lines += save("rejection", figures.rejection_curves(calibrated), "Error against rejection")
    spectra = {
        r["run"]: ResultFiles(folder, r["run"]).read_arrays()["eigenvalues"]
        for r in shown
        if "spectrum" in r.get("extras", ())
    }
    if spectra:
        lines += ["## Spectra", ""]
        lines += save("spectra", figures.spectra(spectra), "Eigenvalues of the Gram matrices")
    for r in shown:
        lines += _of_run(workdir, folder, r, save, figures)
    page = folder / "report.md"
    text = "\n".join(lines).rstrip() + "\n"
    write_atomically(page, functools.partial(_write, text.encode()))
    return page


def _shown(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs that are looked at one by one: of the random search only the best by validation error."""
    searched = sorted((r for r in results if r["model"] == "random"), key=lambda r: r["validation_error"])
    best = [r["run"] for r in searched[:_BEST]]
    return [r for r in results if r["model"] != "random" or r["run"] in best]


def _write(data: bytes, file: BinaryIO) -> None:
    file.write(data)


def _of_run(workdir: Path, folder: Path, r: dict[str, Any], save: Any, figures: Any) -> list[str]:
    name = r["run"]
    files = ResultFiles(folder, name)
    if not files.arrays_path.exists():
        return []
    arrays = files.read_arrays()
    means, labels, log_p = arrays["test"], arrays["labels_test"], arrays.get("log_probabilities_test")
    lines = [f"## {name}", "", *_facts(r), ""]
    lines += save(f"{name}_confusion", figures.confusion_matrix(means, labels, f"{name}, test"), "Confusion matrix")
    if log_p is not None:
        lines += save(f"{name}_reliability", figures.reliability_diagram(log_p, labels, name), "Reliability diagram")
    images = _test_images(workdir, name)
    if images is not None:
        figure = figures.wrong_images(images[: len(labels)], means, labels, log_p, name)
        lines += save(f"{name}_wrong", figure, "Test images that were classified wrongly")
    return lines


def _test_images(workdir: Path, name: str) -> np.ndarray | None:
    """[N, height, width] or [N, height, width, channels], or None where the run's images are gone or aren't images."""
    run = RunDirectory(workdir, name)
    try:
        shape = tuple(run.description().image_shape)
        X = run.images()["Xt"]
    except UserError:
        return None
    if len(shape) != 3 or shape[0] not in (1, 3):
        return None
    images = np.moveaxis(X.reshape(-1, *shape), 1, -1)
    return images[..., 0] if shape[0] == 1 else np.clip(images, 0, 1)


def _without_kernel(workdir: Path, name: str) -> list[str]:
    shape = RunDirectory(workdir, name).description().image_shape
    shrunk = ", ".join(map(str, shrunk_seeds(shape[1:])))
    size = " x ".join(map(str, shape[1:]))
    return [f"Without a kernel on {size} pixels, because a map shrinks below one pixel: {shrunk or 'none'}.", ""]


def _errors(results: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| run | data | training images | validation error, % | test error, % | paper: validation | test | jitter | "
        "residual |",
        "|" + "---|" * 9,
    ]
    for r in results:
        paper = PAPER_ERRORS.get(r["model"]) if r["dataset"] == "mnist" else None
        cells = [
            r["run"],
            r["dataset"],
            f"{r['N_train']:,}",
            _percent(r["validation_error"]),
            _percent(r["test_error"]),
        ]
        cells += [_percent(error) for error in paper] if paper else ["", ""]
        cells += [f"{r['jitter']:g}", f"{r['relative_residual']:.0e}"]
        lines.append("| " + " | ".join(cells) + " |")
    if any(r["dataset"] == "mnist" and PAPER_ERRORS.get(r["model"]) for r in results):
        lines += ["", "The paper's errors are for 50,000 training images."]
    return lines


def _scores(results: Iterable[dict[str, Any]]) -> list[str]:
    lines = ["| run | NLL, nats | Brier score | expected calibration error |", "|" + "---|" * 4]
    for r in results:
        s = r["scores"]["test"]
        numbers = [s["negative_log_likelihood"], s["brier_score"], s["expected_calibration_error"]]
        lines.append(f"| {r['run']} | " + " | ".join(f"{n:.4f}" for n in numbers) + " |")
    return [*lines, "", "On the test images, with the output scale of maximum marginal likelihood."]


def _facts(r: dict[str, Any]) -> list[str]:
    times = r["times"]
    solving = sum(seconds for key, seconds in times.items() if key != "kernel")
    facts = [
        f"{r['N_train']:,} training, {r['N_vali']:,} validation and {r['N_test']:,} test images of {r['dataset']}.",
        f"Kernel time {duration(times['kernel'])} on {_who(r)}; solve and predictions {duration(solving)}"
        + (f", {r['peak_memory_bytes'] / 1e9:.1f} GB of memory at most." if "peak_memory_bytes" in r else "."),
    ]
    smallest, largest = r.get("extreme_eigenvalues", (math.nan, math.nan))
    if smallest > 0:
        facts.append(f"Eigenvalues from {smallest:.2g} to {largest:.2g}: condition number {largest / smallest:.1g}.")
    if r.get("noise"):
        facts.append(f"Observation noise {r['noise']:g} of the mean variance, chosen on the validation images.")
    if "leave_one_out" in r:
        facts.append(
            f"Leave-one-out: error {_percent(r['leave_one_out']['error'])} %, log predictive density "
            f"{r['leave_one_out']['log_predictive_density'] / r['N_train']:.3f} an image."
        )
    return [" ".join(facts)]


def _who(r: dict[str, Any]) -> str:
    return ", ".join(sorted({f"the {record['engine']} engine" for record in r["kernel_computed_by"]}))


def _percent(error: float) -> str:
    return f"{error:.2f}"
