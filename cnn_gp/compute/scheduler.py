"""
Stage 1: compute what is missing of a run, with one worker or many.

Parts are handed out one at a time, the longest first, through ``concurrent.futures.Executor``: a thread of this process
for one device, a process for each of several, or a Dask cluster. Claims (:mod:`.claims`) keep any number of such
programs in one directory from doubling work.
"""

import multiprocessing
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.thread import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..data.datasets import Dataset
from ..errors import UserError
from ..progress import Progress, duration
from ..store.description import Description
from ..store.run_directory import RunDirectory
from ..store.tiling import Part
from .worker import Job, Outcome, Worker, compute_part, enter_process

if TYPE_CHECKING:
    from ..kernels.nngp import NNGPKernel

#: Seconds between looks at parts that other programs are at work on.
_POLL = 1.0

#: How often a worker process is started again after it died.
_RESTARTS = 2


def describe_run(kernel: "NNGPKernel", model: str, data: Dataset, n_max: int, float_type: str) -> Description:
    """The description of a run of a kernel on a data set."""
    N_train, N_vali, N_test = data.sizes
    return Description(
        model=model,
        kernel=kernel.describe(),
        dataset=data.name,
        data_hash=data.data_hash(),
        image_shape=tuple(data.image_shape),
        n_classes=data.n_classes,
        N_train=N_train,
        N_vali=N_vali,
        N_test=N_test,
        n_max=n_max,
        float_type=float_type,
    )


def check_disk(run: RunDirectory, missing: Sequence[Part]) -> None:
    """:raises UserError: where the missing parts don't fit on the disk."""
    itemsize = 4 if run.description().float_type == "float32" else 8
    needed = sum(itemsize * (row.shape[0] * (row.shape[1] + 1)) for part in missing for row in part.rows)
    free = shutil.disk_usage(run.folder).free
    # HDF5's own structures, and a part that is written while the old one is still there.
    if needed * 1.02 + 1e6 > free:
        raise UserError(
            f"{run.folder} needs {needed / 1e9:.3f} GB more and its disk has {free / 1e9:.3f} GB free: "
            "free some space, or choose another --path."
        )


@dataclass
class Lane:
    """An executor that is given so many parts at a time."""

    name: str
    submit: Callable[[str], "Future[Outcome]"]
    slots: int = 1
    restart: "Callable[[], Lane] | None" = None
    """Makes it anew after it broke."""


def compute_run(
    job: Job,
    devices: Sequence[str] = ("cpu",),
    *,
    shard: tuple[int, int] = (1, 1),
    cluster: "tuple[Executor, int] | None" = None,
    say: Callable[[str], None] = print,
) -> bool:
    """
    Compute what is missing of a run that was begun; whoever completes it writes its view.

    :param devices: one worker each; a single one works in this process, several in processes of their own.
    :param shard: (i, n): try the i-th of n shards first, and then only what nobody else is at work on.
    :param cluster: an executor elsewhere and its number of workers, in place of ``devices``.
    :param say: called with lines for people.
    :return: whether the run is complete.
    """
    run = RunDirectory(job.workdir, job.name)
    run.remove_leftovers()
    missing, _ = run.missing_parts()
    check_disk(run, missing)
    total = run.description().tiling.entries
    # Another program's parts are waited for only where they are this one's to deliver.
    own = {part.name for part in shares(run.description().tiling.parts(), shard[1])[shard[0] - 1]}
    in_process = len(devices) == 1 and cluster is None
    with (
        Progress(total, "entries", total - sum(part.entries for part in missing)) as progress,
        _lanes(job, devices, cluster, progress) as lanes,
    ):
        _hand_out(in_order(missing, shard), own, lanes, progress, in_process=in_process, say=say)
    missing, _ = run.missing_parts()
    if not missing:
        run.write_view()
        run.forget_claims()
    return not missing


def shares(parts: Sequence[Part], n: int) -> list[list[Part]]:
    """Deal parts into n shards of about equal cost: each next longest to the shard that has least."""
    dealt: list[list[Part]] = [[] for _ in range(n)]
    costs = [0] * n
    for part in sorted(parts, key=lambda part: (-part.entries, part.name)):
        least = costs.index(min(costs))
        dealt[least].append(part)
        costs[least] += part.entries
    return dealt


def in_order(parts: Sequence[Part], shard: tuple[int, int] = (1, 1)) -> list[Part]:
    """The parts in the order to be tried: those of the shard first, and the longest first, which evens the end out."""
    i, n = shard
    dealt = shares(parts, n)
    return [part for k in range(n) for part in dealt[(i - 1 + k) % n]]


def _hand_out(
    parts: Sequence[Part],
    own: set[str],
    lanes: list[Lane],
    progress: Progress,
    *,
    in_process: bool,
    say: Callable[[str], None],
) -> None:
    entries = {part.name: part.entries for part in parts}
    todo = deque(entries)
    others: list[str] = []
    running: dict[Future[Outcome], tuple[str, Lane]] = {}
    while todo or running or own.intersection(others):
        for lane in lanes:
            while todo and sum(at is lane for _, at in running.values()) < lane.slots:
                name = todo.popleft()
                running[lane.submit(name)] = (name, lane)
        if not running:
            # All that is left is claimed by other programs: look again until it is there, or abandoned.
            time.sleep(_POLL)
            todo, others = deque(others), []
            continue
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            name, lane = running.pop(future)
            try:
                outcome = future.result()
            except BrokenExecutor:
                todo.appendleft(name)
                lanes.remove(lane)
                if lane.restart is not None:
                    say(f"{lane.name} died; its part {name} is done again by another worker, and it is started again.")
                    lanes.append(lane.restart())
                else:
                    say(f"{lane.name} died; its part {name} is done again by the others.")
                if not lanes:
                    raise UserError(
                        "All workers died, most likely for lack of memory: lower --n_max, then start again with the "
                        "same flags; what was finished is kept."
                    ) from None
                continue
            except Exception as error:
                if type(error).__name__ != "KilledWorker":
                    raise
                raise UserError(
                    f"Part {name} killed several of the cluster's workers, most likely for lack of memory: give them "
                    "more, or lower --n_max, then start again; what was finished is kept."
                ) from None
            if outcome.status == "claimed":
                others.append(name)
            elif outcome.status == "there" or not in_process:
                # In this process the engine has counted them tile by tile.
                progress(entries[name])


@contextmanager
def _lanes(
    job: Job, devices: Sequence[str], cluster: "tuple[Executor, int] | None", progress: Progress
) -> Iterator[list[Lane]]:
    """The executors; whatever ends the block ends them."""
    if cluster is not None:
        executor, slots = cluster
        yield [Lane("the cluster", lambda name: executor.submit(compute_part, job, "cluster", name), slots)]
        return
    if len(devices) == 1:
        worker = Worker(job, devices[0])
        pool = ThreadPoolExecutor(1, thread_name_prefix="worker")
        try:
            yield [Lane(devices[0], lambda name: pool.submit(worker.compute, name, progress))]
        finally:
            worker.stop()
            pool.shutdown(wait=True, cancel_futures=True)
            worker.claims.release_all()
        return
    try:
        yield [_process_lane(job, device, i, _RESTARTS) for i, device in enumerate(devices)]
    finally:
        # A part takes minutes; what a worker was at is lost either way.
        for child in multiprocessing.active_children():
            child.terminate()


def _process_lane(job: Job, device: str, index: int, restarts: int) -> Lane:
    # Spawned, never forked: neither TensorFlow nor threads survive a fork.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, mp_context=context, initializer=enter_process, initargs=(device,))
    return Lane(
        f"worker {index} ({device})",
        lambda name: pool.submit(compute_part, job, device, name),
        restart=(lambda: _process_lane(job, device, index, restarts - 1)) if restarts else None,
    )


def status(run: RunDirectory, verify: bool = False) -> str:
    """What of a run is done, missing, damaged and at work, and how long is left at the rate so far, as text."""
    from .claims import claimed

    description = run.description()
    parts = description.tiling.parts()
    missing, reasons = run.missing_parts(verify)
    total, left = description.tiling.entries, sum(part.entries for part in missing)
    lines = [
        f"{run.name} in {run.workdir}: {len(parts) - len(missing)} of {len(parts)} parts done, "
        f"{1 - left / total:.1%} of {total:,} kernel entries" + (", every byte checked" if verify else "")
    ]
    lines += [f"  {name}: {reason}; it will be computed again" for name, reason in reasons.items()]
    names = {part.name for part in missing}
    lines += [f"  {name}: at work, {who}" for name, who in claimed(run.claims_folder).items() if name in names]
    if missing:
        listed = ", ".join(part.name for part in missing[:8])
        lines.append("  missing: " + listed + (f" and {len(missing) - 8} more" if len(missing) > 8 else ""))
        done = [part for part in parts if part.name not in names]
        seconds = sum(record.get("seconds", 0.0) for record in run.provenance(done))
        if seconds:
            rate = sum(part.entries for part in done) / seconds
            lines.append(f"  about {duration(left / rate)} of one worker's time left")
    elif not run.view_path.exists():
        lines.append("  the view isn't written: start save_kernels.py once more with the same flags")
    return "\n".join(lines)
