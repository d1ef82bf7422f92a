"""What --status and --verify say of a run, and what --verify finds."""

import json
import os

import h5py
import numpy as np
import pytest

from cnn_gp.compute.claims import Claims
from cnn_gp.compute.status import status
from cnn_gp.errors import UserError
from cnn_gp.store.run_directory import RunDirectory
from cnn_gp.store.sealed import read_sealed, seal
from helpers.small_runs import NumpyEngine, begin, complete, compute, make_data
from helpers.workers import SIZES


def test_status_says_what_is_done_missing_damaged_and_at_work(tmp_path):
    run = begin(tmp_path, make_data(**SIZES))
    assert "0 of 38 parts done, 0.0% of" in status(run)
    compute(run)
    assert status(run).splitlines() == [
        f"small in {tmp_path}: 38 of 38 parts done, 100.0% of 15,660 kernel entries",
        "  computed by the numpy engine (38 parts)",
    ]
    (run.folder / "Kxx_0001.h5").unlink()
    path = run.folder / "Kxx_0002.h5"
    path.write_bytes(path.read_bytes()[:1000])
    Claims(run.claims_folder).take("Kxx_0001")
    text = status(run)
    assert "36 of 38 parts done" in text
    assert "Kxx_0002: its end is missing or damaged; it will be computed again" in text
    assert f"Kxx_0001: at work, process {os.getpid()} on" in text
    assert "missing: Kxx_0001, Kxx_0002" in text and "of one worker's time left" in text


def test_verify_reads_every_byte(tmp_path):
    data = make_data(**SIZES)
    run = complete(tmp_path, data)
    path = run.folder / "Kxx_0000.h5"
    value = NumpyEngine().matrix(data.X[:1].astype(np.float64), data.X[:5].astype(np.float64)).tobytes()
    content = bytearray(path.read_bytes())
    content[content.index(value) + 5] ^= 4
    path.write_bytes(content)
    assert run.parts.missing() == ([], {})
    missing, reasons = run.parts.missing(verify=True)
    assert [part.name for part in missing] == ["Kxx_0000"] and reasons == {"Kxx_0000": "its SHA-256 is wrong"}
    assert "every byte of parts, images, labels and view checked" in status(run, verify=True)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_verify_finds_damaged_images_and_a_damaged_view(tmp_path):
    run = complete(tmp_path, make_data())
    whole = status(run, verify=True)
    assert "written again" not in whole
    for path in (run.folder / "images.h5", run.view_path):
        flip(path)
        assert status(run) == whole.replace(", every byte of parts, images, labels and view checked", "")
        assert f"  {path.name}: its SHA-256 is wrong; it will be written again" in status(run, verify=True).splitlines()
        compute(begin(tmp_path, make_data()))
        assert status(run, verify=True) == whole
        path.unlink()
        assert f"  {path.name}: it isn't there; it will be written again" in status(run, verify=True).splitlines()
        compute(begin(tmp_path, make_data()))
        assert status(run, verify=True) == whole


def test_a_view_that_is_not_written_yet_is_no_defect_of_an_unfinished_run(tmp_path):
    assert "written again" not in status(begin(tmp_path, make_data()), verify=True)


def test_a_label_that_is_not_the_data_sets_is_found_and_does_not_go_into_the_view(tmp_path):
    """As after a bit that flipped in memory, before the record was sealed."""
    data = make_data()
    run = complete(tmp_path, data)
    run.view_path.unlink()
    path = run.folder / "run.jsonl"
    content, found = read_sealed(path, None)
    fields = json.loads(content)
    fields["labels"]["Y"][3] ^= 1
    path.write_bytes(seal(json.dumps(fields).encode(), path.name, found.owner))
    for read in (
        lambda: status(RunDirectory(tmp_path, "small"), verify=True),
        lambda: compute(begin(tmp_path, data)),
        RunDirectory(tmp_path, "small").check_data,
    ):
        with pytest.raises(UserError, match=r"images and labels in .* aren't those that the run was begun with"):
            read()
    assert not run.view_path.exists()


def test_the_images_of_another_run_of_the_same_data_are_replaced(tmp_path):
    data = make_data()
    left = begin(tmp_path, data, model="resnet_gp")
    (left.folder / "run.jsonl").unlink()
    run = complete(tmp_path, data)
    run.check_data()
    with h5py.File(run.folder / "images.h5") as file:
        assert file["X"].shape == data.X.shape
