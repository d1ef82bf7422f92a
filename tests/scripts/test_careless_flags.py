"""Flags given carelessly: one line each, before anything is computed or written."""

import os
import subprocess
import sys

import numpy as np
import pytest

from cnn_gp.data import datasets
from helpers.forked import run_forked
from helpers.paths import ROOT
from helpers.scripts import ENVIRONMENT, SMALL
from helpers.small_runs import complete, make_data


@pytest.mark.parametrize(
    ("script", "flags", "said"),
    [
        ("save_kernels", ["--path="], "--path is empty; give it a value, or leave it out"),
        ("save_kernels", ["--path={}", "--run_name="], "--run_name is empty"),
        ("save_kernels", ["--path={}", "--data_dir="], "--data_dir is empty"),
        ("run_experiments", ["--path={}", "--runs=1,two"], "--runs has 'two'; expected one of convnet_gp"),
        (
            "run_experiments",
            ["--path={}", "--runs=1", "--kernel=ntp"],
            "--kernel has 'ntp'; expected some of nngp, ntk",
        ),
        (
            "run_experiments",
            ["--path={}", "--runs=1", "--extras='"],
            "(No closing quotation); expected flags separated",
        ),
        ("run_experiments", ["--path={}", "--runs=1", "--extras=--csv_dir x"], "--extras has --csv_dir, which says"),
        ("run_experiments", ["--path={}", "--runs=" + 5000 * "9"], "expected one of convnet_gp"),
        ("run_experiments", ["--path={}", "--runs=1", "--pool=5,0"], "--pool is '0'; expected none, global"),
        ("save_kernels", ["--path={}", "--shard=1/999999999"], "i from 1 to n, at most 10,000"),
        ("save_kernels", ["--path={}", "--shard=1/" + 5000 * "9"], "expected i/n with i from 1 to n"),
        ("save_kernels", ["--path={}", "--claim_timeout=-5"], "--claim_timeout is -5.0; expected seconds"),
        ("save_kernels", ["--path={}", "--claim_timeout=nan"], "--claim_timeout is nan; expected seconds"),
        ("save_kernels", ["--path={}", "--claim_timeout=10"], "--claim_timeout is 10.0; expected seconds, at least 20"),
        ("classify_gp", ["--path={}/two\nlines"], "There is no run resnet_gp in"),
        ("classify_gp", ["--path={}", "--csv_dir="], "--csv_dir is empty"),
        ("classify_gp", ["--path={}", "--noise="], "--noise is empty"),
        ("predict", ["--path={}", "--images=a.npz", "--out="], "--out is empty"),
        ("predict", ["--path={}", "--images=a.npz", "--out={}"], "is a folder; expected the name of a"),
        ("predict", ["--path={}", "--images=a.npz", "--out={}", "--overwrite"], "is a folder; expected the name of a"),
        ("predict", ["--path={}", "--images=a.npz", "--out=/proc/nowhere/o.csv"], "/proc/nowhere can't be written"),
        ("job_size", ["--runs="], "--runs is empty"),
        ("job_size", ["--runs=convnet_gp,,"], "--runs has ''; expected one of"),
        ("plot_convergence", ["--path={}", "--models="], "--models is empty"),
        (
            "plot_convergence",
            ["--path={}", "--models=convnet_gp", "--widths=100000"],
            "at width 100,000 needs",
        ),
        (
            "plot_convergence",
            ["--path={}", "--models=convnet_gp", "--widths=" + 5000 * "9"],
            "expected numbers of channels",
        ),
    ],
)
def test_is_refused_in_one_line(tmp_path, script, flags, said):
    ended = run_forked(script, *(flag.format(tmp_path) for flag in flags))
    assert ended.is_one_line and said in ended.stderr, ended.stderr
    assert not list(tmp_path.iterdir())


def test_help_is_no_mistake():
    ended = run_forked("classify_gp", "--help")
    assert ended.status == 0 and "--learning_curve" in ended.stdout


def test_an_interruption_while_a_script_imports_is_one_line(tmp_path):
    """The import of a module stands for them all: it waits until it is interrupted."""
    (tmp_path / "scipy").mkdir()
    (tmp_path / "scipy" / "__init__.py").write_text("print('importing', flush=True)\nimport time\ntime.sleep(600)\n")
    environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, str(ROOT / "scripts" / "classify_gp.py"), f"--path={tmp_path}"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "importing\n"
    process.send_signal(2)
    _, stderr = process.communicate()
    # By the signal, which a shell calls 130.
    assert process.returncode == -2 and stderr == "stopped before it began.\n"


def test_a_kernel_that_is_zero_is_said_at_once(tmp_path):
    data = make_data()

    class Zero:
        name = "zero"

        def matrix(self, X, X2=None, progress=None, out=None):
            out[:] = 0
            return out

        def diag(self, X):
            return np.zeros(len(X), X.dtype)

    complete(tmp_path, data, Zero())
    ended = run_forked("classify_gp", f"--path={tmp_path}", "--run_name=small")
    assert ended.is_one_line and "The kernel's mean diagonal over 23 images is 0, to which jitter" in ended.stderr
    assert "isn't positive definite" not in ended.stdout


def test_predictions_without_the_tiles(tmp_path):
    name = (f"--path={tmp_path}", "--model=convnet_gp")
    data = datasets.load("digits", N_train=60, N_vali=20, N_test=30)
    np.savez(tmp_path / "new.npz", x=data.Xt)
    predict = ("predict", *name, f"--images={tmp_path}/new.npz")
    for command in (
        ("save_kernels", *SMALL, *name),
        ("classify_gp", *name),
        (*predict, f"--out={tmp_path}/before.csv"),
        ("classify_gp", *name, "--nokeep_tiles"),
        (*predict, f"--out={tmp_path}/after.csv"),
    ):
        ended = run_forked(*command)
        assert ended.status == 0, ended.stderr
    assert not list((tmp_path / "convnet_gp").glob("K*.h5"))
    assert (tmp_path / "after.csv").read_text() == (tmp_path / "before.csv").read_text()


def experiments(folder, **variables):
    """run_all_experiments.bash in a folder, with a script that only says how it is called."""
    python = folder / "python"
    python.write_text('#!/bin/sh\necho "$(basename $1)" "$@"\n')
    python.chmod(0o755)
    return subprocess.run(
        ["bash", str(ROOT / "run_all_experiments.bash")],
        cwd=folder,
        env={**ENVIRONMENT, "PYTHON": "./python", "MODELS": "", **variables},
        capture_output=True,
        text=True,
    )


def test_seeds_as_people_write_them(tmp_path):
    done = experiments(tmp_path, SEEDS="08, 9,10\n11", DATASET="mine.npz")
    assert done.returncode == 0, done.stderr
    assert "--runs=08,9,10,11 --kernel=nngp --pool=none" in done.stdout
    # Paths stay those of the folder that it is started in.
    assert "--dataset=mine.npz --path=runs/mine " in done.stdout
    empty = experiments(tmp_path, SEEDS="")
    assert empty.returncode == 1
    assert empty.stderr == "error: SEEDS and MODELS are both empty; name at least one run.\n"
