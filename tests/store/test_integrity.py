"""Runs that were begun twice, mixed, moved, damaged around the parts, or are still worked for after their end."""

import dataclasses
import errno
import json
import os
import shutil
import stat
import threading

import h5py
import numpy as np
import pytest

from cnn_gp.compute.worker import Worker, compute_part
from cnn_gp.errors import UserError
from cnn_gp.store import atomic
from cnn_gp.store.kept_state import KeptState
from cnn_gp.store.run_directory import RunDirectory
from cnn_gp.store.sealed import read_sealed, seal
from helpers.matrices import bytes_of
from helpers.small_runs import NumpyEngine, begin, complete, compute, job_of, make_data, make_description

# Two runs in one place ------------------------------------------------------------------------------------------------


def test_of_many_that_begin_different_runs_at_once_one_begins(tmp_path):
    data = make_data()
    for attempt in range(20):
        barrier = threading.Barrier(6)
        begun, refused = [], []

        def start(model, attempt=attempt, barrier=barrier, begun=begun, refused=refused):
            description = make_description(data, model=model)
            barrier.wait()
            try:
                RunDirectory(tmp_path, f"run_{attempt}").begin(description, data)
                begun.append(model)
            except UserError as error:
                assert "holds another run (model is" in str(error)
                refused.append(model)

        threads = [threading.Thread(target=start, args=(f"m{i % 3}",)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(begun)) == 1 and len(begun) == 2 and len(refused) == 4
        assert RunDirectory(tmp_path, f"run_{attempt}").description().model == begun[0]


def test_a_worker_of_another_kernel_than_the_runs_is_refused(tmp_path):
    """As a program that lost the race to begin a run: its engine computes another kernel than the run's."""
    run = begin(tmp_path, make_data())
    job = job_of(run, lambda device: NumpyEngine())
    with pytest.raises(UserError, match="was deleted and begun by another program meanwhile"):
        Worker(dataclasses.replace(job, run_id="0" * 32), "cpu")


def test_a_process_that_stays_computes_a_run_that_was_begun_anew(tmp_path):
    """As a Dask worker does, which keeps its engine from one part to the next."""
    for changes in ({}, {}, {"model": "resnet_gp"}):
        run = begin(tmp_path, make_data(), **changes)
        assert compute_part(job_of(run, lambda device: NumpyEngine()), "cpu", "Kxx_0000", print).status == "computed"
        shutil.rmtree(run.folder)


def test_a_worker_of_a_run_that_was_begun_anew_writes_nothing(tmp_path):
    data = make_data()
    run = begin(tmp_path, data)
    forgotten = Worker(job_of(run, lambda device: NumpyEngine()), "cpu")
    shutil.rmtree(run.folder)
    with pytest.raises(UserError, match="was deleted or begun anew while"):
        forgotten.compute("Kxx_0000")
    for changes in ({}, {"model": "resnet_gp"}):
        successor = complete(tmp_path, data, **changes)
        expected = bytes_of(successor.folder)
        (successor.folder / "Kxx_0000.h5").unlink()
        with pytest.raises(UserError, match="was deleted or begun anew while"):
            forgotten.compute("Kxx_0000")
        compute(successor)
        assert bytes_of(successor.folder) == expected
        shutil.rmtree(run.folder)


def test_a_worker_of_a_run_whose_tiles_were_deleted_puts_none_back(tmp_path):
    run = complete(tmp_path, make_data())
    worker = Worker(job_of(run, lambda device: NumpyEngine()), "cpu")
    RunDirectory(tmp_path, "small").delete_parts()
    with pytest.raises(UserError, match="was deleted or begun anew while"):
        worker.compute("Kxx_0000")
    assert not list(run.folder.glob("K*"))


def test_a_run_that_was_begun_anew_keeps_its_tiles_from_who_deletes_the_old_ones(tmp_path):
    """As --nokeep_tiles at the end of hours."""
    data = make_data()
    old = complete(tmp_path, data)
    shutil.rmtree(old.folder)
    successor = complete(tmp_path, data, model="resnet_gp")
    expected = bytes_of(successor.folder)
    with pytest.raises(UserError, match="was deleted or begun anew while"):
        old.delete_parts()
    assert bytes_of(successor.folder) == expected and successor.view_path.exists()


def test_a_worker_of_a_deleted_run_makes_no_folder(tmp_path):
    run = begin(tmp_path, make_data())
    job = job_of(run, lambda device: NumpyEngine())
    shutil.rmtree(run.folder)
    with pytest.raises(UserError, match="There is no run small"):
        Worker(job, "cpu")
    assert not run.folder.exists()


def test_with_the_tiles_all_that_was_kept_on_their_way_is_deleted(tmp_path):
    run = complete(tmp_path, make_data())
    part = run.description().tiling.parts()[0]
    row = part.rows[0]
    run.kept_rows.keep(part, row, np.ones(row.shape), None, "numpy")
    KeptState(run, "solve_of_something").save({"X": np.ones(3)})
    (run.claims_folder / f"{part.name}.claim").touch()
    run.delete_parts()
    assert {path.name for path in run.folder.iterdir()} == {"run.jsonl", "images.h5"}


# Images and labels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["another data set's", "damaged", "empty"])
def test_images_that_are_left_are_not_adopted(tmp_path, how):
    data, other = make_data(), make_data(seed=1)
    left = begin(tmp_path, other)
    (left.folder / "run.jsonl").unlink()
    if how != "another data set's":
        begin(tmp_path, data)
        path = left.folder / "images.h5"
        path.write_bytes(b"" if how == "empty" else path.read_bytes()[:-100])
    run = begin(tmp_path, data)
    np.testing.assert_array_equal(run.images()["X"], data.X.astype(np.float64))
    run.check_data()


def test_another_runs_images_are_refused(tmp_path):
    run, other = complete(tmp_path, make_data()), complete(tmp_path / "other", make_data(seed=1))
    (run.folder / "images.h5").write_bytes((other.folder / "images.h5").read_bytes())
    with pytest.raises(UserError, match=r"images.h5 is damaged \(it belongs to another run\): start"):
        run.images()
    begin(tmp_path, make_data())
    run.check_data()


def test_a_changed_label_or_digit_of_the_record_is_found(tmp_path):
    run = complete(tmp_path, make_data())
    path = run.folder / "run.jsonl"
    whole = path.read_bytes()
    for place in [i for i, byte in enumerate(whole) if chr(byte).isdigit()][::7]:
        changed = bytearray(whole)
        changed[place] = ord("0") + (changed[place] - ord("0") + 1) % 10
        path.write_bytes(changed)
        with pytest.raises(UserError, match=r"run.jsonl is damaged \(.*\): move this file alone away"):
            RunDirectory(tmp_path, "small").description()
    # As it advises: the parts of the same run are kept.
    path.unlink()
    engine = NumpyEngine()
    compute(begin(tmp_path, make_data()), engine)
    assert engine.calls == 0


def test_a_record_whose_sizes_arent_its_labels_is_refused_before_anything_is_counted(tmp_path):
    """Undamaged as bytes: a program that lists the tiles of 1e15 images doesn't end."""
    run = complete(tmp_path, make_data())
    path = run.folder / "run.jsonl"
    fields = json.loads(read_sealed(path, None)[0])
    description = dataclasses.replace(run.description(), N_train=10**15)
    fields["description"] = json.loads(description.to_json())
    path.write_bytes(seal(json.dumps(fields).encode(), path.name, description.fingerprint))
    with pytest.raises(UserError, match=r"run.jsonl is damaged \(it has labels of .*\): move this file alone away"):
        RunDirectory(tmp_path, "small").parts.missing()


# Parts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO])
def test_a_part_that_cannot_be_read_is_no_damaged_one(tmp_path, monkeypatch, error):
    run = complete(tmp_path, make_data())

    def fails(*arguments):
        raise OSError(error, "said by the disk")

    with monkeypatch.context() as patch:
        patch.setattr("cnn_gp.store.run_folder.read_seal", fails)
        patch.setattr("cnn_gp.store.run_folder.read_sealed", fails)
        patch.setattr("cnn_gp.store.verified.verify_sealed", fails)
        for read in (run.parts.missing, lambda: run.parts.missing(verify=True), lambda: compute(run)):
            with pytest.raises(UserError, match=r"can't be read \(said by the disk"):
                read()
        with pytest.raises(UserError, match=r"can't be read \(said by the disk"):
            list(run.parts.read_rows("Kxx"))
    run.check_complete()


def test_a_chunk_of_zeros_with_a_checksum_of_zero_is_found(tmp_path):
    """Fletcher-32 of zeros is zero: HDF5 has nothing against it."""
    run = complete(tmp_path, make_data())
    path = run.folder / "Kxtx_0000.h5"
    content = bytearray(path.read_bytes())
    with h5py.File(path) as file:
        chunk = file["0/entries"].id.get_chunk_info(0)
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(content)
    with h5py.File(path) as file:
        assert (file["0/entries"][:, :5] == 0).all()
    assert run.parts.missing(verify=True)[1] == {"Kxtx_0000": "its SHA-256 is wrong"}
    with pytest.raises(UserError, match="its SHA-256 is wrong"):
        list(run.parts.read_rows("Kxtx"))


def test_a_damaged_part_that_another_program_has_computed_again_is_kept(tmp_path):
    run = complete(tmp_path, make_data())
    path = run.folder / "Kxx_0000.h5"
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + b"x" + whole[101:])
    (part,), _ = run.parts.missing(verify=True)
    path.write_bytes(whole)
    run.parts.discard(part)
    assert path.read_bytes() == whole
    path.write_bytes(whole[:100] + b"x" + whole[101:])
    run.parts.discard(part)
    run.parts.discard(part)
    assert not path.exists()


def test_kept_rows_that_are_damaged_or_of_another_place_do_not_count(tmp_path, monkeypatch):
    monkeypatch.setattr("cnn_gp.store.tiling.MAX_PARTS", 6)
    data = make_data()
    run = begin(tmp_path, data, n_max=3)
    part = next(part for part in run.description().tiling.parts() if len(part.rows) > 1)
    row, other = part.rows[:2]
    entries = np.ones(row.shape)
    run.kept_rows.keep(part, row, entries, np.ones(row.shape[0]), "numpy")
    np.testing.assert_array_equal(run.kept_rows.get(part, row, "numpy")[0], entries)
    path, place = (run.folder / f"{part.name}.row_{r.start}.npz" for r in (row, other))
    whole = path.read_bytes()
    place.write_bytes(whole)
    assert run.kept_rows.get(part, other, "numpy") is None
    for changed in (whole[:-1], b"", whole[:100] + b"x" + whole[101:]):
        path.write_bytes(changed)
        assert run.kept_rows.get(part, row, "numpy") is None


def refusing(*arguments, **options):
    raise OSError(errno.EROFS, "Read-only file system")


def test_kept_rows_that_could_not_be_removed_are_removed_at_the_next_start(tmp_path, monkeypatch):
    monkeypatch.setattr("cnn_gp.store.tiling.MAX_PARTS", 6)
    run = begin(tmp_path, make_data(), n_max=3)
    real = os.unlink

    def unlink(path, **options):
        if str(path).endswith(".npz"):
            refusing()
        real(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        compute(run)
    kept = list(run.folder.glob("*.npz"))
    assert kept
    (run.folder / f"{kept[0].name.split('.')[0]}.h5").unlink()
    run.remove_leftovers()
    # Those of the part that isn't there are still of use.
    assert kept[0].exists() and len(list(run.folder.glob("*.npz"))) < len(kept)
    compute(run)
    assert not list(run.folder.glob("*.npz"))


def test_files_that_cannot_be_removed_are_one_line(tmp_path, monkeypatch):
    run = complete(tmp_path, make_data())
    monkeypatch.setattr(os, "unlink", refusing)
    said = (
        r"can't be removed \(Read-only file system\): choose a place on a file system that isn't read-only, or remove"
    )
    part = run.description().tiling.parts()[0]
    (run.folder / f"{part.name}.h5").write_bytes(b"damaged")
    for remove in (lambda: run.parts.discard(part), run.delete_parts):
        with pytest.raises(UserError, match=said):
            remove()


def test_tiles_that_vanish_under_a_reader_are_one_line(tmp_path):
    """As by --nokeep_tiles of another program."""
    run = complete(tmp_path, make_data())
    rows = run.parts.read_rows("Kxx")
    next(rows)
    RunDirectory(tmp_path, "small").delete_parts()
    for read in (
        run.parts.provenance,
        lambda: list(rows),
        lambda: run.parts.read_diagonal("Kxx"),
        lambda: run.parts.read_upper(0, 5, 0, 5),
    ):
        with pytest.raises(UserError, match=r"isn't there any longer: start save_kernels.py again with the same flags"):
            read()


# The view -------------------------------------------------------------------------------------------------------------


def test_a_file_of_ones_own_in_the_views_place_is_kept(tmp_path):
    mine = tmp_path / "small.h5"
    with h5py.File(mine, "w") as file:
        file["mine"] = 1.0
    content = mine.read_bytes()
    refused = r"small.h5 isn't a view that save_kernels.py wrote .* is kept"
    with pytest.raises(UserError, match=refused):
        begin(tmp_path, make_data())
    # Before anything is computed or written.
    assert list(tmp_path.iterdir()) == [mine]
    mine.unlink()
    run = begin(tmp_path, make_data())
    mine.write_bytes(content)
    with pytest.raises(UserError, match=refused):
        compute(run)
    RunDirectory(tmp_path, "small").delete_parts()
    assert mine.read_bytes() == content


def test_a_damaged_view_is_written_again(tmp_path):
    run = complete(tmp_path, make_data())
    whole = run.view_path.read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    run.view_path.write_bytes(changed)
    compute(run)
    assert read_sealed(run.view_path, run.description().fingerprint)
    before = run.view_path.stat().st_mtime_ns
    compute(run)
    assert run.view_path.stat().st_mtime_ns == before


# Links, names, leftovers ----------------------------------------------------------------------------------------------


def test_claims_are_forgotten_in_the_runs_own_folder_only(tmp_path):
    run = complete(tmp_path, make_data())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("a.claim", "thesis.tex"):
        (elsewhere / name).touch()
    (run.claims_folder / "notes.txt").touch()
    run.forget_claims()
    assert (run.claims_folder / "notes.txt").exists()
    (run.claims_folder / "notes.txt").unlink()
    run.claims_folder.rmdir()
    run.claims_folder.symlink_to(elsewhere)
    compute(run)
    assert {path.name for path in elsewhere.iterdir()} == {"a.claim", "thesis.tex"}


def test_temporary_files_of_two_containers_with_one_name_and_number_do_not_meet(tmp_path, monkeypatch):
    """Two processes of the same host's name and the same number, as the first process of each of two containers."""
    seen = []
    real = atomic.os.fsync

    def write_another(handle):
        seen.append({path.name for path in tmp_path.glob(".*.tmp")})
        if len(seen) == 1:
            atomic.write_atomically(tmp_path / "a", "second")
        real(handle)

    monkeypatch.setattr(atomic.os, "fsync", write_another)
    atomic.write_atomically(tmp_path / "a", "first")
    assert (tmp_path / "a").read_text() == "first" and max(map(len, seen)) == 2


def test_a_folders_flush_that_the_file_system_does_not_have_is_no_error(tmp_path, monkeypatch):
    real = atomic.os.fsync

    def fsync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(handle)

    monkeypatch.setattr(atomic.os, "fsync", fsync)
    atomic.write_atomically(tmp_path / "new" / "a", "x")
    assert (tmp_path / "new" / "a").read_text() == "x"


def test_new_folders_are_flushed_in_their_parents(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(atomic, "flush_folder", flushed.append)
    atomic.write_atomically(tmp_path / "a" / "b" / "c", "x")
    assert set(flushed) == {tmp_path, tmp_path / "a", tmp_path / "a" / "b"}


# Runs of version 0.1 --------------------------------------------------------------------------------------------------


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


def test_another_programs_seal_is_no_proof(tmp_path):
    """A part is one of this run only with this run's fingerprint."""
    run = complete(tmp_path, make_data())
    path = run.folder / "Kxx_0000.h5"
    content, found = read_sealed(path, None)
    path.write_bytes(seal(content, path.name, "0" * 64, found.about))
    assert run.parts.missing()[1] == {"Kxx_0000": "it belongs to another run"}
