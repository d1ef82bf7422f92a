"""A Dask cluster whose workers see the working directory."""

import contextlib
import logging
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import UserError

if TYPE_CHECKING:
    from distributed import Client, Future

#: Seconds that the scheduler may take to answer, and the first worker to come.
SCHEDULER_TIMEOUT, WORKER_TIMEOUT = 20.0, 60.0

#: Seconds between looks at what the cluster has done, and whether the scheduler is still there.
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.0005, 0.05


@dataclass(frozen=True)
class Cluster:
    """A connection to a cluster."""

    client: "Client"

    def n_workers(self) -> int:
        """How many workers there are now; while there is none, one, which may come."""
        return max(1, len(workers_of(self.client)))

    def check(self) -> None:
        """:raises CancelledError: where the connection is lost; not all that waits for the cluster notices."""
        _check_connected(self.client)

    @contextmanager
    def messages(self, topic: str) -> "Iterator[dict[str, Any]]":
        """The last value of each name, as the workers send them: ``worker.log_event(topic, (name, value))``."""
        last: dict[str, Any] = {}
        self.client.subscribe_topic(topic, lambda event: last.update([event[1]]))
        try:
            yield last
        finally:
            with contextlib.suppress(Exception):
                self.client.unsubscribe_topic(topic)


@contextmanager
def connect(address: str, folder: Path) -> Iterator[Cluster]:
    """
    A connection to a cluster; it is closed at the end.

    :param folder: the run's, which all workers must see.
    :raises UserError: where there is no scheduler or no worker, one doesn't see the folder, or the scheduler or a
        worker dies before the end.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise UserError("--scheduler needs Dask: install the package with its [cluster] extra.") from error
    # absl shows what Dask logs: every connection, and a traceback of its own for every lost one.
    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        client = Client(address, timeout=SCHEDULER_TIMEOUT)
    except (OSError, ValueError) as error:
        raise UserError(f"There is no Dask scheduler at {address} ({error}): check --scheduler.") from error
    try:
        _check_workers(client, address, folder)
        yield Cluster(client)
    except UserError:
        raise
    except Exception as error:
        if type(error).__name__ == "KilledWorker":
            raise UserError(
                f"The Dask scheduler at {address} lost several workers at the same work, most likely for lack of "
                "memory: give them more, then start again with the same flags; what was finished is kept."
            ) from error
        # A client that loses its scheduler cancels all that it waits for.
        if isinstance(error, CancelledError) or client.status != "running":
            raise UserError(
                f"The connection to the Dask scheduler at {address} is lost: start it and its workers again, then this "
                "program with the same flags; what was finished is kept."
            ) from error
        raise
    finally:
        with contextlib.suppress(Exception):
            client.close(timeout=5)


def workers_of(client: "Client") -> dict[str, dict[str, Any]]:
    """
    What the scheduler says of each worker, by its address.

    :raises CancelledError: where the client has lost its scheduler.
    """
    _check_connected(client)
    assert client.scheduler is not None
    try:
        # Not scheduler_info(): what it returns is kept in the client, where a look that the client takes every two
        # seconds, at the totals alone, can replace it before it is returned: then there are no workers in it.
        return client.sync(client.scheduler.identity, n_workers=-1)["workers"]
    except OSError as error:
        raise CancelledError("the connection to the scheduler is lost") from error


def aligned(array: np.ndarray) -> np.ndarray:
    """
    An array that came over the network, whose numbers may begin at any byte, at addresses that suit its dtype.

    NumPy's BLAS reads such an array without a copy, and crashes the process where it takes a processor for one without
    AVX.
    """
    return np.require(array, requirements="A")


def as_completed(client: "Client", futures: "Sequence[Future]") -> "Iterator[Future]":
    """
    The futures as they end.

    :raises CancelledError: where the client has lost its scheduler, or one can't be computed any more.
    """
    waiting, pause = set(futures), _SHORTEST_PAUSE
    while waiting:
        done = {future for future in waiting if future.done()}
        _check_connected(client)
        if any(future.cancelled() for future in done):
            raise CancelledError("the cluster has lost what a computation needs")
        waiting -= done
        yield from done
        # Not distributed.wait(): where its time is up, its error and the frames that it has passed hold each other, and
        # all futures in them, with what those hold in the workers' memory, until Python's garbage collector runs.
        pause = _SHORTEST_PAUSE if done else min(1.1 * pause, _LONGEST_PAUSE)
        time.sleep(pause if waiting else 0)


def _check_connected(client: "Client") -> None:
    """:raises CancelledError: where the client has lost its scheduler."""
    if client.status != "running":
        raise CancelledError("the connection to the scheduler is lost")


def _check_workers(client: "Client", address: str, folder: Path) -> None:
    """:raises UserError: where no worker comes, or one doesn't see the folder."""
    try:
        client.wait_for_workers(1, timeout=WORKER_TIMEOUT)
    except TimeoutError as error:
        raise UserError(
            f"The Dask scheduler at {address} has no workers, and none came within {WORKER_TIMEOUT:g} s: start some "
            f"with `dask worker {address}`."
        ) from error
    probe = folder.absolute() / f".probe.{uuid.uuid4().hex}"
    try:
        probe.touch()
    except OSError as error:
        raise UserError(
            f"{folder} can't be written ({error.strerror}), so that the cluster's workers can't be asked whether they "
            "see it: check its permissions and its disk."
        ) from error
    try:
        seen = client.run(probe.exists)
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    blind = [worker for worker, sees in seen.items() if not sees]
    if blind:
        raise UserError(
            f"{len(blind)} of {len(seen)} Dask workers, {blind[0]} first, don't see {folder}: "
            "expected a file system that all workers share; give such a --path."
        )
