"""Runs that were begun twice, begun anew or deleted while other programs worked for them."""

import dataclasses
import shutil
import threading

import numpy as np
import pytest

from cnn_gp.compute.worker import Worker, compute_part
from cnn_gp.errors import UserError
from cnn_gp.store.kept_state import KeptState
from cnn_gp.store.run_directory import RunDirectory
from helpers.matrices import bytes_of
from helpers.small_runs import NumpyEngine, begin, complete, compute, job_of, make_data, make_description


def test_of_many_that_begin_different_runs_at_once_one_begins(tmp_path):
    data = make_data()
    for attempt in range(20):
        barrier = threading.Barrier(6)
        begun, refused = [], []

        def start(model, attempt=attempt, barrier=barrier, begun=begun, refused=refused):
            description = make_description(data, model=model)
            barrier.wait()
            try:
                RunDirectory(tmp_path, f"run_{attempt}").begin(description, data)
                begun.append(model)
            except UserError as error:
                assert "holds another run (model is" in str(error)
                refused.append(model)

        threads = [threading.Thread(target=start, args=(f"m{i % 3}",)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(begun)) == 1 and len(begun) == 2 and len(refused) == 4
        assert RunDirectory(tmp_path, f"run_{attempt}").description().model == begun[0]


def test_a_worker_of_another_kernel_than_the_runs_is_refused(tmp_path):
    """As a program that lost the race to begin a run: its engine computes another kernel than the run's."""
    run = begin(tmp_path, make_data())
    job = job_of(run, lambda device: NumpyEngine())
    with pytest.raises(UserError, match="was deleted and begun by another program meanwhile"):
        Worker(dataclasses.replace(job, run_id="0" * 32), "cpu")


def test_a_process_that_stays_computes_a_run_that_was_begun_anew(tmp_path):
    """As a Dask worker does, which keeps its engine from one part to the next."""
    for changes in ({}, {}, {"model": "resnet_gp"}):
        run = begin(tmp_path, make_data(), **changes)
        assert compute_part(job_of(run, lambda device: NumpyEngine()), "cpu", "Kxx_0000", print).status == "computed"
        shutil.rmtree(run.folder)


def test_a_worker_of_a_run_that_was_begun_anew_writes_nothing(tmp_path):
    data = make_data()
    run = begin(tmp_path, data)
    forgotten = Worker(job_of(run, lambda device: NumpyEngine()), "cpu")
    shutil.rmtree(run.folder)
    with pytest.raises(UserError, match="was deleted or begun anew while"):
        forgotten.compute("Kxx_0000")
    for changes in ({}, {"model": "resnet_gp"}):
        successor = complete(tmp_path, data, **changes)
        expected = bytes_of(successor.folder)
        (successor.folder / "Kxx_0000.h5").unlink()
        with pytest.raises(UserError, match="was deleted or begun anew while"):
            forgotten.compute("Kxx_0000")
        compute(successor)
        assert bytes_of(successor.folder) == expected
        shutil.rmtree(run.folder)


def test_a_worker_of_a_run_whose_tiles_were_deleted_puts_none_back(tmp_path):
    run = complete(tmp_path, make_data())
    worker = Worker(job_of(run, lambda device: NumpyEngine()), "cpu")
    RunDirectory(tmp_path, "small").delete_parts()
    with pytest.raises(UserError, match="was deleted or begun anew while"):
        worker.compute("Kxx_0000")
    assert not list(run.folder.glob("K*"))


def test_a_run_that_was_begun_anew_keeps_its_tiles_from_who_deletes_the_old_ones(tmp_path):
    """As --nokeep_tiles at the end of hours."""
    data = make_data()
    old = complete(tmp_path, data)
    shutil.rmtree(old.folder)
    successor = complete(tmp_path, data, model="resnet_gp")
    expected = bytes_of(successor.folder)
    with pytest.raises(UserError, match="was deleted or begun anew while"):
        old.delete_parts()
    assert bytes_of(successor.folder) == expected and successor.view_path.exists()


def test_a_worker_of_a_deleted_run_makes_no_folder(tmp_path):
    run = begin(tmp_path, make_data())
    job = job_of(run, lambda device: NumpyEngine())
    shutil.rmtree(run.folder)
    with pytest.raises(UserError, match="There is no run small"):
        Worker(job, "cpu")
    assert not run.folder.exists()


def test_with_the_tiles_all_that_was_kept_on_their_way_is_deleted(tmp_path):
    run = complete(tmp_path, make_data())
    part = run.description().tiling.parts()[0]
    row = part.rows[0]
    run.kept_rows.keep(part, row, np.ones(row.shape), None, "numpy")
    KeptState(run, "solve_of_something").save({"X": np.ones(3)})
    (run.claims_folder / f"{part.name}.claim").touch()
    run.delete_parts()
    assert {path.name for path in run.folder.iterdir()} == {"run.jsonl", "images.h5"}
