"""
Classify new images with a finished run: its kernel between them and the training images, times the stored solution.

    python scripts/predict.py --path=runs --model=resnet_gp --images=new.npz --out=predictions.csv

The images are the array `x` (or `x_test`) of an .npz file, [N, H, W], [N, H, W, C] or [N, D] as those of the data set:
8-bit ones are divided by 255. Nothing is factorised again.
"""

import csv
import io
from pathlib import Path
from typing import BinaryIO

import numpy as np
from absl import flags

from cnn_gp import cli
from cnn_gp.errors import UserError
from cnn_gp.evaluation.results import ResultFiles
from cnn_gp.kernels.architectures import MODELS, run_name
from cnn_gp.npz import read_npz
from cnn_gp.store.atomic import write_atomically
from cnn_gp.store.run_directory import RunDirectory

FLAGS = flags.FLAGS
flags.DEFINE_string("path", None, "The working directory.", required=True)
flags.DEFINE_enum("model", "resnet_gp", MODELS, "The model whose run it is.")
flags.DEFINE_integer("seed", 53, "With --model=random: the seed.")
flags.DEFINE_string("run_name", None, "The run's name; by default the model's, or seed_NN.")
flags.DEFINE_string("csv_dir", "results", "Folder of the results, in the working directory.")
flags.DEFINE_string("images", None, "The file of images.", required=True)
flags.DEFINE_string("out", None, "The CSV file to write: a line per image.", required=True)
flags.DEFINE_bool("overwrite", False, "Replace the file if it is there.")


def main() -> None:
    """Parse the flags, compute the kernel, write the classes and means."""
    out = Path(FLAGS.out)
    if out.exists() and not FLAGS.overwrite:
        raise UserError(f"{out} is there already: give --overwrite, or another --out.")
    run = RunDirectory(FLAGS.path, FLAGS.run_name or run_name(FLAGS.model, FLAGS.seed))
    description = run.description()
    files = ResultFiles(Path(FLAGS.path) / FLAGS.csv_dir, run.name)
    alpha = files.read_arrays()["alpha"]
    training = run.images()["X"][: len(alpha)]
    X = _images(Path(FLAGS.images), tuple(description.image_shape)).astype(training.dtype)
    with cli.without_startup_messages():
        from cnn_gp.engines.gram import gram
        from cnn_gp.kernels.description import kernel_from_description

        kernel = kernel_from_description(description.kernel)
    means = gram(kernel, X, training).astype(np.float64) @ alpha
    write_atomically(out, lambda file: _write(file, means))
    print(f"{len(X):,} images are classified: {out}")


def _write(file: BinaryIO, means: np.ndarray) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["image", "class", *(f"mean_{c}" for c in range(means.shape[1]))])
    for index, row in enumerate(means):
        writer.writerow([index, int(row.argmax()), *(f"{mean:.6g}" for mean in row)])
    file.write(text.getvalue().encode())


def _images(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """[N, D], flattened channel first."""
    arrays = read_npz(path, "check --images")
    x = arrays.get("x", arrays.get("x_test"))
    D = int(np.prod(shape))
    last = (*shape[1:], shape[0])
    if x is None or not len(x):
        raise UserError(f"{path} has no array 'x' with images; expected [N, {D}], or [N, {', '.join(map(str, last))}].")
    scale = np.float32(1 / 255) if x.dtype == np.uint8 else np.float32(1)
    if x.shape[1:] == last:
        x = np.moveaxis(x, -1, 1)
    elif x.shape[1:] not in ((D,), shape, shape[1:] if shape[0] == 1 else shape):
        raise UserError(f"{path} has images of shape {x.shape[1:]}; expected {shape} as in training, or flat [{D}].")
    x = x.reshape(len(x), D).astype(np.float32) * scale
    if not np.isfinite(x).all():
        raise UserError(f"{path} has pixels that aren't finite numbers: expected numbers scaled as in training.")
    return x


if __name__ == "__main__":
    cli.run(main)
