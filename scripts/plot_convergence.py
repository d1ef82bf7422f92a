"""
The convergence figure: many finite networks at several widths, beside the Gaussian process that is their limit.

    python scripts/plot_convergence.py --dataset=digits --path=runs/convergence

Started again with the same flags it goes on where it was. For each model it writes the samples, a figure (PNG and SVG)
and its numbers (CSV, and JSON with what made them) into the working directory.
"""

import csv
import functools
import hashlib
import io
import json
from pathlib import Path
from typing import BinaryIO

import numpy as np
from absl import flags

from cnn_gp import cli
from cnn_gp.data import datasets
from cnn_gp.errors import UserError
from cnn_gp.kernels.architectures import MODELS
from cnn_gp.progress import Progress
from cnn_gp.provenance import software
from cnn_gp.report.convergence import Plan, Samples, summary
from cnn_gp.store.atomic import write_atomically

FLAGS = flags.FLAGS
flags.DEFINE_string("dataset", "digits", f"One of {', '.join(datasets.DATASETS)}, or a file FILE.npz.")
flags.DEFINE_string("data_dir", None, "Folder of the data set's files; without it Keras's cache, or its download.")
flags.DEFINE_list("models", list(MODELS[:-1]), "The kernels.")
flags.DEFINE_list("widths", ["3", "10", "30", "100"], "Channels of every hidden map.")
flags.DEFINE_integer("draws", 10_000, "Networks of each width, evaluated at the first image.", lower_bound=2)
flags.DEFINE_integer("wide_draws", 1_000, "How many of them at all images, at widths above 10.", lower_bound=2)
flags.DEFINE_integer("n_images", 100, "Training images, from the first on.", lower_bound=2)
flags.DEFINE_string("path", None, "The working directory.", required=True)


def main() -> None:
    """Parse the flags, draw what is missing, write figures and tables."""
    widths = _widths(FLAGS.widths)
    unknown = [model for model in FLAGS.models if model not in MODELS[:-1]]
    if unknown:
        raise UserError(f"--models has {unknown[0]!r}; expected some of {', '.join(MODELS[:-1])}.")
    data = datasets.load(FLAGS.dataset, data_dir=FLAGS.data_dir, N_train=FLAGS.n_images, N_vali=1, N_test=1)
    X = data.X.astype(np.float32)
    with cli.without_startup_messages():
        from cnn_gp import gram
        from cnn_gp.kernels.architectures import build_kernel

        kernels = {model: build_kernel(model, data.image_shape) for model in FLAGS.models}
    try:
        from cnn_gp.report import figures
    except ImportError as error:
        raise UserError("Figures need Matplotlib: install the package with its [figures] extra.") from error
    data_hash = hashlib.sha256(X.tobytes()).hexdigest()
    for model, kernel in kernels.items():
        samples = []
        for width in widths:
            at_all = FLAGS.draws if width <= 10 else min(FLAGS.wide_draws, FLAGS.draws)
            plan = Plan(kernel.describe(), data_hash, width, len(X), at_all, FLAGS.draws)
            samples.append(Samples(Path(FLAGS.path) / f"{model}_width_{width}.npz", plan))
            done = len(samples[-1].outputs)
            print(f"{model}, width {width}: {done:,} of {plan.draws:,} networks are there.", flush=True)
            with Progress(plan.draws, "networks", done) as progress:
                samples[-1].draw(kernel, X, progress)
        K = gram(kernel, X)
        for kind in ("png", "svg"):
            figure = figures.convergence(samples, K, f"{model}: finite networks and their limit, {data.name}")
            path = Path(FLAGS.path) / f"{model}.{kind}"
            figures.save(figure, path)
            print(path)
        rows = [summary(s, K) for s in samples]
        write_atomically(Path(FLAGS.path) / f"{model}.csv", functools.partial(_write, _csv(rows)))
        made = {"dataset": data.name, "data_hash": data_hash, "kernel": kernel.describe(), "seed": samples[0].plan.seed}
        record = {"model": model, "widths": rows, **made, "command": cli.command(), "versions": software()}
        write_atomically(Path(FLAGS.path) / f"{model}.json", functools.partial(_write, json.dumps(record, indent=2)))
        for row in rows:
            print(
                f"{model}, width {row['width']}: second moments off by {100 * row['rms_deviation']:.1f} % (Monte Carlo "
                f"error {100 * row['rms_monte_carlo_error']:.1f} %), excess kurtosis {row['excess_kurtosis']:.2f}."
            )


def _write(text: str, file: BinaryIO) -> None:
    file.write(text.encode())


def _csv(rows: list[dict[str, float]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows({key: f"{value:.6g}" for key, value in row.items()} for row in rows)
    return text.getvalue()


def _widths(texts: list[str]) -> list[int]:
    if not texts or not all(text.strip().isdecimal() and int(text) > 0 for text in texts):
        raise UserError(f"--widths is {','.join(texts)}; expected numbers of channels such as 3,10,30,100.")
    return sorted({int(text) for text in texts})


if __name__ == "__main__":
    cli.run(main)
