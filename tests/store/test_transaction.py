"""Files that belong together: killed at any moment they are all of before, or all of after."""

import os
import threading

import pytest

from cnn_gp.errors import UserError
from cnn_gp.store import transaction
from cnn_gp.store.transaction import Superseded, commit_together, finish

BEFORE = {"r.json": b"old", "r.csv": b"old", "r_curve.csv": b"old"}
AFTER = {"r.json": b"new", "r.csv": b"new", "r.npz": b"new"}


class Killed(BaseException):
    """Ends everything, as a kill does: nothing is tidied up on the way."""


def contents(folder):
    finish(folder, "r.json")
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def begin(folder):
    commit_together(folder, "r.json", BEFORE, seen=None)
    assert contents(folder) == BEFORE


def test_files_appear_together_and_those_of_before_go(tmp_path):
    begin(tmp_path / "results")
    commit_together(tmp_path / "results", "r.json", AFTER, seen=b"old", remove=["r_curve.csv"])
    assert contents(tmp_path / "results") == AFTER
    assert {path.name for path in (tmp_path / "results").iterdir()} == set(AFTER)


def test_killed_before_each_operation_they_are_all_old_or_all_new(tmp_path, monkeypatch):
    """Every call of the operating system that changes something is in turn the one before which the process ends."""
    seen = []
    for stop in range(100):
        folder = tmp_path / str(stop)
        begin(folder)
        calls = 0

        def killing(real, stop=stop):
            def call(*arguments, **options):
                nonlocal calls
                if calls >= stop:
                    raise Killed
                calls += 1
                return real(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            for name in ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync"):
                patch.setattr(os, name, killing(getattr(os, name)))
            # What is tidied up while an exception passes isn't after a kill.
            patch.setattr(transaction.shutil, "rmtree", lambda *arguments, **options: None)
            try:
                commit_together(folder, "r.json", AFTER, seen=b"old", remove=["r_curve.csv"])
                finished = True
            except Killed:
                finished = False
        found = contents(folder)
        assert found in (BEFORE, AFTER), stop
        seen.append(found)
        if finished:
            break
        # Whoever comes next goes on.
        commit_together(folder, "r.json", {**AFTER, "r.json": b"newer"}, seen=found["r.json"], remove=["r_curve.csv"])
        assert contents(folder) == {**AFTER, "r.json": b"newer"}
    assert finished and stop > 10
    assert seen == sorted(seen, key=lambda found: found == AFTER) and BEFORE in seen


def test_of_two_writers_one_is_told(tmp_path):
    begin(tmp_path)
    commit_together(tmp_path, "r.json", {"r.json": b"other"}, seen=b"old")
    with pytest.raises(Superseded):
        commit_together(tmp_path, "r.json", AFTER, seen=b"old")
    assert contents(tmp_path) == {**BEFORE, "r.json": b"other"}


def test_many_writers_at_once_leave_one_ones_files(tmp_path):
    def write(number):
        own = dict.fromkeys(AFTER, b"%d" % number)
        for _ in range(50):
            try:
                finish(tmp_path, "r.json")
                root = tmp_path / "r.json"
                commit_together(tmp_path, "r.json", own, seen=root.read_bytes() if root.exists() else None)
            except (Superseded, FileNotFoundError):
                continue

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = contents(tmp_path)
    assert set(found) == set(AFTER) and len(set(found.values())) == 1
    assert {path.name for path in tmp_path.iterdir()} == set(AFTER)


def test_what_cannot_be_written_changes_nothing(tmp_path, monkeypatch):
    begin(tmp_path)

    def full(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"r\.json can't be written \(No space left on device\): free some"):
            commit_together(tmp_path, "r.json", AFTER, seen=b"old")
    assert contents(tmp_path) == BEFORE
    assert not list(tmp_path.glob(".*staging"))
