"""classify_gp.py --ensemble: a neural tangent kernel's run with the same network's other kernel beside it."""

import json
import re
import shutil

import h5py
import numpy as np
import pytest

from cnn_gp.evaluation.metrics import log_probabilities
from cnn_gp.store.run_directory import RunDirectory
from helpers.scripts import refused, script

SIZES = ["--dataset=digits", "--N_train=40", "--N_vali=10", "--N_test=10"]
MODEL = ["--model=random", "--seed=15"]
NTK = [*MODEL, "--kernel=ntk"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Both kernels of a network, and others that don't belong to them."""
    path = tmp_path_factory.mktemp("ensemble")
    for flags in (
        [*SIZES, *NTK],
        [*SIZES, *MODEL, "--n_max=7"],
        [*SIZES[:-1], "--N_test=9", *MODEL, "--run_name=fewer"],
        [*SIZES, *MODEL, "--var_bias=0.5", "--run_name=other_bias", "--float_type=float64"],
    ):
        ended = script("save_kernels", *flags, f"--path={path}")
        assert ended.status == 0, ended.stderr
    return path


def matrices(path):
    with h5py.File(path) as view:
        upper = np.triu(view["Kxx"][()].astype(np.float64))
        return upper + np.triu(upper, 1).T, view["Kxtx"][()].astype(np.float64), view["Kt_diag"][()].astype(np.float64)


def test_the_variances_are_the_formulas(workdir):
    ended = script("classify_gp", *NTK, f"--path={workdir}", "--ensemble", "--noise=1e-3")
    assert ended.status == 0, ended.stderr
    assert "Variances of the trained ensemble of 20 images: about " in ended.stdout
    result = json.loads((workdir / "results" / "seed_15_ntk.json").read_text())
    assert result["extras"] == ["ensemble"] and result["scores"]["test"]["negative_log_likelihood"] > 0
    assert result["nngp_fingerprint"] == RunDirectory(workdir, "seed_15").description().fingerprint
    T_xx, T_tx, _ = matrices(workdir / "seed_15_ntk.h5")
    K_xx, K_tx, K_tt = matrices(workdir / "seed_15.h5")
    added = (result["noise"] + result["jitter"]) * np.diag(T_xx).mean()
    weights = np.linalg.solve(T_xx + added * np.eye(40), T_tx.T)
    expected = K_tt - 2 * np.einsum("tx,xt->t", K_tx, weights) + np.einsum("xt,xy,yt->t", weights, K_xx, weights)
    with np.load(workdir / "results" / "seed_15_ntk_predictions.npz") as arrays:
        np.testing.assert_allclose(arrays["variances_test"], expected, rtol=1e-6, atol=1e-9 * K_tt.max())
        log_p = log_probabilities(arrays["test"], result["ensemble_output_scale"] * arrays["variances_test"])
        np.testing.assert_allclose(arrays["log_probabilities_test"], log_p)
    # All 40 training images are left out in turn.
    A = np.linalg.inv(T_xx + added * np.eye(40))
    with np.load(workdir / "results" / "seed_15_ntk_predictions.npz") as arrays:
        ratios = arrays["alpha"] ** 2 / np.diag(A @ K_xx @ A)[:, None]
    assert result["ensemble_output_scale"] == pytest.approx(ratios.mean(), rel=1e-4)
    # The Gaussian process's beside them are those of --variances.
    ended = script("classify_gp", *NTK, f"--path={workdir}", "--variances", "--noise=1e-3", "--csv_dir=process")
    assert ended.status == 0, ended.stderr
    of_process = json.loads((workdir / "process" / "seed_15_ntk.json").read_text())["scores"]
    for name in ("vali", "test"):
        assert result["gaussian_process_scores"][name] == pytest.approx(of_process[name], rel=1e-6)
        assert result["scores"][name] != pytest.approx(of_process[name], rel=1e-3)
    rows = [f"{of_process['test']['negative_log_likelihood']:.4f}", f"{result['scores']['test']['brier_score']:.4f}"]
    page = report(workdir)
    assert re.search(rf"seed_15_ntk +\| trained ensemble +\| +\S+ \| +{rows[1]} \|", page)
    assert "a trained ensemble's is that of maximum leave-one-out density." in page
    assert re.search(rf"seed_15_ntk +\| Gaussian process +\| +{rows[0]} \|", page)


def report(workdir):
    assert script("report", f"--path={workdir}").status == 0
    return (workdir / "results" / "report.md").read_text()


def test_a_result_keeps_the_variance_that_it_has(workdir, tmp_path):
    flags = [*NTK, f"--path={workdir}", f"--csv_dir={tmp_path}"]
    assert script("classify_gp", *flags, "--ensemble").status == 0
    assert "is there already" in script("classify_gp", *flags, "--ensemble").stdout
    before = json.loads((tmp_path / "seed_15_ntk.json").read_text())
    refused(script("classify_gp", *flags, "--variances"), "give one of them, and another --csv_dir for the other")
    assert "is there without leave_one_out" in script("classify_gp", *flags, "--leave_one_out").stdout
    after = json.loads((tmp_path / "seed_15_ntk.json").read_text())
    assert after["extras"] == ["ensemble", "leave_one_out"]
    for key in ("scores", "nngp_fingerprint", "ensemble_output_scale"):
        assert after[key] == before[key]
    # The same numbers in other tiles are another run.
    other = [*SIZES, *MODEL, "--n_max=11", "--run_name=other_tiles", f"--path={workdir}"]
    assert script("save_kernels", *other).status == 0
    ended = script("classify_gp", *flags, "--ensemble", "--nngp_run=other_tiles")
    assert "is there without ensemble: it is computed again" in ended.stdout


def test_the_other_run_by_the_names(workdir, tmp_path):
    """Without --nngp_run it is that of the same name without _ntk, however the run was named."""
    for ours, others in (("seed_15_ntk", "seed_15"), ("mine_ntk", "mine")):
        shutil.copytree(workdir / ours.replace("mine", "seed_15"), tmp_path / ours)
        flags = [f"--path={tmp_path}", f"--run_name={ours}", "--ensemble"]
        refused(script("classify_gp", *flags), f"There is no run {others} in ")
        shutil.copytree(workdir / "seed_15", tmp_path / others)
        assert script("classify_gp", *flags).status == 0
    shutil.move(tmp_path / "mine_ntk", tmp_path / "tangent")
    refused(
        script("classify_gp", f"--path={tmp_path}", "--run_name=tangent", "--ensemble"), "give its name as --nngp_run"
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([*MODEL, "--ensemble"], "the variance of a trained ensemble (--ensemble) is that of a run with --kernel=ntk"),
        ([*NTK, "--nngp_run=seed_15"], "--nngp_run is for --ensemble: give both"),
        ([*NTK, "--ensemble", "--variances"], "give one of them, and another --csv_dir for the other"),
        ([*NTK, "--ensemble", "--nngp_run=none"], "There is no run none in "),
        ([*NTK, "--ensemble", "--nngp_run=seed_15_ntk"], "seed_15_ntk has a neural tangent kernel; expected one with"),
        ([*NTK, "--ensemble", "--nngp_run=fewer"], "(N_test is 9 there and 10 asked for; data_hash is "),
        (
            [*NTK, "--ensemble", "--nngp_run=other_bias"],
            '(float_type is "float64" there and "float32" asked for; kernel.network.layers[0].var_bias is 0.5 there',
        ),
    ],
)
def test_runs_that_do_not_belong_together(workdir, tmp_path, flags, said):
    refused(script("classify_gp", f"--path={workdir}", f"--csv_dir={tmp_path}/results", *flags), said)
    assert not (tmp_path / "results").exists()


def test_the_other_run_has_to_be_complete(workdir, tmp_path):
    """But a result that is there stays so without its tiles."""
    for name in ("seed_15", "seed_15_ntk"):
        shutil.copytree(workdir / name, tmp_path / name)
    flags = [*NTK, f"--path={tmp_path}", "--ensemble"]
    assert script("classify_gp", *flags).status == 0
    (tmp_path / "seed_15" / "Kxx_0000.h5").unlink()
    assert "is there already" in script("classify_gp", *flags).stdout
    refused(script("classify_gp", *flags, "--overwrite"), "The run seed_15 in ")
