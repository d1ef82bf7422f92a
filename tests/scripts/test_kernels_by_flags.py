"""--kernel and --pool, in every script that has them."""

import json

import numpy as np

from cnn_gp import build_kernel, load
from cnn_gp.store.run_directory import RunDirectory
from cnn_gp.store.stored_matrix import StoredGram
from helpers.scripts import refused, script

SIZES = ["--dataset=digits", "--N_train=30", "--N_vali=10", "--N_test=10"]


def test_a_pooled_neural_tangent_kernel_goes_through_both_stages(tmp_path):
    """To a prediction of new images; what pooling costs is said first."""
    data = load("digits", N_train=30, N_vali=10, N_test=10)
    np.savez(tmp_path / "new.npz", x=data.Xt)
    name = "seed_15_pool_2_ntk"
    place = ["--model=random", "--seed=15", "--pool=2", "--kernel=ntk", f"--path={tmp_path}"]
    ended = script("save_kernels", *SIZES, *place)
    assert ended.status == 0, ended.stderr
    # Of 9 maps all but one are smaller than the whole.
    assert "needs 9 displacements between the images' pixels: an entry takes about 7 times as long" in ended.stdout
    assert "Engine: fused." in ended.stdout
    ended = script("classify_gp", *place)
    assert ended.status == 0, ended.stderr
    result = json.loads((tmp_path / "results" / f"{name}.json").read_text())
    assert result["N_train"] == 30 and result["validation_error"] < 80
    stored = StoredGram(RunDirectory(tmp_path, name)).block(0, 30, 0, 30)
    kernel = build_kernel("random", data.image_shape, seed=15, kernel="ntk", pool=2)
    np.testing.assert_allclose(stored, kernel(data.X.astype(np.float64)), rtol=2e-5)
    ended = script("predict", *place, f"--images={tmp_path}/new.npz", f"--out={tmp_path}/new.csv")
    assert ended.status == 0, ended.stderr
    with np.load(tmp_path / "results" / f"{name}_predictions.npz") as arrays:
        classes = arrays["test"].argmax(1)
    rows = [line.split(",") for line in (tmp_path / "new.csv").read_text().splitlines()[1:]]
    assert [int(row[1]) for row in rows] == classes.tolist()


def test_what_a_pool_cannot_be(tmp_path):
    place = [*SIZES, f"--path={tmp_path / 'runs'}", "--model=convnet_gp"]
    for name in ("save_kernels", "classify_gp"):
        flags = place if name == "save_kernels" else place[-2:]
        refused(script(name, *flags, "--pool=big"), "--pool is 'big'; expected none, global, or how many positions")
    refused(script("save_kernels", *place, "--kernel=gp"), "value should be one of <nngp|ntk>")
    refused(script("save_kernels", *place[:-1], "--model=myrtle5", "--pool=2"), "leave the pool out")
    assert not (tmp_path / "runs").exists()


def test_the_size_of_a_run_with_mirror_images():
    process = script("job_size", "--N_train=20", "--N_vali=10", "--N_test=10", "--flip", "--runs=convnet_gp")
    assert process.status == 0, process.stderr
    # 40 training images: 40 * 41 / 2 + (10 + 10) * 40.
    assert "1,620 kernel entries" in process.stdout


def test_the_size_of_each_run(tmp_path):
    process = script("job_size", *SIZES, "--runs=convnet_gp,myrtle5", "--n_max=10")
    assert process.status == 0, process.stderr
    for name in ("convnet_gp", "myrtle5"):
        assert f"  {name} " in process.stdout
    assert "59,241 covariances of 225 displacements" in process.stdout and "in all 2 runs" in process.stdout
