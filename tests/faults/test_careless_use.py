"""
Flags and files as a careless person or a fuzzer gives them, to every script.

What a script may do: end well with numbers that are finite and whole, or refuse with one line on standard error. It may
not end in a traceback, hang, or change a file that isn't its own. ``CNN_GP_CASES`` is the number of cases, 200 by
default.
"""

import collections
import csv
import functools
import json
import os
import shutil
import tempfile
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from cnn_gp.kernels.architectures import run_name
from cnn_gp.store.run_directory import RunDirectory
from helpers.forked import run_forked

CASES = int(os.environ.get("CNN_GP_CASES", "200"))

SIZES = ["--N_train=30", "--N_vali=10", "--N_test=10", "--n_max=12"]
MODEL = "--model=convnet_gp"

#: Values that are wrong for most flags.
ODD = [
    "",
    "0",
    "-1",
    "1.5",
    "nan",
    "inf",
    "1e308",
    "08",
    "²",
    "9" * 20,
    "1,2",
    "a b",
    "None",
    "../up",
    "x" * 300,
    "é\n",
]


def usually(*values):
    return st.sampled_from(values * (2 + len(ODD) // len(values)) + tuple(ODD))


RUN = {
    "path": usually("{w}", "{w}/new", "{w}/notes.txt", "{w}/notes.txt/below", "/proc/nowhere"),
    "model": usually("convnet_gp", "resnet_gp", "random"),
    "seed": usually("2", "12", "1234"),
    "run_name": usually("mine", "convnet_gp", "results", "..", "a/b", "x.h5"),
}
DATA = {
    "dataset": usually("digits", "{w}/data.npz", "{w}/data.npz", "{w}/data.npz", "{w}/notes.txt", "mnist"),
    "data_dir": usually("{w}", "/nowhere", "{w}/notes.txt"),
    "N_train": usually("20", "1391", "1000000000"),
    "N_vali": usually("5", "1400"),
    "N_test": usually("5", "398"),
}
DEVICES = {"n_max": usually("7", "1000"), "n_gpus": usually("0", "9"), "batch_size": usually("4", "1000")}
FLAGS = {
    "save_kernels": {
        **RUN,
        **DATA,
        **DEVICES,
        "allow_skip": usually("true", "false"),
        "skip_rule": usually("published", "released"),
        "depth": usually("8", "9", "32"),
        "n_blocks": usually("1", "3"),
        "var_weight": usually("2", "0", "1e300"),
        "var_bias": usually("1", "0"),
        "multiply_by_sqrt2": usually("true", "false"),
        "engine": usually("auto", "fused"),
        "n_threads": usually("1", "2", "3000"),
        "float_type": usually("float32"),
        "shard": usually("1/1", "2/3", "3/2", "1/999999999"),
        "scheduler": usually("nonsense", "tcp://127.0.0.1:1"),
        "claim_timeout": usually("60", "20", "1"),
        "status": usually("true"),
        "verify": usually("true"),
    },
    "classify_gp": {
        **RUN,
        "N_train": usually("20", "31"),
        "N_vali": usually("5", "11", "20"),
        "N_test": usually("5", "11"),
        "jitter": usually("1e-6", "1e6"),
        "noise": usually("0,1e-3", "1e-2,x", "1e5"),
        "noise_by": usually("loo", "validation"),
        "variances": usually("true"),
        "ensemble": usually("false", "true"),
        "nngp_run": usually("convnet_gp", "mine"),
        "leave_one_out": usually("true"),
        "learning_curve": usually("auto", "10,20", "31"),
        "spectrum": usually("true"),
        "solver": usually("cg", "cholesky"),
        "memory": usually("1", "1e-6"),
        "scheduler": usually("nonsense"),
        "csv_dir": usually("again", "notes.txt", "/proc/nowhere"),
        "overwrite": usually("true"),
        "keep_tiles": usually("true", "false"),
    },
    "predict": {
        **RUN,
        "csv_dir": usually("results", "notes.txt", "nowhere"),
        "images": usually("{w}/new.npz", "{w}/nowhere.npz", "{w}/notes.txt"),
        "out": usually("{w}/o.csv", "{w}/notes.txt", "{w}", "{w}/notes.txt/below", "{w}/sub/o.csv"),
        "overwrite": usually("false"),
    },
    "out_of_distribution": {
        **RUN,
        "csv_dir": usually("results", "notes.txt", "nowhere"),
        "against": usually("shift:1", "rotation:x", "noise:1e308,shift:-3", "{w}/data.npz", "{w}/data.npz", "digits"),
        "data_dir": usually("{w}", "/nowhere"),
        "N_test": usually("1", "5", "11"),
    },
    "training_sets": {
        **RUN,
        "csv_dir": usually("results", "notes.txt", "nowhere"),
        "sizes": usually("auto", "10,20", "31", "5,x"),
        "most": usually("2", "1000000"),
        "noise": usually("1e-3", "1e5"),
        "jitter": usually("1e-6", "1e6"),
        "overwrite": usually("true"),
    },
    "report": {
        "path": RUN["path"],
        "csv_dir": usually("results", "notes.txt", "nowhere"),
        "figures": usually("true", "false"),
    },
    "job_size": {**DATA, **DEVICES, "runs": usually("resnet_gp,2,12", "random", ",", "2,,3")},
    "run_experiments": {
        **DATA,
        **DEVICES,
        "path": RUN["path"],
        "runs": usually("convnet_gp", "2", "convnet_gp,3", "random", ",", "2,,12"),
        "kernel": usually("nngp", "nngp,ntk"),
        "pool": usually("none", "none,2", "99"),
        "extras": usually("--variances", "--learning_curve=10,20", "--leave_one_out", "--nonsense", "--path=x", "'"),
        "keep_tiles": usually("true", "false"),
    },
    "plot_convergence": {
        **DATA,
        "path": RUN["path"],
        "models": usually("residual_cnn_gp", "random", "a,b"),
        "pool": usually("none", "2"),
        "widths": usually("3", "2,x", "1000000"),
        "draws": usually("4", "1"),
        "wide_draws": usually("3"),
        "n_images": usually("3", "5000"),
    },
}
ALWAYS = {
    "save_kernels": ["--path={w}", MODEL, *SIZES],
    "classify_gp": ["--path={w}", MODEL],
    "predict": ["--path={w}", MODEL, "--images={w}/new.npz", "--out={w}/out.csv"],
    "out_of_distribution": ["--path={w}", MODEL, "--against=rotation:20"],
    "training_sets": ["--path={w}", MODEL],
    "report": ["--path={w}"],
    "job_size": ["--runs=convnet_gp", *SIZES],
    "run_experiments": ["--path={w}", "--runs=convnet_gp", *SIZES],
    "plot_convergence": ["--path={w}/figure", "--models=convnet_gp", "--widths=2", "--draws=4", "--n_images=3"],
}

SHAPES = [(8, 8), (8, 8, 1), (64,), (1, 8, 8), (), (8, 9), (3, 8, 8), (2, 2, 2, 2)]
DTYPES = ["u1", "f4", "f8", "f2", "i8", "?", "c8", "M8[s]", "U3", "V4", "O"]
VALUES = ["noise"] * 4 + ["zero", "nan", "huge", "bytes"]
LABELS = ["classes"] * 4 + ["one", "negative", "gap", "nan", "text", "short", "matrix"]
FILES = ["npz"] * 8 + ["npy", "cut", "empty", "text", "folder", "gone", "claims"]


def array(n, shape, dtype, values):
    rng = np.random.default_rng(0)
    x = rng.random((n, *shape))
    if values == "huge":
        x *= 1e30
    elif values == "bytes":
        x = np.floor(255 * x)
    elif values == "zero":
        x *= 0
    elif values == "nan" and x.size:
        x.flat[-1] = np.nan
    if dtype == "u1":
        return (x * 255).astype(np.uint8) if values == "noise" else np.nan_to_num(x).clip(0, 255).astype(np.uint8)
    with np.errstate(all="ignore"):
        return np.zeros(x.shape, dtype) if dtype in ("M8[s]", "V4") else x.astype(dtype)


def labels(n, kind):
    y = np.arange(n) % 3
    changed = {
        "one": 0 * y,
        "negative": y - 1,
        "gap": 30000 * y,
        "nan": np.full(n, np.nan),
        "text": y.astype(str),
        "short": y[1:],
        "matrix": np.eye(3)[y],
    }
    return changed.get(kind, y)


def write(path, kind, arrays):
    """A file of arrays, or something else in its place."""
    if kind == "folder":
        path.mkdir()
    elif kind in ("empty", "text"):
        path.write_text("" if kind == "empty" else "not an archive")
    elif kind == "npy":
        with path.open("wb") as file:
            np.save(file, next(iter(arrays.values())))
    elif kind != "gone":
        np.savez(path, **arrays)
        if kind == "cut":
            path.write_bytes(path.read_bytes()[:-30])
        elif kind == "claims":
            # A shape of another length in the header of the first array.
            path.write_bytes(path.read_bytes().replace(b"(40,", b"(94,").replace(b"(4,", b"(9,"))


@st.composite
def cases(draw, script):
    """:return: flags, and for each of the two files of arrays what it is."""
    names = draw(st.lists(st.sampled_from(sorted(FLAGS[script])), max_size=3, unique=True))
    flags = [f"--{name}={draw(FLAGS[script][name])}" for name in names]
    kinds = st.sampled_from(FILES), st.sampled_from(SHAPES), st.sampled_from(["u1", "f4", *DTYPES])
    file = st.tuples(*kinds, st.sampled_from(VALUES), st.sampled_from(LABELS))
    return ALWAYS[script] + flags, draw(file)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run with its result, and files of a person's own."""
    workdir = tmp_path_factory.mktemp("whole")
    for command in (
        ("save_kernels", "--dataset=digits", f"--path={workdir}", MODEL, *SIZES),
        ("classify_gp", f"--path={workdir}", MODEL, "--variances"),
    ):
        ended = run_forked(*command)
        assert ended.status == 0, ended.stderr
    for name in ("notes.txt", "mine.h5", "results/report.md", "results/notes.csv", "convnet_gp/notes.txt"):
        (workdir / name).write_text("of my own")
    return workdir


def content(workdir):
    files = (path for path in workdir.rglob("*") if path.is_file())
    return {path.relative_to(workdir).as_posix(): path.read_bytes() for path in files}


def may_change(script, flags, name):
    """Whether a script may write over a file that was there, or delete it."""
    if script not in ("classify_gp", "run_experiments") or "notes" in name:
        return False
    deletes = not {"--keep_tiles=false", "--keep_tiles=0"}.isdisjoint(flags) and (
        name.startswith("convnet_gp/") or name == "convnet_gp.h5"
    )
    return deletes or name.startswith("results/convnet_gp")


def check_right(script, flags, workdir, n_images):
    """That what is there after a script that ended well is whole and finite."""
    given = dict(flag[2:].split("=", 1) for flag in flags)
    if script == "save_kernels" and given.get("status") != "true":
        run = RunDirectory(
            workdir / given["path"], given.get("run_name") or run_name(given["model"], int(given.get("seed", 53)))
        )
        assert run.parts.missing(verify=True) == ([], {})
    elif script in ("classify_gp", "run_experiments"):
        for path in workdir.rglob("results/*.json" if script == "run_experiments" else "convnet_gp.json"):
            result = json.loads(path.read_text(), parse_constant=pytest.fail)
            assert 0 <= result["test_error"] <= 100 and 0 <= result["relative_residual"] < 1
    elif script == "out_of_distribution":
        (path,) = workdir.rglob("out_of_distribution/*.json")
        for found in json.loads(path.read_text(), parse_constant=pytest.fail)["sets"]:
            assert all(0 <= value <= 1 for key, value in found.items() if key.startswith("auroc"))
    elif script == "training_sets":
        (path,) = workdir.rglob("training_sets/*.json")
        for found in json.loads(path.read_text(), parse_constant=pytest.fail)["sets"]:
            assert all(0 <= found[key] <= 100 for key in ("validation_error", "test_error"))
    elif script == "predict":
        with open(workdir / given["out"]) as file:
            lines = list(csv.DictReader(file))
        assert len(lines) == n_images
        assert all(np.isfinite(float(value)) for line in lines for value in line.values())


@pytest.mark.long
@pytest.mark.parametrize("script", FLAGS)
def test_right_or_one_line(whole, script):
    outcomes = collections.Counter()
    wrong = []

    @hypothesis.settings(
        max_examples=-(-CASES // len(FLAGS)),
        phases=[hypothesis.Phase.generate],
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(cases(script))
    def try_it(case):
        flags, (kind, shape, dtype, values, of_labels) = case
        with tempfile.TemporaryDirectory() as folder:
            workdir = Path(folder) / "w"
            shutil.copytree(whole, workdir)
            train, test = (array(n, shape, dtype, values) for n in (40, 10))
            y = {"y_train": labels(40, of_labels), "y_test": labels(10, of_labels)}
            write(workdir / "data.npz", kind, {"x_train": train, **y, "x_test": test})
            write(workdir / "new.npz", kind, {"x": array(4, shape, dtype, values)})
            if values != "zero":
                (workdir / "results" / "report.md").unlink()
            flags = [flag.replace("{w}", str(workdir)) for flag in flags]
            before = content(workdir)
            ended = run_forked(script, *flags, before=functools.partial(os.chdir, workdir))
            after = content(workdir)
            label = f"{script} {' '.join(flags)} [{kind} {shape} {dtype} {values} {of_labels}]"
            changed = [name for name, there in before.items() if after.get(name) != there]
            if any(not may_change(script, flags, name) for name in changed):
                wrong.append(f"{label}: changed {changed}")
            if ended.status is None:
                wrong.append(f"{label}: hangs")
            elif ended.status == 0:
                try:
                    check_right(script, flags, workdir, 4)
                except Exception as error:
                    wrong.append(f"{label}: {' '.join(str(error).split())[:300]}")
            elif not ended.is_one_line:
                wrong.append(f"{label}: status {ended.status}: {ended.stderr[-400:]}")
            outcomes["right" if ended.status == 0 else "one line"] += 1

    try_it()
    print(script, dict(outcomes))
    assert not wrong, "\n".join(wrong)
