"""Stage 2 as a whole: the solution of a stored run, what is asked of it, and the result files."""

import contextlib
import math
import resource
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError
from ..provenance import software
from ..regression.iterative import Iterative, IterativeFactor
from ..regression.memory_needs import has_memory
from ..regression.predict import Predictions, error_percent, predict, validation_labels
from ..regression.solve import Solution, solve, targets
from ..store.run_directory import RunDirectory
from ..store.stored_matrix import StoredGram, StoredKernel
from .extras import Say, left_out_scores, with_extras
from .hyperparameters import hyperparameters
from .metrics import output_scale, scaled_log_marginal_likelihood
from .noise_choice import best_noise
from .result_files import ResultFiles
from .results import NoiseTried, Result, Settings

if TYPE_CHECKING:
    from distributed import Client


@dataclass(frozen=True)
class Request:
    """What is asked of a stored run."""

    N_train: int
    N_vali: int
    N_test: int
    jitter: float = 0.0
    noises: tuple[float, ...] = (0.0,)
    """Of several the best is taken, by ``noise_by``."""
    noise_by: str = "validation"
    """:attr:`.results.Settings.noise_by`"""
    variances: bool = False
    """With class probabilities and their scores."""
    nngp: RunDirectory | None = None
    """With the variance of a trained ensemble in place of the Gaussian process's: the NNGP run of the same network."""
    leave_one_out: bool = False
    curve_sizes: tuple[int, ...] = ()
    """Numbers of training images of the learning curve."""
    spectrum: bool = False

    def __post_init__(self) -> None:
        if self.noise_by != "validation" and len(self.noises) < 2:
            raise UserError(
                f"--noise_by={self.noise_by} chooses among several noises, and --noise is {self.noises[0]:g}: give "
                "several, such as --noise=0,1e-4,1e-3,1e-2."
            )
        if self.variances and self.nngp is not None:
            raise UserError(
                "A result holds the variances of the Gaussian process (--variances) or of the trained ensemble "
                "(--ensemble): give one of them, and another --csv_dir for the other."
            )

    @property
    def solves_for_images(self) -> bool:
        """Whether there is a right side for each of many images, besides one for each class."""
        return self.variances or self.nngp is not None or self.leave_one_out or self.noise_by == "loo"

    def settings(self, fingerprint: str) -> Settings:
        """What decides the errors, for the run of this fingerprint."""
        return Settings(fingerprint, self.N_train, self.N_vali, self.N_test, self.jitter, self.noises, self.noise_by)

    @property
    def extras(self) -> tuple[str, ...]:
        """The names of what is asked for besides errors."""
        asked = {
            "variances": self.variances,
            "ensemble": self.nngp is not None,
            "leave_one_out": self.leave_one_out,
            "learning_curve": bool(self.curve_sizes),
            "spectrum": self.spectrum,
        }
        return tuple(name for name, wanted in asked.items() if wanted)

    def lacking(self, there: Result) -> list[str]:
        """
        What a result doesn't have: extras that are asked for, or some of their sizes, and the log marginal likelihood.

        The latter is missing where conjugate gradients were stopped after the errors were written. An ensemble's scores
        at the Gaussian process's output scale, as they once were, count as missing.
        """
        has_sizes = {point.N_train for point in there.learning_curve or ()}.issuperset(self.curve_sizes)
        has = {extra for extra in there.extras if extra != "learning_curve" or has_sizes}
        if there.ensemble_output_scale is None or (
            self.nngp is not None and self.nngp.description().fingerprint != there.nngp_fingerprint
        ):
            has.discard("ensemble")
        estimates = ["log_marginal_likelihood"] if math.isnan(there.log_marginal_likelihood) else []
        return estimates + [extra for extra in self.extras if extra not in has]

    def with_extras_of(self, there: Result, nngp: Callable[[], RunDirectory]) -> "Request":
        """
        The same, with the extras of a result that it replaces: nothing of that is lost.

        :param nngp: the NNGP run, where it is wanted for such an extra.
        """
        sizes = {point.N_train for point in there.learning_curve or ()}
        return replace(
            self,
            variances=self.variances or "variances" in there.extras,
            nngp=nngp() if self.nngp is None and "ensemble" in there.extras else self.nngp,
            leave_one_out=self.leave_one_out or "leave_one_out" in there.extras,
            spectrum=self.spectrum or "spectrum" in there.extras,
            curve_sizes=tuple(sorted({*self.curve_sizes, *sizes})),
        )


def classify(
    run: RunDirectory,
    request: Request,
    files: ResultFiles,
    command: str,
    say: Say = print,
    client: "Client | None" = None,
    seen: bytes | None = None,
    iterative: Iterative | None = None,
) -> Result:
    """
    Solve, predict, and write the result: where none is there, the errors as soon as they are known, then all of it.

    :param run: a complete run.
    :param request: how many images, which noise, and what besides errors.
    :param files: where the result lies.
    :param command: that is recorded with the result.
    :param say: called with lines of text on the way.
    :param client: of a Dask cluster that factorises.
    :param seen: ``files.content()`` of a result that is to be replaced; it stays until the new one is whole.
    :param iterative: to solve by conjugate gradients in place of a factorisation.
    :return: the result, as it is written.
    :raises UserError: where the run can't be read or solved, a file can't be written, or another program has
        written a result in the meantime.
    """
    # Now: the checkout may be changed while this program runs.
    versions = software()
    description, labels = run.description(), run.labels()
    train_labels = labels["Y"][: request.N_train]
    Y = targets(train_labels, description.n_classes)
    vali_labels = validation_labels(labels, request.N_train)[: request.N_vali]
    test_labels = labels["Yt"][: request.N_test]
    solution, means, tried, times = _best(run, Y, request, vali_labels, say, client, iterative)
    if not np.isfinite(solution.alpha).all():
        raise UserError(
            f"The solution for {run.name} has numbers that aren't finite, and isn't written: give a larger --jitter."
        )
    s = output_scale(Y, solution.alpha)
    # The errors come first: by conjugate gradients the log determinant takes as long as the solution.
    is_estimated = isinstance(solution.factor, IterativeFactor)
    parts = run.parts.provenance()
    result = Result(
        run=run.name,
        model=description.model,
        dataset=description.dataset,
        preprocessing=description.preprocessing or None,
        **vars(request.settings(description.fingerprint)),
        training_error=error_percent(means.train, train_labels),
        validation_error=error_percent(means.vali, vali_labels),
        test_error=error_percent(means.test, test_labels),
        jitter=solution.jitter,
        noise=solution.noise,
        mean_diagonal=solution.mean_diagonal,
        output_scale=s,
        relative_residual=solution.relative_residual,
        refinements=solution.refinements,
        **(_NO_LIKELIHOODS if is_estimated else _likelihoods(solution, Y, s)),
        extreme_eigenvalues=solution.extreme_eigenvalues,
        condition_number=solution.condition_number,
        noise_search=tuple(tried),
        hyperparameters=hyperparameters(description.kernel),
        kernel=description.kernel,
        float_type=description.float_type,
        n_max=description.n_max,
        command=command,
        versions=versions,
        times={"kernel": sum(part.get("seconds", 0.0) for part in parts), **times},
        kernel_computed_by=_computers(parts),
        extras=(),
        **_of_iterative(solution),
        peak_memory_bytes=_peak_memory(),
    )
    arrays = {
        "alpha": solution.alpha,
        "vali": means.vali,
        "test": means.test,
        "labels_vali": vali_labels,
        "labels_test": test_labels,
    }
    if seen is None and (request.extras or is_estimated):
        seen = files.write(result, arrays, seen)
    if is_estimated:
        start = time.perf_counter()
        result = replace(result, **_likelihoods(solution, Y, s))
        result = replace(result, times={**result.times, "log_determinant": time.perf_counter() - start})
    if request.extras:
        start = time.perf_counter()
        result = with_extras(run, request, solution, Y, result, arrays, say)
        times = {**result.times, "extras": time.perf_counter() - start}
        result = replace(result, times=times, extras=request.extras, peak_memory_bytes=_peak_memory())
    written = files.parse(files.write(result, arrays, seen))
    if iterative is not None:
        with contextlib.suppress(UserError, OSError):
            iterative.remove_states()
    return written


def _of_iterative(solution: Solution) -> dict[str, Any]:
    """What a result records of conjugate gradients; nothing of a factorisation."""
    if not isinstance(solution.factor, IterativeFactor):
        return {}
    return {
        "solver": "cg",
        "preconditioner_rank": solution.factor.rank,
        "iterations": solution.factor.iterations,
    }


#: Of a result whose log determinant isn't known yet.
_NO_LIKELIHOODS: dict[str, Any] = {
    "log_marginal_likelihood": math.nan,
    "scaled_log_marginal_likelihood": math.nan,
    "log_marginal_likelihoods": (),
    "log_determinant": math.nan,
}


def _likelihoods(solution: Solution, Y: np.ndarray, s: float) -> dict[str, Any]:
    """What a result records of the log determinant and of the marginal likelihood, at the output scale s too."""
    return {
        "log_marginal_likelihood": solution.log_marginal_likelihood,
        "scaled_log_marginal_likelihood": scaled_log_marginal_likelihood(Y, s, solution.log_determinant),
        "log_marginal_likelihoods": tuple(solution.log_marginal_likelihoods.tolist()),
        "log_determinant": solution.log_determinant,
        "log_marginal_likelihood_standard_error": solution.log_marginal_likelihood_error,
    }


def _computers(parts: Sequence[dict[str, Any]]) -> tuple[dict[str, str], ...]:
    """The different records of a run's parts: what computed them, without when."""
    records = ({key: str(value) for key, value in part.items() if key not in ("seconds", "pid")} for part in parts)
    return tuple(dict(items) for items in sorted({tuple(sorted(record.items())) for record in records}))


def _peak_memory() -> int:
    """The most memory that this process has had, in bytes."""
    # Kilobytes on Linux.
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _best(
    run: RunDirectory,
    Y: np.ndarray,
    request: Request,
    vali_labels: np.ndarray,
    say: Say,
    client: "Client | None",
    iterative: Iterative | None,
) -> tuple[Solution, Predictions, list[NoiseTried], dict[str, float]]:
    """
    The solution and means of the noise that :attr:`Request.noise_by` chooses, all that were tried, and the seconds.

    The seconds are those of all that were tried together.
    """
    Kxx, Kxvx, Kxtx = StoredGram(run), StoredKernel(run, "Kxvx"), StoredKernel(run, "Kxtx")
    found: dict[float, tuple[Predictions, NoiseTried]] = {}
    times: dict[str, float] = defaultdict(float)

    def solve_at(noise: float) -> Solution:
        return solve(Kxx, Y, request.jitter, noise, say, client, lambda: run.images()["X"], iterative)

    def make_room(best: Solution) -> None:
        if not has_memory(Kxx, len(Y)):
            # Beside the best factor there is none for another.
            best.factor.make_room(run.folder)

    def loss(solution: Solution) -> float:
        start = time.perf_counter()
        means = predict(solution, Kxvx, Kxtx, len(vali_labels), request.N_test)
        for step, seconds in solution.times.items():
            times[step] += seconds
        times["predict"] += time.perf_counter() - start
        error = error_percent(means.vali, vali_labels)
        left_out = None
        if request.noise_by == "loo":
            start = time.perf_counter()
            left_out = left_out_scores(solution, Y, say)
            times["leave_one_out"] += time.perf_counter() - start
        found[solution.noise] = means, NoiseTried(solution.noise, error, left_out)
        if len(request.noises) > 1:
            density = "" if left_out is None else f", leave-one-out {left_out.log_predictive_density / len(Y):.4f}"
            say(f"noise {solution.noise:g}: validation error {error:.2f} %{density}")
        return error if left_out is None else -left_out.log_predictive_density

    solution, _ = best_noise(solve_at, loss, request.noises, make_room)
    return solution, found[solution.noise][0], [tried for _, tried in found.values()], dict(times)
