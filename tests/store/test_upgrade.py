"""Runs that version 0.1 wrote."""

import errno
import json

import h5py
import pytest

from cnn_gp.errors import UserError
from cnn_gp.store.run_directory import RunDirectory
from cnn_gp.store.sealed import read_sealed
from helpers.matrices import bytes_of
from helpers.small_runs import NumpyEngine, begin, complete, compute, make_data


def as_version_0_1(run):
    """Make a run's directory what version 0.1 would have written."""
    description = run.description()
    for path in run.folder.glob("K*.h5"):
        content, found = read_sealed(path, None)
        path.write_bytes(content)
        with h5py.File(path, "r+") as file:
            file.attrs["fingerprint"] = description.fingerprint
            file.attrs["provenance"] = json.dumps(found.about["provenance"])
    with h5py.File(run.folder / "run.h5", "w") as file:
        file.attrs["description"] = description.to_json()
        for name, values in run.labels().items():
            file[name] = values
    images = run.folder / "images.h5"
    images.write_bytes(read_sealed(images, None)[0])
    (run.folder / "run.jsonl").unlink()


def test_a_run_of_version_0_1_is_sealed_and_nothing_is_computed_again(tmp_path):
    data = make_data()
    run = complete(tmp_path, data)
    expected, provenance = bytes_of(run.folder), run.parts.provenance()
    as_version_0_1(run)
    with pytest.raises(UserError, match=r"was written by cnn_gp 0.1, .*: start save_kernels.py once"):
        RunDirectory(tmp_path, "small").description()
    with pytest.raises(UserError, match=r"holds another run \(model is .convnet_gp. there and .resnet_gp. asked for"):
        begin(tmp_path, data, model="resnet_gp")
    path = run.folder / "Kxvx_0000.h5"
    path.write_bytes(path.read_bytes()[:-50])
    engine = NumpyEngine()
    run = begin(tmp_path, data)
    assert not (run.folder / "run.h5").exists()
    compute(run, engine)
    assert engine.calls == 1
    assert bytes_of(run.folder) == expected and run.parts.missing(verify=True) == ([], {})
    assert [p for p in run.parts.provenance() if p] != [] and len(run.parts.provenance()) == len(provenance)
    run.check_data()


def test_an_old_part_that_the_disk_cannot_read_is_not_given_up(tmp_path, monkeypatch):
    run = complete(tmp_path, make_data())
    as_version_0_1(run)

    def fails(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("cnn_gp.store.upgrade.read_seal", fails)
        with pytest.raises(UserError, match=r"Kxx_0000.h5 can't be read \(Input/output error\)"):
            begin(tmp_path, make_data())
    engine = NumpyEngine()
    compute(begin(tmp_path, make_data()), engine)
    assert engine.calls == 0
