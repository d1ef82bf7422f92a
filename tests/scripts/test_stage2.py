"""classify_gp.py's extras, report.py and predict.py as a person runs them."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from cnn_gp.data import datasets
from cnn_gp.errors import ShrunkMapError
from cnn_gp.kernels.architectures import build_kernel
from cnn_gp.kernels.description import kernel_from_description
from cnn_gp.kernels.random_search import SEARCH_SEEDS, draw_architecture, shrunk_seeds
from cnn_gp.store.record import Record
from cnn_gp.store.run_directory import RunDirectory
from helpers.idx import idx
from helpers.scripts import SMALL, refused, script

RUN = ["--model=convnet_gp"]
ALL = ["--variances", "--leave_one_out", "--learning_curve=auto", "--noise=0,1e-2", "--spectrum"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A small run with all that can be asked for, and three of the random search."""
    path = tmp_path_factory.mktemp("stage2")
    for flags in (RUN, *(["--model=random", f"--seed={seed}"] for seed in (1, 13, 47))):
        process = script("save_kernels", *SMALL, *flags, f"--path={path}")
        assert process.status == 0, process.stderr
        process = script("classify_gp", f"--path={path}", *flags, *(ALL if flags == RUN else []))
        assert process.status == 0, process.stderr
    return path


def test_everything_that_can_be_asked_for(workdir):
    result = json.loads((workdir / "results" / "convnet_gp.json").read_text())
    assert [tried["noise"] for tried in result["noise_search"]] == [0, 0.01]
    best = min(result["noise_search"], key=lambda tried: tried["validation_error"])
    assert result["noise"] == best["noise"] and result["validation_error"] == best["validation_error"]
    for name in ("vali", "test"):
        assert 0 < result["scores"][name]["negative_log_likelihood"] < np.log(10)
        assert 0 <= result["scores"][name]["expected_calibration_error"] < 1
    assert 0 <= result["leave_one_out"]["error"] < 50
    assert result["learning_curve"][-1]["N_train"] == 60
    assert result["learning_curve"][-1]["test_error"] == result["test_error"]
    with open(workdir / "results" / "convnet_gp_learning_curve.csv") as file:
        assert [int(line["N_train"]) for line in csv.DictReader(file)] == [10, 20, 50, 60]
    assert result["extreme_eigenvalues"][0] > 0 and result["peak_memory_bytes"] > 1e7
    with np.load(workdir / "results" / "convnet_gp_predictions.npz") as arrays:
        assert arrays["eigenvalues"].shape == (60,) and arrays["eigenvalues"][0] > 0
        assert arrays["alpha"].shape == (60, 10) and arrays["variances_test"].shape == (30,)
        p = np.exp(arrays["log_probabilities_test"])
        np.testing.assert_allclose(p.sum(1), 1)
        wrong = 100 * np.mean(arrays["test"].argmax(1) != arrays["labels_test"])
        assert wrong == pytest.approx(result["test_error"])


def test_a_result_that_lacks_what_is_asked_for_is_computed_again_with_what_it_has(workdir, tmp_path):
    flags = [f"--path={workdir}", "--model=random", "--seed=1", f"--csv_dir={tmp_path}"]
    assert script("classify_gp", *flags, "--leave_one_out", "--learning_curve=20").status == 0
    before = json.loads((tmp_path / "seed_01.json").read_text())
    process = script("classify_gp", *flags, "--variances")
    assert "is there without variances: it is computed again" in process.stdout
    after = json.loads((tmp_path / "seed_01.json").read_text())
    assert after["extras"] == ["variances", "leave_one_out", "learning_curve"]
    for key in ("test_error", "leave_one_out", "learning_curve", "log_marginal_likelihood"):
        assert after[key] == before[key]
    refused(script("classify_gp", *flags, "--noise=0.1"), "noise_asked is [0.0] there and [0.1] asked for")
    # What was asked for before and isn't now is no reason.
    assert "is there already" in script("classify_gp", f"--path={workdir}", *RUN, "--noise=0,1e-2").stdout


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--noise=0,x"], "--noise is 0,x; expected numbers from 0"),
        (["--noise=-1"], "--noise is -1"),
        (["--noise=0.1", "--noise_by=loo"], "--noise_by=loo chooses among several noises, and --noise is 0.1"),
        (["--learning_curve=10,many"], "--learning_curve is '10,many'"),
        (["--learning_curve=61"], "--learning_curve is '61'; expected 'auto', or numbers from 1 to 60"),
    ],
)
def test_bad_flags_are_refused(workdir, flags, said, tmp_path):
    refused(script("classify_gp", f"--path={workdir}", *RUN, f"--csv_dir={tmp_path}/r", *flags), said)


def test_an_output_folder_that_cant_be_written(workdir):
    (workdir / "file").write_text("")
    refused(script("classify_gp", f"--path={workdir}", *RUN, "--csv_dir=file"), "can't be written")


def test_labels_that_arent_the_runs(tmp_path):
    process = script("save_kernels", *SMALL, *RUN, f"--path={tmp_path}")
    assert process.status == 0, process.stderr
    path = tmp_path / "convnet_gp" / "run.jsonl"
    record = Record.read(path)
    labels = dict(record.labels_json)
    labels["Y"] = [(labels["Y"][0] + 1) % 10, *labels["Y"][1:]]
    path.unlink()
    assert replace(record, labels_json=labels).create(path)
    refused(script("classify_gp", f"--path={tmp_path}", *RUN), "aren't those that the run was begun with")


def test_the_report(workdir):
    process = script("report", f"--path={workdir}")
    assert process.status == 0, process.stderr
    page = (workdir / "results" / "report.md").read_text()
    figures = {path.name for path in (workdir / "results" / "figures").iterdir()}
    names = ["learning_curves", "random_search", "rejection", "spectra"]
    names += [f"convnet_gp_{kind}" for kind in ("confusion", "reliability", "wrong")]
    for name in names:
        assert {f"{name}.png", f"{name}.svg"} <= figures
        assert f"(figures/{name}.png)" in page
    told = [line.strip("|").replace(" ", "").split("|")[:3] for line in page.splitlines()]
    for run in ("convnet_gp", "seed_01", "seed_13", "seed_47"):
        assert [run, "digits", "60"] in told
    assert "Smallest validation error: " in page
    assert "Leave-one-out: error" in page
    with open(workdir / "results" / "random_search.csv") as file:
        lines = list(csv.DictReader(file))
    assert sorted(int(line["seed"]) for line in lines) == [1, 13, 47]
    errors = [float(line["validation_error"]) for line in lines]
    assert errors == sorted(errors)
    for line in lines:
        drawn = draw_architecture(int(line["seed"]))
        size = drawn.filter_sizes[0]
        assert line["layers"] == str(len(drawn.filter_sizes)) and line["filter"] == f"{size}x{size}"
        assert line["padding"] == drawn.paddings[0] and line["stride"] == str(drawn.strides[0])
        assert line["kind"] == ("plain" if drawn.skip_freq < 1 else "residual")
    plain = script("report", f"--path={workdir}", "--nofigures")
    assert "page" not in plain.stdout and "convnet_gp" in plain.stdout


def test_new_images_are_predicted_without_the_factor(workdir, tmp_path):
    data = datasets.load("digits", N_train=60, N_vali=20, N_test=30)
    with np.load(workdir / "results" / "convnet_gp_predictions.npz") as arrays:
        expected = arrays["test"]
    for name, x in (("flat", data.Xt), ("images", data.Xt.reshape(-1, 8, 8)), ("last", data.Xt.reshape(-1, 8, 8, 1))):
        np.savez(tmp_path / f"{name}.npz", x=x)
        out = tmp_path / f"{name}.csv"
        process = script("predict", f"--path={workdir}", *RUN, f"--images={tmp_path}/{name}.npz", f"--out={out}")
        assert process.status == 0 and not process.stderr, process.stderr
        assert f"{name}.npz: images of 8 x 8 pixels, 1 channel, values from 0 to 1." in process.stdout
        with open(out) as file:
            lines = list(csv.DictReader(file))
        means = np.array([[float(line[f"mean_{c}"]) for c in range(10)] for line in lines])
        np.testing.assert_allclose(means, expected, rtol=1e-3, atol=1e-4)
        assert [int(line["class"]) for line in lines] == expected.argmax(1).tolist()
    refused(
        script("predict", f"--path={workdir}", *RUN, f"--images={tmp_path}/flat.npz", f"--out={tmp_path}/flat.csv"),
        "is there already",
    )
    np.savez(tmp_path / "wrong.npz", x=np.ones((3, 7)))
    refused(
        script("predict", f"--path={workdir}", *RUN, f"--images={tmp_path}/wrong.npz", f"--out={tmp_path}/w.csv"),
        "images of shape (7,)",
    )
    np.savez(tmp_path / "unscaled.npz", x=16 * data.Xt)
    process = script(
        "predict", f"--path={workdir}", *RUN, f"--images={tmp_path}/unscaled.npz", f"--out={tmp_path}/u.csv"
    )
    assert process.status == 0 and process.stderr == (
        "warning: the images have values from 0 to 16, the training images from 0 to 1: check that they are scaled "
        "alike.\n"
    )
    np.savez(tmp_path / "tiny.npz", x=np.where(data.Xt == 0, 1e-20, data.Xt))
    process = script("predict", f"--path={workdir}", *RUN, f"--images={tmp_path}/tiny.npz", f"--out={tmp_path}/t.csv")
    assert process.status == 0 and process.stderr.startswith("warning: 30 of the images have pixels between 0 and 1.1e")


@pytest.mark.parametrize("model", ["convnet_gp", "residual_cnn_gp", "resnet_gp"])
def test_a_kernel_is_made_again_from_its_description(model):
    kernel = build_kernel(model, [1, 8, 8])
    X = np.random.default_rng(0).random((3, 64))
    again = kernel_from_description(json.loads(json.dumps(kernel.describe())))
    np.testing.assert_array_equal(again(X), kernel(X))


def test_the_run_is_described_in_full(workdir):
    description = RunDirectory(workdir, "seed_47").description()
    assert kernel_from_description(description.kernel).describe() == description.kernel


def test_the_result_names_the_command_the_versions_and_the_machine(workdir):
    result = json.loads((workdir / "results" / "convnet_gp.json").read_text())
    # The flags that are places on this machine are named, not told.
    words = result["command"].split()
    assert words[:2] == ["python", "scripts/classify_gp.py"]
    assert sorted(words[2:]) == sorted(["--path=PATH", *RUN, *ALL])
    assert {"cnn_gp", "commit", "processor", "python", "numpy"} <= result["versions"].keys()
    assert {"commit", "processor", "engine"} <= result["kernel_computed_by"][0].keys()
    assert str(workdir) not in json.dumps(result)


def test_the_seeds_without_a_kernel_are_those_that_shrink():
    shrunk = shrunk_seeds([28, 28])
    # Seeds 1 to 35 have the paper's 27 networks; in all there are 52.
    assert [seed for seed in shrunk if seed <= 35] == [3, 5, 7, 18, 20, 24, 27, 32]
    assert len(SEARCH_SEEDS) - len(shrunk) == 52
    for seed in SEARCH_SEEDS[::6]:
        try:
            build_kernel("random", [1, 28, 28], seed=seed)
        except ShrunkMapError:
            assert seed in shrunk
        else:
            assert seed not in shrunk


def made_images(N, shape, seed):
    """Noise, brighter in the rows of the class; as many of each class."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(N) % 10
    images = rng.integers(0, 100, (N, *shape), np.uint8)
    images[np.arange(N), ..., 2 * labels + 1, :] += 120
    return images, labels.astype(np.uint8)


def write_fashion_mnist(folder):
    for name, N in (("train", 60_000), ("t10k", 10_000)):
        images, labels = made_images(N, (28, 28), N)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx(labels))


def write_cifar10(folder):
    images, labels = made_images(10_000, (3, 32, 32), 0)
    records = np.concatenate([labels[:, None], images.reshape(10_000, -1)], 1).tobytes()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (folder / f"{name}.bin").write_bytes(records)


@pytest.mark.parametrize(("dataset", "write"), [("fashion_mnist", write_fashion_mnist), ("cifar10", write_cifar10)])
def test_other_data_sets_by_the_same_commands(tmp_path, dataset, write):
    """Made files in the real ones' formats and sizes, the ResNet, both stages and the report."""
    write(tmp_path)
    sizes = ["--N_train=60", "--N_vali=20", "--N_test=20"]
    flags = [f"--dataset={dataset}", f"--data_dir={tmp_path}", *sizes, f"--path={tmp_path}/runs", "--model=resnet_gp"]
    process = script("save_kernels", *flags)
    assert process.status == 0, process.stderr
    assert "Engine: fused." in process.stdout
    process = script("classify_gp", f"--path={tmp_path}/runs", "--model=resnet_gp", "--variances")
    assert process.status == 0, process.stderr
    result = json.loads((tmp_path / "runs" / "results" / "resnet_gp.json").read_text())
    assert result["dataset"] == dataset and result["test_error"] < 70
    assert script("report", f"--path={tmp_path}/runs").status == 0
    assert (tmp_path / "runs" / "results" / "figures" / "resnet_gp_confusion.png").exists()


def test_no_place_on_this_machine_is_recorded(workdir, tmp_path):
    flags = ["--path", str(workdir), "--model", "random", "--seed", "1", "--csv_dir", str(tmp_path), "--nospectrum"]
    process = script("classify_gp", *flags)
    assert process.status == 0, process.stderr
    words = json.loads((tmp_path / "seed_01.json").read_text())["command"].split()
    expected = ["--path=PATH", "--model=random", "--seed=1", "--csv_dir=CSV_DIR", "--nospectrum"]
    assert sorted(words[2:]) == sorted(expected)
