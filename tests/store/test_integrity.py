"""Files that are damaged, mixed with another run's, moved, or can't be read."""

import dataclasses
import errno
import json
import os
import stat

import h5py
import numpy as np
import pytest

from cnn_gp.errors import UserError
from cnn_gp.store import atomic
from cnn_gp.store.run_directory import RunDirectory
from cnn_gp.store.sealed import read_sealed, seal
from helpers.small_runs import NumpyEngine, begin, complete, compute, make_data

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


def test_another_programs_seal_is_no_proof(tmp_path):
    """A part is one of this run only with this run's fingerprint."""
    run = complete(tmp_path, make_data())
    path = run.folder / "Kxx_0000.h5"
    content, found = read_sealed(path, None)
    path.write_bytes(seal(content, path.name, "0" * 64, found.about))
    assert run.parts.missing()[1] == {"Kxx_0000": "it belongs to another run"}


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
