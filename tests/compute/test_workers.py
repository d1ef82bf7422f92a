"""Many workers in one directory: shards and processes; and processes killed at any moment."""

import contextlib
import functools
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnn_gp.compute.claims import Claims, claimed
from cnn_gp.compute.scheduler import check_disk, compute_run, in_order, shares
from cnn_gp.compute.status import status
from cnn_gp.errors import UserError
from cnn_gp.store.description import Description
from cnn_gp.store.run_directory import RunDirectory
from cnn_gp.store.tiling import Tiling
from helpers.paths import ROOT, TESTS
from helpers.small_runs import NumpyEngine, begin, complete, compute, job_of, make_data
from helpers.waiting import PATIENCE, wait_until
from helpers.workers import SIZES, AlwaysDying, DyingEngine, MeetingEngine, NaNEngine, SlowEngine, datasets_of, start


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run's matrices."""
    path = tmp_path_factory.mktemp("whole")
    complete(path, make_data(**SIZES))
    return datasets_of(path)


# Order and shards -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_shards_are_of_equal_cost_and_cover_all(n):
    parts = Tiling(5000, 500, 700, 100).parts()
    dealt = shares(parts, n)
    assert sorted(p.name for share in dealt for p in share) == sorted(p.name for p in parts)
    costs = [sum(p.entries for p in share) for share in dealt]
    assert max(costs) - min(costs) <= 0.02 * sum(costs) / n
    for i in range(1, n + 1):
        order = in_order(parts, (i, n))
        assert len(order) == len(parts) and order[: len(dealt[i - 1])] == dealt[i - 1]


@settings(deadline=None, max_examples=100)
@given(
    sizes=st.tuples(*[st.integers(min_value=1, max_value=300)] * 3),
    n_max=st.integers(min_value=1, max_value=50),
    n=st.integers(min_value=1, max_value=9),
)
def test_each_part_belongs_to_one_shard(sizes, n_max, n):
    parts = Tiling(*sizes, n_max).parts()
    dealt = [part.name for share in shares(parts, n) for part in share]
    assert sorted(dealt) == sorted(part.name for part in parts)


@pytest.mark.parametrize("sizes", [(10_000, 1000, 1000, 200), (50_000, 10_000, 10_000, 200), (4000, 1000, 1000, 100)])
@pytest.mark.parametrize("k", range(2, 9))
def test_equal_workers_idle_less_than_five_percent(sizes, k):
    """Simulated: each free worker takes the next part in order, whose cost is its entries and a fixed overhead."""
    parts = in_order(Tiling(*sizes).parts())
    assert len(parts) >= 50
    free = [0.0] * k
    for part in parts:
        first = free.index(min(free))
        free[first] += part.entries * 1.9e-6 + 0.02
    assert 1 - sum(free) / (k * max(free)) < 0.05


# Several workers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_processes_gives_the_same_bytes(tmp_path, whole, workers):
    begin(tmp_path, make_data(**SIZES))
    job = job_of(RunDirectory(tmp_path, "small"), SlowEngine)
    assert compute_run(job, ["cpu"] * workers)
    assert datasets_of(tmp_path) == whole
    run = RunDirectory(tmp_path, "small")
    assert run.view_path.exists()
    assert len({record["pid"] for record in run.parts.provenance()}) == workers
    assert claimed(run.claims_folder) == {}


def test_a_worker_that_dies_is_reported_and_its_part_is_done_again(tmp_path, whole):
    begin(tmp_path, make_data(**SIZES))
    engine = functools.partial(DyingEngine, marker=str(tmp_path / "died"))
    said = []
    assert compute_run(job_of(RunDirectory(tmp_path, "small"), engine), ["cpu", "cpu"], say=said.append)
    assert len(said) == 1 and "died; its part K" in said[0] and "started again" in said[0]
    assert datasets_of(tmp_path) == whole


def test_a_non_finite_entry_in_a_worker_process_is_one_line_that_names_it(tmp_path):
    run = begin(tmp_path, make_data())
    with pytest.raises(UserError, match=r"K\w+ has a non-finite entry at row \d+, column \d+, first in layers\[1\]"):
        compute_run(job_of(RunDirectory(tmp_path, "small"), NaNEngine), ["cpu", "cpu"])
    assert not list(run.folder.glob("K*"))


def test_workers_that_always_die_end_in_one_line(tmp_path):
    begin(tmp_path, make_data())
    with pytest.raises(UserError, match=r"All workers died, .* memory: give a lower --batch_size, then start again"):
        compute_run(job_of(RunDirectory(tmp_path, "small"), AlwaysDying), ["cpu", "cpu"], say=lambda line: None)


@pytest.mark.parametrize("n", [2, 4])
def test_programs_in_one_directory_share_the_work_and_all_finish(tmp_path, whole, n):
    begin(tmp_path, make_data(**SIZES))
    # Each has claimed a part when it meets the others.
    engine = functools.partial(MeetingEngine, folder=str(tmp_path / "met"), processes=n)
    processes = [start(tmp_path, engine) for _ in range(n)]
    for process in processes:
        process.join(PATIENCE)
        assert process.exitcode == 0
    assert datasets_of(tmp_path) == whole
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
    assert datasets_of(tmp_path) == whole
    assert (tmp_path / "small.h5").exists()


def test_a_shard_does_not_wait_for_the_others(tmp_path):
    run = begin(tmp_path, make_data(**SIZES))
    theirs = shares(run.description().tiling.parts(), 2)[1][0].name
    Claims(run.claims_folder).take(theirs)
    assert not compute(run, shard=(1, 2))
    assert [part.name for part in run.parts.missing()[0]] == [theirs]
    assert not run.view_path.exists()


# Kills ----------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def kept_from_ending(run, parts):
    """While this process claims the last part of a run, no other can finish it, however fast it is."""
    claims, last = Claims(run.claims_folder), in_order(parts)[-1].name
    assert claims.take(last)
    try:
        yield
    finally:
        claims.release(last)


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
    assert datasets_of(path) == whole
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
    assert f"{200 / run.description().tiling.entries:.1%} of" in status(run) and "time left" in status(run)
    engine = Steps()
    assert compute_run(job_of(run, lambda device: engine, keep_every=1e9))
    n_stored = sum(math.prod(row.shape) for row in run.description().tiling.all_rows())
    assert engine.computed == n_stored - 200
    assert datasets_of(tmp_path) == whole
    assert not list(run.folder.glob("*.npz"))
    assert run.parts.provenance([first])[0]["seconds"] > seconds


def test_what_is_put_aside_counts_each_entry_of_a_square_once(tmp_path):
    run = begin(tmp_path, make_data(**SIZES))
    part = run.description().tiling.parts()[0]
    (row,) = part.rows
    assert row.matrix == "Kxx" and run.kept_rows.so_far(part) == (0, 0.0)
    entries = np.ones(row.shape)
    run.kept_rows.keep(part, row, entries, None, "numpy", 2.5)
    assert run.kept_rows.so_far(part) == (row.entries, 2.5)
    entries[:, 60:] = np.nan
    entries[2, 3] = np.nan
    run.kept_rows.keep(part, row, entries, None, "numpy", 2.5)
    assert run.kept_rows.so_far(part) == (row.entries - 60 * 5 - 1, 2.5)
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


# Disk ------------------------------------------------------------------------------------------------------


def test_a_job_that_does_not_fit_on_the_disk_is_refused(tmp_path, monkeypatch):
    import shutil

    run = begin(tmp_path, make_data(**SIZES))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**5))
    with pytest.raises(UserError, match=r"needs 0.000 GB more and its disk has 0.000 GB free: free some space"):
        check_disk(run, run.description().tiling.parts())
    with pytest.raises(UserError, match="free some space"):
        compute(run)
    assert not list(run.folder.glob("K*"))


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
    assert datasets_of(tmp_path) == whole


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


@pytest.mark.parametrize(("number", "expected"), SIGNALS)
def test_interrupted_by_signals_says_what_is_kept(tmp_path, number, expected):
    """Ctrl-C and SIGTERM with the real script: exit status, one line, no claims left but another program's."""
    run = RunDirectory(tmp_path, "convnet_gp")
    command = [sys.executable, str(ROOT / "scripts" / "save_kernels.py"), f"--path={tmp_path}"]
    command += ["--dataset=digits", "--model=convnet_gp", "--n_max=50"]
    with kept_from_ending(run, Tiling(1000, 400, 397, 50).parts()):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_until(lambda: len(list(run.folder.glob("K*.h5"))) >= 2 or process.poll() is not None)
        interrupted(process, number, expected)
        assert len(claimed(run.claims_folder)) == 1
    assert claimed(run.claims_folder) == {}


# With the real engine -------------------------------------------------------------------------------------------------

REAL = ["--dataset=digits", "--N_train=90", "--N_vali=20", "--N_test=20", "--n_max=6", "--model=convnet_gp"]


def real(path, *flags, **options):
    command = [sys.executable, str(ROOT / "scripts" / "save_kernels.py"), *REAL, f"--path={path}", *flags]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **options)


def real_matrices(path):
    return {
        (file.name, name): values
        for file in sorted(Path(path).glob("*/K*.h5"))
        for name, values in _arrays(file).items()
    }


def _arrays(file):
    with h5py.File(file) as part:
        return {f"{row}/{kind}": part[row][kind][()].tobytes() for row in part for kind in part[row]}


@pytest.mark.long
def test_the_real_engine_killed_at_three_random_moments_is_byte_equal(tmp_path):
    assert real(tmp_path / "whole").wait() == 0
    moments = random.Random(1)
    for i in range(3):
        path = tmp_path / str(i)
        run = RunDirectory(path, "convnet_gp")
        with kept_from_ending(run, Tiling(90, 20, 20, 6).parts()):
            process = real(path)
            wait_until(lambda run=run, process=process: list(run.folder.glob("K*.h5")) or process.poll() is not None)
            time.sleep(moments.uniform(0, 0.5))
            process.kill()
            assert process.wait() == -signal.SIGKILL
        finished = {file: file.stat().st_mtime_ns for file in path.glob("convnet_gp/K*.h5")}
        assert finished
        assert real(path).wait() == 0
        assert {file: file.stat().st_mtime_ns for file in finished} == finished
        assert real_matrices(path) == real_matrices(tmp_path / "whole")


@pytest.mark.long
def test_two_devices_with_a_process_each_give_the_bytes_of_one(tmp_path):
    """What --n_gpus=2 does, with the CPU in the places of the GPUs."""
    from cnn_gp import build_kernel, load
    from cnn_gp.engines.choice import Choice, engine_on_device

    data = load("digits", N_train=90, N_vali=20, N_test=20)
    # Of two layers: what is compared doesn't need a network that each process compiles for long.
    kernel = build_kernel("random", data.image_shape, seed=15).describe()
    run = RunDirectory(tmp_path / "two", "seed_15")
    run.begin(Description.of(data, model="random", kernel=kernel, n_max=6, float_type="float32"), data)
    engine = functools.partial(engine_on_device, choice=Choice("tensorflow"), kernel=kernel, n_max=6)
    assert compute_run(job_of(run, engine), ["cpu", "cpu"])
    assert real(tmp_path / "one", "--engine=tensorflow", "--model=random", "--seed=15").wait() == 0
    assert real_matrices(tmp_path / "one") == real_matrices(tmp_path / "two") != {}
    assert len({record["pid"] for record in run.parts.provenance()} - {os.getpid()}) == 2


def test_a_worker_process_sees_its_own_gpu_only():
    program = (
        "import os, sys; from cnn_gp.compute.worker import enter_process; enter_process(sys.argv[1]);"
        "print(os.environ['CUDA_VISIBLE_DEVICES'])"
    )
    for visible, device, expected in (
        (None, "gpu:1", "1"),
        ("3,5", "gpu:1", "5"),
        ("GPU-a,GPU-b", "gpu:0", "GPU-a"),
        ("3,5", "cpu", "-1"),
    ):
        environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
        environment.update({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
        command = [sys.executable, "-c", program, device]
        assert subprocess.run(command, env=environment, capture_output=True, text=True).stdout.strip() == expected
