"""A Dask cluster on this machine whose workers find the tests' own modules, also one that is started again."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .paths import TESTS

if TYPE_CHECKING:
    from distributed import Client

#: The environment of its processes.
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}


@contextmanager
def local_client(n_workers: int) -> "Iterator[Client]":
    """A client of so many processes, of one thread each."""
    from distributed import Client, LocalCluster

    options = {"n_workers": n_workers, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with LocalCluster(**options, env=ENVIRONMENT) as cluster, Client(cluster) as client:
        yield client
