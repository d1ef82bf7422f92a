"""
Ask a run about images unlike those that it was trained on: does its entropy or posterior variance tell them apart?

    python scripts/out_of_distribution.py --path=runs/digits --model=resnet_gp --against=rotation,shift,noise

The run has its result by classify_gp.py. Its kernel between the other images and the training images is computed; the
number of entries is said first, and --N_test makes it less. Started again, it goes on where it was.
"""

import functools
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import flags

from cnn_gp import cli, shared_flags
from cnn_gp.data import datasets
from cnn_gp.data.corruptions import KINDS, corrupted
from cnn_gp.data.images import range_warning
from cnn_gp.errors import UserError
from cnn_gp.evaluation.out_of_distribution import (
    OTHER,
    TEST,
    Files,
    Images,
    OutOfDistribution,
    Posteriors,
    detections,
    table,
)
from cnn_gp.evaluation.predict_images import engine_of
from cnn_gp.evaluation.result_files import ResultFiles
from cnn_gp.evaluation.tables import to_text
from cnn_gp.progress import duration
from cnn_gp.provenance import software
from cnn_gp.regression.cholesky import n_operations
from cnn_gp.regression.memory_needs import has_memory, n_bytes
from cnn_gp.regression.predict import n_operations as n_operations_of_variances
from cnn_gp.store.atomic import check_writable, remove_leftovers
from cnn_gp.store.description import Description
from cnn_gp.store.run_directory import RunDirectory
from cnn_gp.store.stored_matrix import StoredGram

#: Largest strength of a change: of a larger one nothing of an image is left.
LARGEST = 1000.0

FLAGS = flags.FLAGS
shared_flags.define_run()
shared_flags.define_csv_dir()
flags.DEFINE_list(
    "against",
    list(KINDS),
    f"Other images: {', '.join(KINDS)} of the test images, or one strength of it as rotation:15; another data set.",
)
flags.DEFINE_string("data_dir", None, "Folder of another data set's files; without it Keras's cache, or its download.")
flags.DEFINE_integer("N_test", None, "Number of images of each set; by default that of the result's test images.")


def main() -> None:
    """Parse the flags, compute what is missing, write and print what is found."""
    against = list(dict.fromkeys(_parsed(text) for text in FLAGS.against))
    run = shared_flags.run_directory()
    description = run.description()
    folder = Path(FLAGS.path) / FLAGS.csv_dir
    results = ResultFiles(folder, run.name)
    # Says what is wrong with a result.
    results.solution(description.fingerprint)
    result = results.read()
    assert result is not None
    N = result.N_test if FLAGS.N_test is None else FLAGS.N_test
    if not 1 <= N <= description.N_test:
        raise UserError(f"--N_test is {N}; expected 1 to {description.N_test}, the test images of {run.name}.")
    files = Files(folder, run.name)
    check_writable(files.posteriors)
    for place in (files.posteriors, files.json_path.parent):
        remove_leftovers(place)
    # What is asked for twice is one set.
    sets = list({(images.kind, images.name): images for images in _sets(run, description, against, N)}.values())
    engine = functools.partial(engine_of, description)
    posteriors = Posteriors(run, result, files, engine, functools.partial(print, flush=True))
    n_images, n_entries = posteriors.missing(sets)
    if n_images:
        run.check_complete()
        run.check_data()
        _check_memory(run, result.solver, result.N_train)
        seconds = result.times["kernel"] * n_entries / description.tiling.n_entries
        times = 1 + n_operations_of_variances(result.N_train, n_images) / n_operations(result.N_train)
        print(
            f"{run.name}: {n_entries:,} kernel entries, about {duration(seconds)} at the speed of the run's own; "
            f"factorisation and posterior variances of {n_images:,} images take about {times:.1f} times as long as the "
            "factorisation alone.",
            flush=True,
        )
    found = OutOfDistribution(
        description.dataset,
        result.fingerprint,
        result.N_train,
        result.noise,
        result.jitter,
        detections(posteriors, sets),
        cli.command(),
        software(),
    )
    files.write(found)
    print(to_text(*table({run.name: found})))
    print(f"{files.csv_path}, {files.rejection_path} and {files.json_path}; report.py draws them.")


def _parsed(text: str) -> tuple[str, tuple[float, ...]]:
    """A kind and its strengths, or a data set and none."""
    kind, colon, strength = text.partition(":")
    if kind in KINDS:
        try:
            strengths = (float(strength),) if colon else KINDS[kind]
        except ValueError:
            strengths = (math.nan,)
        smallest = 0.0 if kind == "noise" else -LARGEST
        # Written so that NaN is refused.
        if not all(smallest <= strength <= LARGEST for strength in strengths):
            raise UserError(
                f"--against has {text!r}; expected a number after the colon, from {smallest:g} to {LARGEST:g}, such as "
                f"{kind}:{KINDS[kind][0]:g}."
            )
        return kind, strengths
    if text not in datasets.DATASETS and not text.endswith(".npz"):
        known = ", ".join((*KINDS, *datasets.DATASETS))
        raise UserError(f"--against has {text!r}; expected some of {known}, or a file FILE.npz.")
    return text, ()


def _sets(
    run: RunDirectory, description: Description, against: list[tuple[str, tuple[float, ...]]], N: int
) -> Iterator[Images]:
    """
    The first N test images, then each other set, as the kernel takes them.

    :raises UserError: where images can't be used, or two data sets have one name.
    """
    named: dict[str, str] = {}
    shape, zca = tuple(description.image_shape), run.whitening()
    test, labels = run.raw_images()["Xt"][:N], run.labels()["Yt"][:N]

    def images(name: str, kind: str, strength: float | None, X: np.ndarray, labels: np.ndarray | None) -> Images:
        return Images(name, kind, strength, X if zca is None else zca.transform(X), labels)

    yield images(TEST, TEST, None, test, labels)
    for kind, strengths in against:
        for strength in strengths:
            yield images(f"{kind}_{strength:g}", kind, strength, corrupted(test, shape, kind, strength), labels)
        if not strengths:
            data = datasets.load(kind, data_dir=FLAGS.data_dir)
            if data.image_shape != shape:
                raise UserError(
                    f"--against={kind} has images of shape {data.image_shape}; expected those of {run.name}, {shape}."
                )
            remark = range_warning(f"the images of {data.name}", data.Xt, run.raw_images()["X"])
            if remark is not None:
                print(remark, file=sys.stderr)
            if named.setdefault(data.name, kind) != kind:
                raise UserError(
                    f"--against has two data sets called {data.name}, {named[data.name]} and {kind}; expected "
                    "different names, of which the files' are made: rename one."
                )
            yield images(data.name, OTHER, None, data.Xt[:N], None)


def _check_memory(run: RunDirectory, solver: str, N: int) -> None:
    """:raises UserError: where there is none for the factor that variances need."""
    gram = StoredGram(run)
    if solver != "cholesky" and not has_memory(gram, N):
        raise UserError(
            f"The result of {run.name} was found by conjugate gradients; posterior variances of other images take a "
            f"Cholesky factor, {n_bytes(N, gram.n_max, gram.N) / 1e9:.1f} GB of memory: take a machine with as much."
        )


if __name__ == "__main__":
    cli.run(main)
