"""
Stage 2: solve the Gaussian process regression of a stored kernel, and count its errors.

    python scripts/classify_gp.py --path=runs --model=resnet_gp

Needs the working directory alone: neither the data set nor TensorFlow.
"""

import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from cnn_gp import cli
from cnn_gp.architectures import MODELS, run_name
from cnn_gp.cholesky import n_operations
from cnn_gp.cluster import connect
from cnn_gp.errors import UserError
from cnn_gp.learning_curve import default_sizes, learning_curve, to_csv
from cnn_gp.leave_one_out import leave_one_out
from cnn_gp.predict import Predictions, error_percent, predict, validation_labels, variances
from cnn_gp.predict import n_operations as n_operations_of_variances
from cnn_gp.progress import duration
from cnn_gp.provenance import software
from cnn_gp.results import ResultFiles, hyperparameters, table
from cnn_gp.scores import log_probabilities, output_scale, scaled_log_marginal_likelihood, scores
from cnn_gp.solve import Solution, check_memory, has_memory, solve, targets
from cnn_gp.spectrum import check_memory as check_spectrum_memory
from cnn_gp.spectrum import eigenvalues
from cnn_gp.store import RunDirectory

if TYPE_CHECKING:
    from distributed import Client

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
flags.DEFINE_list("noise", ["0"], "Observation noise, as --jitter; of several the best on the validation set is taken.")
flags.DEFINE_bool("variances", False, "Also variances, class probabilities, and how good they are.")
flags.DEFINE_bool("leave_one_out", False, "Also the leave-one-out error and log predictive density.")
flags.DEFINE_string("learning_curve", "", "Also errors at fewer training images: 'auto', or numbers such as 500,1000.")
flags.DEFINE_bool("spectrum", False, "Also all eigenvalues of the Gram matrix: a whole matrix in memory, 4 N^3 / 3.")
flags.DEFINE_string("scheduler", None, "Address of a Dask scheduler, whose workers factorise in their memory.")
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
    noises = _noises(FLAGS.noise)
    sizes = _curve_sizes(FLAGS.learning_curve, N_train)

    settings = {
        "fingerprint": description.fingerprint,
        "N_train": N_train,
        "N_vali": N_vali,
        "N_test": N_test,
        "jitter_asked": FLAGS.jitter,
        "noise_asked": noises,
    }
    extras = [name for name in ("variances", "leave_one_out", "learning_curve", "spectrum") if FLAGS[name].value]
    files = ResultFiles(Path(FLAGS.path) / FLAGS.csv_dir, run.name)
    result = None if FLAGS.overwrite else files.finished(settings, extras)
    if result is not None:
        print(f"{files.json_path} is there already.")
    else:
        files.check_writable()
        run.check_complete()
        run.check_data()
        client = None if FLAGS.scheduler is None else connect(FLAGS.scheduler, run.folder)[0]
        needed = check_memory(run, N_train, client)
        where = "of memory" if client is None else "of the cluster's memory"
        print(f"{run.name}: solving for {N_train:,} images, {needed / 1e9:.2f} GB {where}.", flush=True)
        if FLAGS.spectrum:
            check_spectrum_memory(N_train)
        found = _classify(run, files, noises, sizes, N_train, N_vali, N_test, client)
        result = {**settings, "extras": extras, **found}
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


def _classify(
    run: RunDirectory,
    files: ResultFiles,
    noises: list[float],
    sizes: list[int],
    N_train: int,
    N_vali: int,
    N_test: int,
    client: "Client | None",
) -> dict[str, Any]:
    description, labels = run.description(), run.labels()
    Y = targets(labels["Y"][:N_train], description.n_classes)
    vali_labels, test_labels = validation_labels(labels, N_train)[:N_vali], labels["Yt"][:N_test]
    solution, means, tried = _best(run, Y, noises, vali_labels, N_test, client)
    s = output_scale(Y, solution.alpha)
    result: dict[str, Any] = {
        "model": description.model,
        "dataset": description.dataset,
        "training_error": error_percent(means.train, labels["Y"][:N_train]),
        "validation_error": error_percent(means.vali, vali_labels),
        "test_error": error_percent(means.test, test_labels),
        "jitter": solution.jitter,
        "noise": solution.noise,
        "noise_search": tried,
        "mean_diagonal": solution.scale,
        "output_scale": s,
        "relative_residual": solution.relative_residual,
        "refinements": solution.refinements,
        "log_marginal_likelihood": solution.log_marginal_likelihood,
        "scaled_log_marginal_likelihood": scaled_log_marginal_likelihood(Y, s, solution.log_determinant),
        "log_marginal_likelihoods": solution.log_marginal_likelihoods.tolist(),
        "log_determinant": solution.log_determinant,
        "extreme_eigenvalues": solution.extreme_eigenvalues,
        "condition_number": solution.condition_number,
    }
    arrays = {"alpha": solution.alpha, "vali": means.vali, "test": means.test}
    arrays.update(labels_vali=vali_labels, labels_test=test_labels)
    start = time.perf_counter()
    if sizes:
        points = learning_curve(run, solution, Y, sizes, N_test)
        files.write_extra("learning_curve.csv", to_csv(points).encode())
        result["learning_curve"] = [vars(point) for point in points]
    if FLAGS.variances:
        factorisation = solution.times["factorise"]
        expected = factorisation * n_operations_of_variances(N_train, N_vali + N_test) / n_operations(N_train)
        print(f"Variances of {N_vali + N_test:,} images: about {duration(expected)}.", flush=True)
        found = dict(zip(("vali", "test"), variances(run, solution, N_vali, N_test), strict=True))
        result["scores"] = {}
        for name, numbers in (("vali", vali_labels), ("test", test_labels)):
            log_p = log_probabilities(arrays[name], s * found[name])
            result["scores"][name] = scores(log_p, numbers)
            arrays.update({f"variances_{name}": found[name], f"log_probabilities_{name}": log_p})
    if FLAGS.leave_one_out:
        left_out = leave_one_out(solution, Y)
        result["leave_one_out"] = {
            "error": error_percent(left_out.means, labels["Y"][:N_train]),
            "log_predictive_density": left_out.log_predictive_density(Y, s),
        }
    if FLAGS.spectrum:
        # Only now, so that the factor needn't be there beside it.
        del solution.factor
        arrays["eigenvalues"] = eigenvalues(run, N_train)
    files.write_arrays(arrays)
    provenance = run.provenance()
    return {
        **result,
        "hyperparameters": hyperparameters(description.kernel),
        "kernel": description.kernel,
        "float_type": description.float_type,
        "n_max": description.n_max,
        "times": {
            "kernel": sum(part.get("seconds", 0.0) for part in provenance),
            **solution.times,
            "extras": time.perf_counter() - start,
        },
        # Kilobytes on Linux.
        "peak_memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "command": cli.command(),
        "versions": software(),
        "kernel_computed_by": [dict(t) for t in sorted({_who(part) for part in provenance})],
    }


def _best(
    run: RunDirectory,
    Y: np.ndarray,
    noises: list[float],
    vali_labels: np.ndarray,
    N_test: int,
    client: "Client | None",
) -> tuple[Solution, Predictions, list[dict[str, float]]]:
    """The solution and means of the noise with the smallest validation error, the first of them; and all errors."""
    best: tuple[Solution, Predictions] | None = None
    tried: list[dict[str, float]] = []
    for noise in noises:
        if best is not None and not has_memory(run, len(Y)):
            # For two factors, that is.
            best[0].factor.make_room(run.folder)
        solution = solve(run, Y, FLAGS.jitter, noise, say=lambda line: print(line, flush=True), client=client)
        start = time.perf_counter()
        means = predict(run, solution.alpha, len(vali_labels), N_test)
        solution.times["predict"] = time.perf_counter() - start
        error = error_percent(means.vali, vali_labels)
        if best is None or error < min(t["validation_error"] for t in tried):
            best = solution, means
        del solution
        tried.append({"noise": noise, "validation_error": error})
        if len(noises) > 1:
            print(f"noise {noise:g}: validation error {error:.2f} %", flush=True)
    assert best is not None
    return *best, tried


def _noises(texts: list[str]) -> list[float]:
    try:
        noises = [float(text) for text in texts]
    except ValueError:
        noises = [-1.0]
    if not noises or not all(0 <= noise < float("inf") for noise in noises):
        raise UserError(f"--noise is {','.join(texts)}; expected numbers of at least 0, such as 0,1e-3,1e-2.")
    return noises


def _curve_sizes(text: str, N_train: int) -> list[int]:
    if text in ("", "auto"):
        return default_sizes(N_train) if text else []
    numbers = text.split(",")
    if not all(number.strip().isdecimal() for number in numbers):
        raise UserError(f"--learning_curve is {text!r}; expected 'auto', or numbers of images such as 500,1000,5000.")
    return sorted({int(number) for number in numbers})


def _who(provenance: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((key, str(value)) for key, value in provenance.items() if key not in ("seconds", "pid")))


def _size(name: str, asked: int | None, default: int, largest: int) -> int:
    size = default if asked is None else asked
    if not 1 <= size <= largest:
        raise UserError(f"--{name} is {size}; expected 1 to {largest}, which is what is stored.")
    return size


if __name__ == "__main__":
    cli.run(main)
