"""A Dask cluster whose workers see the working directory."""

import logging
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import UserError

if TYPE_CHECKING:
    from distributed import Client


def connect(address: str, folder: Path) -> "tuple[Client, int]":
    """
    A client of the cluster, and its number of workers.

    :param folder: what all workers must see: the run's.
    :raises UserError: where there is no scheduler or no worker, or one doesn't see the folder.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise UserError("--scheduler needs Dask: install the package with its [cluster] extra.") from error
    # absl shows what Dask logs of its every connection.
    logging.getLogger("distributed").setLevel(logging.WARNING)
    try:
        client = Client(address, timeout="20s")
    except (OSError, ValueError) as error:
        raise UserError(f"There is no Dask scheduler at {address} ({error}): check --scheduler.") from error
    probe = folder.absolute() / f".probe.{uuid.uuid4().hex}"
    probe.touch()
    try:
        seen = client.run(probe.exists)
    finally:
        probe.unlink()
    if not seen:
        raise UserError(f"The Dask scheduler at {address} has no workers; start some with `dask worker {address}`.")
    blind = [worker for worker, sees in seen.items() if not sees]
    if blind:
        raise UserError(
            f"{len(blind)} of {len(seen)} Dask workers, {blind[0]} first, don't see {folder}: "
            "expected a file system that all workers share; give such a --path."
        )
    return client, len(seen)
