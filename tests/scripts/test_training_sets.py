"""training_sets.py as a person runs it."""

import csv
import json

import pytest

from helpers.scripts import SMALL, refused, script

RUN = ["--model=convnet_gp"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("cut")
    ended = script("save_kernels", *SMALL, *RUN, f"--path={path}")
    assert ended.status == 0, ended.stderr
    return path


def test_the_errors_of_each_set_and_their_spread(workdir):
    flags = [*RUN, f"--path={workdir}"]
    ended = script("training_sets", *flags, "--sizes=30,20,020", "--noise=1e-3", "--most=2")
    assert ended.status == 0 and not ended.stderr, ended.stderr
    folder = workdir / "results" / "training_sets"
    with open(folder / "convnet_gp.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["N_train"], row["first"]) for row in rows] == [("20", "0"), ("20", "20"), ("30", "0"), ("30", "30")]
    mean = sum(float(row["test_error"]) for row in rows[:2]) / 2
    (line,) = (line.split() for line in ended.stdout.splitlines() if line.split()[:2] == ["20", "2"])
    assert line[4] == f"{mean:.2f}"
    record = json.loads((folder / "convnet_gp.json").read_text())
    assert record["command"].startswith("python scripts/training_sets.py") and record["versions"]["numpy"]
    # The first set is what classify_gp.py finds with so many images.
    ended = script("classify_gp", *flags, "--csv_dir=whole", "--noise=1e-3", "--learning_curve=20,60")
    assert ended.status == 0, ended.stderr
    (point, _) = json.loads((workdir / "whole" / "convnet_gp.json").read_text())["learning_curve"]
    assert [point["validation_error"], point["test_error"]] == [
        float(rows[0][key]) for key in ("validation_error", "test_error")
    ]


def test_what_is_there_is_kept(workdir):
    flags = [*RUN, f"--path={workdir}", "--csv_dir=kept"]
    assert script("training_sets", *flags).status == 0
    path = workdir / "kept" / "training_sets" / "convnet_gp.json"
    before = path.read_bytes()
    # Of 60 images: 10, 20 and so on up to 30.
    assert [one["N_train"] for one in json.loads(before)["sets"]] == [10] * 6 + [20] * 3
    again = script("training_sets", *flags)
    assert again.status == 0 and "is there already." in again.stdout
    refused(script("training_sets", *flags, "--sizes=5"), "convnet_gp.json is of another run, noise, jitter or other")
    assert path.read_bytes() == before
    assert script("training_sets", *flags, "--sizes=5", "--overwrite").status == 0
    assert path.read_bytes() != before


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--sizes=10,x", "--sizes is 10,x; expected auto or numbers of training images"),
        ("--sizes=", "--sizes is "),
        ("--sizes=61", "Training sets of 61 images are asked for; expected 1 to 60"),
        ("--noise=nan", "--noise is nan; expected a number from 0 to"),
        ("--jitter=-1", "--jitter is -1; expected a number from 0 to"),
        ("--most=0", "--most"),
        ("--run_name=nowhere", "There is no run nowhere"),
    ],
)
def test_bad_input_is_refused(workdir, flag, said):
    refused(script("training_sets", *RUN, f"--path={workdir}", "--csv_dir=none", flag), said)
    assert not (workdir / "none").exists()
