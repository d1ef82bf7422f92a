"""The working directory: complete or not there, resumed, refused where it is another run's, readable by anyone."""

import io
import os
import shutil

import h5py
import numpy as np
import pytest

from cnn_gp.errors import UserError
from cnn_gp.store import atomic
from cnn_gp.store.description import Description
from cnn_gp.store.kept_state import KeptState
from cnn_gp.store.run_directory import RunDirectory
from cnn_gp.store.sealed import read_sealed, seal
from helpers.small_runs import NumpyEngine, begin, complete, compute, make_data, make_description


def whole(data):
    """The three matrices and the diagonals, straight from the engine."""
    engine = NumpyEngine()
    X, Xv, Xt = (a.astype(np.float64) for a in (data.X, data.Xv, data.Xt))
    return {
        "Kxx": engine.matrix(X),
        "Kxvx": engine.matrix(Xv, X),
        "Kxtx": engine.matrix(Xt, X),
        "Kx_diag": engine.diag(X),
        "Kv_diag": engine.diag(Xv),
        "Kt_diag": engine.diag(Xt),
    }


def changed_within(path, change):
    """Change a part's HDF5 file and seal it again, as a faulty program would have written it."""
    content, found = read_sealed(path, None)
    changed = io.BytesIO(content)
    with h5py.File(changed, "r+") as file:
        change(file)
    path.write_bytes(seal(changed.getvalue(), path.name, found.owner, found.about))


@pytest.mark.parametrize("n_max", [1, 5, 8, 23, 100])
def test_view_shows_the_matrices(tmp_path, n_max):
    data = make_data()
    complete(tmp_path, data, n_max=n_max)
    expected = whole(data)
    with h5py.File(tmp_path / "small.h5", "r") as view:
        assert view.attrs["complete"]
        assert Description.from_json(view.attrs["description"]) == make_description(data, n_max=n_max)
        tiles = np.arange(23) // n_max
        stored = tiles[:, None] <= tiles[None, :]
        np.testing.assert_array_equal(view["Kxx"][()][stored], expected["Kxx"][stored])
        assert np.isnan(view["Kxx"][()][~stored]).all()
        for name in ("Kxvx", "Kxtx", "Kx_diag", "Kv_diag", "Kt_diag"):
            np.testing.assert_array_equal(view[name][()], expected[name])
        np.testing.assert_array_equal(view["Y"], data.Y)
        np.testing.assert_array_equal(view["Yv"], data.Yv)
        np.testing.assert_array_equal(view["Yt"], data.Yt)
        assert view["Y"].dtype == np.int64


def test_view_survives_moving_the_working_directory(tmp_path):
    data = make_data()
    complete(tmp_path / "here", data)
    shutil.move(tmp_path / "here", tmp_path / "there")
    with h5py.File(tmp_path / "there" / "small.h5", "r") as view:
        np.testing.assert_array_equal(view["Kxtx"][()], whole(data)["Kxtx"])


def test_rows_read_back_are_the_engines(tmp_path):
    data = make_data()
    run = complete(tmp_path, data)
    expected = whole(data)
    for matrix, variances in (("Kxx", "Kx_diag"), ("Kxvx", "Kv_diag"), ("Kxtx", "Kt_diag")):
        for row, entries in run.parts.read_rows(matrix):
            np.testing.assert_array_equal(entries, expected[matrix][row.start : row.stop, row.first_column :])
        np.testing.assert_array_equal(run.parts.read_diagonal(matrix), expected[variances])


def test_resuming_computes_only_what_is_missing(tmp_path):
    data = make_data()
    run = complete(tmp_path, data)
    before = {path: path.stat().st_mtime_ns for path in run.folder.glob("*.h5")}
    lost = run.folder / "Kxvx_0001.h5"
    lost.unlink()
    engine = NumpyEngine()
    compute(run, engine)
    assert engine.calls == 1
    assert [path for path in before if path.stat().st_mtime_ns != before[path]] == [lost]
    compute(run, engine)
    assert engine.calls == 1


@pytest.mark.parametrize("damage", ["truncate", "empty", "garbage", "foreign", "another part"])
def test_a_damaged_part_is_named_refused_and_computed_again(tmp_path, damage):
    data = make_data()
    run = complete(tmp_path, data)
    path = run.folder / "Kxx_0002.h5"
    original = path.read_bytes()
    if damage == "truncate":
        path.write_bytes(original[: len(original) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "garbage":
        path.write_bytes(b"not HDF5" * 100)
    elif damage == "foreign":
        content, found = read_sealed(path, None)
        path.write_bytes(seal(content, path.name, "0" * 64, found.about))
    else:
        path.write_bytes((run.folder / "Kxx_0001.h5").read_bytes())
    with pytest.raises(UserError, match=r"incomplete: 1 of 9 parts are missing: Kxx_0002 \(it"):
        run.check_complete()
    engine = NumpyEngine()
    compute(run, engine)
    assert engine.calls == 2
    run.check_complete()


def test_a_flipped_bit_is_noticed_when_it_is_read(tmp_path):
    data = make_data()
    run = complete(tmp_path, data)
    path = run.folder / "Kxx_0000.h5"
    value = whole(data)["Kxx"][0, :5].tobytes()
    content = bytearray(path.read_bytes())
    content[content.index(value) + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"Kxx_0000.h5 can't be read .* delete this file"):
        list(run.parts.read_rows("Kxx"))


def test_an_incomplete_run_is_refused_with_what_is_missing(tmp_path):
    run = begin(tmp_path, make_data(N_train=60))
    with pytest.raises(UserError, match=r"16 of 16 parts are missing: Kxx_0000, .* and 8 more; start save_kernels"):
        run.check_complete()
    with pytest.raises(UserError, match="incomplete"):
        run.write_view()
    assert not run.view_path.exists()


def test_no_view_while_parts_are_missing_after_an_interruption(tmp_path):
    class Dying(NumpyEngine):
        def entries(self, X, X2=None, progress=None):
            if self.calls == 4:
                raise KeyboardInterrupt
            return super().entries(X, X2, progress)

    data = make_data()
    with pytest.raises(KeyboardInterrupt):
        complete(tmp_path, data, Dying())
    run = RunDirectory(tmp_path, "small")
    assert len(run.parts.missing()[0]) == 6
    assert not run.view_path.exists()
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_max": 6}, "n_max is 5 there and 6 asked for"),
        ({"float_type": "float32"}, 'float_type is "float64" there and "float32" asked for'),
        ({"data_hash": "abc"}, 'data_hash is .* there and "abc" asked for'),
        (
            {"kernel": {"input_shape": [1, 1, 2], "network": {"layer": "Dense", "var_weight": 1.5, "var_bias": 0.0}}},
            r"kernel.network.var_weight is 1.0 there and 1.5 asked for",
        ),
    ],
)
def test_another_run_in_the_same_place_is_refused_with_both_values(tmp_path, changes, said):
    data = make_data()
    run = complete(tmp_path, data)
    before = {path: path.read_bytes() for path in run.folder.glob("*.*")}
    with pytest.raises(UserError, match=said):
        begin(tmp_path, data, **changes)
    assert {path: path.read_bytes() for path in run.folder.glob("*.*")} == before


def test_a_non_finite_entry_is_never_committed(tmp_path):
    class Broken(NumpyEngine):
        def entries(self, X, X2=None, progress=None):
            K = super().entries(X, X2, progress)
            if X2 is not None and self.calls == 4:
                K[1, 2] = np.nan
            return K

    data = make_data()
    said = r"Kxx has a non-finite entry at row 1, column 7, first in layers\[1\] \(ExReLU\); nothing of"
    with pytest.raises(UserError, match=said):
        complete(tmp_path, data, Broken())
    run = RunDirectory(tmp_path, "small")
    assert sorted(path.name for path in run.folder.glob("*.*")) == [
        *("Kxtx_0000.h5", "Kxvx_0000.h5", "images.h5", "run.jsonl")
    ]


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_write_that_fails_leaves_nothing_and_is_resumed(tmp_path, monkeypatch, function):
    data = make_data()
    run = begin(tmp_path, data)
    real, calls = getattr(os, function), []

    def fails_once(*args):
        calls.append(args)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return real(*args)

    monkeypatch.setattr(atomic.os, function, fails_once)
    with pytest.raises(UserError, match=r"can't be written .*No space left.*what was finished is kept"):
        compute(run)
    assert not list(tmp_path.rglob(".*"))
    compute(run)
    run.check_complete()


def test_a_close_that_fails_leaves_nothing_and_is_resumed(tmp_path, monkeypatch):
    data = make_data()
    run = begin(tmp_path, data)
    real, calls = open, []

    def opens(path, *arguments):
        file = real(path, *arguments)
        if ".h5." in path.name:
            calls.append(path)
        if ".h5." not in path.name or len(calls) != 3:
            return file

        class Closing:
            def __enter__(self):
                return file

            def __exit__(self, *error):
                file.close()
                raise OSError(5, "Input/output error")

        return Closing()

    monkeypatch.setattr(atomic, "open", opens, raising=False)
    with pytest.raises(UserError, match=r"can't be written .*Input/output error"):
        compute(run)
    assert not list(tmp_path.rglob(".*"))
    assert len(list(run.folder.glob("K*"))) == 2
    compute(run)
    run.check_complete()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="can't be written"):
        begin(tmp_path / "file", make_data())


def test_no_run_there_names_the_runs_that_are(tmp_path):
    complete(tmp_path, make_data())
    with pytest.raises(UserError, match=r"There is no run other in .* \(runs there: small\)"):
        RunDirectory(tmp_path, "other").description()


def test_the_images_of_each_set_in_the_runs_precision(tmp_path):
    data = make_data()
    images = begin(tmp_path, data, float_type="float64").images()
    assert list(images) == ["X", "Xv", "Xt"]
    for name, X in zip(images, (data.X, data.Xv, data.Xt), strict=True):
        np.testing.assert_array_equal(images[name], X)
        assert images[name].dtype == np.float64


def test_delete_parts_keeps_the_description_and_the_images(tmp_path):
    data = make_data()
    run = complete(tmp_path, data)
    KeptState(run, "solve_30_0").save({"x": np.zeros(3)})
    run.delete_parts()
    assert {path.name for path in run.folder.glob("*.*")} == {"run.jsonl", "images.h5"}
    assert not run.view_path.exists()
    assert RunDirectory(tmp_path, "small").description() == make_description(data)


def test_a_run_whose_parts_were_deleted_can_be_computed_again(tmp_path):
    data = make_data()
    complete(tmp_path, data).delete_parts()
    run = complete(tmp_path, data)
    run.check_complete()
    np.testing.assert_array_equal(run.parts.read_diagonal("Kxx"), whole(data)["Kx_diag"])


def test_the_fingerprint_depends_on_every_field():
    description = make_description(make_data())
    changed = [
        make_description(make_data(), **{field: value})
        for field, value in {
            "model": "resnet_gp",
            "dataset": "other",
            "data_hash": "0",
            "n_classes": 4,
            "N_train": 22,
            "N_vali": 8,
            "N_test": 6,
            "n_max": 4,
            "float_type": "float32",
            "kernel": {},
            "image_shape": (2,),
        }.items()
    ]
    assert len({d.fingerprint for d in [description, *changed]}) == 12


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_arent_finite_are_refused_when_they_are_read(tmp_path, value):
    run = complete(tmp_path, make_data())
    path = sorted(run.folder.glob("Kxtx_*.h5"))[0]

    def spoil(file):
        file["0/entries"][1, 2] = value

    changed_within(path, spoil)
    with pytest.raises(UserError, match=rf"{path.name} can't be read \(it holds numbers that aren't finite"):
        list(run.parts.read_rows("Kxtx"))
    assert run.parts.missing(verify=True)[1] == {"Kxtx_0000": "it holds a number that isn't finite"}
