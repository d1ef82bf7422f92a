"""--kernel and --pool, in every script that has them."""

import json

import numpy as np

from cnn_gp import build_kernel, load
from cnn_gp.store.run_directory import RunDirectory
from cnn_gp.store.stored_matrix import StoredGram
from helpers.scripts import refused, script

SIZES = ["--dataset=digits", "--N_train=30", "--N_vali=10", "--N_test=10"]


def test_pooled_and_neural_tangent_kernels_go_through_both_stages(tmp_path):
    """With the command line's names, to a prediction of new images; what pooling costs is said first."""
    data = load("digits", N_train=30, N_vali=10, N_test=10)
    np.savez(tmp_path / "new.npz", x=data.Xt)
    for flags, name, cost in (
        (["--model=convnet_gp", "--pool=2"], "convnet_gp_pool_2", "9 times as many as without --pool."),
        (["--model=myrtle5", "--kernel=ntk"], "myrtle5_ntk", "Average pooling needs 225 displacements"),
    ):
        place = [*flags, f"--path={tmp_path}"]
        process = script("save_kernels", *SIZES, *place)
        assert process.returncode == 0, process.stderr
        assert cost in process.stdout and "Engine: tensorflow" in process.stdout
        process = script("classify_gp", *place)
        assert process.returncode == 0, process.stderr
        result = json.loads((tmp_path / "results" / f"{name}.json").read_text())
        assert result["N_train"] == 30 and result["validation_error"] < 60
        run = RunDirectory(tmp_path, name)
        stored = StoredGram(run).block(0, 30, 0, 30)
        pool = 2 if "pool" in name else None
        kernel = build_kernel(flags[0][8:], data.image_shape, kernel=name[-3:] if pool is None else "nngp", pool=pool)
        np.testing.assert_allclose(stored, kernel(data.X.astype(np.float64)), rtol=2e-5)
        process = script("predict", *place, f"--images={tmp_path}/new.npz", f"--out={tmp_path}/{name}.csv")
        assert process.returncode == 0, process.stderr
        with np.load(tmp_path / "results" / f"{name}_predictions.npz") as arrays:
            classes = arrays["test"].argmax(1)
        rows = [line.split(",") for line in (tmp_path / f"{name}.csv").read_text().splitlines()[1:]]
        assert [int(row[1]) for row in rows] == classes.tolist()


def test_what_a_pool_cannot_be(tmp_path):
    place = [*SIZES, f"--path={tmp_path / 'runs'}", "--model=convnet_gp"]
    for name in ("save_kernels", "classify_gp"):
        flags = place if name == "save_kernels" else place[-2:]
        refused(script(name, *flags, "--pool=big"), "--pool is 'big'; expected none, global, or how many pixels")
    refused(script("save_kernels", *place, "--kernel=gp"), "value should be one of <nngp|ntk>")
    refused(script("save_kernels", *place[:-1], "--model=myrtle5", "--pool=2"), "leave the pool out")
    assert not (tmp_path / "runs").exists()


def test_the_size_of_each_run(tmp_path):
    process = script("job_size", *SIZES, "--runs=convnet_gp,myrtle5", "--kernel=nngp,ntk", "--n_max=10")
    assert process.returncode == 0, process.stderr
    for name in ("convnet_gp", "convnet_gp_ntk", "myrtle5", "myrtle5_ntk"):
        assert f"  {name} " in process.stdout
    assert "59,241 covariances of 225 displacements" in process.stdout and "in all 4 runs" in process.stdout
