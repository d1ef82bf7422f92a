"""
Stage 2: solve the Gaussian process regression of a stored kernel, and count its errors.

    python scripts/classify_gp.py --path=runs --model=resnet_gp

Needs the working directory alone: neither the data set nor TensorFlow.
"""

import contextlib
import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from cnn_gp import cli, memory, shared_flags
from cnn_gp.cluster import connect
from cnn_gp.errors import UserError
from cnn_gp.evaluation.classify import Request, classify
from cnn_gp.evaluation.errors_table import errors_as_text
from cnn_gp.evaluation.nngp_run import check_nngp_run, default_nngp_run
from cnn_gp.evaluation.result_files import ResultFiles
from cnn_gp.evaluation.results import Result
from cnn_gp.regression import ensemble, spectrum
from cnn_gp.regression.iterative import Iterative
from cnn_gp.regression.learning_curve import default_sizes
from cnn_gp.regression.memory_needs import check_memory, has_memory, memory_of_cluster, n_bytes, n_bytes_of_cluster
from cnn_gp.store.description import Description
from cnn_gp.store.kept_state import KeptState
from cnn_gp.store.run_directory import RunDirectory
from cnn_gp.store.sealed import Damaged
from cnn_gp.store.stored_matrix import StoredGram

if TYPE_CHECKING:
    from distributed import Client

#: Relative residual of the solve above which its result isn't trusted without a word.
RESIDUAL_WARNING = 1e-6

#: Largest jitter and noise: of a larger one nothing of the kernel is left in the system.
LARGEST = 1e6

FLAGS = flags.FLAGS
shared_flags.define_run()
flags.DEFINE_integer("N_train", None, "Train on the first so many images; those cut off come first in validation.")
flags.DEFINE_integer("N_vali", None, "Validate on so many images; by default as many as are stored for it.")
flags.DEFINE_integer("N_test", None, "Test on so many images; by default all.")
flags.DEFINE_float("jitter", 0.0, "Added to the diagonal, relative to its mean; increased where that fails.")
flags.DEFINE_list("noise", ["0"], "Observation noise, as --jitter; of several the best is taken, by --noise_by.")
flags.DEFINE_enum(
    "noise_by",
    "validation",
    ["validation", "loo"],
    "The best noise has the smallest validation error, or the largest leave-one-out log predictive density.",
)
flags.DEFINE_bool("variances", False, "Also posterior variances, class probabilities and their scores.")
flags.DEFINE_bool("ensemble", False, "Of a neural tangent kernel: as --variances, but of trained networks.")
flags.DEFINE_string("nngp_run", None, "With --ensemble: the run of the same network's --kernel=nngp.")
flags.DEFINE_bool("leave_one_out", False, "Also the leave-one-out error and log predictive density.")
flags.DEFINE_string("learning_curve", "", "Also errors at fewer training images: 'auto', or numbers such as 500,1000.")
flags.DEFINE_bool("spectrum", False, "Also all eigenvalues of the Gram matrix: a whole matrix in memory, 4 N^3 / 3.")
flags.DEFINE_enum(
    "solver",
    "auto",
    ["auto", "cholesky", "cg"],
    "cg: conjugate gradients; auto: these where a Cholesky factor doesn't fit into memory.",
)
flags.DEFINE_float("memory", None, "GB that conjugate gradients may take; by default most of what is available.")
flags.DEFINE_string("scheduler", None, "Address of a Dask scheduler, whose workers solve in their memory.")
shared_flags.define_csv_dir()
flags.DEFINE_bool("overwrite", False, "Replace a result with other settings.")
flags.DEFINE_bool(
    "keep_tiles", True, "False deletes the run's tiles once the result is on disk and its residual small."
)


def main() -> None:
    """Parse the flags, solve, predict, write the result and print it."""
    run = shared_flags.run_directory()
    description = run.description()
    request = _request(run)
    files = ResultFiles(Path(FLAGS.path) / FLAGS.csv_dir, run.name)
    files.remove_leftovers()
    seen = files.content()
    there = None if FLAGS.overwrite or seen is None else files.parse(seen)
    reason = None if there is None else _why_again(there, request, files, description)
    if there is None:
        result = _solve(run, request, files, seen)
    elif reason is not None:
        print(f"{reason}: it is computed again.")
        result = _solve(run, request.with_extras_of(there, lambda: _nngp_run(run)), files, seen)
    else:
        print(f"{files.json_path} is there already.")
        result = there
    print(errors_as_text([result]))
    # Written so that NaN is too large.
    if not result.relative_residual <= RESIDUAL_WARNING:
        print(
            f"warning: the solve's relative residual is {result.relative_residual:.1e}; expected less than "
            f"{RESIDUAL_WARNING:g}: give a larger --jitter.",
            file=sys.stderr,
        )
    elif not FLAGS.keep_tiles:
        run.delete_parts()
        print(f"The tiles of {run.name} are deleted (--nokeep_tiles).")


def _why_again(there: Result, request: Request, files: ResultFiles, description: Description) -> str | None:
    """Why a result that is there doesn't suffice; None where it does."""
    files.check_settings(there, request.settings(description.fingerprint))
    try:
        files.check_others(there)
    except Damaged as reason:
        return str(reason)
    lacking = request.lacking(there)
    return f"{files.json_path} is there without {' and '.join(lacking)}" if lacking else None


def _solve(run: RunDirectory, request: Request, files: ResultFiles, seen: bytes | None) -> Result:
    """The request's result, after checks of what can fail before hours of work."""
    files.check_writable()
    _check_solver_flags()
    for needed_run in (run, *([] if request.nngp is None else [request.nngp])):
        needed_run.check_complete()
        needed_run.check_data()
    with contextlib.nullcontext() if FLAGS.scheduler is None else connect(FLAGS.scheduler, run.folder) as cluster:
        client = None if cluster is None else cluster.client
        iterative = _iterative(run, request, client)
        if iterative is None:
            needed = check_memory(StoredGram(run), request.N_train, client)
            where = "of memory" if client is None else "of the cluster's memory"
            print(f"{run.name}: solving for {request.N_train:,} images, {needed / 1e9:.2f} GB {where}.", flush=True)
        if request.nngp is not None:
            has_no_factor = client is not None or iterative is not None
            ensemble.check_memory(StoredGram(run), request.N_train, has_factor=not has_no_factor)
        if request.spectrum:
            spectrum.check_memory(request.N_train)
        return classify(
            run, request, files, cli.command(), functools.partial(print, flush=True), client, seen, iterative
        )


def _check_solver_flags() -> None:
    if FLAGS.memory is not None and not 0 < FLAGS.memory < math.inf:
        raise UserError(f"--memory is {FLAGS.memory}; expected GB above 0, such as 4.")
    if FLAGS.solver == "cholesky" and FLAGS.memory is not None:
        raise UserError("--memory is given with --solver=cholesky, which doesn't use it: leave one of the two out.")


def _iterative(run: RunDirectory, request: Request, client: "Client | None") -> Iterative | None:
    """How to solve by conjugate gradients, where that is asked for or a factor doesn't fit; None: by a factor."""
    limit = math.inf if FLAGS.memory is None else 1e9 * FLAGS.memory
    gram, N = StoredGram(run), request.N_train
    if FLAGS.solver == "cholesky" or (FLAGS.solver == "auto" and has_memory(gram, N, limit, client)):
        return None
    iterative = Iterative(
        None if FLAGS.memory is None else int(limit),
        _keep_states(run),
        client,
        many_right_sides=request.solves_for_images,
    )
    plan = iterative.plan(gram, N, run.description().n_classes)
    if client is None:
        where, needed, there = "of memory", n_bytes(N, gram.n_max, gram.N), min(limit, memory.available())
    else:
        where, needed, there = "of the cluster's memory", n_bytes_of_cluster(N), memory_of_cluster(client)
    # A worker without a limit has an infinite one.
    has, for_tiles = (
        f"{amount / 1e9:.2f} GB are" if amount < math.inf else "as much as the workers have is"
        for amount in (there, plan.room)
    )
    print(
        f"{run.name}: solving for {N:,} images by conjugate gradients; a factor takes {needed / 1e9:.2f} GB {where}, "
        f"{has} there. Rank {plan.rank:,} takes {1e-9 * plan.of_preconditioner:.2f} GB here, {for_tiles} for tiles.",
        flush=True,
    )
    return iterative


def _keep_states(run: RunDirectory) -> Callable[[str], KeptState] | None:
    """Where states are kept: in the run's folder, where it can be written to."""
    try:
        run.check_writable()
    except UserError as error:
        print(f"warning: a solve that is stopped will begin anew: {error}", file=sys.stderr)
        return None
    return lambda name: KeptState(run, name)


def _nngp_run(run: RunDirectory) -> RunDirectory:
    """The run of the same network whose kernel is the Gaussian process's, checked."""
    nngp = RunDirectory(FLAGS.path, FLAGS.nngp_run or default_nngp_run(run.name))
    check_nngp_run(nngp, run)
    return nngp


def _request(run: RunDirectory) -> Request:
    """What the flags ask of the run, checked."""
    description = run.description()
    if FLAGS.nngp_run is not None and not FLAGS.ensemble:
        raise UserError("--nngp_run is for --ensemble: give both, or leave it out.")
    N_train = _size("N_train", FLAGS.N_train, description.N_train, description.N_train)
    available = description.N_vali + description.N_train - N_train
    if not 0 <= FLAGS.jitter <= LARGEST:
        raise UserError(f"--jitter is {FLAGS.jitter}; expected 0 to {LARGEST:g}, such as 1e-6.")
    return Request(
        N_train,
        _size("N_vali", FLAGS.N_vali, description.N_vali, available),
        _size("N_test", FLAGS.N_test, description.N_test, description.N_test),
        FLAGS.jitter,
        _noises(FLAGS.noise),
        FLAGS.noise_by,
        FLAGS.variances,
        _nngp_run(run) if FLAGS.ensemble else None,
        FLAGS.leave_one_out,
        _curve_sizes(FLAGS.learning_curve, N_train),
        FLAGS.spectrum,
    )


def _noises(texts: list[str]) -> tuple[float, ...]:
    try:
        noises = tuple(float(text) for text in texts)
    except ValueError:
        noises = (-1.0,)
    if not noises or not all(0 <= noise <= LARGEST for noise in noises):
        raise UserError(f"--noise is {','.join(texts)}; expected numbers from 0 to {LARGEST:g}, such as 0,1e-3,1e-2.")
    return noises


def _curve_sizes(text: str, N_train: int) -> tuple[int, ...]:
    if text in ("", "auto"):
        return tuple(default_sizes(N_train)) if text else ()
    numbers = [shared_flags.whole_number(number.strip()) for number in text.split(",")]
    if not all(number is not None and 1 <= number <= N_train for number in numbers):
        shown = text if len(text) <= 60 else f"{text[:50]}..."
        raise UserError(
            f"--learning_curve is {shown!r}; expected 'auto', or numbers from 1 to {N_train}, the training images, "
            f"such as {','.join(map(str, default_sizes(N_train)[-3:]))}."
        )
    return tuple(sorted({number for number in numbers if number is not None}))


def _size(name: str, asked: int | None, default: int, largest: int) -> int:
    size = default if asked is None else asked
    if not 1 <= size <= largest:
        raise UserError(f"--{name} is {size}; expected 1 to {largest}, which is what is stored.")
    return size


if __name__ == "__main__":
    cli.run(main)
