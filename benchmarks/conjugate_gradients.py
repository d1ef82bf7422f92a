"""
Preconditioners of conjugate gradients on a stored run: iterations and seconds to a residual of 1e-6.

    python benchmarks/conjugate_gradients.py --path=runs --model=convnet_gp [--N=4000] [--rank=500] [--json=FILE]

All of one rank: none, pivoted Cholesky, randomly pivoted Cholesky, and the randomised Nystrom approximation (a Gaussian
sketch; Frangella, Tropp, Udell 2021). And a product with ten columns against reading the tiles alone. It may be
stopped, and goes on when it is started again with the same file.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import flags
from scipy.linalg import cholesky, solve_triangular

from cnn_gp import cli, shared_flags
from cnn_gp.errors import UserError
from cnn_gp.provenance import software
from cnn_gp.regression.conjugate_gradients import conjugate_gradients
from cnn_gp.regression.pivoted_cholesky import LowRank, Preconditioner, randomly_pivoted_cholesky
from cnn_gp.regression.row_product import piece_width
from cnn_gp.regression.solve import targets
from cnn_gp.regression.tile_products import TileProducts, in_threads
from cnn_gp.store.atomic import write_atomically
from cnn_gp.store.kept_state import KeptState
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
    # A product takes the memory of ten times as many columns.
    image = np.hstack([products.times(sketch[:, left : left + 100]) for left in range(0, rank, 100)])
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


def speed_of_products(gram: StoredGram, products: TileProducts, Y: np.ndarray) -> dict[str, float]:
    """Seconds of reading the tiles alone, in the threads of a product, and of products."""
    N = products.N

    def read(start: int) -> list[None]:
        return [None for _ in gram.pieces(start, piece_width(gram.n_max))]

    from_files = TileProducts(gram, N, 0)
    for first in (from_files, products):
        first.times(Y)
    return {
        "reading_verified": seconds(lambda: [None for _ in gram.rows(0, N)]),
        "reading": seconds(lambda: list(in_threads(read, range(0, N, gram.n_max)))),
        "product_from_files": seconds(lambda: from_files.times(Y)),
        "product_in_memory": seconds(lambda: products.times(Y)),
    }


def main() -> None:
    """Measure, print, write after each solve; what is in the file already is not done again."""
    run, N, file = shared_flags.run_directory(), FLAGS.N, None if FLAGS.json is None else Path(FLAGS.json)
    gram, Y = StoredGram(run), targets(run.labels()["Y"][:N], run.description().n_classes)
    products = TileProducts(gram, N, np.inf)
    if file is not None and file.exists():
        result = json.loads(file.read_text())
        if (result["run"], result["N"]) != (run.name, N):
            raise UserError(f"{file} is of {result['run']}, N = {result['N']:,}: give another --json.")
    else:
        result = {"run": run.name, "N": N, **speed_of_products(gram, products, Y), "solves": [], "software": software()}
    print(
        *(f"{name} {value:.2f} s" for name, value in result.items() if isinstance(value, float)), sep=", ", flush=True
    )
    diagonal = products.diagonal()
    for name in FLAGS.preconditioner:
        there = {solve["noise"] for solve in result["solves"] if solve["preconditioner"] == name}
        missing = [float(noise) for noise in FLAGS.noise if float(noise) not in there]
        if not missing:
            continue
        start = time.perf_counter()
        method = METHODS[NAMES.index(name)]
        low_rank = LowRank(method(products, N, FLAGS.rank), float(diagonal.sum()))
        setup = time.perf_counter() - start
        for noise in missing:
            added = noise * float(diagonal.mean())
            kept = KeptState(run, f"benchmark_{name.replace(' ', '_')}_{noise:g}_{N}")
            start = time.perf_counter()
            found = conjugate_gradients(
                lambda B, added=added: products.times(B) + added * B,  # type: ignore[misc]
                Preconditioner(low_rank, added),
                Y,
                TOLERANCE,
                kept,
                FLAGS.max_iterations,
            )
            solve = {
                "noise": noise,
                "preconditioner": name,
                "rank": low_rank.rank,
                "iterations": found.iterations,
                "setup": setup,
                "seconds": found.seconds_before + time.perf_counter() - start,
                "residual": found.relative_residual,
            }
            result["solves"].append(solve)
            print(*solve.values(), flush=True)
            if file is not None:
                write_atomically(file, json.dumps(result, indent=1) + "\n")
            kept.remove()


if __name__ == "__main__":
    cli.run(main)
