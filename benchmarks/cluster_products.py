"""
What an iteration of conjugate gradients costs on a cluster: a product with ten columns, and sending and adding vectors.

    python benchmarks/cluster_products.py [--N=8000] [--json=FILE]

A made matrix in memory on one core and on two; then messages of several sizes between a client and two Dask workers.
"""

import functools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import flags
from distributed import Client, LocalCluster

from cnn_gp import cli
from cnn_gp.provenance import software
from cnn_gp.regression.gram_matrix import ArrayGram
from cnn_gp.regression.tile_products import TileProducts
from cnn_gp.regression.tree_sum import add_at_end

FLAGS = flags.FLAGS
flags.DEFINE_integer("N", 8000, "Images of the made matrix.")
flags.DEFINE_integer("n_max", 500, "Rows and columns of a tile.")
flags.DEFINE_list("vectors", ["1000", "10000", "100000", "1000000"], "Images of the vectors that are sent.")
flags.DEFINE_integer("repeats", 30, "The least time of so many counts: other programs share the cores.")
flags.DEFINE_string("json", None, "File to write the measurements to.")

CLASSES = 10


def seconds(work: Callable[[], object]) -> float:
    """The least of several."""
    times = []
    for _ in range(FLAGS.repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def products() -> list[dict[str, float]]:
    """Seconds of a product for each GB of tiles, by the number of cores."""
    rng = np.random.default_rng(0)
    K = rng.random((FLAGS.N, FLAGS.N), np.float32)
    of_tiles, B = TileProducts(ArrayGram(K, FLAGS.n_max), FLAGS.N, np.inf), rng.normal(size=(FLAGS.N, CLASSES))
    of_tiles.times(B)
    gigabytes = 2e-9 * FLAGS.N**2
    cores = sorted(os.sched_getaffinity(0))
    rows = []
    for n in range(1, len(cores) + 1):
        # Threads that are started from now on inherit it.
        os.sched_setaffinity(0, cores[:n])
        rows.append({"cores": n, "seconds_per_GB": seconds(functools.partial(of_tiles.times, B)) / gigabytes})
        print(*rows[-1].values(), flush=True)
    return rows


def messages(client: Client) -> list[dict[str, float]]:
    """Seconds to send vectors to all workers, and to add two workers' and bring the sum back."""
    workers, rows = sorted(client.scheduler_info()["workers"]), []
    for n in map(int, FLAGS.vectors):
        B = np.random.default_rng(0).normal(size=(n, CLASSES))
        there = [client.submit(np.ones, B.shape, workers=[worker], pure=False) for worker in workers]
        client.gather([client.submit(len, future, pure=False) for future in there])
        sending = seconds(lambda B=B: client.scatter(B, broadcast=True, hash=False))  # type: ignore[misc]
        adding = seconds(lambda there=there: client.submit(_sum, *there, pure=False).result())  # type: ignore[misc]
        rows.append({"bytes": B.nbytes, "send_to_all": sending, "add_and_return": adding})
        print(*rows[-1].values(), flush=True)
    return rows


def _sum(total: np.ndarray, part: np.ndarray) -> np.ndarray:
    return add_at_end(total.copy(), part)


def main() -> None:
    """Measure, print, write."""
    result = {"N": FLAGS.N, "products": products()}
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        result["messages"] = messages(client)
    if FLAGS.json is not None:
        Path(FLAGS.json).write_text(json.dumps({**result, "software": software()}, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
