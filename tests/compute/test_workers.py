"""Many workers in one directory."""

import functools
import gc
import multiprocessing
import os
import signal
import time
import weakref
from concurrent.futures import Future, ThreadPoolExecutor, wait

import pytest

from cnn_gp.compute.claims import Claims, claimed
from cnn_gp.compute.scheduler import compute_run, shares
from cnn_gp.compute.worker import compute_part
from cnn_gp.errors import UserError
from cnn_gp.store.run_directory import RunDirectory
from helpers.matrices import bytes_of
from helpers.small_runs import NumpyEngine, begin, compute, job_of, make_data
from helpers.waiting import PATIENCE, wait_until
from helpers.workers import (
    SIZES,
    AlwaysDying,
    DyingEngine,
    MeetingEngine,
    NaNEngine,
    SlowEngine,
    WatchedEngine,
    kept_from_ending,
    start,
    watch_progress,
)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_processes_gives_the_same_bytes(tmp_path, whole, workers):
    begin(tmp_path, make_data(**SIZES))
    job = job_of(RunDirectory(tmp_path, "small"), SlowEngine)
    assert compute_run(job, ["cpu"] * workers)
    assert bytes_of(tmp_path / "small") == whole
    run = RunDirectory(tmp_path, "small")
    assert run.view_path.exists()
    assert len({record["pid"] for record in run.parts.provenance()}) == workers
    assert claimed(run.claims_folder) == {}


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_computed_of_a_part_is_shown_before_it_is_finished(tmp_path, monkeypatch, workers):
    begin(tmp_path, make_data(), n_max=40)
    told = watch_progress(monkeypatch, tmp_path / "seen")
    engine = functools.partial(WatchedEngine, seen=str(tmp_path / "seen"))
    assert compute_run(job_of(RunDirectory(tmp_path, "small"), engine), ["cpu"] * workers)
    # Kxx, Kxvx and Kxtx: each the symmetric half, or all, of 23 columns.
    assert told[0] in range(1, workers + 1) and sum(told) == 23 * 24 // 2 + (9 + 7) * 23


def test_what_a_dead_worker_had_computed_of_its_part_is_counted_once(tmp_path, monkeypatch):
    begin(tmp_path, make_data(**SIZES))
    told = watch_progress(monkeypatch, tmp_path / "seen")
    engine = functools.partial(DyingEngine, marker=str(tmp_path / "died"))
    assert compute_run(job_of(RunDirectory(tmp_path, "small"), engine), ["cpu", "cpu"], say=lambda line: None)
    assert sum(told) == 120 * 121 // 2 + (40 + 30) * 120


def test_a_worker_that_dies_is_reported_and_its_part_is_done_again(tmp_path, whole):
    begin(tmp_path, make_data(**SIZES))
    engine = functools.partial(DyingEngine, marker=str(tmp_path / "died"))
    said = []
    assert compute_run(job_of(RunDirectory(tmp_path, "small"), engine), ["cpu", "cpu"], say=said.append)
    assert len(said) == 1 and "died; its part K" in said[0] and "started again" in said[0]
    assert bytes_of(tmp_path / "small") == whole


def test_workers_that_die_while_they_have_no_part_are_started_again(tmp_path, whole):
    """All that is left is another program's, which one worker after the other looks for."""
    run = begin(tmp_path, make_data(**SIZES))
    parts, said = run.description().tiling.parts(), []
    with ThreadPoolExecutor(1) as program:
        with kept_from_ending(run, parts):
            complete = program.submit(compute_run, job_of(run, SlowEngine), ["cpu", "cpu"], say=said.append)
            wait_until(lambda: len(run.parts.missing()[0]) == 1 or complete.done())
            done = [part for part in parts if part not in run.parts.missing()[0]]
            workers = {record["pid"] for record in run.parts.provenance(done)}
            assert len(workers) == 2
            for pid in workers:
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: len(said) == 2 or complete.done())
        assert complete.result()
    assert all("died" in line and "started again" in line for line in said)
    assert bytes_of(tmp_path / "small") == whole


def test_workers_end_and_other_processes_of_the_program_go_on(tmp_path):
    others = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(PATIENCE,))
    others.start()
    try:
        assert compute_run(job_of(begin(tmp_path, make_data()), SlowEngine), ["cpu", "cpu"])
        others.join(1)
        assert others.is_alive()
        wait_until(lambda: multiprocessing.active_children() == [others])
    finally:
        others.kill()
        others.join()


def test_a_non_finite_entry_in_a_worker_process_is_one_line_that_names_it(tmp_path):
    run = begin(tmp_path, make_data())
    with pytest.raises(UserError, match=r"K\w+ has a non-finite entry at row \d+, column \d+, first in layers\[1\]"):
        compute_run(job_of(RunDirectory(tmp_path, "small"), NaNEngine), ["cpu", "cpu"])
    assert not list(run.folder.glob("K*"))


def test_workers_that_always_die_end_in_one_line(tmp_path):
    begin(tmp_path, make_data())
    said = []
    with pytest.raises(UserError, match=r"All workers died, .* memory: give a lower --batch_size, then start again"):
        compute_run(job_of(RunDirectory(tmp_path, "small"), AlwaysDying), ["cpu", "cpu"], say=said.append)
    assert sum("by the others" in line for line in said) == 1


@pytest.mark.parametrize("n", [2, 4])
def test_programs_in_one_directory_share_the_work_and_all_finish(tmp_path, whole, n):
    begin(tmp_path, make_data(**SIZES))
    # Each has claimed a part when it meets the others.
    engine = functools.partial(MeetingEngine, folder=str(tmp_path / "met"), processes=n)
    processes = [start(tmp_path, engine) for _ in range(n)]
    for process in processes:
        process.join(PATIENCE)
        assert process.exitcode == 0
    assert bytes_of(tmp_path / "small") == whole
    run = RunDirectory(tmp_path, "small")
    records = run.parts.provenance()
    assert {record["pid"] for record in records} == {process.pid for process in processes}
    assert run.view_path.exists() and not list(run.folder.glob(".*"))


def test_shards_of_a_job_array(tmp_path, whole):
    begin(tmp_path, make_data(**SIZES))
    processes = [start(tmp_path, shard=(i, 3)) for i in (1, 2, 3)]
    for process in processes:
        process.join(PATIENCE)
        assert process.exitcode == 0
    assert bytes_of(tmp_path / "small") == whole
    assert (tmp_path / "small.h5").exists()


def test_a_shard_does_not_wait_for_the_others(tmp_path):
    run = begin(tmp_path, make_data(**SIZES))
    theirs = shares(run.description().tiling.parts(), 2)[1][0].name
    Claims(run.claims_folder).take(theirs)
    assert not compute(run, shard=(1, 2))
    assert [part.name for part in run.parts.missing()[0]] == [theirs]
    assert not run.view_path.exists()


def ignored(entries):
    """What a worker tells of the entries that it has computed."""


def test_a_thread_that_comes_while_another_reads_the_images_waits_for_them(tmp_path, monkeypatch):
    """A Dask worker has several threads in one process."""
    run = begin(tmp_path, make_data(**SIZES))
    first, second, *_ = (part.name for part in run.description().tiling.parts())
    engines, late, read = [], [], RunDirectory.images

    def make_engine(device):
        engines.append(NumpyEngine())
        return engines[-1]

    with ThreadPoolExecutor(2) as threads:

        def images(self):
            late.append(threads.submit(compute_part, job_of(run, make_engine), "cpu", second, ignored))
            wait(late, timeout=0.5)
            return read(self)

        monkeypatch.setattr(RunDirectory, "images", images)
        early: Future = threads.submit(compute_part, job_of(run, make_engine), "cpu", first, ignored)
        assert early.result().status == "computed"
        assert [future.result().status for future in late] == ["computed"]
    assert len(engines) == 1


def test_a_process_that_computes_many_runs_keeps_the_engines_of_the_latest(tmp_path):
    engines: list[weakref.ref] = []

    def make_engine(device):
        engine = NumpyEngine()
        engines.append(weakref.ref(engine))
        return engine

    runs = [begin(tmp_path / str(i), make_data(**SIZES)) for i in range(3)]
    names = [part.name for part in runs[0].description().tiling.parts()]
    for run in runs:
        for name in names[:2]:
            assert compute_part(job_of(run, make_engine), "cpu", name, ignored).status == "computed"
    # Runs that two programs compute at a time keep theirs.
    for name in names[2:4]:
        for run in runs[1:]:
            assert compute_part(job_of(run, make_engine), "cpu", name, ignored).status == "computed"
    gc.collect()
    assert [engine() is None for engine in engines] == [True, False, False]
