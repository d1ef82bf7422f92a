"""
The convergence figure: many finite networks at several widths, beside the Gaussian process that is their limit.

With --kernel=ntk the networks' tangent kernels, beside the neural tangent kernel.

    python scripts/plot_convergence.py --dataset=digits --path=runs/convergence

Started again with the same flags it goes on where it was. For each model it writes the samples, a figure (PNG and SVG)
and its numbers (CSV, and JSON with what made them) into the working directory.
"""

import functools
from pathlib import Path

import numpy as np
from absl import flags

from cnn_gp import cli, shared_flags
from cnn_gp.data import datasets
from cnn_gp.errors import UserError
from cnn_gp.kernels.architectures import PAPER_MODELS, build_kernel, run_name

FLAGS = flags.FLAGS
shared_flags.define_data_set()
flags.DEFINE_list("models", list(PAPER_MODELS), "The kernels.")
shared_flags.define_kernel()
flags.DEFINE_list("widths", ["3", "10", "30", "100"], "Channels of every hidden map.")
flags.DEFINE_integer("draws", 10_000, "Networks of each width, evaluated at the first image.", lower_bound=2)
flags.DEFINE_integer("wide_draws", 1_000, "How many of them at all images, at widths above 10.", lower_bound=2)
flags.DEFINE_integer("n_images", 100, "Training images, from the first on.", lower_bound=2)
shared_flags.define_path()


def main() -> None:
    """Parse the flags, draw what is missing, write figures and tables."""
    widths = _widths(FLAGS.widths)
    pool = shared_flags.pool()
    unknown = [model for model in FLAGS.models if model not in PAPER_MODELS]
    if unknown:
        raise UserError(f"--models has {unknown[0]!r}; expected some of {', '.join(PAPER_MODELS)}.")
    data = datasets.load(FLAGS.dataset, data_dir=FLAGS.data_dir, N_train=FLAGS.n_images, N_vali=1, N_test=1)
    with cli.without_startup_messages():
        # Here, so that a missing Matplotlib ends in one line.
        from cnn_gp.engines.tensorflow import n_gpus_seen
        from cnn_gp.report.convergence_study import Study, converge

        # TensorFlow's start-up messages about GPUs come at its first use.
        n_gpus_seen()
        kernels = {
            run_name(model, 0, FLAGS.kernel, pool): build_kernel(
                model, data.image_shape, kernel=FLAGS.kernel, pool=pool
            )
            for model in FLAGS.models
        }
    study = Study(data.name, data.X.astype(np.float32), widths, FLAGS.draws, FLAGS.wide_draws)
    say = functools.partial(print, flush=True)
    for name, kernel in kernels.items():
        for s in converge(study, name, kernel, Path(FLAGS.path), cli.command(), say):
            print(f"{name}, width {s.width}: {s.in_words()}.")


def _widths(texts: list[str]) -> tuple[int, ...]:
    widths = [shared_flags.whole_number(text.strip()) for text in texts]
    if not widths or not all(widths):
        raise UserError(f"--widths is {','.join(texts)}; expected numbers of channels such as 3,10,30,100.")
    return tuple(sorted({width for width in widths if width}))


if __name__ == "__main__":
    cli.run(main)
