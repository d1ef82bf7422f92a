"""out_of_distribution.py as a person runs it, and the report that shows what it found."""

import csv
import json
import shutil

import numpy as np
import pytest

from helpers.scripts import SMALL, refused, script

RUN = ["--model=convnet_gp", "--pool=2", "--run_name=pooled"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("asked")
    for name, flags in (("save_kernels", SMALL), ("classify_gp", ["--variances", "--noise=1e-3"])):
        ended = script(name, *flags, *RUN, f"--path={path}")
        assert ended.status == 0, ended.stderr
    x = np.random.default_rng(0).integers(0, 256, (50, 8, 8), np.uint8)
    np.savez(path / "static.npz", x_train=x, y_train=np.arange(50) % 2, x_test=x, y_test=np.arange(50) % 2)
    np.savez(path / "large.npz", x_train=x[:, :4], y_train=np.arange(50) % 2, x_test=x[:, :4], y_test=np.arange(50) % 2)
    return path


def test_numbers_and_the_page(workdir):
    against = f"--against=rotation:30,rotation:90,shift:1,noise,{workdir}/static.npz"
    ended = script("out_of_distribution", *RUN, f"--path={workdir}", against)
    assert ended.status == 0 and not ended.stderr, ended.stderr
    # Eight sets of 30 images besides the test images', with 60 training images.
    assert f"pooled: {8 * 30 * 60:,} kernel entries, about " in ended.stdout
    folder = workdir / "results" / "out_of_distribution"
    with open(folder / "pooled.csv") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    names = ["test", "rotation_30", "rotation_90", "shift_1", *(f"noise_{s}" for s in (0.1, 0.2, 0.3, 0.5)), "static"]
    assert list(rows) == names
    result = json.loads((workdir / "results" / "pooled.json").read_text())
    assert float(rows["test"]["error"]) == result["test_error"]
    scores = result["scores"]["test"]
    assert float(rows["test"]["negative_log_likelihood"]) == pytest.approx(scores["negative_log_likelihood"])
    assert float(rows["static"]["auroc_variance"]) > 0.99 and rows["static"]["error"] == ""
    assert float(rows["noise_0.5"]["auroc_entropy"]) > float(rows["noise_0.1"]["auroc_entropy"]) > 0.5
    record = json.loads((folder / "pooled.json").read_text())
    assert record["command"].startswith("python scripts/out_of_distribution.py") and record["versions"]["numpy"]
    assert str(workdir) not in json.dumps(record) and "noise,static.npz" in record["command"]
    again = script("out_of_distribution", *RUN, f"--path={workdir}", against)
    assert again.status == 0 and "kernel entries" not in again.stdout
    assert json.loads((folder / "pooled.json").read_text()) == record
    assert script("report", f"--path={workdir}").status == 0
    page = (workdir / "results" / "report.md").read_text()
    assert "## Images unlike the training images" in page and "rotation_90" in page
    for name in ("out_of_distribution", "pooled_out_of_distribution"):
        assert f"(figures/{name}.png)" in page and (workdir / "results" / "figures" / f"{name}.svg").exists()


def test_of_another_result_the_report_shows_nothing(workdir, tmp_path):
    path = tmp_path / "copy"
    shutil.copytree(workdir, path)
    flags = [*RUN, f"--path={path}"]
    assert script("out_of_distribution", *flags, "--against=shift:1").status == 0
    assert script("classify_gp", *flags, "--overwrite", "--noise=1e-2").status == 0
    assert script("report", f"--path={path}").status == 0
    page = (path / "results" / "report.md").read_text()
    assert "Left out, because `classify_gp.py` has replaced their result: pooled." in page and "shift_1" not in page
    # Nothing is missing but what the other noise changes.
    ended = script("out_of_distribution", *flags, "--against=shift:1,shift:1", "--N_test=20")
    assert ended.status == 0 and f"pooled: {20 * 60:,} kernel entries" in ended.stdout
    shutil.rmtree(path / "pooled")
    refused(script("out_of_distribution", *flags, "--against=shift:1"), "There is no run pooled")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--against=blur"], "--against has 'blur'; expected some of rotation, shift, noise, digits, mnist"),
        (["--against=rotation:"], "--against has 'rotation:'; expected a number after the colon, from"),
        (["--against=shift:nan"], "--against has 'shift:nan'; expected a number after the colon, from"),
        (["--against=noise:-1"], "--against has 'noise:-1'; expected a number after the colon, from 0 to 1000"),
        (["--against="], "--against is empty"),
        (["--against={}/large.npz"], "large.npz has images of shape (1, 4, 8); expected those of pooled, (1, 8, 8)"),
        (["--against={}/none.npz"], "none.npz"),
        (["--against=shift", "--N_test=31"], "--N_test is 31; expected 1 to 30, the test images of pooled"),
        (["--against=shift", "--csv_dir=none"], "start classify_gp.py first"),
    ],
)
def test_careless_flags(workdir, flags, said):
    refused(script("out_of_distribution", *RUN, f"--path={workdir}", *(f.format(workdir) for f in flags)), said)


def test_tiles_that_are_gone(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "copy")
    (tmp_path / "copy" / "pooled" / "Kxx_0000.h5").unlink()
    refused(script("out_of_distribution", *RUN, f"--path={tmp_path}/copy", "--against=shift:3"), "The run pooled in ")
