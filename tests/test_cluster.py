"""A real Dask cluster on this machine, one of whose workers is killed in the middle."""

import functools
import os
import signal
import threading
import time

import pytest
from small_runs import NumpyEngine, begin, complete, make_data
from test_workers import SIZES, SlowEngine, datasets_of

from cnn_gp.compute import compute_run
from cnn_gp.store import RunDirectory
from cnn_gp.worker import Job

distributed = pytest.importorskip("distributed", reason="Dask isn't installed (the [cluster] extra)")


@pytest.fixture(scope="module")
def client():
    from pathlib import Path

    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        # The workers must find the tests' own modules.
        client.run(lambda path: __import__("sys").path.append(path), str(Path(__file__).parent))
        yield client


def test_a_cluster_gives_the_same_bytes(tmp_path, client):
    complete(tmp_path / "here", make_data(**SIZES))
    begin(tmp_path / "cluster", make_data(**SIZES))
    job = Job(str(tmp_path / "cluster"), "small", SlowEngine)
    assert compute_run(job, cluster=(client.get_executor(), 2))
    assert datasets_of(tmp_path / "cluster") == datasets_of(tmp_path / "here")
    records = RunDirectory(tmp_path / "cluster", "small").provenance()
    assert len({record["pid"] for record in records}) == 2


def test_a_killed_worker_of_the_cluster_loses_only_its_part(tmp_path, client):
    complete(tmp_path / "here", make_data(**SIZES), NumpyEngine())
    run = begin(tmp_path / "cluster", make_data(**SIZES))
    victim = next(iter(client.run(os.getpid).values()))

    def kill():
        while len(list(run.folder.glob("K*.h5"))) < 5:
            time.sleep(0.005)
        os.kill(victim, signal.SIGKILL)

    threading.Thread(target=kill).start()
    job = Job(str(run.workdir), "small", functools.partial(SlowEngine, seconds=0.05))
    assert compute_run(job, cluster=(client.get_executor(), 2))
    assert datasets_of(tmp_path / "cluster") == datasets_of(tmp_path / "here")
    assert not list((run.folder / "claims").iterdir())
