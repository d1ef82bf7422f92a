"""The report's page and figures, from results alone: without the runs' directories."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from cnn_gp.errors import UserError
from cnn_gp.evaluation.metrics import Scores
from cnn_gp.evaluation.result_files import ResultFiles, read_all
from cnn_gp.evaluation.results import SetScores
from cnn_gp.report import figures
from cnn_gp.report.report import write_report
from helpers.paths import ROOT
from helpers.results import FULL, PLAIN
from helpers.scripts import ENVIRONMENT, refused, script


def stored():
    """A result of MNIST that is in the repository, as that of a run of the random search."""
    result = ResultFiles(ROOT / "results" / "mnist", "convnet_gp").read()
    return replace(result, model="random", extras=("spectrum",), leave_one_out=None, scores=None)


def arrays(rng):
    labels = np.arange(12) % 3
    means = rng.normal(size=(12, 3))
    log_p = means - np.log(np.exp(means).sum(1, keepdims=True))
    return {
        "test": means,
        "labels_test": labels,
        "log_probabilities_test": log_p,
        "eigenvalues": np.arange(1.0, 7.0),
    }


def headings(page):
    return re.findall("^#+ (.*)$", page.read_text(), re.MULTILINE)


def test_a_section_for_everything_that_was_asked_for(tmp_path, rng):
    scores = Scores(0.25, 0.125, 0.0625)
    for seed, error in ((2, 3.0), (4, 2.0), (11, 2.5), (12, 9.0)):
        result = replace(stored(), run=f"seed_{seed:02d}", validation_error=error, scores=SetScores(scores, scores))
        ResultFiles(tmp_path, result.run).write(result, arrays(rng), None)
    page, _ = write_report(tmp_path, tmp_path, read_all(tmp_path))
    sections = ["Results", "Learning curves", "Image by image", "The random search", "Uncertainty", "Spectra"]
    # The three best have sections of their own.
    assert headings(page) == [*sections, "seed_02", "seed_04", "seed_11"]
    text = page.read_text()
    compared = (tmp_path / "comparisons.csv").read_text().splitlines()
    assert [line.split(",")[:4] for line in compared[1:]] == [
        [*pair, "test", "12"] for pair in (("seed_02", "seed_04"), ("seed_02", "seed_11"), ("seed_04", "seed_11"))
    ]
    assert "right and seed_04, which has the smallest validation error, doesn't" in text
    assert "Smallest validation error: 2.00 %, of seed_04 (test error" in text
    assert "Without a kernel on 28 x 28 pixels, because a map shrinks below one pixel: 3, 5, 7," in text
    assert re.search(r"\| seed_12 +\| Gaussian process +\| +0\.2500 \| +0\.1250 \| +0\.0625 \|", text)
    assert "\n\n\n" not in text and text.endswith(")\n")
    shown = re.findall(r"\((figures/\S+\.png)\)", text)
    assert len(shown) == len(set(shown)) == 4 + 3 * 2
    for name in shown:
        assert (tmp_path / name).exists() and (tmp_path / name).with_suffix(".svg").exists()


def test_nothing_is_said_of_what_isnt_there(tmp_path):
    result = replace(stored(), model="convnet_gp", learning_curve=None, extras=())
    page, _ = write_report(tmp_path, tmp_path, [result])
    assert headings(page) == ["Results"] and not (tmp_path / "figures").exists()
    said = "The paper's errors are for 50,000 training images.\n\nWithout figures, because"
    assert said in page.read_text()


def test_runs_whose_predictions_were_left_behind_have_no_figures(tmp_path, rng):
    scores = Scores(0.25, 0.125, 0.0625)
    for run in ("a", "b"):
        result = replace(stored(), run=run, model="convnet_gp", scores=SetScores(scores, scores))
        ResultFiles(tmp_path, run).write(result, arrays(rng), None)
    (tmp_path / "b_predictions.npz").unlink()
    page, _ = write_report(tmp_path, tmp_path, read_all(tmp_path))
    assert headings(page) == ["Results", "Learning curves", "Uncertainty", "Spectra", "a"]
    assert page.read_text().endswith("because `RUN_predictions.npz` is missing: b.\n")
    (tmp_path / "a_predictions.npz").unlink()
    page, _ = write_report(tmp_path, tmp_path, read_all(tmp_path))
    assert headings(page) == ["Results", "Learning curves", "Uncertainty"]


def test_runs_are_compared_with_themselves_in_another_folder(tmp_path, rng):
    """Run a is right about two images more here, and run b is not there."""
    here, there = tmp_path / "noise", tmp_path / "plain"
    labels = np.arange(12) % 3
    of_a, of_a_there, of_b = arrays(rng), arrays(rng), arrays(rng)
    of_a["test"] = np.eye(3)[labels]
    of_a_there["test"] = np.eye(3)[np.where(np.arange(12) < 2, labels + 1, labels) % 3]
    write = replace(stored(), model="convnet_gp", extras=(), learning_curve=None)
    for folder, run, its in ((here, "a", of_a), (here, "b", of_b), (there, "a", of_a_there)):
        folder.mkdir(exist_ok=True)
        ResultFiles(folder, run).write(replace(write, run=run), its, None)
    page, _ = write_report(tmp_path, here, read_all(here), there)
    compared = (here / "comparisons.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in compared[1:]] == [["a", "b"], ["a", "plain/a"]]
    assert compared[2].split(",")[2:] == ["test", "12", "2", "0", "0.5"]
    table = page.read_text().partition("only in plain right")[2].splitlines()
    assert [cell.strip() for cell in table[2].strip("|").split("|")] == ["a", "", "", "", "2", "0", "0.5"]
    assert f"Each run beside its own result in {there}, which is named plain/RUN" in page.read_text()
    (there / "a_predictions.npz").unlink()
    with pytest.raises(UserError, match=r"No run has predictions of the same images in .*noise and in .*plain; expect"):
        write_report(tmp_path, here, read_all(here), there)


def test_compare_with_is_refused_where_it_compares_nothing(tmp_path):
    (tmp_path / "results").mkdir()
    flags = [f"--path={tmp_path}", "--compare_with=results"]
    refused(script("report", *flags), "--compare_with is 'results', as --csv_dir; expected another folder of results.")
    refused(script("report", *flags, "--csv_dir=noise", "--nofigures"), "--compare_with is part of the page, which")


def test_the_noises_that_were_tried_and_what_chose(tmp_path):
    page, _ = write_report(tmp_path, tmp_path, [replace(PLAIN, run="a"), replace(FULL, run="b", learning_curve=None)])
    section = page.read_text().partition("## Observation noise")[2]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    assert lines[2:6] == [
        ["a", "0", "6.00", "", "", ""],
        ["a", "0.1", "5.00", "", "", "on the validation images"],
        ["b", "0", "6.00", "5.00", "-8.0000", ""],
        ["b", "0.1", "5.00", "4.00", "-7.0000", "by leave-one-out"],
    ]


def test_only_a_page_of_its_own_is_written_over(tmp_path):
    result = replace(stored(), model="convnet_gp", learning_curve=None, extras=())
    page, _ = write_report(tmp_path, tmp_path, [result])
    assert write_report(tmp_path, tmp_path, [result])[0] == page
    page.write_text("# Results\n\nMy notes.\n")
    with pytest.raises(UserError, match=r"report\.md wasn't written by report\.py, or its first line was changed"):
        write_report(tmp_path, tmp_path, [result])
    assert page.read_text().endswith("My notes.\n")
    page.unlink()
    page.symlink_to(tmp_path)
    with pytest.raises(UserError, match="can't be read"):
        write_report(tmp_path, tmp_path, [result])


def test_the_confusion_matrix_counts_each_class():
    """Rows are true classes; class 3 isn't among the images."""
    means = np.eye(4)[[0, 0, 2, 1, 2]]
    (axes,) = figures.confusion_matrix(means, np.array([0, 1, 2, 1, 0]), "made").axes
    counts = {(int(t.get_position()[1]), int(t.get_position()[0])): int(t.get_text()) for t in axes.texts}
    assert counts == {(0, 0): 1, (1, 0): 1, (2, 2): 1, (1, 1): 1, (0, 2): 1}
    assert len(axes.get_xticks()) == 4


def test_without_matplotlib_figures_are_refused_and_the_table_is_printed(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "convnet_gp.json").write_text(stored().to_json())
    code = "import runpy, sys; sys.modules['matplotlib'] = None; del sys.argv[0]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"

    def report(*flags):
        command = [sys.executable, "-c", code, str(ROOT / "scripts" / "report.py"), f"--path={tmp_path}", *flags]
        return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=240)

    plain = report("--nofigures")
    assert plain.returncode == 0 and "Errors in %." in plain.stdout, plain.stderr
    ended = report()
    assert ended.returncode == 1
    assert ended.stderr == "error: Figures need Matplotlib: install the package with its [figures] extra.\n"


def test_a_file_that_isnt_a_result_is_named(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "other.json").write_text(json.dumps({"model": "convnet_gp"}))
    refused(
        script("report", f"--path={tmp_path}"), "other.json can't be read (the key dataset is missing): move it away"
    )
