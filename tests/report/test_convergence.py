"""Samples of finite networks: resumed, refused, and what is said of them."""

import csv
import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from cnn_gp import DeepKernel, ExReLU, NTKKernel, build_kernel, load
from cnn_gp.errors import UserError
from cnn_gp.report import convergence
from cnn_gp.report.convergence import Plan, Samples, summary
from cnn_gp.report.convergence_study import Study, converge
from helpers.scripts import refused, script

KERNEL = DeepKernel([1, 5, 5], [3, 3], ExReLU(), 2.0, 0.5)
X = np.random.default_rng(0).random((4, 25)).astype(np.float32)


def plan(**changes):
    return Plan(**{**DATA, "width": 6, "n_images": 4, "all_images": 30, "draws": 70, **changes})


DATA = {"kernel": KERNEL.describe(), "data_hash": "made"}


def test_moments_and_errors_are_those_of_the_networks(tmp_path):
    samples = Samples(tmp_path / "s.npz", plan())
    counted: list[int] = []
    samples.draw(KERNEL, X, counted.append)
    assert samples.done and sum(counted) == 70 and samples.n_all == 30
    # The same networks drawn by hand: a batch's seed is its first network's number.
    f = KERNEL.network.finite(6, [1, 5, 5], draws=30, seed=0)(X).numpy()[:, :, 0].astype(np.float64)
    rest = KERNEL.network.finite(6, [1, 5, 5], draws=40, seed=30)(X[:1]).numpy()[:, 0, 0]
    np.testing.assert_allclose(samples.outputs, np.concatenate([f[:, 0], rest]), rtol=1e-5)
    products = f[:, :, None] * f[:, None, :]
    np.testing.assert_allclose(samples.covariance, products.mean(0), rtol=1e-6)
    np.testing.assert_allclose(samples.standard_error, products.std(0) / np.sqrt(29), rtol=1e-6)


def test_a_file_of_other_arrays_is_refused(tmp_path):
    np.savez(tmp_path / "s.npz", plan="{}", outputs=X)
    with pytest.raises(UserError, match="has no moments, n_all, squares, so it holds no samples: delete it"):
        Samples(tmp_path / "s.npz", plan())


def test_tangent_kernels_are_those_of_the_networks(tmp_path):
    kernel = NTKKernel(KERNEL.network, KERNEL.input_shape)
    samples = Samples(tmp_path / "s.npz", plan(kernel=kernel.describe(), all_images=20, draws=30))
    samples.draw(kernel, X, lambda n: None)
    theta = KERNEL.network.finite(6, [1, 5, 5], draws=20, seed=0).ntk(X).numpy().astype(np.float64)
    rest = KERNEL.network.finite(6, [1, 5, 5], draws=10, seed=20).ntk(X[:1]).numpy().ravel()
    np.testing.assert_allclose(samples.outputs, np.concatenate([theta[:, 0, 0], rest]), rtol=1e-5)
    np.testing.assert_allclose(samples.covariance, theta.mean(0), rtol=1e-5)
    np.testing.assert_allclose(samples.standard_error, theta.std(0) / np.sqrt(19), rtol=1e-4)
    limit = np.array(kernel(X.astype(np.float64)))
    found = summary(samples, limit)
    ratio = np.concatenate([theta[:, 0, 0], rest]) / limit[0, 0]
    assert found.mean == pytest.approx(ratio.mean(), rel=1e-5)
    assert found.standard_deviation == pytest.approx(ratio.std(ddof=1), rel=1e-5)
    assert "one network's by" in found.in_words()


def test_a_stop_loses_one_batch_and_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(convergence, "_batch", lambda *sizes: 8)
    whole = Samples(tmp_path / "whole.npz", plan())
    whole.draw(KERNEL, X, lambda n: None)

    class Stop(Exception):
        pass

    def stop(n):
        raise Stop

    # Killed after every batch.
    for first in (8, 16, 24, 30, 38):
        samples = Samples(tmp_path / "cut.npz", plan())
        with pytest.raises(Stop):
            samples.draw(KERNEL, X, stop)
        assert len(samples.outputs) == first
    samples = Samples(tmp_path / "cut.npz", plan())
    samples.draw(KERNEL, X, lambda n: None)
    np.testing.assert_array_equal(samples.outputs, whole.outputs)
    np.testing.assert_array_equal(samples.moments, whole.moments)
    np.testing.assert_array_equal(samples.squares, whole.squares)
    # Finished: nothing is drawn again.
    Samples(tmp_path / "cut.npz", plan()).draw(KERNEL, X, lambda n: pytest.fail("drawn again"))


def test_other_samples_and_damage_are_refused(tmp_path):
    path = tmp_path / "s.npz"
    Samples(path, plan(draws=40)).draw(KERNEL, X, lambda n: None)
    for changes, said in (
        ({"draws": 39}, "draws is 40 there, 39 asked for"),
        # Ten were evaluated at the first image only.
        ({"all_images": 35}, "all_images is 30 there, 35 asked for"),
        ({"width": 7}, "width is 6 there, 7 asked for"),
    ):
        with pytest.raises(UserError, match=said):
            Samples(path, plan(**{"draws": 40, **changes}))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"can't be read .*: delete it"):
        Samples(path, plan(draws=30))


def test_more_can_be_drawn_than_once_was_asked_for(tmp_path):
    whole = Samples(tmp_path / "whole.npz", plan())
    whole.draw(KERNEL, X, lambda n: None)
    path = tmp_path / "raised.npz"
    for changes in ({"all_images": 10, "draws": 10}, {"draws": 30}, {}):
        Samples(path, plan(**changes)).draw(KERNEL, X, lambda n: None)
    raised = Samples(path, plan())
    assert raised.done and raised.n_all == 30 and len(raised.outputs) == 70
    # From here on the batches are the same.
    np.testing.assert_array_equal(raised.outputs[30:], whole.outputs[30:])
    assert len(np.unique(raised.outputs)) == 70


def test_the_summary_by_hand(tmp_path):
    samples = Samples(tmp_path / "s.npz", plan(n_images=2))
    samples.outputs = np.array([3.0, -3.0, 3.0, -3.0], np.float32)
    samples.n_all = 2
    samples.moments = 2 * np.array([[8.0, 3.0], [3.0, 4.0]])
    samples.squares = 2 * np.array([[64.0 + 1, 9.0], [9.0, 16.0]])
    found = summary(samples, np.array([[4.0, 2.0], [2.0, 4.0]]))
    assert found.variance == pytest.approx(9 / 4) and found.variance_standard_error == 0
    assert found.rms_deviation == pytest.approx(np.sqrt((1 + 0.25 + 0) / 3))
    assert found.rms_monte_carlo_error == pytest.approx(np.sqrt(1 / 16 / 3))
    assert found.excess_kurtosis == pytest.approx(-2)
    assert 0.4 < found.ks_distance < 0.5
    samples.outputs = np.array([3.0, 1.0, 3.0, 1.0], np.float32)
    found = summary(samples, np.eye(2))
    assert (found.variance, found.variance_standard_error) == (pytest.approx(5), pytest.approx(4 / 3**0.5))


def test_a_study_evaluates_fewer_wide_networks_at_all_images():
    study = Study("made", X, (10, 11), draws=70, wide_draws=30)
    plans = [study.plan(KERNEL, width) for width in study.widths]
    assert [(p.width, p.n_images, p.all_images, p.draws) for p in plans] == [(10, 4, 70, 70), (11, 4, 30, 70)]
    assert replace(study, wide_draws=80).plan(KERNEL, 11).all_images == 70
    assert {p.data_hash for p in plans} == {hashlib.sha256(X.tobytes()).hexdigest()}


def test_a_study_is_gone_on_with_and_returns_what_it_writes(tmp_path):
    study, lines = Study("made", X, (3,), draws=20, wide_draws=20), []
    first = converge(study, "net", KERNEL, tmp_path, "a command", lines.append)
    again = converge(study, "net", KERNEL, tmp_path, "a command", lines.append)
    assert first == again and [s.width for s in first] == [3]
    assert lines[0].endswith("0 of 20 networks are there.") and lines[3].endswith("20 of 20 networks are there.")
    record = json.loads((tmp_path / "net.json").read_text())
    assert record["widths"] == [vars(first[0])] and record["kernel"] == KERNEL.describe()
    line = ",".join(f"{value:.6g}" for value in vars(first[0]).values())
    assert (tmp_path / "net.csv").read_bytes().decode().split("\r\n") == [",".join(vars(first[0])), line, ""]


def test_the_script(tmp_path):
    flags = [f"--path={tmp_path}", "--models=convnet_gp", "--widths=3,5", "--draws=30", "--wide_draws=10"]
    process = script("plot_convergence", *flags, "--n_images=5")
    assert process.status == 0, process.stderr
    assert "convnet_gp, width 5: second moments off by" in process.stdout
    ends = (".png", ".svg", ".csv", ".json", "_width_3.npz", "_width_5.npz")
    assert {path.name for path in tmp_path.iterdir()} == {f"convnet_gp{end}" for end in ends}
    with open(tmp_path / "convnet_gp.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["width"] for row in rows] == ["3", "5"]
    assert all(row["networks"] == row["networks_at_all_images"] == "30" for row in rows)
    record = json.loads((tmp_path / "convnet_gp.json").read_text())
    assert [f"{of_width['variance']:.6g}" for of_width in record["widths"]] == [row["variance"] for row in rows]
    assert record["command"].startswith("python scripts/plot_convergence.py") and "--widths=3,5" in record["command"]
    assert record["versions"]["processor"] and record["dataset"] == "digits"
    refused(script("plot_convergence", *flags, "--n_images=6"), "holds other samples")
    refused(script("plot_convergence", f"--path={tmp_path}", "--widths=3,x"), "--widths is 3,x")
    refused(script("plot_convergence", f"--path={tmp_path}", "--models=random"), "--models has 'random'")
    refused(script("plot_convergence", f"--path={tmp_path}", "--pool=big"), "--pool is 'big'; expected none, global")


def test_a_pooled_network_beside_its_limit(tmp_path):
    flags = [f"--path={tmp_path}", "--models=convnet_gp", "--pool=2", "--widths=4", "--draws=20", "--n_images=4"]
    process = script("plot_convergence", *flags)
    assert process.status == 0, process.stderr
    assert "convnet_gp_pool_2, width 4: second moments off by" in process.stdout
    record = json.loads((tmp_path / "convnet_gp_pool_2.json").read_text())
    kernel = build_kernel("convnet_gp", [1, 8, 8], pool=2)
    assert record["kernel"] == kernel.describe() != build_kernel("convnet_gp", [1, 8, 8]).describe()
    # The networks are pooled too: with the variance at the first image goes the limit that it is relative to.
    X = load("digits", N_train=4, N_vali=1, N_test=1).X
    f = kernel.network.finite(4, [1, 8, 8], draws=20)(X[:1]).numpy().ravel().astype(np.float64)
    expected = np.mean(f**2) / float(kernel(X[:1].astype(np.float64))[0, 0])
    assert record["widths"][0]["variance"] == pytest.approx(expected, rel=1e-3)


def test_tangent_kernels_beside_their_limit(tmp_path):
    flags = [f"--path={tmp_path}", "--models=convnet_gp", "--kernel=ntk", "--widths=4,8", "--draws=6", "--n_images=3"]
    process = script("plot_convergence", *flags)
    assert process.status == 0, process.stderr
    assert "convnet_gp_ntk, width 8: mean tangent kernel off by" in process.stdout
    record = json.loads((tmp_path / "convnet_gp_ntk.json").read_text())
    assert set(record["widths"][0]) >= {"rms_deviation", "mean", "standard_deviation"}
    assert (tmp_path / "convnet_gp_ntk.png").stat().st_size > 10_000
