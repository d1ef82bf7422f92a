"""classify_gp.py --solver and --memory."""

import json

import numpy as np
import pytest

from helpers.scripts import SMALL, refused, script

EXTRAS = ["--variances", "--leave_one_out", "--learning_curve=100", "--noise=1e-2"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("solver")
    process = script("save_kernels", *SMALL, "--N_train=300", "--model=convnet_gp", f"--path={path}")
    assert process.status == 0, process.stderr
    return path


def solved(workdir, name, *flags):
    process = script("classify_gp", f"--path={workdir}", "--model=convnet_gp", f"--csv_dir={name}", *flags)
    assert process.status == 0, process.stderr
    with np.load(workdir / name / "convnet_gp_predictions.npz") as arrays:
        return process.stdout, json.loads((workdir / name / "convnet_gp.json").read_text()), dict(arrays)


def test_conjugate_gradients_find_what_the_factorisation_finds(workdir):
    said, found, arrays = solved(workdir, "cg", "--solver=cg", *EXTRAS)
    assert "by conjugate gradients; a factor takes" in said and "Leave-one-out of 300 images: about" in said
    _, exact, exact_arrays = solved(workdir, "cholesky", "--solver=cholesky", *EXTRAS)
    assert (found["solver"], exact["solver"]) == ("cg", "cholesky")
    assert found["iterations"] > 0 and found["preconditioner_rank"] > 0 and found["relative_residual"] <= 1e-8
    assert "iterations" not in exact and "log_marginal_likelihood_standard_error" not in exact
    for key in ("training_error", "validation_error", "test_error"):
        assert found[key] == exact[key]
    for name in ("vali", "test", "variances_vali", "variances_test"):
        np.testing.assert_allclose(arrays[name], exact_arrays[name], atol=1e-6)
    errors = 3 * found["log_marginal_likelihood_standard_error"] + 1e-6
    assert abs(found["log_marginal_likelihood"] - exact["log_marginal_likelihood"]) < errors
    assert found["leave_one_out"]["error"] == exact["leave_one_out"]["error"]
    assert found["learning_curve"][0]["test_error"] == exact["learning_curve"][0]["test_error"]
    assert not list(workdir.rglob("*.state.npz"))


def test_auto_is_the_factorisation_where_its_memory_fits(tmp_path):
    process = script("save_kernels", *SMALL, "--N_train=1200", "--model=convnet_gp", f"--path={tmp_path}")
    assert process.status == 0, process.stderr
    assert solved(tmp_path, "auto", "--noise=1e-2")[1]["solver"] == "cholesky"
    # Of 1,200 images the factor takes 6 MB, and what conjugate gradients need in any case 4 MB.
    said, result, _ = solved(tmp_path, "little", "--noise=1e-2", "--memory=5e-3")
    assert result["solver"] == "cg" and "0.01 GB are there" in said


@pytest.mark.parametrize(("solver", "memory"), [("cg", 1e9), ("auto", 3e5)])
def test_on_a_cluster(workdir, solver, memory):
    dask = pytest.importorskip("dask", reason="Dask isn't installed (the [cluster] extra)")
    distributed = pytest.importorskip("distributed", reason="Dask isn't installed (the [cluster] extra)")
    _, here, arrays = solved(workdir, f"{solver}_here", "--solver=cg", "--noise=1e-2")
    # Half a matrix in float32 takes 180 kB, a factor in Dask's memory 720 kB. Workers that are threads stop at nothing.
    stops = {f"distributed.worker.memory.{name}": False for name in ("target", "spill", "pause", "terminate")}
    options = {
        "n_workers": 2,
        "threads_per_worker": 1,
        "processes": False,
        "protocol": "tcp://",
        "memory_limit": memory,
    }
    with dask.config.set(stops), distributed.LocalCluster(**options, dashboard_address=None) as cluster:
        flags = [f"--scheduler={cluster.scheduler_address}", f"--solver={solver}", "--noise=1e-2"]
        said, found, on_cluster = solved(workdir, f"{solver}_there", *flags)
    assert found["solver"] == "cg" and found["iterations"] == here["iterations"]
    assert "of the cluster's memory" in said and f"{2e-9 * memory:.2f} GB are there" in said
    for name in arrays:
        np.testing.assert_allclose(on_cluster[name], arrays[name], atol=1e-9 * abs(arrays[name]).max())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--solver=cg", "--memory=0"], "--memory is 0.0; expected GB above 0"),
        (["--solver=cg", "--memory=1e-6"], "give a larger --memory"),
        (["--solver=cholesky", "--memory=4"], "--memory is given with --solver=cholesky, which doesn't use it"),
        (["--solver=lu"], "solver"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(workdir, flags, said):
    process = script("classify_gp", f"--path={workdir}", "--model=convnet_gp", "--csv_dir=refused", *flags)
    refused(process, said)
    assert not (workdir / "refused").exists()
