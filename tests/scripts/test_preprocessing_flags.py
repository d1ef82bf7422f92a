"""--zca and --flip: a run of whitened images and their mirror images, to the prediction of new ones."""

from io import BytesIO

import h5py
import numpy as np
import pytest

from cnn_gp import NNGPClassifier, UserError, build_kernel, load, open_run
from cnn_gp.data.preprocessing import ZCA, with_flips
from cnn_gp.store.run_directory import RunDirectory
from cnn_gp.store.sealed import seal
from cnn_gp.store.stored_matrix import StoredGram
from helpers.scripts import refused, script

SIZES = ["--dataset=digits", "--N_train=40", "--N_vali=10", "--N_test=20"]
DATA = load("digits", N_train=40, N_vali=10, N_test=20)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The flags of a run that is there."""
    place = ["--model=convnet_gp", f"--path={tmp_path_factory.mktemp('runs')}"]
    ended = script("save_kernels", *SIZES, *place, "--zca=1e-2", "--flip")
    assert ended.status == 0, ended.stderr
    assert "digits: with the mirror image of each, 80 training images." in ended.stdout
    assert "digits: whitened, as the training images are, with regularization 0.01." in ended.stdout
    assert "warning" not in ended.stdout + ended.stderr
    ended = script("classify_gp", *place)
    assert ended.status == 0, ended.stderr
    assert "digits, flip, zca 0.01" in ended.stdout
    return place


@pytest.fixture
def run(place):
    return RunDirectory(place[1].removeprefix("--path="), "convnet_gp")


def test_the_kernel_is_of_whitened_images_and_their_mirror_images(run):
    description = run.description()
    assert (description.N_train, description.preprocessing) == (80, {"flip": True, "zca": 0.01})
    x, y = with_flips(DATA.X.reshape(-1, 8, 8), DATA.Y)
    np.testing.assert_array_equal(run.labels()["Y"], y)
    raw = run.raw_images()
    np.testing.assert_array_equal(raw["X"], x.reshape(80, -1))
    np.testing.assert_array_equal(raw["Xt"], DATA.Xt)
    zca = ZCA(0.01).fit(raw["X"])
    whitened = {name: zca.transform(values) for name, values in raw.items()}
    stored = open_run(run.folder).images
    for name, values in whitened.items():
        np.testing.assert_allclose(stored[name], values, atol=1e-6)
    K = build_kernel("convnet_gp", [1, 8, 8])(whitened["X"].astype(np.float64))
    np.testing.assert_allclose(StoredGram(run).block(0, 80, 0, 80), K, rtol=2e-5)


def test_new_images_are_whitened_as_the_runs(place, run, tmp_path):
    np.savez(tmp_path / "new.npz", x=DATA.Xt)
    ended = script("predict", *place, f"--images={tmp_path}/new.npz", f"--out={tmp_path}/new.csv")
    assert ended.status == 0, ended.stderr
    assert ended.stderr == ""
    with np.load(run.workdir / "results" / "convnet_gp_predictions.npz") as arrays:
        means = arrays["test"]
    rows = [line.split(",")[2:] for line in (tmp_path / "new.csv").read_text().splitlines()[1:]]
    np.testing.assert_allclose(np.array(rows, float), means, rtol=1e-3, atol=1e-4)
    classifier = NNGPClassifier.from_run(run.folder)
    np.testing.assert_array_equal(classifier.predict(DATA.Xt.reshape(-1, 8, 8)), means.argmax(axis=1))
    with pytest.warns(UserWarning, match="the training images from 0 to 1"):
        classifier.predict(DATA.Xt * 255)


def test_a_run_with_other_preprocessing_is_another_run(place, run):
    for flags, said in (
        ([], 'preprocessing is {"flip": true, "zca": 0.01} there and {} asked for'),
        (["--flip", "--zca=0.1"], "preprocessing.zca is 0.01 there and 0.1 asked for"),
        (["--zca=0.01"], "N_train is 80 there and 40 asked for"),
    ):
        ended = script("save_kernels", *SIZES, *place, *flags)
        refused(ended, said)


def test_images_that_are_gone_are_written_again(place, run):
    before = open_run(run.folder).images
    (run.folder / "images.h5").unlink()
    ended = script("save_kernels", *SIZES, *place, "--zca=1e-2", "--flip")
    assert ended.status == 0, ended.stderr
    for name, values in open_run(run.folder).images.items():
        np.testing.assert_allclose(values, before[name], atol=1e-6)


def test_images_before_whitening_that_are_others_are_refused(run):
    """Their seal would be right where somebody wrote it: the digest of the data isn't."""
    other = DATA.X[:1] * 0
    raw = run.raw_images()
    content = run.folder / "images.h5"
    kept = content.read_bytes()
    try:
        made = BytesIO()
        with h5py.File(made, "w") as file:
            for name, values in raw.items():
                values[:1] = other
                file[name] = file[f"whitened/{name}"] = values
        content.write_bytes(seal(made.getvalue(), content.name, run.description().fingerprint))
        with pytest.raises(UserError, match="aren't those that the run was begun with"):
            open_run(run.folder)
    finally:
        content.write_bytes(kept)
