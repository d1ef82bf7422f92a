"""What a run says of images unlike its training images: against the formulas, and stopped in the middle."""

import json
from dataclasses import replace

import numpy as np
import pytest

from cnn_gp.errors import UserError
from cnn_gp.evaluation import out_of_distribution as ood
from cnn_gp.evaluation.classify import Request, classify
from cnn_gp.evaluation.metrics import entropy, log_probabilities
from cnn_gp.evaluation.out_of_distribution import OTHER, TEST, Files, Images, OutOfDistribution, Posteriors, detections
from cnn_gp.evaluation.result_files import ResultFiles
from helpers.small_runs import NumpyEngine, complete, make_data

#: Training images of the result; more are stored.
N = 19


@pytest.fixture
def run(tmp_path):
    return complete(tmp_path, make_data())


@pytest.fixture
def result(run, tmp_path):
    files = ResultFiles(tmp_path / "results", "small")
    return classify(run, Request(N, 9, 7, jitter=1e-6, noises=(0.01,)), files, "none", lambda text: None)


@pytest.fixture
def sets(run):
    test, labels = run.images()["Xt"], run.labels()["Yt"]
    rng = np.random.default_rng(1)
    return [
        Images(TEST, TEST, None, test, labels),
        Images("shift_1", "shift", 1.0, test + 1, labels),
        Images("far", OTHER, None, rng.normal(size=(8, 2)) + 2.5, None),
    ]


def posteriors(run, result, tmp_path, engine=None, said=None):
    files = Files(tmp_path / "results", run.name)
    return Posteriors(run, result, files, lambda: engine or NumpyEngine(), (said if said is not None else []).append)


def expected(run, result, X):
    """Log probabilities, posterior variances at the output scale, and over the prior ones."""
    engine, training = NumpyEngine(), run.images()["X"][:N]
    Y = np.where(run.labels()["Y"][:N, None] == np.arange(3), 1.0, -1.0)
    K = engine.matrix(training) + 2 * (result.noise + result.jitter) * np.eye(N)
    K_x = engine.matrix(X, training)
    variances = 2 - np.einsum("ij,ji->i", K_x, np.linalg.solve(K, K_x.T))
    scaled = result.output_scale * variances
    log_p = log_probabilities(K_x @ np.linalg.solve(K, Y), scaled + result.output_scale * 2 * result.noise)
    return log_p, scaled, variances / 2


def auroc(of_test, of_other):
    pairs = of_other[:, None] - of_test[None]
    return np.mean((pairs > 0) + 0.5 * (pairs == 0))


def accuracy(score, right, rejected):
    """Of the images kept, one by one."""
    order = sorted(range(len(score)), key=lambda i: score[i])
    kept = order[: len(score) - rejected * len(score) // 100]
    return 100 * np.mean([right[i] for i in kept])


def test_the_numbers_are_the_formulas(run, result, sets, tmp_path):
    found = detections(posteriors(run, result, tmp_path), sets)
    log_p_test, *of_test = expected(run, result, sets[0].X)
    right_test = log_p_test.argmax(1) == sets[0].labels
    for images, one in zip(sets, found, strict=True):
        log_p, *of_these = expected(run, result, images.X)
        assert (one.name, one.kind, one.strength, one.images) == (
            images.name,
            images.kind,
            images.strength,
            len(images.X),
        )
        assert one.mean_entropy == pytest.approx(-(np.exp(log_p) * log_p).sum(1).mean(), rel=1e-6)
        assert one.mean_variance == pytest.approx(of_these[0].mean(), rel=1e-6)
        if images.kind == TEST:
            assert one.aurocs == (None, None, None)
            assert one.error == pytest.approx(result.test_error)
        else:
            pairs = [(entropy(log_p_test), entropy(log_p)), *zip(of_test, of_these, strict=True)]
            assert one.aurocs == pytest.approx([auroc(*pair) for pair in pairs])
        if images.labels is None:
            assert one.error is one.negative_log_likelihood is one.expected_calibration_error is None
            log_p, right = np.concatenate([log_p_test, log_p]), np.r_[right_test, np.zeros(len(log_p), bool)]
            variances, relative = (np.concatenate(pair) for pair in zip(of_test, of_these, strict=True))
        else:
            right, (variances, relative) = log_p.argmax(1) == images.labels, of_these
            assert one.error == pytest.approx(100 * np.mean(~right))
            assert one.negative_log_likelihood == pytest.approx(-log_p[np.arange(7), images.labels].mean(), rel=1e-6)
        assert [point.rejected for point in one.rejection] == list(range(0, 100, 5))
        for point in one.rejection:
            assert point.accuracy_by_entropy == pytest.approx(accuracy(entropy(log_p), right, point.rejected))
            assert point.accuracy_by_variance == pytest.approx(accuracy(variances, right, point.rejected))
            assert point.accuracy_by_relative_variance == pytest.approx(accuracy(relative, right, point.rejected))


def test_the_files_are_read_back(run, result, sets, tmp_path):
    found = detections(posteriors(run, result, tmp_path), sets)
    whole = OutOfDistribution("made", result.fingerprint, N, result.noise, result.jitter, found, "none", {"numpy": "1"})
    files = Files(tmp_path / "results", "small")
    assert files.read() is None
    files.write(whole)
    assert files.read() == whole
    assert "null" not in files.json_path.read_text()
    assert len(files.csv_path.read_text().splitlines()) == 1 + 3
    assert len(files.rejection_path.read_text().splitlines()) == 1 + 3 * 20
    assert whole.is_of(result) and not whole.is_of(replace(result, noise=0.5))
    header, *rows = ood.table({"small": whole}).header, *ood.table({"small": whole}).rows
    assert [row[1] for row in rows] == ["test", "shift_1", "far"] and all(len(row) == len(header) for row in rows)
    for text in ("", "{", json.dumps({"dataset": "made"})):
        files.json_path.write_text(text)
        with pytest.raises(UserError, match=r"small\.json can't be read \(.*\): move it away and start"):
            files.read()


class Stop(Exception):
    pass


class Stopping(NumpyEngine):
    """Ends in its third call."""

    def entries(self, X, X2=None, progress=None):
        if self.calls == 2:
            raise Stop
        return super().entries(X, X2, progress)


def test_what_was_stopped_goes_on_where_it_was(run, result, sets, tmp_path, monkeypatch):
    whole = detections(posteriors(run, result, tmp_path / "whole"), sets)
    monkeypatch.setattr(ood, "AT_A_TIME", 3)
    assert posteriors(run, result, tmp_path).missing(sets) == (7 + 7 + 8, N * (7 + 8))
    with pytest.raises(Stop):
        detections(posteriors(run, result, tmp_path, Stopping()), sets)
    # Six of the seven shifted images are done.
    assert posteriors(run, result, tmp_path).missing(sets) == (1 + 8, N * (1 + 8))
    engine, said = NumpyEngine(), []
    again = posteriors(run, result, tmp_path, engine, said)
    found = detections(again, sets)
    assert engine.calls == 1 + 3 and "shift_1: 6 of 7 images are done." in said
    for one, before in zip(found, whole, strict=True):
        assert one.aurocs == pytest.approx(before.aurocs) and one.rejection == before.rejection
    # All is there: nothing is factorised.
    engine, said = NumpyEngine(), []
    assert detections(posteriors(run, result, tmp_path, engine, said), sets) == found and not said and not engine.calls
    # Of other images or another solution it isn't.
    sets[2] = replace(sets[2], X=sets[2].X + 0.1)
    assert posteriors(run, result, tmp_path).missing(sets) == (8, N * 8)
    other = replace(result, noise=0.5)
    assert posteriors(run, other, tmp_path).missing(sets) == (7 + 7 + 8, N * (7 + 8))
    # Nor does it take their place.
    detections(posteriors(run, other, tmp_path), sets)
    assert posteriors(run, result, tmp_path).missing(sets[:2]) == (0, 0)
    assert posteriors(run, other, tmp_path).missing(sets) == (0, 0)
