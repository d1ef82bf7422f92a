"""The state of a long solve in a run's folder."""

import numpy as np
import pytest

from cnn_gp.errors import UserError
from cnn_gp.store.kept_state import KeptState
from cnn_gp.store.run_directory import RunDirectory
from helpers.small_runs import complete, make_data


def test_what_is_saved_comes_back_until_it_is_removed(tmp_path):
    kept = KeptState(complete(tmp_path, make_data()), "solve")
    assert kept.load() is None
    for factor in (1, 2):
        kept.save({"X": factor * np.arange(6.0).reshape(2, 3), "n": np.array(factor)})
    there = kept.load()
    np.testing.assert_array_equal(there["X"], 2 * np.arange(6.0).reshape(2, 3))
    assert int(there["n"]) == 2 and set(there) == {"X", "n"}
    kept.remove()
    kept.remove()
    assert kept.load() is None and not list(tmp_path.rglob("*.state.npz"))


def test_a_state_that_is_damaged_of_another_solve_or_run_does_not_count(tmp_path):
    run = complete(tmp_path / "one", make_data())
    kept = KeptState(run, "solve")
    kept.save({"X": np.ones(5)})
    path = run.folder / "solve.state.npz"
    (run.folder / "other.state.npz").write_bytes(path.read_bytes())
    assert KeptState(run, "other").load() is None
    other = complete(tmp_path / "two", make_data(seed=1))
    (RunDirectory(tmp_path / "two", "small").folder / "solve.state.npz").write_bytes(path.read_bytes())
    assert KeptState(other, "solve").load() is None
    damaged = bytearray(path.read_bytes())
    damaged[100] ^= 1
    path.write_bytes(damaged)
    assert kept.load() is None


def test_a_state_that_the_disk_cannot_read_is_not_written_over(tmp_path, monkeypatch):
    kept = KeptState(complete(tmp_path, make_data()), "solve")
    kept.save({"X": np.ones(5)})

    def fails(*arguments):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("cnn_gp.store.run_folder.read_sealed", fails)
        with pytest.raises(UserError, match=r"solve.state.npz can't be read \(Input/output error\)"):
            kept.load()
    np.testing.assert_array_equal(kept.load()["X"], np.ones(5))
