"""Worker processes with the real engines."""

import functools
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from cnn_gp.compute.scheduler import compute_run
from cnn_gp.store.description import Description
from cnn_gp.store.run_directory import RunDirectory
from cnn_gp.store.tiling import Tiling
from helpers.matrices import bytes_of
from helpers.paths import ROOT
from helpers.small_runs import job_of
from helpers.waiting import wait_until
from helpers.workers import kept_from_ending

REAL = ["--dataset=digits", "--N_train=90", "--N_vali=20", "--N_test=20", "--n_max=6", "--model=convnet_gp"]


def real(path, *flags, **options):
    command = [sys.executable, str(ROOT / "scripts" / "save_kernels.py"), *REAL, f"--path={path}", *flags]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **options)


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
        assert bytes_of(run.folder) == bytes_of(tmp_path / "whole" / "convnet_gp")


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
    assert bytes_of(tmp_path / "one" / "seed_15") == bytes_of(run.folder) != {}
    assert len({record["pid"] for record in run.parts.provenance()} - {os.getpid()}) == 2


def test_a_worker_process_sees_its_own_gpu_only():
    program = (
        "import os, sys; from cnn_gp.compute.worker import enter_process; enter_process(sys.argv[1], None);"
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
