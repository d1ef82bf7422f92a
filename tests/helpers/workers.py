"""Engines that are slow or die, and processes that compute a small run with them."""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnn_gp.compute.claims import Claims
from cnn_gp.compute.scheduler import compute_run, in_order
from cnn_gp.engines.engine import Count
from cnn_gp.store.run_directory import RunDirectory
from cnn_gp.store.tiling import Part

from .small_runs import NumpyEngine, job_of
from .waiting import wait_until

SIZES = {"N_train": 120, "N_vali": 40, "N_test": 30}


class SlowEngine(NumpyEngine):
    """Takes its time, so that a kill finds it at work."""

    def __init__(self, device: str = "cpu", seconds: float = 0.02) -> None:
        super().__init__()
        self.seconds = seconds

    def entries(self, X: np.ndarray, X2: np.ndarray | None = None, progress: Count | None = None) -> np.ndarray:
        time.sleep(self.seconds)
        return super().entries(X, X2, progress)


class DyingEngine(SlowEngine):
    """Kills its process once in all, at the third matrix."""

    def __init__(self, device: str = "cpu", marker: str = "") -> None:
        super().__init__()
        self.marker = Path(marker)

    def entries(self, X: np.ndarray, X2: np.ndarray | None = None, progress: Count | None = None) -> np.ndarray:
        if self.calls == 2:
            try:
                self.marker.touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().entries(X, X2, progress)


class MeetingEngine(NumpyEngine):
    """Computes nothing before as many processes have one as are to meet."""

    def __init__(self, device: str = "cpu", folder: str = "", processes: int = 1) -> None:
        super().__init__()
        place = Path(folder)
        place.mkdir(exist_ok=True)
        (place / str(os.getpid())).touch()
        wait_until(lambda: len(list(place.iterdir())) >= processes)


class WatchedEngine(NumpyEngine):
    """Reports an entry and goes on once somebody has seen it: there is a file then."""

    def __init__(self, device: str = "cpu", seen: str = "") -> None:
        super().__init__()
        self.seen = Path(seen)

    def entries(self, X: np.ndarray, X2: np.ndarray | None = None, progress: Count | None = None) -> np.ndarray:
        assert progress is not None
        progress(1)
        wait_until(self.seen.exists)
        return super().entries(X, X2)


def watch_progress(monkeypatch: pytest.MonkeyPatch, seen: Path) -> list[int]:
    """What the scheduler's progress is told from now on; the file is there once it was told something."""
    told: list[int] = []

    def tell(self: object, units: int, note: str = "") -> None:
        told.append(units)
        seen.touch()

    monkeypatch.setattr("cnn_gp.compute.scheduler.Progress.__call__", tell)
    return told


class EndlessEngine(NumpyEngine):
    """Is at work until its worker is stopped."""

    def entries(self, X: np.ndarray, X2: np.ndarray | None = None, progress: Count | None = None) -> np.ndarray:
        assert progress is not None
        while True:
            progress(0)
            time.sleep(0.005)


def work(path: Path, engine: Callable[[str], Any] = SlowEngine, shard: tuple[int, int] = (1, 1)) -> None:
    """A process of its own: compute what is missing."""
    compute_run(job_of(RunDirectory(path, "small"), engine), shard=shard)


def start(*arguments: Any, **options: Any) -> SpawnProcess:
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments, kwargs=options)
    process.start()
    return process


class NaNEngine(NumpyEngine):
    def __init__(self, device: str) -> None:
        super().__init__()

    def entries(self, X: np.ndarray, X2: np.ndarray | None = None, progress: Count | None = None) -> np.ndarray:
        K = super().entries(X, X2, progress)
        K[-1, 0] = np.inf
        return K


class AlwaysDying(NumpyEngine):
    def __init__(self, device: str) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def kept_from_ending(run: RunDirectory, parts: Sequence[Part]) -> Iterator[None]:
    """While this process claims the last part of a run, no other can finish it, however fast it is."""
    claims, last = Claims(run.claims_folder), in_order(parts)[-1].name
    assert claims.take(last)
    try:
        yield
    finally:
        claims.release(last)
