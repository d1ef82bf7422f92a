"""
Classify new images with a finished run: its kernel between them and the training images, times the stored solution.

    python scripts/predict.py --path=runs --model=resnet_gp --images=new.npz --out=predictions.csv

The images are the array `x` (or `x_test`) of an .npz file, [N, H, W], [N, H, W, C] or [N, D] as those of the data set:
8-bit ones are divided by 255. Nothing is factorised again.
"""

import os
import sys
from pathlib import Path

import numpy as np
from absl import flags

from cnn_gp import cli, shared_flags
from cnn_gp.data.images import in_words, range_warning, small_pixels_warning
from cnn_gp.errors import UserError
from cnn_gp.evaluation.predict_images import engine_of, means_csv, posterior, read_images
from cnn_gp.evaluation.result_files import ResultFiles
from cnn_gp.store.atomic import check_writable, remove_leftovers, write_atomically

FLAGS = flags.FLAGS
shared_flags.define_run()
shared_flags.define_csv_dir()
flags.DEFINE_string("images", None, "The file of images.", required=True)
flags.DEFINE_string("out", None, "The CSV file to write: a line per image.", required=True)
flags.DEFINE_bool("overwrite", False, "Replace the file if it is there.")


def main() -> None:
    """Parse the flags, compute the kernel, write the classes and means."""
    out = Path(FLAGS.out)
    if os.path.isdir(out):
        raise UserError(f"{out} is a folder; expected the name of a file: give another --out.")
    if os.path.exists(out) and not FLAGS.overwrite:
        raise UserError(f"{out} is there already: give --overwrite, or another --out.")
    check_writable(out.parent)
    run = shared_flags.run_directory()
    description = run.description()
    alpha = ResultFiles(Path(FLAGS.path) / FLAGS.csv_dir, run.name).solution(description.fingerprint)
    training = run.images()["X"][: len(alpha)]
    X = read_images(Path(FLAGS.images), tuple(description.image_shape))
    print(f"{FLAGS.images}: {in_words(X, description.image_shape)}.", flush=True)
    zca = run.whitening()
    means, _ = posterior(engine_of(description), X if zca is None else zca.transform(X), training, alpha)
    warnings = [range_warning("the images", X, run.raw_images()["X"])]
    if training.dtype == np.float32:
        warnings.append(small_pixels_warning("the images", X))
    for warning in filter(None, warnings):
        print(warning, file=sys.stderr)
    remove_leftovers(out.parent)
    write_atomically(out, means_csv(means))
    print(f"{len(X):,} images are classified: {out}")


if __name__ == "__main__":
    cli.run(main)
