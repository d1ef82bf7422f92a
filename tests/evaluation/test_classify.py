"""Stage 2 from Python: what is written, and when."""

from dataclasses import replace

import numpy as np
import pytest

from cnn_gp.errors import UserError
from cnn_gp.evaluation import classify, extras
from cnn_gp.evaluation.classify import Request
from cnn_gp.evaluation.metrics import output_scale
from cnn_gp.evaluation.result_files import ResultFiles
from cnn_gp.evaluation.results import LeaveOneOutScores
from cnn_gp.regression.leave_one_out import leave_one_out
from cnn_gp.regression.predict import error_percent
from cnn_gp.regression.solve import solve, targets
from cnn_gp.store.transaction import Superseded
from helpers.matrices import stored
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
    monkeypatch.setattr(extras, "leave_one_out", stop)
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


def test_leave_one_out_chooses_the_noise(run, tmp_path, monkeypatch):
    noises = (0.0, 1e-3, 0.1, 1.0)
    labels = run.labels()["Y"]
    Y = targets(labels, 3)
    expected = {}
    for noise in noises:
        solution = solve(stored(run)[0], Y, 1e-6, noise)
        left_out = leave_one_out(solution, Y)
        density = left_out.log_predictive_density(Y, output_scale(Y, solution.alpha))
        expected[noise] = LeaveOneOutScores(error_percent(left_out.means, labels), pytest.approx(density, rel=1e-9))
    files = ResultFiles(tmp_path / "results", "small")
    result = found(run, files, noises=noises, noise_by="loo")
    assert {tried.noise: tried.leave_one_out for tried in result.noise_search} == expected
    densities = {tried.noise: tried.leave_one_out.log_predictive_density for tried in result.noise_search}
    assert result.noise == max(densities, key=densities.get) and result.leave_one_out is None
    assert files.read() == result and result.settings.noise_by == "loo"
    by_validation = found(run, ResultFiles(tmp_path / "validation", "small"), noises=noises)
    assert all(tried.leave_one_out is None for tried in by_validation.noise_search)
    # Another noise than the validation images choose, and its solution.
    assert by_validation.noise != result.noise
    alone = ResultFiles(tmp_path / "alone", "small")
    assert found(run, alone, noises=(result.noise,)).validation_error == result.validation_error
    for name, array in alone.read_arrays(alone.read()).items():
        np.testing.assert_array_equal(array, files.read_arrays(result)[name])
    # What chose it isn't computed again.
    calls = []
    real = extras.leave_one_out
    monkeypatch.setattr(extras, "leave_one_out", lambda *a: calls.append(a) or real(*a))
    again = found(run, files, seen=files.content(), noises=noises, noise_by="loo", leave_one_out=True)
    assert again.leave_one_out == expected[result.noise] and len(calls) == len(noises)


def test_leave_one_out_chooses_among_several():
    with pytest.raises(
        UserError, match=r"--noise_by=loo chooses among several noises, and --noise is 0\.1: give several"
    ):
        Request(23, 9, 7, noises=(0.1,), noise_by="loo")


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_class_probability_is_that_its_noisy_target_is_the_largest(run, tmp_path, noise):
    """By drawing targets, the latent values and the noise, at the output scale."""
    files = ResultFiles(tmp_path / "results", "small")
    result = found(run, files, noises=(noise,), variances=True)
    arrays = files.read_arrays(result)
    # The kernel's diagonal is 2.
    variances = result.output_scale * (arrays["variances_test"] + 2 * noise)
    drawn = np.random.default_rng(0).normal(arrays["test"], np.sqrt(variances)[:, None], size=(40_000, 7, 3))
    shares = (drawn.argmax(axis=-1)[..., None] == np.arange(3)).mean(axis=0)
    np.testing.assert_allclose(np.exp(arrays["log_probabilities_test"]), shares, atol=0.01)
