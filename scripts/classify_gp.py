"""
Stage 2: solve the Gaussian process regression of a stored kernel, and count its errors.

    python scripts/classify_gp.py --path=runs --model=resnet_gp

Needs the working directory alone: neither the data set nor TensorFlow.
"""

import sys
import time
from pathlib import Path
from typing import Any

from absl import flags

from cnn_gp import cli
from cnn_gp.architectures import MODELS, run_name
from cnn_gp.errors import UserError
from cnn_gp.predict import error_percent, predict, validation_labels
from cnn_gp.results import ResultFiles, hyperparameters, table
from cnn_gp.solve import solve, targets
from cnn_gp.store import RunDirectory, software

#: Relative residual of the solve above which its result isn't trusted without a word.
RESIDUAL_WARNING = 1e-6

FLAGS = flags.FLAGS
flags.DEFINE_string("path", None, "The working directory.", required=True)
flags.DEFINE_enum("model", "resnet_gp", MODELS, "The model whose run it is.")
flags.DEFINE_integer("seed", 53, "With --model=random: the seed.")
flags.DEFINE_string("run_name", None, "The run's name; by default the model's, or seed_NN.")
flags.DEFINE_integer("N_train", None, "Train on the first so many images; those cut off come first in validation.")
flags.DEFINE_integer("N_vali", None, "Validate on so many images; by default as many as are stored for it.")
flags.DEFINE_integer("N_test", None, "Test on so many images; by default all.")
flags.DEFINE_float("jitter", 0.0, "Added to the diagonal, relative to its mean; more is taken where that fails.")
flags.DEFINE_string("csv_dir", "results", "Folder of the results, in the working directory.")
flags.DEFINE_bool("overwrite", False, "Replace a result with other settings.")
flags.DEFINE_bool(
    "keep_tiles", True, "False deletes the run's tiles once the result is on disk and its residual small."
)


def main() -> None:
    """Parse the flags, solve, predict, write the result and print it."""
    run = RunDirectory(FLAGS.path, FLAGS.run_name or run_name(FLAGS.model, FLAGS.seed))
    description = run.description()
    N_train = _size("N_train", FLAGS.N_train, description.N_train, description.N_train)
    available = description.N_vali + description.N_train - N_train
    N_vali = _size("N_vali", FLAGS.N_vali, description.N_vali, available)
    N_test = _size("N_test", FLAGS.N_test, description.N_test, description.N_test)
    if not 0 <= FLAGS.jitter < float("inf"):
        raise UserError(f"--jitter is {FLAGS.jitter}; expected a finite number of at least 0, such as 1e-6.")

    settings = {
        "fingerprint": description.fingerprint,
        "N_train": N_train,
        "N_vali": N_vali,
        "N_test": N_test,
        "jitter_asked": FLAGS.jitter,
    }
    files = ResultFiles(Path(FLAGS.path) / FLAGS.csv_dir, run.name)
    result = None if FLAGS.overwrite else files.finished(settings)
    if result is not None:
        print(f"{files.json_path} is there already.")
    else:
        run.check_complete()
        print(f"{run.name}: solving for {N_train:,} images, {8 * N_train**2 / 1e9:.2f} GB of memory.", flush=True)
        result = {**settings, **_classify(run, N_train, N_vali, N_test)}
        files.write(result)
    print(table([{"run": run.name, **result}]))
    if result["relative_residual"] > RESIDUAL_WARNING:
        print(
            f"warning: the solve's relative residual is {result['relative_residual']:.1e}; expected less than "
            f"{RESIDUAL_WARNING:g}: give a larger --jitter.",
            file=sys.stderr,
        )
    elif not FLAGS.keep_tiles:
        run.delete_parts()
        print(f"The tiles of {run.name} are deleted (--nokeep_tiles).")


def _classify(run: RunDirectory, N_train: int, N_vali: int, N_test: int) -> dict[str, Any]:
    description, labels = run.description(), run.labels()
    Y = targets(labels["Y"][:N_train], description.n_classes)
    solution = solve(run, Y, FLAGS.jitter, say=lambda line: print(line, flush=True))
    start = time.perf_counter()
    means = predict(run, solution, Y, N_vali, N_test)
    predicting = time.perf_counter() - start
    provenance = run.provenance()
    return {
        "model": description.model,
        "dataset": description.dataset,
        "training_error": error_percent(means.train, labels["Y"][:N_train]),
        "validation_error": error_percent(means.vali, validation_labels(labels, N_train)[:N_vali]),
        "test_error": error_percent(means.test, labels["Yt"][:N_test]),
        "jitter": solution.jitter,
        "relative_residual": means.relative_residual,
        "log_marginal_likelihood": solution.log_marginal_likelihood,
        "log_determinant": solution.log_determinant,
        "hyperparameters": hyperparameters(description.kernel),
        "kernel": description.kernel,
        "float_type": description.float_type,
        "n_max": description.n_max,
        "times": {
            "kernel": sum(part.get("seconds", 0.0) for part in provenance),
            **solution.times,
            "predict": predicting,
        },
        "versions": software(),
        "kernel_computed_by": [dict(t) for t in sorted({_who(part) for part in provenance})],
    }


def _who(provenance: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((key, str(value)) for key, value in provenance.items() if key not in ("seconds", "pid")))


def _size(name: str, asked: int | None, default: int, largest: int) -> int:
    size = default if asked is None else asked
    if not 1 <= size <= largest:
        raise UserError(f"--{name} is {size}; expected 1 to {largest}, which is what is stored.")
    return size


if __name__ == "__main__":
    cli.run(main)
