"""The scripts as a person runs them: real processes, exit statuses, one-line errors, nothing lost."""

import csv
import json
import signal
import subprocess
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest

import cnn_gp.evaluation.classify as classify_module
from cnn_gp.compute.claims import Claims
from helpers.forked import run_forked
from helpers.paths import ROOT
from helpers.scripts import ENVIRONMENT, SMALL, refused, script
from helpers.small_runs import NumpyEngine, complete, make_data
from helpers.waiting import PATIENCE, wait_until


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A finished small run of the ConvNet on the digits."""
    path = tmp_path_factory.mktemp("workdir")
    process = script("save_kernels", *SMALL, "--model=convnet_gp", f"--path={path}")
    assert process.status == 0, process.stderr
    assert "60 training, 20 validation and 30 test images; 15 tiles, 4,830 kernel entries" in process.stdout
    return path


def test_both_stages(workdir):
    process = script("classify_gp", f"--path={workdir}", "--model=convnet_gp")
    assert process.status == 0, process.stderr
    assert process.stderr == ""
    result = json.loads((workdir / "results" / "convnet_gp.json").read_text())
    expected = {"model": "convnet_gp", "dataset": "digits", "N_train": 60, "N_vali": 20, "N_test": 30, "jitter": 0.0}
    assert {key: result[key] for key in expected} == expected
    assert result["training_error"] == 0
    # Chance is 90 %.
    assert result["validation_error"] < 40 and result["test_error"] < 40
    assert result["relative_residual"] < 1e-10
    assert set(result["times"]) == {"kernel", "read", "factorise", "solve", "spectrum", "predict"}
    assert result["hyperparameters"]["n_convolutions"] == 7
    assert "fused" in result["kernel_computed_by"][0]["engine"]
    with open(workdir / "results" / "convnet_gp.csv") as file:
        (row,) = csv.DictReader(file)
    assert float(row["test_error"]) == result["test_error"] and row["nonlinearities"] == "sqrt2*ReLU"
    assert f"{result['test_error']:.2f}" in process.stdout

    again = script("classify_gp", f"--path={workdir}", "--model=convnet_gp")
    assert again.status == 0 and "is there already" in again.stdout

    other = script("classify_gp", f"--path={workdir}", "--model=convnet_gp", "--N_train=40")
    refused(other, "N_train is 60 there and 40 asked for): give --overwrite, or another --csv_dir")
    assert json.loads((workdir / "results" / "convnet_gp.json").read_text()) == result

    fewer = script("classify_gp", f"--path={workdir}", "--model=convnet_gp", "--N_train=40", "--csv_dir=fewer")
    assert fewer.status == 0, fewer.stderr
    assert json.loads((workdir / "fewer" / "convnet_gp.json").read_text())["N_train"] == 40
    assert "convnet_gp" in script("report", f"--path={workdir}").stdout


def test_the_stored_kernel_is_the_kernel(workdir):
    from cnn_gp import build_kernel, load

    data = load("digits", N_train=60, N_vali=20, N_test=30)
    kernel = build_kernel("convnet_gp", data.image_shape)
    with h5py.File(workdir / "convnet_gp.h5", "r") as view:
        X, Xt = (a.astype(np.float64) for a in (data.X, data.Xt))
        np.testing.assert_allclose(view["Kxtx"], kernel(Xt, X), rtol=1e-6)
        upper = np.triu_indices(60)
        np.testing.assert_allclose(view["Kxx"][()][upper], kernel(X).numpy()[upper], rtol=1e-6)
        np.testing.assert_array_equal(view["Kx_diag"], np.diag(view["Kxx"][()]))
        assert view["Kxx"].dtype == np.float32


def test_starting_again_does_nothing_and_other_flags_are_refused(workdir):
    before = {path: path.stat().st_mtime_ns for path in (workdir / "convnet_gp").iterdir()}
    again = script("save_kernels", *SMALL, "--model=convnet_gp", f"--path={workdir}")
    assert again.status == 0 and "6 of 6 parts are there already" in again.stdout
    other = script("save_kernels", *SMALL[:-1], "--n_max=30", "--model=convnet_gp", f"--path={workdir}")
    refused(other, "n_max is 25 there and 30 asked for")
    weight = script("save_kernels", *SMALL, "--model=convnet_gp", f"--path={workdir}", "--var_weight=2")
    refused(weight, "--var_weight makes another kernel than convnet_gp's: give it a --run_name")
    renamed = [*SMALL, "--model=residual_cnn_gp", f"--path={workdir}", "--run_name=convnet_gp"]
    refused(script("save_kernels", *renamed), 'model is "convnet_gp" there and "residual_cnn_gp" asked for')
    assert {path: path.stat().st_mtime_ns for path in (workdir / "convnet_gp").iterdir()} == before


@pytest.mark.long
def test_killed_and_resumed_is_the_same(workdir, tmp_path):
    """kill -9 once the first parts are there: what was finished stays, the rest is computed, the numbers are equal."""
    command = [sys.executable, ROOT / "scripts" / "save_kernels.py", *SMALL[:-1], "--n_max=4"]
    command += ["--model=convnet_gp", f"--path={tmp_path}"]
    folder = tmp_path / "convnet_gp"
    # While another program is at work on a part, this one can't end.
    other = Claims(folder / "claims")
    other.take("Kxtx_0007")
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: len(list(folder.glob("Kxx*.h5"))) >= 3 or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    other.release("Kxtx_0007")
    finished = {path: path.read_bytes() for path in folder.glob("K*.h5")}
    assert 3 <= len(finished) < 28
    assert not (tmp_path / "convnet_gp.h5").exists()
    refused(script("classify_gp", f"--path={tmp_path}", "--model=convnet_gp"), "of 28 parts are missing: Kx")

    resumed = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert f"{len(finished)} of 28 parts are there already" in resumed.stdout
    assert {path: path.read_bytes() for path in finished} == finished
    with h5py.File(tmp_path / "convnet_gp.h5") as view, h5py.File(workdir / "convnet_gp.h5") as whole:
        upper = np.triu_indices(60)
        np.testing.assert_allclose(view["Kxx"][()][upper], whole["Kxx"][()][upper], rtol=2e-6)
        np.testing.assert_allclose(view["Kxtx"], whole["Kxtx"], rtol=2e-6)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--dataset=imagenet"], "unknown data set 'imagenet'"),
        (["--dataset=nothere.npz"], "there is no file nothere.npz"),
        (["--N_train=2000"], "1400 images"),
        (["--N_test=0"], "N_test is 0"),
        (["--n_gpus=7"], "--n_gpus is 7, but TensorFlow sees"),
        (["--n_max=0"], "n_max is 0"),
        (["--batch_size=0"], "batch_size=0"),
        (["--shard=3/2"], "--shard is 3/2; expected i/n"),
        (["--run_name=../x"], "The run's name is '../x'"),
        (["--depth=31"], "depth is 31"),
        (["convnet_gp"], "'convnet_gp' isn't a flag"),
        (["--model=resnet"], "value should be one of <convnet_gp|"),
        (["--n_maxx=3"], "Unknown command line flag 'n_maxx'"),
        (["--N_train=many"], "invalid literal"),
    ],
)
def test_save_kernels_refuses_in_one_line_and_writes_nothing(tmp_path, flags, said):
    refused(script("save_kernels", f"--path={tmp_path / 'runs'}", *flags), said)
    assert not (tmp_path / "runs").exists()


def test_a_network_that_shrinks_ends_in_status_3(tmp_path):
    flags = ["--dataset=digits", "--model=random", "--seed=12", f"--path={tmp_path}"]
    refused(script("save_kernels", *flags), "shrinks below one pixel", status=3)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--run_name=other"], "There is no run other"),
        (["--N_train=24"], "--N_train is 24; expected 1 to 23"),
        (["--N_vali=10"], "--N_vali is 10; expected 1 to 9"),
        (["--N_test=0"], "--N_test is 0; expected 1 to 7"),
        (["--jitter=-1"], "--jitter is -1.0"),
        (["--jitter=nan"], "--jitter is nan"),
        (["--jitter=1e308"], "--jitter is 1e+308; expected 0 to 1e+06"),
        (["--noise=0,1e7"], "--noise is 0,1e7; expected numbers from 0 to 1e+06"),
    ],
)
def test_classify_refuses_in_one_line(tmp_path, flags, said):
    complete(tmp_path, make_data())
    refused(script("classify_gp", f"--path={tmp_path}", "--run_name=small", *flags), said)
    assert not (tmp_path / "results").exists()


def _residual_is_not_a_number():
    classify = classify_module.classify
    classify_module.classify = lambda *a, **k: replace(classify(*a, **k), relative_residual=float("nan"))


def test_a_residual_that_is_not_a_number_keeps_the_tiles(tmp_path):
    run = complete(tmp_path, make_data())
    flags = (f"--path={tmp_path}", "--run_name=small", "--nokeep_tiles")
    ended = run_forked("classify_gp", *flags, before=_residual_is_not_a_number)
    assert "the solve's relative residual is nan" in ended.stderr
    assert ended.status == 0 and len(list(run.folder.glob("K*.h5"))) == 9 and run.view_path.exists()


def test_a_learning_curve_at_other_sizes_is_computed(tmp_path):
    complete(tmp_path, make_data())
    flags = (f"--path={tmp_path}", "--run_name=small")
    for sizes, all_sizes, said in (
        ("8", [8], "made"),
        ("5,20", [5, 8, 20], "is there without learning_curve: it is computed again"),
        ("8,20", [5, 8, 20], "is there already"),
    ):
        ended = run_forked("classify_gp", *flags, f"--learning_curve={sizes}")
        assert ended.status == 0 and said in ended.stdout, ended.stderr
        curve = json.loads((tmp_path / "results" / "small.json").read_text())["learning_curve"]
        assert [point["N_train"] for point in curve] == all_sizes


def test_classify_refuses_a_damaged_part(tmp_path):
    run = complete(tmp_path, make_data())
    path = run.folder / "Kxtx_0000.h5"
    path.write_bytes(path.read_bytes()[:-500])
    process = script("classify_gp", f"--path={tmp_path}", "--run_name=small")
    refused(process, "1 of 9 parts are missing: Kxtx_0000 (its end is missing or damaged)")


def test_classify_says_each_jitter_and_records_it(tmp_path):
    class Indefinite(NumpyEngine):
        def entries(self, X, X2=None, progress=None):
            K = super().entries(X, X2, progress)
            return K - 1e-3 * np.eye(len(X)) if X2 is None else K

    data = make_data()
    data.X[1:] = data.X[0]
    complete(tmp_path, data, Indefinite())
    process = script("classify_gp", f"--path={tmp_path}", "--run_name=small")
    assert process.status == 0, process.stderr
    assert process.stdout.count("isn't positive definite at relative jitter") == 8
    assert json.loads((tmp_path / "results" / "small.json").read_text())["jitter"] == pytest.approx(1e-3)


def test_results_that_cannot_be_written_are_one_line(tmp_path):
    complete(tmp_path, make_data())
    (tmp_path / "results").write_text("in the way")
    refused(script("classify_gp", f"--path={tmp_path}", "--run_name=small"), "can't be")


EXTRA_FILES = ("predictions.npz", "learning_curve.csv")


@pytest.mark.long
def test_run_all_experiments(tmp_path):
    """Two seeds, one of which shrinks, and a named kernel; then again; the tiles are deleted."""
    settings = {"N_TRAIN": "40", "N_VALI": "20", "N_TEST": "20", "SEEDS": "1 12", "MODELS": "convnet_gp"}
    environment = {**ENVIRONMENT, **settings, "WORKDIR": str(tmp_path / "runs"), "KEEP_TILES": "0"}

    def run(**changes):
        command = ["bash", str(ROOT / "run_all_experiments.bash")]
        return subprocess.run(command, env={**environment, **changes}, capture_output=True, text=True, timeout=PATIENCE)

    first = run()
    assert first.returncode == 0, first.stderr
    assert "in all 2 runs" in first.stdout
    assert "No kernel, because the network shrinks below one pixel: seed_12" in first.stdout
    results = tmp_path / "runs" / "results"
    finished = [results / f"{run}{end}" for run in ("convnet_gp", "seed_01") for end in (".csv", ".json")]
    finished += [results / f"{run}_{extra}" for run in ("convnet_gp", "seed_01") for extra in EXTRA_FILES]
    there = {path.name for path in results.iterdir()}
    assert there == {path.name for path in finished} | {"report.md", "report.html", "comparisons.csv", "figures"}
    assert {path.name for path in (tmp_path / "runs" / "seed_01").iterdir()} == {"run.jsonl", "images.h5"}
    table = first.stdout.split("one pixel: seed_12")[1]
    assert "convnet_gp" in table and "seed_01" in table

    before = {path: path.stat().st_mtime_ns for path in finished}
    second = run()
    assert second.returncode == 0, second.stderr
    assert {path: path.stat().st_mtime_ns for path in finished} == before
    assert not list((tmp_path / "runs" / "seed_01").glob("K*"))

    changed = run(N_TRAIN="30", SEEDS="1")
    assert changed.returncode == 1 and "N_train is 40 there and 30 asked for" in changed.stderr
