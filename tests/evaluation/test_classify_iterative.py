"""Stage 2 by conjugate gradients that is stopped and begun again."""

import numpy as np
import pytest

from cnn_gp.evaluation.classify import Request, classify
from cnn_gp.evaluation.result_files import ResultFiles
from cnn_gp.regression import conjugate_gradients
from cnn_gp.regression import iterative as module
from cnn_gp.regression.iterative import Iterative
from cnn_gp.store.kept_state import KeptState
from helpers.small_runs import complete, make_data


def alpha(run, folder, noises=(1e-3, 1e-2)):
    files = ResultFiles(folder, "small")
    iterative = Iterative(kept=lambda name: KeptState(run, name))
    request = Request(120, 9, 7, noises=noises)
    return files.read_arrays(classify(run, request, files, "none", lambda text: None, iterative=iterative))["alpha"]


def test_a_solve_that_was_stopped_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    run = complete(tmp_path, make_data(120), n_max=16)
    whole = alpha(run, tmp_path / "whole")
    real, count = conjugate_gradients._step, [0]

    def stop(*arguments):
        count[0] += 1
        if count[0] == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(conjugate_gradients, "_step", stop)
    with pytest.raises(KeyboardInterrupt):
        alpha(run, tmp_path / "stopped")
    (left,) = run.folder.glob("*.state.npz")
    assert left.name == "solve_120_0.0_0.001.state.npz"
    # A solve with another noise neither takes it up nor removes it.
    count[0] = 100
    alpha(run, tmp_path / "other", (1e-1,))
    assert left.exists()
    count[0] = 100
    np.testing.assert_array_equal(alpha(run, tmp_path / "stopped"), whole)
    assert not left.exists()


def test_what_was_solved_before_a_later_step_was_stopped_is_not_solved_again(tmp_path, monkeypatch):
    run = complete(tmp_path, make_data(120), n_max=16)
    whole = alpha(run, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(ResultFiles, "write", lambda *arguments: pytest.fail("stopped"))
        with pytest.raises(pytest.fail.Exception):
            alpha(run, tmp_path / "stopped")
    names = ["solve_120_0.0_0.001.state.npz", "solve_120_0.0_0.01.state.npz"]
    assert sorted(path.name for path in run.folder.glob("*.state.npz")) == names
    monkeypatch.setattr(conjugate_gradients, "_step", lambda *arguments: pytest.fail("a step"))
    np.testing.assert_array_equal(alpha(run, tmp_path / "stopped"), whole)
    assert not list(run.folder.glob("*.state.npz"))


def test_the_errors_are_written_before_the_log_determinant_of_the_best_noise_alone(tmp_path, monkeypatch):
    run = complete(tmp_path, make_data(120), n_max=16)
    files, request = ResultFiles(tmp_path / "results", "small"), Request(120, 9, 7, noises=(1e-3, 1e-2))
    iterative = Iterative(kept=lambda name: KeptState(run, name))
    with monkeypatch.context() as patch:
        patch.setattr(module, "log_determinant", lambda *arguments, **options: pytest.fail("stopped"))
        with pytest.raises(pytest.fail.Exception):
            classify(run, request, files, "none", lambda text: None, iterative=iterative)
    errors = files.read()
    assert np.isnan(errors.log_marginal_likelihood) and request.lacking(errors) == ["log_marginal_likelihood"]
    made = []
    real = module.log_determinant
    monkeypatch.setattr(module, "log_determinant", lambda *some, **options: made.append(1) or real(*some, **options))
    monkeypatch.setattr(conjugate_gradients, "_step", lambda *arguments: pytest.fail("a step"))
    found = classify(
        run, request, files, "none", lambda text: None, seen=files.content(), iterative=Iterative(kept=iterative.kept)
    )
    assert made == [1] and request.lacking(found) == [] and found.test_error == errors.test_error
    exact = classify(run, request, ResultFiles(tmp_path / "exact", "small"), "none", lambda text: None)
    difference = abs(found.log_marginal_likelihood - exact.log_marginal_likelihood)
    assert difference < 3 * found.log_marginal_likelihood_standard_error + 1e-6
    assert not list(run.folder.glob("*.state.npz"))
