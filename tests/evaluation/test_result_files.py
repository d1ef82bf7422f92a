"""The files of a result: they are read as they were written together, and refused apart."""

import json
import os
import threading
from dataclasses import replace

import numpy as np
import pytest

from cnn_gp.errors import UserError
from cnn_gp.evaluation.result_files import Missing, ResultFiles, read_all
from cnn_gp.npz import npz_bytes
from cnn_gp.store.sealed import Damaged
from cnn_gp.store.transaction import Superseded
from helpers.results import FULL, PLAIN

ARRAYS = {"alpha": np.eye(2)}


def made(folder, result=FULL):
    files = ResultFiles(folder, "made")
    files.write(result, ARRAYS, None)
    return files


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("result", [PLAIN, FULL], ids=["errors", "all"])
def test_a_result_is_written_and_read_back(tmp_path, result):
    files = ResultFiles(tmp_path, "made")
    assert files.read() is None
    files.write(result, ARRAYS, None)
    found = files.read()
    assert found == result
    files.check_settings(found, result.settings)
    files.check_others(found)
    assert read_all(tmp_path) == [result]
    np.testing.assert_array_equal(files.read_arrays(found)["alpha"], np.eye(2))
    others = {"made.csv", "made_predictions.npz"} | ({"made_learning_curve.csv"} if result is FULL else set())
    assert set(found.files) == others
    assert names(tmp_path) == {"made.json"} | others


def test_other_programs_read_the_json(tmp_path):
    files = made(tmp_path)
    values = json.loads(files.json_path.read_text())
    assert values.pop("files").keys() == {"made.csv", "made_predictions.npz", "made_learning_curve.csv"}
    assert len(values.pop("id")) == 32 and len(values.pop("sha256")) == 64
    assert values == json.loads(FULL.to_json())


def test_a_result_without_digests_of_version_0_1_is_read(tmp_path):
    files = ResultFiles(tmp_path, "made")
    files.json_path.write_text(PLAIN.to_json())
    files.arrays_path.write_bytes(npz_bytes(ARRAYS))
    found = files.read()
    assert found == PLAIN and found.files is None
    np.testing.assert_array_equal(files.read_arrays(found)["alpha"], np.eye(2))
    with pytest.raises(Damaged, match=r"made\.csv is missing"):
        files.check_others(found)
    files.csv_path.write_text(PLAIN.to_csv())
    files.check_others(found)


def test_what_isnt_a_result_is_refused_with_the_files_name_and_the_key(tmp_path):
    (tmp_path / "made.json").write_text(json.dumps({"model": "convnet_gp"}))
    with pytest.raises(UserError, match=r"made\.json can't be read \(the key dataset is missing\): move it away"):
        read_all(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe{}", b"[" * 100_000, b""])
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / "made.json").write_bytes(content)
    with pytest.raises(UserError, match=r"made\.json can't be read"):
        read_all(tmp_path)


def test_every_byte_of_the_json_is_verified(tmp_path):
    files = made(tmp_path)
    whole = files.json_path.read_bytes()
    for position in range(len(whole)):
        for bit in (0, 4):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            with pytest.raises(UserError, match=r"made\.json can't be read \("):
                files.parse(bytes(damaged))
    for content in (whole[:-1], whole + b" ", whole + b"\n", whole.replace(b"\n", b"\r\n")):
        with pytest.raises(UserError, match=r"made\.json can't be read \("):
            files.parse(content)


def test_a_result_under_another_name_is_refused(tmp_path):
    made(tmp_path).json_path.rename(tmp_path / "other.json")
    with pytest.raises(UserError, match=r"other\.json can't be read \(it was written under another name\)"):
        read_all(tmp_path)


@pytest.mark.parametrize("name", ["made.csv", "made_predictions.npz", "made_learning_curve.csv"])
def test_files_that_do_not_belong_together_are_refused(tmp_path, name):
    files = made(tmp_path / "a")
    other = replace(FULL, test_error=11.0, learning_curve=FULL.learning_curve[:1])
    ResultFiles(tmp_path / "b", "made").write(other, {"alpha": 2 * np.eye(2)}, None)
    result = files.read()
    (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    with pytest.raises(Damaged, match=f"{name} isn't the file that was written with made.json"):
        files.check_others(result)
    said = f"{name} isn't the file that was written with made.json: start classify_gp.py again with the same flags"
    with pytest.raises(UserError, match=said):
        read_all(tmp_path / "a")
    (tmp_path / "a" / name).unlink()
    with pytest.raises(Missing, match=f"{name} is missing"):
        files.check_others(result)
    # As where only the numbers were kept.
    assert read_all(tmp_path / "a") == [FULL]
    (tmp_path / "a" / name).mkdir()
    with pytest.raises(UserError, match=rf"{name} can't be read \(Is a directory\)"):
        files.check_others(result)


def test_arrays_are_verified_before_they_are_parsed(tmp_path, monkeypatch):
    files = made(tmp_path)
    result = files.read()
    files.arrays_path.write_bytes(npz_bytes({"alpha": 2 * np.eye(2)}))
    monkeypatch.setattr(np, "load", lambda *arguments, **options: pytest.fail("it was parsed"))
    said = r"made_predictions\.npz isn't the file that was written with made\.json: start classify_gp\.py again"
    with pytest.raises(UserError, match=said):
        files.read_arrays(result)


def test_the_solution_is_that_of_the_run(tmp_path):
    files = ResultFiles(tmp_path, "made")
    with pytest.raises(UserError, match=r"There is no .*made\.json: start classify_gp\.py first"):
        files.solution("ab")
    files.write(PLAIN, ARRAYS, None)
    np.testing.assert_array_equal(files.solution("ab"), np.eye(2))
    said = r"computed from another kernel .* \(fingerprint ab, expected cd\): start classify_gp\.py .* --overwrite"
    with pytest.raises(UserError, match=said):
        files.solution("cd")
    files.write(PLAIN, {"alpha": np.array([[np.nan], [1.0]])}, files.content())
    with pytest.raises(UserError, match="has numbers that aren't finite"):
        files.solution("ab")
    files.json_path.write_text(PLAIN.to_json())
    with pytest.raises(UserError, match=r"written by cnn_gp 0\.1, without the SHA-256 .*: start classify_gp\.py again"):
        files.solution("ab")


def test_a_result_of_other_settings_is_named(tmp_path):
    files = made(tmp_path, PLAIN)
    with pytest.raises(UserError, match=r"N_test is 30 there and 7 asked for; noise_asked is \[0\.0, 0\.1\] there and"):
        files.check_settings(files.read(), replace(PLAIN.settings, N_test=7, noise_asked=(0.0,)))


def test_a_result_replaces_only_the_one_that_was_seen(tmp_path):
    files = made(tmp_path)
    first = files.content()
    # The same once more is another writing.
    assert files.write(FULL, ARRAYS, first) != first
    for seen in (first, None):
        with pytest.raises(Superseded, match=r"made\.json was written by another program in the meantime and is kept"):
            files.write(replace(FULL, test_error=1.0), ARRAYS, seen)
    assert files.read() == FULL
    # Without a learning curve, the former one's goes.
    files.write(PLAIN, ARRAYS, files.content())
    assert files.read() == PLAIN and not files.curve_path.exists()


def test_a_commit_that_was_cut_short_is_finished_by_every_reader(tmp_path, monkeypatch):
    """Also where the JSON file isn't there yet."""

    class Killed(BaseException):
        pass

    def kill(*paths):
        raise Killed

    for number, read in enumerate((read_all, lambda folder: [ResultFiles(folder, "made").read()])):
        folder = tmp_path / str(number)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", kill)
            with pytest.raises(Killed):
                made(folder)
        assert "made.json" not in names(folder) and ".made.json.commit" in names(folder)
        assert read(folder) == [FULL]
        assert ".made.json.commit" not in names(folder)


def test_a_folder_in_a_files_place_is_named_before_anything_is_written(tmp_path):
    files = made(tmp_path, PLAIN)
    before = files.content()
    files.csv_path.unlink()
    files.csv_path.mkdir()
    with pytest.raises(UserError, match=r"made\.csv can't be written \(Is a directory\): move this folder away"):
        files.write(FULL, ARRAYS, before)
    assert files.content() == before
    assert not list(tmp_path.glob(".*.staging")) and not list(tmp_path.glob(".*.commit"))


def test_readers_beside_writers_see_whole_results_only(tmp_path):
    """A reader of a result's arrays gets its own, or is told that others have come in their place."""
    files = made(tmp_path)
    stop = threading.Event()
    wrong = []

    def write(error):
        files.write(replace(FULL, test_error=error), {"alpha": np.full((2, 2), error)}, files.content())

    def write_many():
        try:
            for number in range(1, 60):
                write(float(number))
        finally:
            stop.set()

    write(0.0)
    writer = threading.Thread(target=write_many)
    writer.start()
    while not stop.is_set():
        assert files.read_checked() is not None
        assert files.solution("ab").shape == (2, 2)
        result = files.read()
        try:
            alpha = files.read_arrays(result)["alpha"]
        except UserError:
            continue
        if (alpha != result.test_error).any():
            wrong.append((result.test_error, alpha))
    writer.join()
    assert not wrong
    assert files.read_arrays(files.read())["alpha"][0, 0] == files.read().test_error == 59
