"""
A run of any size without hours of kernels: a positive definite matrix of made images, stored as save_kernels.py does.

    python benchmarks/made_run.py --path=DIR --N_train=50000 [--N_vali=10000 --N_test=10000]
    python scripts/classify_gp.py --path=DIR --run_name=made

Images are 64 normal numbers, K(x, x') = (x . x' / 64)^2, plus 1/2 on the diagonal; classes are those of ten random
prototypes. At N = 50,000 it takes 9 GB of disk.
"""

from absl import flags
from made import made_run

from cnn_gp import cli, shared_flags

FLAGS = flags.FLAGS
shared_flags.define_path()
flags.DEFINE_integer("N_train", 50_000, "Training images.")
flags.DEFINE_integer("N_vali", 10_000, "Validation images.")
flags.DEFINE_integer("N_test", 10_000, "Test images.")
shared_flags.define_n_max()


def main() -> None:
    """Store the run."""
    run = made_run(FLAGS.path, FLAGS.N_train, FLAGS.N_vali, FLAGS.N_test, FLAGS.n_max)
    print(f"The run 'made' is complete: {run.view_path}")


if __name__ == "__main__":
    cli.run(main)
