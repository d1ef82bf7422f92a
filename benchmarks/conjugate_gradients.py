"""
Preconditioners of conjugate gradients on a stored run: iterations and seconds to a residual of 1e-6, in one run.

    python benchmarks/conjugate_gradients.py --path=runs --model=convnet_gp [--N=4000] [--rank=500] [--json=FILE]

All of one rank: none, pivoted Cholesky, randomly pivoted Cholesky, and the randomised Nystrom approximation (a Gaussian
sketch; Frangella, Tropp, Udell 2021). And a product with ten columns against reading the tiles alone.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import flags
from scipy.linalg import cholesky, solve_triangular

from cnn_gp import cli, shared_flags
from cnn_gp.provenance import software
from cnn_gp.regression.conjugate_gradients import conjugate_gradients
from cnn_gp.regression.pivoted_cholesky import LowRank, Preconditioner, randomly_pivoted_cholesky
from cnn_gp.regression.row_product import piece_width
from cnn_gp.regression.solve import targets
from cnn_gp.regression.tile_products import TileProducts, in_threads
from cnn_gp.store.stored_matrix import StoredGram

FLAGS = flags.FLAGS
shared_flags.define_run()
flags.DEFINE_integer("N", 4000, "The first so many training images.")
flags.DEFINE_integer("rank", 500, "Of all preconditioners.")
flags.DEFINE_list("noise", ["0", "1e-6", "1e-4", "1e-3"], "Relative to the mean diagonal.")
NAMES = ["none", "pivoted", "randomly pivoted", "Nystrom"]
flags.DEFINE_multi_enum("preconditioner", NAMES, NAMES, "Those that are compared; may be given several times.")
flags.DEFINE_integer("max_iterations", 1000, "After which a solve is given up.")
flags.DEFINE_string("json", None, "File to write the measurements to.")

TOLERANCE = 1e-6


def nystrom(products: TileProducts, n: int, rank: int) -> np.ndarray:
    """F [n, rank] with F F^T the Nystrom approximation of a Gaussian sketch, shifted for stability."""
    sketch = np.linalg.qr(np.random.default_rng(0).normal(size=(n, rank)))[0]
    image = products.times(sketch)
    # The shift is far below what the approximation leaves.
    image += 1e-10 * float(np.linalg.norm(image)) * sketch
    inner = sketch.T @ image
    F = solve_triangular(cholesky((inner + inner.T) / 2, lower=True), image.T, lower=True).T
    return np.asfortranarray(F)


METHODS: tuple[Callable[[TileProducts, int, int], np.ndarray], ...] = (
    lambda products, n, rank: np.zeros((n, 0), order="F"),
    lambda products, n, rank: randomly_pivoted_cholesky(products, n, rank, greedy=True),
    randomly_pivoted_cholesky,
    nystrom,
)


def seconds(work: Callable[[], object]) -> float:
    """The least of three."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Measure, print, write."""
    run, N = shared_flags.run_directory(), FLAGS.N
    gram, Y = StoredGram(run), targets(run.labels()["Y"][:N], run.description().n_classes)
    verified = seconds(lambda: [None for _ in gram.rows(0, N)])

    def read(start: int) -> list[None]:
        return [None for _ in gram.pieces(start, piece_width(gram.n_max))]

    reading = seconds(lambda: list(in_threads(read, range(0, N, gram.n_max))))
    from_disk = TileProducts(gram, N, 0)
    products = TileProducts(gram, N, np.inf)
    for first in (from_disk, products):
        first.times(Y)
    streamed, in_memory = seconds(lambda: from_disk.times(Y)), seconds(lambda: products.times(Y))
    print(
        f"N = {N:,}: reading {verified:.2f} s, unverified {reading:.2f} s, a product from files {streamed:.2f} s, from "
        f"memory {in_memory:.2f} s"
    )
    diagonal = products.diagonal()
    made = {}
    for name, method in zip(NAMES, METHODS, strict=True):
        if name not in FLAGS.preconditioner:
            continue
        start = time.perf_counter()
        made[name] = LowRank(method(products, N, FLAGS.rank), float(diagonal.sum())), time.perf_counter() - start
    rows = []
    for noise in map(float, FLAGS.noise):
        added = noise * float(diagonal.mean())
        for name, (low_rank, factor_seconds) in made.items():
            start = time.perf_counter()
            found = conjugate_gradients(
                lambda B, added=added: products.times(B) + added * B,  # type: ignore[misc]
                Preconditioner(low_rank, added),
                Y,
                TOLERANCE,
                max_iterations=FLAGS.max_iterations,
            )
            rows.append(
                {
                    "noise": noise,
                    "preconditioner": name,
                    "rank": low_rank.rank,
                    "iterations": found.iterations,
                    "setup": factor_seconds,
                    "seconds": time.perf_counter() - start,
                    "residual": found.relative_residual,
                }
            )
            print(*rows[-1].values(), flush=True)
    if FLAGS.json is not None:
        result = {
            "run": run.name,
            "N": N,
            "reading_verified": verified,
            "reading": reading,
            "product_from_files": streamed,
            "product_in_memory": in_memory,
        }
        Path(FLAGS.json).write_text(json.dumps({**result, "solves": rows, "software": software()}, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
