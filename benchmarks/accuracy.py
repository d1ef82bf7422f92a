"""
How far the fused engine is from the float64 kernel: the three named kernels and every network of the random search.

    python benchmarks/accuracy.py --data_dir=DIR [--n_images=200] [--kernel=ntk] [--pool=3] [--models=resnet_gp,15] \
        [--json=FILE]

Prints the largest relative error over all pairs of MNIST's first training images (synthetic ones without --data_dir);
that the matrix is symmetric with the prior variances on its diagonal is asserted, to the bit.
"""

import json
from pathlib import Path

import numpy as np
from absl import flags

from cnn_gp import cli, shared_flags
from cnn_gp.data import datasets
from cnn_gp.engines.fused.engine import FusedEngine
from cnn_gp.engines.fused.lowering import lower
from cnn_gp.errors import ShrunkMapError
from cnn_gp.kernels.architectures import PAPER_MODELS, build_kernel, run_name
from cnn_gp.kernels.random_search import SEARCH_SEEDS
from cnn_gp.provenance import software

FLAGS = flags.FLAGS
flags.DEFINE_string("data_dir", None, "Folder of MNIST's files; without it synthetic images.")
flags.DEFINE_integer("n_images", 200, "Images.")
flags.DEFINE_enum("kernel", "nngp", ["nngp", "ntk"], "Which kernel; the step has no neural tangent kernel.")
shared_flags.define_pool()
flags.DEFINE_list("models", [*PAPER_MODELS, *map(str, SEARCH_SEEDS)], "Names, and seeds of the search.")
flags.DEFINE_string("json", None, "File to write the errors to.")


def main() -> None:
    """Measure, print, write."""
    name = "synthetic" if FLAGS.data_dir is None else "mnist"
    X = datasets.load(name, data_dir=FLAGS.data_dir, N_train=FLAGS.n_images, N_vali=1, N_test=1).X.astype(np.float32)
    with cli.without_startup_messages():
        from cnn_gp.engines.tensorflow import TensorFlowEngine, configure

        configure(0)
    errors: dict[str, dict[str, float | str]] = {}
    pool = shared_flags.pool()
    for model, seed in [("random", int(model)) if model.isdigit() else (model, 0) for model in FLAGS.models]:
        try:
            kernel = build_kernel(model, [1, 28, 28], seed=seed, kernel=FLAGS.kernel, pool=pool)
        except ShrunkMapError:
            continue
        program = lower(kernel)
        engine = FusedEngine(program)
        K = engine.matrix(X)
        assert (K == K.T).all() and (np.diag(K) == engine.diag(X)).all()
        reference = TensorFlowEngine(kernel).matrix(X.astype(np.float64))
        functions = sorted({step.before.function for step in program.steps if step.before})
        error = float(np.max(np.abs(K / reference - 1)))
        name_of_run = run_name(model, seed, FLAGS.kernel, pool)
        errors[name_of_run] = {"nonlinearity": ", ".join(functions), "largest_relative_error": error}
        print(f"{name_of_run:16} {', '.join(functions):5} {error:.1e}", flush=True)
    if FLAGS.json is not None:
        result = {"data": name, "n_images": len(X), "errors": errors, "software": software()}
        Path(FLAGS.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
