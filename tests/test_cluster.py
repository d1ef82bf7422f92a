"""A real Dask cluster on this machine, one of whose workers is killed in the middle."""

import contextlib
import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest

from cnn_gp import cluster
from cnn_gp.cluster import Cluster
from cnn_gp.compute.scheduler import compute_run
from cnn_gp.errors import UserError
from cnn_gp.regression.ensemble import ensemble_variances
from cnn_gp.regression.ensemble_scale import ensemble_output_scale
from cnn_gp.regression.iterative import Iterative
from cnn_gp.regression.learning_curve import learning_curve
from cnn_gp.regression.leave_one_out import leave_one_out
from cnn_gp.regression.lower_triangle import LowerTriangle
from cnn_gp.regression.memory_needs import check_memory
from cnn_gp.regression.predict import ValidationKernel, posterior_variances
from cnn_gp.regression.solve import solve, targets
from cnn_gp.store.run_directory import RunDirectory
from helpers.dask_cluster import ENVIRONMENT, local_client
from helpers.matrices import SlowGram, bytes_of, in_memory, stored
from helpers.small_runs import NumpyEngine, begin, complete, job_of, make_data
from helpers.waiting import PATIENCE, wait_until
from helpers.workers import SIZES, MeetingEngine, SlowEngine, WatchedEngine, kept_from_ending, watch_progress

pytest.importorskip("dask.array", reason="Dask isn't installed (the [cluster] extra)")
pytest.importorskip("distributed", reason="Dask isn't installed (the [cluster] extra)")

from cnn_gp.regression.dask_cholesky import ClusterFactor


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch):
    monkeypatch.setattr("cnn_gp.regression.dask_cholesky.CHUNK", 6)


@pytest.fixture(scope="module")
def client():
    with local_client(2) as client:
        yield client


def test_the_workers_are_known_while_the_client_looks_at_the_totals(client):
    """It does so every millisecond here; what it keeps of them names no worker."""
    import dask
    import distributed

    with dask.config.set({"distributed.client.scheduler-info-interval": "1ms"}):
        other = distributed.Client(client.scheduler.address, set_as_default=False)
    with other:
        found = [len(cluster.workers_of(other)) for _ in range(200)]
    assert found == [2] * 200
    with pytest.raises(CancelledError, match="the connection to the scheduler is lost"):
        cluster.workers_of(other)


def test_a_cluster_gives_the_same_bytes(tmp_path, client):
    complete(tmp_path / "here", make_data(**SIZES))
    begin(tmp_path / "cluster", make_data(**SIZES))
    engine = functools.partial(MeetingEngine, folder=str(tmp_path / "met"), processes=2)
    job = job_of(RunDirectory(tmp_path / "cluster", "small"), engine)
    assert compute_run(job, cluster=Cluster(client))
    assert bytes_of(tmp_path / "cluster" / "small") == bytes_of(tmp_path / "here" / "small")
    records = RunDirectory(tmp_path / "cluster", "small").parts.provenance()
    assert len({record["pid"] for record in records}) == 2


def test_what_is_computed_of_a_part_is_shown_before_it_is_finished(tmp_path, client, monkeypatch):
    begin(tmp_path, make_data(), n_max=40)
    told = watch_progress(monkeypatch, tmp_path / "seen")
    engine = functools.partial(WatchedEngine, seen=str(tmp_path / "seen"))
    assert compute_run(job_of(RunDirectory(tmp_path, "small"), engine), cluster=Cluster(client))
    assert told[0] in (1, 2) and sum(told) == 23 * 24 // 2 + (9 + 7) * 23


@pytest.mark.parametrize(("N", "from_arrays"), [(23, False), (13, True)])
def test_the_solve_on_a_cluster_equals_the_one_here(tmp_path, client, N, from_arrays):
    data = make_data()
    run = complete(tmp_path, data, n_max=3)
    Kxx, Kxvx, Kxtx = in_memory(run, 3) if from_arrays else stored(run)
    Y = targets(data.Y[:N], 3)
    here, there = solve(Kxx, Y, noise=1e-2), solve(Kxx, Y, noise=1e-2, client=client)
    assert isinstance(there.factor, ClusterFactor) and len(there.factor.bounds) == -(-N // 6)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
    close(there.alpha, here.alpha)
    close(there.log_determinant, here.log_determinant)
    close(there.log_marginal_likelihoods, here.log_marginal_likelihoods)
    close(there.extreme_eigenvalues, here.extreme_eigenvalues, rtol=1e-6)
    assert there.relative_residual < 1e-12
    for kernel, n in ((ValidationKernel(Kxx, Kxvx, N), 5), (Kxtx, 7)):
        close(posterior_variances(kernel, there, n), posterior_variances(kernel, here, n))
        # With the same kernel in place of the Gaussian process's.
        close(*(ensemble_variances(kernel, kernel, Kxx, solution, n) for solution in (there, here)), atol=1e-8)
    close(ensemble_output_scale(Kxx, there), ensemble_output_scale(Kxx, here))
    close(leave_one_out(there, Y).variances, leave_one_out(here, Y).variances)
    curves = [learning_curve(s, Y, [4, 6, 8, N], (Kxvx, data.Yv), (Kxtx, data.Yt)) for s in (there, here)]
    for one, other in zip(*curves, strict=True):
        close(dataclasses.astuple(one), dataclasses.astuple(other))
    with pytest.raises(ValueError, match=f"has 2 rows; expected {N}"):
        there.factor.solve(np.ones((2, 1)))


def test_the_ladder_and_the_memory_on_a_cluster(tmp_path, client, monkeypatch):
    class Indefinite(NumpyEngine):
        def entries(self, X, X2=None, progress=None):
            return 5 - super().entries(X, X2, progress)

    said: list[str] = []
    run = complete(tmp_path, make_data(), Indefinite())
    with pytest.raises(UserError, match="even at relative jitter"):
        solve(stored(run)[0], targets(make_data().Y, 3), say=said.append, client=client)
    assert len(said) == 9
    assert check_memory(stored(run)[0], 23, client) == 2 * LowerTriangle.n_bytes(23)
    monkeypatch.setattr(LowerTriangle, "n_bytes", staticmethod(lambda N: int(1e9) * N**2))
    with pytest.raises(UserError, match=r"the cluster's 2 workers have .* GB: give --solver=cg, --N_train=\d+ or"):
        check_memory(stored(run)[0], 23, client)


def test_a_damaged_part_is_named_by_the_clusters_workers(tmp_path, client):
    run = complete(tmp_path, make_data())
    path = sorted(run.folder.glob("Kxx_*.h5"))[1]
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match=f"{path.name} can't be read"):
        solve(stored(run)[0], targets(make_data().Y, 3), client=client)


def test_a_killed_worker_of_the_cluster_loses_only_its_part(tmp_path, client):
    complete(tmp_path / "here", make_data(**SIZES), NumpyEngine())
    run = begin(tmp_path / "cluster", make_data(**SIZES))
    victim = next(iter(client.run(os.getpid).values()))
    before_the_kill = contextlib.ExitStack()
    before_the_kill.enter_context(kept_from_ending(run, run.description().tiling.parts()))

    def kill():
        with before_the_kill:
            wait_until(lambda: len(list(run.folder.glob("K*.h5"))) >= 5)
            os.kill(victim, signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    job = job_of(run, functools.partial(SlowEngine, seconds=0.05))
    assert compute_run(job, cluster=Cluster(client))
    assert victim not in client.run(os.getpid).values()
    assert bytes_of(tmp_path / "cluster" / "small") == bytes_of(tmp_path / "here" / "small")
    assert not list((run.folder / "claims").iterdir())


# A scheduler of its own, which can be killed -------------------------------------------------------------------------


@pytest.fixture
def start_dask(tmp_path):
    """A function that starts `dask scheduler` or `dask worker`; the scheduler's address is in a file."""
    started = []
    options = {"scheduler": ["--host=127.0.0.1", "--port=0"], "worker": ["--no-nanny", "--nthreads=1"]}
    environment = os.environ | ENVIRONMENT

    def start(what):
        command = [sys.executable, "-m", "dask", what, f"--scheduler-file={tmp_path / 'dask.json'}", "--no-dashboard"]
        with open(tmp_path / f"{what}.log", "w") as log:
            process = subprocess.Popen([*command, *options[what]], stdout=log, stderr=log, env=environment)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def address_of(tmp_path):
    file = tmp_path / "dask.json"
    wait_until(lambda: file.exists() and file.read_text().endswith("}"))
    return json.loads(file.read_text())["address"]


def test_a_killed_scheduler_ends_stage_1_in_one_line_and_the_run_is_resumed(tmp_path, start_dask, capfd):
    complete(tmp_path / "here", make_data(**SIZES), NumpyEngine())
    run = begin(tmp_path / "cluster", make_data(**SIZES))
    scheduler, _ = start_dask("scheduler"), start_dask("worker")

    def kill():
        wait_until(lambda: len(list(run.folder.glob("K*.h5"))) >= 5)
        scheduler.kill()

    threading.Thread(target=kill, daemon=True).start()
    with (
        kept_from_ending(run, run.description().tiling.parts()),
        pytest.raises(UserError, match=r"connection to the Dask scheduler at tcp://127.* is lost: start it"),
        cluster.connect(address_of(tmp_path), run.folder) as at,
    ):
        compute_run(job_of(run, SlowEngine), cluster=at)
    assert "Traceback" not in capfd.readouterr().err
    assert compute_run(job_of(run, SlowEngine))
    assert bytes_of(tmp_path / "cluster" / "small") == bytes_of(tmp_path / "here" / "small")


@pytest.mark.parametrize("iterative", [False, True])
def test_a_killed_scheduler_ends_stage_2_in_one_line(tmp_path, start_dask, capfd, iterative):
    scheduler, _ = start_dask("scheduler"), start_dask("worker")
    began = tmp_path / "began"
    gram = SlowGram(np.eye(23), n_max=3, began=str(began))

    def kill():
        wait_until(began.exists)
        scheduler.kill()

    threading.Thread(target=kill, daemon=True).start()
    with (
        pytest.raises(UserError, match=r"connection to the Dask scheduler at tcp://127.* is lost: start it"),
        cluster.connect(address_of(tmp_path), tmp_path) as at,
    ):
        how = Iterative(client=at.client) if iterative else None
        solve(gram, np.ones((23, 1)), client=at.client, iterative=how)
    assert "Traceback" not in capfd.readouterr().err


def test_a_worker_that_comes_later_gets_parts_too(tmp_path, start_dask):
    """As of a job array, whose jobs begin one after the other."""
    run = begin(tmp_path / "cluster", make_data(**SIZES))
    start_dask("scheduler")
    start_dask("worker")
    met = tmp_path / "met"

    def join():
        wait_until(lambda: met.is_dir() and list(met.iterdir()))
        start_dask("worker")

    threading.Thread(target=join, daemon=True).start()
    # The first worker can't end its first part before the second has one.
    engine = functools.partial(MeetingEngine, folder=str(met), processes=2)
    with cluster.connect(address_of(tmp_path), run.folder) as at:
        assert compute_run(job_of(run, engine), cluster=at)
    assert len({record["pid"] for record in run.parts.provenance()}) == 2


def test_workers_are_waited_for_but_not_for_ever(tmp_path, start_dask, monkeypatch):
    start_dask("scheduler")
    address = address_of(tmp_path)
    monkeypatch.setattr(cluster, "WORKER_TIMEOUT", 0.5)
    with pytest.raises(UserError, match=f"at {address} has no workers, and none came within 0.5 s"):
        cluster.connect(address, tmp_path).__enter__()
    monkeypatch.setattr(cluster, "WORKER_TIMEOUT", PATIENCE)
    late = threading.Timer(1.0, start_dask, ["worker"])
    late.start()
    with cluster.connect(address, tmp_path) as at:
        assert at.n_workers() == 1
    assert not list(tmp_path.glob(".probe*"))


def test_a_scheduler_that_is_not_there_and_a_folder_that_is_gone_are_one_line(tmp_path, client, monkeypatch):
    monkeypatch.setattr(cluster, "SCHEDULER_TIMEOUT", 0.5)
    with pytest.raises(UserError, match=r"There is no Dask scheduler at tcp://127.0.0.1:9"):
        cluster.connect("tcp://127.0.0.1:9", tmp_path).__enter__()
    monkeypatch.setattr(cluster, "SCHEDULER_TIMEOUT", PATIENCE)
    with pytest.raises(UserError, match=r"gone can't be written .No such file"):
        cluster.connect(client.scheduler.address, tmp_path / "gone").__enter__()
