"""Engines that are slow or die, and processes that compute a small run with them."""

import functools
import multiprocessing
import os
import signal
import time
from pathlib import Path

import h5py
import numpy as np

from cnn_gp.compute.scheduler import compute_run
from cnn_gp.compute.worker import Job

from .small_runs import NumpyEngine

SIZES = {"N_train": 120, "N_vali": 40, "N_test": 30}


class SlowEngine(NumpyEngine):
    """Takes its time, so that a kill finds it at work."""

    def __init__(self, device="cpu", seconds=0.02):
        super().__init__()
        self.seconds = seconds

    def matrix(self, X, X2=None, progress=None):
        time.sleep(self.seconds)
        return super().matrix(X, X2, progress)


class DyingEngine(SlowEngine):
    """Kills its process once in all, at the third matrix."""

    def __init__(self, device="cpu", marker=""):
        super().__init__()
        self.marker = Path(marker)

    def matrix(self, X, X2=None, progress=None):
        if self.calls == 2:
            try:
                self.marker.touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().matrix(X, X2, progress)


def work(path, seconds=0.02, claim_timeout=60.0, heartbeat=10.0, shard=(1, 1)):
    """A process of its own: compute what is missing."""
    engine = functools.partial(SlowEngine, seconds=seconds)
    compute_run(Job(str(path), "small", engine, claim_timeout, heartbeat), shard=shard)


def start(*arguments, **options):
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments, kwargs=options)
    process.start()
    return process


def datasets_of(path):
    """Every byte of the matrices, by part and dataset."""
    found = {}
    for part in sorted(Path(path, "small").glob("K*.h5")):
        with h5py.File(part) as file:
            file.visititems(
                lambda name, item, part=part: (
                    found.update({(part.name, name): item[()].tobytes()}) if isinstance(item, h5py.Dataset) else None
                )
            )
    return found


class NaNEngine(NumpyEngine):
    def __init__(self, device):
        super().__init__()

    def matrix(self, X, X2=None, progress=None):
        K = super().matrix(X, X2, progress)
        K[-1, 0] = np.inf
        return K


class AlwaysDying(NumpyEngine):
    def __init__(self, device):
        os.kill(os.getpid(), signal.SIGKILL)
