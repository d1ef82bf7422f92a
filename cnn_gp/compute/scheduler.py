"""
The scheduler of stage 1: compute what is missing of a run, with one worker or many.

Parts are handed out one at a time, the longest first, through ``concurrent.futures.Executor``: a thread of this process
for one device, a process for each of several, or a Dask cluster. Claims (:mod:`.claims`) keep any number of such
programs in one directory from doubling work.
"""

import functools
import multiprocessing
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from concurrent.futures.thread import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from ..cluster import Cluster
from ..errors import UserError
from ..progress import Progress
from ..store.run_directory import RunDirectory
from ..store.tiling import Part
from .worker import (
    Job,
    Outcome,
    Tally,
    Worker,
    compute_part_in_process,
    compute_part_on_cluster,
    enter_process,
)

#: Seconds between looks at the workers' progress, at workers that may be gone and at parts of other programs.
_POLL = 1.0

#: How often a worker process is started again after it died.
_RESTARTS = 2


def check_disk(run: RunDirectory, missing: Sequence[Part]) -> None:
    """:raises UserError: where the missing parts don't fit on the disk."""
    itemsize = np.dtype(run.description().float_type).itemsize
    needed = itemsize * sum(row.shape[0] * (row.shape[1] + 1) for part in missing for row in part.rows)
    free = shutil.disk_usage(run.folder).free
    # HDF5's own structures, and a part that is written while the old one is still there.
    if needed * 1.02 + 1e6 > free:
        raise UserError(
            f"{run.folder} needs {needed / 1e9:.3f} GB more and its disk has {free / 1e9:.3f} GB free: "
            "free some space, or choose another --path."
        )


@dataclass
class WorkerPool:
    """An executor and its workers."""

    name: str
    submit: Callable[[str], "Future[Outcome]"]
    computed: Callable[[str], int]
    """Entries of a part that was submitted: how many its worker has computed so far."""
    n_workers: Callable[[], int] = lambda: 1
    """It is given as many parts at a time; there may be more workers later."""
    restart: "Callable[[], WorkerPool] | None" = None
    """Makes it anew after it broke."""
    check: Callable[[], None] = lambda: None
    """Raises an error where it can't be waited for any longer."""


def compute_run(
    job: Job,
    devices: Sequence[str] = ("cpu",),
    *,
    shard: tuple[int, int] = (1, 1),
    cluster: Cluster | None = None,
    say: Callable[[str], None] = print,
) -> bool:
    """
    Compute what is missing of a run that was begun; the program that completes it writes its view.

    :param devices: one worker each; a single one works in this process, several in processes of their own.
    :param shard: (i, n): try the i-th of n shards first, and then only what nobody else is at work on.
    :param cluster: whose workers compute, in place of ``devices``.
    :param say: called with lines for people.
    :return: whether the run is complete.
    :raises CancelledError: where the connection to the cluster is lost.
    """
    run = RunDirectory(job.workdir, job.name)
    run.remove_leftovers()
    missing, _ = run.parts.missing()
    check_disk(run, missing)
    total = run.description().tiling.n_entries
    # Another program's parts are waited for only where they are this one's to deliver.
    own = {part.name for part in shares(run.description().tiling.parts(), shard[1])[shard[0] - 1]}
    with (
        Progress(total, "entries", total - sum(part.n_entries for part in missing)) as progress,
        _worker_pools(job, devices, cluster) as pools,
    ):
        _hand_out(in_order(missing, shard), own, pools, progress, say)
    missing, _ = run.parts.missing()
    if not missing:
        run.write_view()
        run.forget_claims()
        # Of workers that were killed meanwhile.
        run.remove_leftovers()
    return not missing


def shares(parts: Sequence[Part], n: int) -> list[list[Part]]:
    """Deal parts into n shards of about equal cost: each next longest to the shard that has least."""
    dealt: list[list[Part]] = [[] for _ in range(n)]
    costs = [0] * n
    for part in sorted(parts, key=lambda part: (-part.n_entries, part.name)):
        least = costs.index(min(costs))
        dealt[least].append(part)
        costs[least] += part.n_entries
    return dealt


def in_order(parts: Sequence[Part], shard: tuple[int, int] = (1, 1)) -> list[Part]:
    """The parts in the order to be tried: those of the shard first, and the longest first, which evens the end out."""
    i, n = shard
    dealt = shares(parts, n)
    return [part for k in range(n) for part in dealt[(i - 1 + k) % n]]


def _hand_out(
    parts: Sequence[Part],
    own: set[str],
    pools: list[WorkerPool],
    progress: Progress,
    say: Callable[[str], None],
) -> None:
    """
    Give the parts to the pools, in order, until each is done or claimed by another program.

    :param own: names of the parts that are waited for, should another program have claimed them.
    """
    entries = {part.name: part.n_entries for part in parts}
    counted = dict.fromkeys(entries, 0)
    todo = deque(entries)
    others: list[str] = []
    running: dict[Future[Outcome], tuple[str, WorkerPool]] = {}

    def count(name: str, computed: int) -> None:
        """Of a part so many entries are computed: fewer than before where its worker died."""
        if computed != counted[name]:
            progress(computed - counted[name])
            counted[name] = computed

    while todo or running or own.intersection(others):
        for pool in pools:
            pool.check()
            n_workers = pool.n_workers() if todo else 0
            while todo and sum(at is pool for _, at in running.values()) < n_workers:
                name = todo.popleft()
                running[pool.submit(name)] = (name, pool)
        if not running:
            # All that is left is claimed by other programs: look again until it is there, or abandoned.
            time.sleep(_POLL)
            todo, others = deque(others), []
            continue
        done = wait(running, timeout=_POLL, return_when=FIRST_COMPLETED).done
        for name, pool in running.values():
            count(name, min(pool.computed(name), entries[name]))
        for future in done:
            name, pool = running.pop(future)
            try:
                outcome = future.result()
            except BrokenExecutor:
                count(name, 0)
                todo.appendleft(name)
                _replace(pool, pools, name, say)
                continue
            except Exception as error:
                if type(error).__name__ != "KilledWorker":
                    raise
                raise UserError(
                    f"Part {name} killed several of the cluster's workers, most likely for lack of memory: give them "
                    "more, or give a lower --batch_size, then start again; what was finished is kept."
                ) from None
            is_claimed = outcome.status == "claimed"
            count(name, 0 if is_claimed else entries[name])
            if is_claimed:
                others.append(name)


def _replace(pool: WorkerPool, pools: list[WorkerPool], name: str, say: Callable[[str], None]) -> None:
    """Start a pool that broke again, if it may be. :raises UserError: where it may not, and it was the last one."""
    pools.remove(pool)
    if pool.restart is not None:
        say(f"{pool.name} died; its part {name} is done again by another worker, and it is started again.")
        pools.append(pool.restart())
    elif pools:
        say(f"{pool.name} died; its part {name} is done again by the others.")
    else:
        raise UserError(
            "All workers died, most likely for lack of memory: give a lower --batch_size, then start again with the "
            "same other flags; what was finished is kept."
        )


@contextmanager
def _worker_pools(job: Job, devices: Sequence[str], cluster: Cluster | None) -> Iterator[list[WorkerPool]]:
    """The workers; they end when the context does."""
    if cluster is not None:
        topic = f"cnn_gp {job.run_id}"
        with cluster.messages(topic) as computed:
            executor = cluster.client.get_executor()
            submit = functools.partial(executor.submit, compute_part_on_cluster, job, topic)
            yield [
                WorkerPool(
                    "the cluster", submit, lambda name: computed.get(name, 0), cluster.n_workers, check=cluster.check
                )
            ]
        return
    if len(devices) == 1:
        yield from _one_thread(job, devices[0])
        return
    before = multiprocessing.active_children()
    try:
        yield [_process_pool(job, device, i, _RESTARTS) for i, device in enumerate(devices)]
    finally:
        # A part takes minutes; what a worker was at is lost either way.
        for child in multiprocessing.active_children():
            if child not in before:
                child.terminate()


def _one_thread(job: Job, device: str) -> Iterator[list[WorkerPool]]:
    worker = Worker(job, device)
    threads = ThreadPoolExecutor(1, thread_name_prefix="worker")
    computed: dict[str, int] = {}

    def submit(name: str) -> "Future[Outcome]":
        return threads.submit(worker.compute, name, Tally(functools.partial(computed.__setitem__, name)))

    try:
        yield [WorkerPool(device, submit, lambda name: computed.get(name, 0))]
    finally:
        worker.stop()
        threads.shutdown(wait=True, cancel_futures=True)
        worker.claims.release_all()


def _process_pool(job: Job, device: str, index: int, restarts: int) -> WorkerPool:
    # Spawned, never forked: neither TensorFlow nor threads survive a fork.
    context = multiprocessing.get_context("spawn")
    counter = context.RawValue("q", 0)
    process = ProcessPoolExecutor(1, mp_context=context, initializer=enter_process, initargs=(device, counter))

    def submit(name: str) -> "Future[Outcome]":
        # The process is idle: nothing else writes it.
        counter.value = 0
        try:
            return process.submit(compute_part_in_process, job, device, name)
        except BrokenExecutor as error:
            # It died while it had no part.
            broken: Future[Outcome] = Future()
            broken.set_exception(error)
            return broken

    return WorkerPool(
        f"worker {index} ({device})",
        submit,
        lambda name: counter.value,
        restart=(lambda: _process_pool(job, device, index, restarts - 1)) if restarts else None,
    )
