"""Stage 2 from Python: what is written, and when."""

from dataclasses import replace

import numpy as np
import pytest

from cnn_gp.errors import UserError
from cnn_gp.evaluation import classify
from cnn_gp.evaluation.classify import Request
from cnn_gp.evaluation.result_files import ResultFiles
from cnn_gp.store.transaction import Superseded
from helpers.small_runs import complete, make_data


@pytest.fixture
def run(tmp_path):
    return complete(tmp_path, make_data())


def found(run, files, *, seen=None, **asked):
    request = Request(23, 9, 7, jitter=1e-6, **asked)
    return classify.classify(run, request, files, "none", lambda text: None, seen=seen)


def test_a_solution_that_isnt_finite_is_not_written(run, tmp_path, monkeypatch):
    real = classify.solve
    monkeypatch.setattr(classify, "solve", lambda *a, **o: replace(real(*a, **o), alpha=np.full((23, 3), np.inf)))
    with pytest.raises(
        UserError, match=r"solution for small has numbers that aren't finite, .*: give a larger --jitter"
    ):
        found(run, ResultFiles(tmp_path / "results", "small"))
    assert not (tmp_path / "results").exists()


def test_the_errors_come_first_only_where_no_result_is_there(run, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def stop(*arguments):
        raise Stop

    files = ResultFiles(tmp_path / "results", "small")
    whole = found(run, files, variances=True)
    monkeypatch.setattr(classify, "leave_one_out", stop)
    with pytest.raises(Stop):
        found(run, files, seen=files.content(), leave_one_out=True)
    assert files.read() == whole
    files = ResultFiles(tmp_path / "others", "small")
    with pytest.raises(Stop):
        found(run, files, leave_one_out=True)
    left = files.read()
    assert left.extras == () and (left.test_error, left.settings) == (whole.test_error, whole.settings)
    files.check_others(left)
    assert files.read_arrays(left)["alpha"].shape == (23, 3)


def test_a_result_that_another_program_wrote_in_the_meantime_is_kept(run, tmp_path, monkeypatch):
    files = ResultFiles(tmp_path / "results", "small")
    others = []
    real = classify.solve

    def solve(*arguments, **options):
        if not others:
            others.append(None)
            others[0] = found(run, files, leave_one_out=True)
        return real(*arguments, **options)

    monkeypatch.setattr(classify, "solve", solve)
    with pytest.raises(Superseded, match="was written by another program in the meantime and is kept"):
        found(run, files)
    assert files.read() == others[0]
