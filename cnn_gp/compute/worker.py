"""
One worker: claims a part of a run, computes it, commits it.

What a worker is told is a :class:`Job`, which pickles; the images it reads from the run's directory. It may be a
thread of the main process, a process of its own, or a Dask worker on another host.
"""

import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import UserError
from ..provenance import software
from ..store.non_finite import NonFiniteError
from ..store.run_directory import ROW_IMAGES, RunDirectory
from ..store.tiling import Part, TileRow
from .claims import HEARTBEAT, TIMEOUT, Claims

if TYPE_CHECKING:
    from ctypes import c_longlong

    from ..engines.engine import Count, Engine

#: Is told how many entries of a part are computed so far.
Tell = Callable[[int], object]


@dataclass(frozen=True)
class Job:
    """What a worker needs to know."""

    workdir: str
    name: str
    """The run's name."""
    make_engine: "Callable[[str], Engine]"
    """From a device ("cpu" or "gpu:0") to an engine; it must pickle."""
    run_id: str
    """Of the run whose kernel the engine computes."""
    claim_timeout: float = TIMEOUT
    heartbeat: float = HEARTBEAT
    keep_every: float = 60.0
    """Seconds after which what is finished of a row of tiles is put aside: about what a kill loses."""


@dataclass(frozen=True)
class Outcome:
    """What became of a part: "computed" here; "there" already; or "claimed" by another process."""

    status: Literal["computed", "there", "claimed"]


class Tally:
    """
    Adds up the entries that an engine's threads count, and tells the sum, at most twice a second.

    :param tell: called with the entries computed so far.
    """

    _SECONDS_BETWEEN = 0.5

    def __init__(self, tell: Tell) -> None:
        self._tell, self._entries, self._told = tell, 0, float("-inf")
        self._lock = threading.Lock()

    def __call__(self, entries: int) -> None:
        """So many more entries are computed."""
        with self._lock:
            self._entries += entries
            now = time.monotonic()
            if now - self._told >= self._SECONDS_BETWEEN:
                self._told = now
                self._tell(self._entries)


class Stopped(Exception):
    """The worker was told to stop."""


class Worker:
    """
    A worker for one job on one device; it keeps its engine and its images.

    Several threads may compute different parts with it, as those of a Dask worker do.
    """

    def __init__(self, job: Job, device: str) -> None:
        self.run = RunDirectory(job.workdir, job.name)
        if self.run.id != job.run_id:
            raise UserError(
                f"{self.run.folder} was deleted and begun by another program meanwhile: start again, if the run is "
                "still to be computed, or choose another --path or --run_name."
            )
        self.claims = Claims(self.run.claims_folder, job.claim_timeout, job.heartbeat)
        self._parts = {part.name: part for part in self.run.description().tiling.parts()}
        self._job, self._device = job, device
        # Now: the checkout may be changed while this program runs.
        self._software = software()
        self._engine: Engine | None = None
        self._images: dict[str, np.ndarray] = {}
        self._preparing = threading.Lock()
        self._stop = threading.Event()

    def stop(self) -> None:
        """Make :meth:`compute` raise :class:`Stopped` where the engine next counts entries."""
        self._stop.set()

    def compute(self, name: str, progress: "Count | None" = None) -> Outcome:
        """
        Compute and commit a part, unless it is there, or another process is at work on it.

        :raises NonFiniteError: where an entry isn't finite; it names the layer.
        """
        part = self._parts[name]
        if self.run.parts.is_done(part):
            return Outcome("there")
        # Before anything is made in a folder that may be another run's by now.
        self.run.check_still_ours()
        if not self.claims.take(name):
            return Outcome("claimed")
        try:
            # Another process may have finished it between our look and our claim.
            if self.run.parts.is_done(part):
                return Outcome("there")
            return self._compute(part, progress)
        finally:
            self.claims.release(name)

    def _compute(self, part: Part, progress: "Count | None") -> Outcome:
        engine = self._prepared_engine()
        _, before = self.run.kept_rows.so_far(part, engine.name)
        start = time.perf_counter()
        rows = [self._compute_row(part, row, engine, progress) for row in part.rows]
        seconds = before + time.perf_counter() - start
        who: dict[str, Any] = {"engine": engine.name, "device": self._device, **self._software}
        who.update(pid=os.getpid(), seconds=seconds)
        with self._naming_the_layer():
            self.run.write_part(part, rows, who)
        return Outcome("computed")

    def _prepared_engine(self) -> "Engine":
        """The engine, with the images read; the first thread that comes makes both, the others wait."""
        with self._preparing:
            if self._engine is None:
                self._images = self.run.images()
                self._engine = self._job.make_engine(self._device)
            return self._engine

    def _compute_row(
        self, part: Part, row: TileRow, engine: "Engine", progress: "Count | None"
    ) -> tuple[np.ndarray, np.ndarray]:
        """The entries of a row of tiles, and the diagonal at its images, as far as they weren't put aside before."""
        X, training = self._images[ROW_IMAGES[row.matrix]][row.start : row.stop], self._images["X"]
        kept_row = self.run.kept_rows.get(part, row, engine.name)
        entries, diagonal = kept_row or (np.full(row.shape, np.nan, X.dtype), None)
        if diagonal is not None:
            if progress is not None:
                progress(row.n_entries)
            return entries, diagonal
        start = kept = time.perf_counter()
        before = self.run.kept_rows.so_far(replace(part, rows=(row,)), engine.name)[1]
        keeping = threading.Lock()

        def keep(diagonal: np.ndarray | None = None) -> None:
            seconds = before + time.perf_counter() - start
            self.run.kept_rows.keep(part, row, entries.copy(), diagonal, engine.name, seconds)

        def tick(n: int) -> None:
            nonlocal kept
            if self._stop.is_set():
                raise Stopped
            if progress is not None:
                progress(n)
            if time.perf_counter() - kept >= self._job.keep_every and keeping.acquire(blocking=False):
                # The other threads go on writing entries meanwhile: each is there or NaN.
                try:
                    keep()
                    kept = time.perf_counter()
                finally:
                    keeping.release()

        if row.matrix == "Kxx":
            n = row.shape[0]
            engine.matrix(X, progress=tick, out=entries[:, :n])
            if row.n_columns > n:
                engine.matrix(X, training[row.stop :], tick, out=entries[:, n:])
            diagonal = np.diagonal(entries).copy()
        else:
            engine.matrix(X, training, tick, out=entries)
            diagonal = engine.diag(X)
        if len(part.rows) > 1:
            with self._naming_the_layer():
                keep(diagonal)
        return entries, diagonal

    @contextmanager
    def _naming_the_layer(self) -> Iterator[None]:
        """If an entry to be written isn't finite, say in which layer it became so."""
        try:
            yield
        except NonFiniteError as error:
            x, x2 = self._images[ROW_IMAGES[error.matrix]][error.row], self._images["X"][error.column]
            assert self._engine is not None
            layer = self._engine.first_non_finite(x, x2)
            raise NonFiniteError(error.matrix, error.row, error.column, f", first in {layer}") from error


# This process's workers for the latest runs, each for a run and a device: engines take seconds to compile.
_workers: dict[tuple[str, str], Worker] = {}
_choosing = threading.Lock()

#: How many: a cluster's processes compute many runs, one after the other or two at a time, and each has its images.
_MOST_WORKERS = 2

# In a worker process, where its parent reads how many entries of its part are computed.
_counter: "c_longlong | None" = None


def compute_part(job: Job, device: str, name: str, tell: Tell) -> Outcome:
    """:meth:`Worker.compute` in whatever process this is called in, which keeps its worker for the next part."""
    key = job.run_id, device
    with _choosing:
        worker = _workers.pop(key, None) or Worker(job, device)
        # The latest one is the last.
        _workers[key] = worker
        while len(_workers) > _MOST_WORKERS:
            del _workers[next(iter(_workers))]
    return worker.compute(name, Tally(tell))


def compute_part_in_process(job: Job, device: str, name: str) -> Outcome:
    """The same in a process that :func:`enter_process` began; it tells its parent."""
    assert _counter is not None
    return compute_part(job, device, name, functools.partial(setattr, _counter, "value"))


def compute_part_on_cluster(job: Job, topic: str, name: str) -> Outcome:
    """The same in a Dask worker; it tells the subscribers of a topic the part's name and the number."""
    from distributed import get_worker

    # The engine's threads couldn't ask for it.
    worker = get_worker()
    return compute_part(job, "cluster", name, lambda entries: worker.log_event(topic, (name, entries)))


def enter_process(device: str, counter: "c_longlong") -> None:
    """
    Begin a worker process: let it see its device only, and end it with its parent.

    It must be called before TensorFlow is imported.

    :param counter: shared with the parent: the entries that are computed of this process's part.
    """
    import signal

    global _counter
    _counter = counter
    # Ctrl-C reaches the whole group; the parent ends its workers in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    kind, _, index = device.partition(":")
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1" if kind == "cpu" else (visible[int(index)] if visible else index)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
