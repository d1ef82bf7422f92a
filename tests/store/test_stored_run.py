"""A run from Python: documented arrays, or one line."""

import shutil

import numpy as np
import pytest

import cnn_gp
from cnn_gp import memory
from cnn_gp.errors import UserError
from helpers.small_runs import NumpyEngine, begin, complete, make_data


@pytest.mark.parametrize("float_type", ["float32", "float64"])
def test_all_that_is_stored_comes_as_documented(tmp_path, float_type):
    data = make_data()
    complete(tmp_path, data, float_type=float_type)
    run = cnn_gp.open_run(tmp_path / "small")
    images = {"X": data.X, "Xv": data.Xv, "Xt": data.Xt}
    for name, values in images.items():
        np.testing.assert_array_equal(run.images[name], values.astype(float_type), strict=True)
    for name, values in {"Y": data.Y, "Yv": data.Yv, "Yt": data.Yt}.items():
        np.testing.assert_array_equal(run.labels[name], values.astype(np.int64), strict=True)
    X = images["X"].astype(float_type)
    for matrix, name in {"Kxx": "X", "Kxvx": "Xv", "Kxtx": "Xt"}.items():
        expected = NumpyEngine().matrix(images[name].astype(float_type), X)
        np.testing.assert_array_equal(run.matrix(matrix), expected, strict=True)
        np.testing.assert_array_equal(run.diagonal(matrix), np.full(len(expected), 2, float_type), strict=True)
        starts = []
        for start, entries in run.rows(matrix):
            starts.append(start)
            first = start if matrix == "Kxx" else 0
            np.testing.assert_array_equal(entries, expected[start : start + len(entries), first:], strict=True)
        assert starts == list(range(0, len(expected), 5))
    K = run.matrix("Kxx")
    np.testing.assert_array_equal(K, K.T)


def test_a_run_is_found_from_within_its_folder(tmp_path, monkeypatch):
    complete(tmp_path, make_data())
    monkeypatch.chdir(tmp_path / "small")
    assert cnn_gp.open_run(".").matrix("Kxtx").shape == (7, 23)


def test_what_is_no_finished_run_is_one_line(tmp_path):
    for path, said in {
        tmp_path / "other": "There is no run other in",
        tmp_path / "small.h5": r"small.h5 is the name of a run's view; expected the run's folder: .*/small\.",
        tmp_path / "small": "is incomplete: 9 of 9 parts are missing",
    }.items():
        run = begin(tmp_path, make_data())
        with pytest.raises(UserError, match=said):
            cnn_gp.open_run(path)
        shutil.rmtree(run.folder)


def test_what_is_damaged_is_one_line_and_never_read(tmp_path):
    complete(tmp_path, make_data())
    run = cnn_gp.open_run(tmp_path / "small")
    for path in (tmp_path / "small").glob("*.h5"):
        whole = path.read_bytes()
        content = bytearray(whole)
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        reads = {"Kxx": lambda: run.matrix("Kxx"), "Kxv": lambda: run.matrix("Kxvx"), "Kxt": lambda: run.matrix("Kxtx")}
        with pytest.raises(UserError, match=f"{path.name} (can't be read|is damaged) .its SHA-256 is wrong"):
            reads.get(path.name[:3], lambda: run.images)()
        path.write_bytes(whole)
    assert run.matrix("Kxx").shape == (23, 23)


def test_other_matrices_and_those_that_do_not_fit_are_one_line(tmp_path, monkeypatch):
    complete(tmp_path, make_data())
    run = cnn_gp.open_run(tmp_path / "small")
    for read in (run.matrix, run.rows, run.diagonal):
        with pytest.raises(UserError, match="The matrix is 'Kx'; expected one of Kxx, Kxvx, Kxtx"):
            read("Kx")
    monkeypatch.setattr(memory, "available", lambda: 23 * 23 * 8 - 1)
    with pytest.raises(
        UserError, match=r"Kxx, 23 x 23 entries, needs 0.0 GB .* available: read it row by row, with rows"
    ):
        run.matrix("Kxx")
    assert run.matrix("Kxtx").shape == (7, 23)
