"""
The block factorisation against LAPACK's own, and with --workers against Dask's on as many processes, in one run.

    python benchmarks/factorise.py [--N=12000] [--workers=2] [--json=FILE]

The two factorise the same float64 matrix in turn, --repeats times, of which the medians count. LAPACK's potrf works in
place on a whole matrix, twice the memory of the blocks. Dask's is timed from stored tiles, as classify_gp.py runs it,
and so are, beside it, the blocks here.
"""

import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from made import D, MadeEngine, made_run
from scipy.linalg import lapack

from cnn_gp import cli
from cnn_gp.engines.threads import n_cores
from cnn_gp.provenance import software
from cnn_gp.regression.cholesky import factorise, n_operations
from cnn_gp.regression.lower_triangle import BLOCK, LowerTriangle, assemble
from cnn_gp.store.stored_matrix import StoredGram

FLAGS = flags.FLAGS
flags.DEFINE_integer("N", 12_000, "Rows and columns.")
flags.DEFINE_integer("block", BLOCK, "Rows and columns of a block.")
flags.DEFINE_integer("repeats", 3, "Measurements of each.")
flags.DEFINE_integer("workers", 0, "Processes of a Dask LocalCluster to time too, one thread each.")
flags.DEFINE_string("json", None, "File to write the measurements to.")


def seconds(work: Callable[[], Any]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def potrf(K: np.ndarray) -> float:
    """Seconds of LAPACK's in-place factorisation of a copy of K."""
    A = np.array(K, order="F")

    def work() -> None:
        factor, info = lapack.dpotrf(A, lower=1, clean=0, overwrite_a=1)
        assert info == 0 and factor.ctypes.data == A.ctypes.data

    return seconds(work)


def blocks(K: np.ndarray) -> float:
    """Seconds of the block factorisation of a copy of K."""
    lower = LowerTriangle(len(K), FLAGS.block)
    for first in range(0, len(K), 500):
        lower.fill(first, K[first:, first : first + 500])
    return seconds(lambda: factorise(lower))


def cluster(workdir: str) -> list[tuple[float, float]]:
    """Seconds of (reading and factorising here, the same on a cluster), measured in turn."""
    from distributed import Client, LocalCluster

    from cnn_gp.regression.dask_cholesky import ClusterFactor

    gram = StoredGram(made_run(workdir, FLAGS.N, 1, 1))
    measured = []
    logging.getLogger("distributed").setLevel(logging.WARNING)
    options = {"n_workers": FLAGS.workers, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**options) as local, Client(local) as client:
        for _ in range(FLAGS.repeats):
            here = seconds(lambda: factorise(assemble(gram, FLAGS.N)))
            measured.append((here, seconds(lambda: ClusterFactor(client, gram, FLAGS.N))))
    return measured


def main() -> None:
    """Measure, print, write."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(FLAGS.N, D)).astype(np.float32)
    K = MadeEngine().matrix(X).astype(np.float64)
    times = [(potrf(K), blocks(K)) for _ in range(FLAGS.repeats)]
    lapacks, ours = (statistics.median(column) for column in zip(*times, strict=True))
    rates = [n_operations(FLAGS.N) / t / 1e9 for t in (lapacks, ours)]
    print(f"N = {FLAGS.N:,}, {n_cores()} cores, blocks of {FLAGS.block:,}")
    print(f"potrf:  {lapacks:.2f} s, {rates[0]:.0f} GFLOP/s, {8e-9 * FLAGS.N**2:.2f} GB")
    print(f"blocks: {ours:.2f} s, {rates[1]:.0f} GFLOP/s, {LowerTriangle.n_bytes(FLAGS.N, FLAGS.block) / 1e9:.2f} GB")
    print(f"blocks at {100 * lapacks / ours:.0f} % of potrf's speed")
    result = {"N": FLAGS.N, "block": FLAGS.block, "cores": n_cores(), "potrf": lapacks, "blocks": ours}
    if FLAGS.workers:
        del K
        with tempfile.TemporaryDirectory() as folder:
            pairs = cluster(folder)
        here, there = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"from tiles: here {here:.2f} s, on a cluster of {FLAGS.workers} processes {there:.2f} s")
        result.update(workers=FLAGS.workers, from_tiles_here=here, from_tiles_on_cluster=there)
    if FLAGS.json is not None:
        blas = {key: os.environ[key] for key in os.environ if key.startswith("OPENBLAS_")}
        Path(FLAGS.json).write_text(json.dumps({**result, "openblas": blas, "software": software()}, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
