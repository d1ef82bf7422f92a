"""Processes killed or interrupted at any moment, and full disks: what is lost, and that the rest goes on."""

import math
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from cnn_gp.compute.claims import claimed
from cnn_gp.compute.scheduler import compute_run, in_order
from cnn_gp.compute.status import status
from cnn_gp.store import atomic
from cnn_gp.store.run_directory import RunDirectory
from cnn_gp.store.tiling import Tiling
from helpers.matrices import bytes_of
from helpers.paths import ROOT, TESTS
from helpers.small_runs import NumpyEngine, begin, compute, job_of, make_data
from helpers.waiting import PATIENCE, wait_until
from helpers.workers import SIZES, kept_from_ending, start


def kill_and_resume(path, whole, n_parts, delay=0.0):
    """kill -9 a while after some parts are finished, then finish; what was finished isn't computed again."""
    run = RunDirectory(path, "small")
    with kept_from_ending(run, run.description().tiling.parts()):
        process = start(path)
        wait_until(lambda: len(list(run.folder.glob("K*.h5"))) >= n_parts or not process.is_alive())
        time.sleep(delay)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    finished = {file: file.stat().st_mtime_ns for file in run.folder.glob("K*.h5")}
    assert n_parts <= len(finished) < 38
    compute(run)
    assert {file: file.stat().st_mtime_ns for file in finished} == finished
    assert bytes_of(run.folder) == whole
    assert not list(run.folder.glob(".*")) and claimed(run.claims_folder) == {}


def test_killed_once_and_resumed_is_byte_equal(tmp_path, whole):
    begin(tmp_path, make_data(**SIZES))
    kill_and_resume(tmp_path, whole, n_parts=5)


@pytest.mark.long
def test_killed_at_twenty_random_moments_and_resumed_is_byte_equal(tmp_path, whole):
    moments = random.Random(0)
    for i in range(20):
        begin(tmp_path / str(i), make_data(**SIZES))
        kill_and_resume(tmp_path / str(i), whole, n_parts=moments.randrange(38), delay=moments.uniform(0, 0.05))


def test_a_kill_in_a_part_of_many_rows_loses_one_row(tmp_path, monkeypatch):
    """Parts of 32 rows of tiles: the rows finished before the kill are put aside and used."""
    monkeypatch.setattr("cnn_gp.store.tiling.MAX_PARTS", 6)

    class Dying(NumpyEngine):
        def entries(self, X, X2=None, progress=None):
            if self.calls == 15:
                raise KeyboardInterrupt
            return super().entries(X, X2, progress)

    run = begin(tmp_path, make_data(**SIZES), n_max=2)
    first = in_order(run.description().tiling.parts())[0]
    assert len(first.rows) > 15 and first.name == "Kxx_0000"
    with pytest.raises(KeyboardInterrupt):
        compute(run, Dying())
    # A row of Kxx takes two calls, so the eighth row was at work.
    assert len(list(run.folder.glob("*.npz"))) == 7
    engine = NumpyEngine()
    compute(run, engine)
    rows = [row for part in run.description().tiling.parts() for row in part.rows]
    everything = sum(2 if row.matrix == "Kxx" and row.n_columns > 2 else 1 for row in rows)
    assert engine.calls == everything - 14
    assert not list(run.folder.glob("*.npz"))
    run.check_complete()


def test_a_kill_in_a_row_of_tiles_loses_what_was_computed_since_it_was_put_aside(tmp_path, whole):
    """An engine that finishes one entry at a time, in a run whose rows are put aside after each."""

    class Steps(NumpyEngine):
        computed, least = 0, 10**9

        def matrix(self, X, X2=None, progress=None, out=None):
            entries = super().entries(X, X2)
            for place in zip(*np.nonzero(np.isnan(out)), strict=True):
                self.computed += 1
                if self.computed > self.least:
                    raise KeyboardInterrupt
                out[place] = entries[place]
                progress(1)
            return out

    run = begin(tmp_path, make_data(**SIZES))
    first = in_order(run.description().tiling.parts())[0]
    (row,) = first.rows
    dying = Steps()
    dying.least = 200
    with pytest.raises(KeyboardInterrupt):
        compute_run(job_of(run, lambda device: dying, keep_every=0.0))
    (aside,) = run.folder.glob("*.npz")
    kept, seconds = run.kept_rows.so_far(first)
    assert aside.name == f"{first.name}.row_{row.start}.npz"
    assert kept == 200 and seconds > 0
    assert run.kept_rows.get(first, row, "numpy")[1] is None
    assert f"{200 / run.description().tiling.n_entries:.1%} of" in status(run) and "time left" in status(run)
    engine = Steps()
    assert compute_run(job_of(run, lambda device: engine, keep_every=1e9))
    n_stored = sum(math.prod(row.shape) for row in run.description().tiling.all_rows())
    assert engine.computed == n_stored - 200
    assert bytes_of(run.folder) == whole
    assert not list(run.folder.glob("*.npz"))
    assert run.parts.provenance([first])[0]["seconds"] > seconds


def test_what_is_put_aside_counts_each_entry_of_a_square_once(tmp_path):
    run = begin(tmp_path, make_data(**SIZES))
    part = run.description().tiling.parts()[0]
    (row,) = part.rows
    assert row.matrix == "Kxx" and run.kept_rows.so_far(part) == (0, 0.0)
    entries = np.ones(row.shape)
    run.kept_rows.keep(part, row, entries, None, "numpy", 2.5)
    assert run.kept_rows.so_far(part) == (row.n_entries, 2.5)
    entries[:, 60:] = np.nan
    entries[2, 3] = np.nan
    run.kept_rows.keep(part, row, entries, None, "numpy", 2.5)
    assert run.kept_rows.so_far(part) == (row.n_entries - 60 * 5 - 1, 2.5)
    np.testing.assert_array_equal(run.kept_rows.get(part, row, "numpy")[0], entries)
    # Another engine's entries differ, and a part names one engine.
    assert run.kept_rows.get(part, row, "another") is None
    assert run.kept_rows.so_far(part, "another") == (0, 0.0)


def test_rows_put_aside_that_are_damaged_are_computed_again(tmp_path, monkeypatch):
    monkeypatch.setattr("cnn_gp.store.tiling.MAX_PARTS", 6)
    run = begin(tmp_path, make_data(**SIZES), n_max=2)
    part = in_order(run.description().tiling.parts())[0]
    row = part.rows[0]
    run.kept_rows.keep(part, row, np.zeros(row.shape), np.zeros(row.shape[0]), "numpy")
    (aside,) = run.folder.glob("*.npz")
    for content in (b"", aside.read_bytes()[:-30], b"garbage"):
        aside.write_bytes(content)
        assert run.kept_rows.get(part, row, "numpy") is None


def test_leftovers_of_dead_processes_are_removed_and_others_kept(tmp_path):
    run = begin(tmp_path, make_data())
    program = (
        "import os, sys; from pathlib import Path; from cnn_gp.store import atomic;"
        "os.replace = lambda *paths: os._exit(9); atomic.write_atomically(Path(sys.argv[1]), b'half')"
    )
    part = run.folder / "Kxx_0000.h5"
    assert subprocess.run([sys.executable, "-c", program, str(part)], check=False).returncode == 9
    (of_the_dead,) = run.folder.glob(".*.tmp")
    *_, host, _, _, _ = of_the_dead.name.split(".")
    others = [f".a.h5.{host}.{os.getpid()}.0123456789ab.tmp", ".a.h5.elsewhere.9.0123456789ab.tmp", ".mine.tmp"]
    for name in others:
        (run.folder / name).write_bytes(b"half")
    compute(run)
    assert {path.name for path in run.folder.glob(".*.tmp")} == set(others)


def test_leftovers_of_a_worker_that_is_killed_meanwhile_are_removed_at_the_end(tmp_path):
    class LosesAWorker(NumpyEngine):
        def entries(self, X, X2=None, progress=None):
            if not self.calls:
                worker = subprocess.Popen([sys.executable, "-c", ""])
                name = atomic.temporary_path(run.claims_folder / "Kxx_0001.claim", "tmp").name
                (run.claims_folder / name.replace(f".{os.getpid()}.", f".{worker.pid}.")).touch()
                worker.wait()
                assert list(run.claims_folder.glob(".*.tmp"))
            return super().entries(X, X2, progress)

    run = begin(tmp_path, make_data())
    assert compute(run, LosesAWorker())
    assert not list(run.claims_folder.iterdir())


def test_a_full_disk_leaves_nothing_half_written(tmp_path, whole):
    """Files of this process may not grow beyond a limit below a part's size: as a full disk, with SIGXFSZ ignored."""
    program = (
        "import resource, signal, sys; sys.path.insert(0, sys.argv[2]);"
        "from helpers.small_runs import RunDirectory, compute; from cnn_gp.errors import UserError;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000));"
        "\ntry: compute(RunDirectory(sys.argv[1], 'small'))"
        "\nexcept UserError as error: print(error); sys.exit(1)"
    )
    run = begin(tmp_path, make_data(**SIZES))
    command = [sys.executable, "-c", program, str(tmp_path), str(TESTS)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "can't be written" in done.stdout and "what was finished is kept" in done.stdout
    assert not list(run.folder.glob("K*")) and not list(run.folder.glob(".*"))
    compute(run)
    assert bytes_of(run.folder) == whole


SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


def interrupted(process, number, expected):
    """It ends with the signal's exit status and one line."""
    process.send_signal(number)
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == expected, error
    assert error.strip().splitlines()[-1].startswith("stopped: what was finished is kept; start again")
    assert "Traceback" not in error


@pytest.mark.parametrize(("number", "expected"), SIGNALS)
def test_interrupted_in_the_middle_of_a_part(tmp_path, number, expected):
    program = (
        "import sys; sys.path.insert(0, sys.argv.pop()); path = sys.argv.pop();"
        "from cnn_gp import cli; from helpers.small_runs import RunDirectory, compute;"
        "from helpers.workers import EndlessEngine;"
        "cli.run(lambda: compute(RunDirectory(path, 'small'), EndlessEngine()))"
    )
    run = begin(tmp_path, make_data())
    command = [sys.executable, "-c", program, str(tmp_path), str(TESTS)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: claimed(run.claims_folder) or process.poll() is not None)
    interrupted(process, number, expected)
    assert list(run.claims_folder.iterdir()) == [] and not list(run.folder.glob("K*"))


def test_the_interrupted_script_says_what_is_kept(tmp_path):
    """Exit status, one line, no claims left but another program's. (How SIGTERM ends is tested above.)"""
    run = RunDirectory(tmp_path, "convnet_gp")
    command = [sys.executable, str(ROOT / "scripts" / "save_kernels.py"), f"--path={tmp_path}"]
    command += ["--dataset=digits", "--model=convnet_gp", "--n_max=50"]
    with kept_from_ending(run, Tiling(1000, 400, 397, 50).parts()):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_until(lambda: len(list(run.folder.glob("K*.h5"))) >= 2 or process.poll() is not None)
        interrupted(process, *SIGNALS[0])
        assert len(claimed(run.claims_folder)) == 1
    assert claimed(run.claims_folder) == {}
