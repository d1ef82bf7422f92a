"""Stage 2 as a whole: the solution of a stored run, what is asked of it, and the result files."""

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..progress import duration
from ..provenance import software
from ..regression import spectrum
from ..regression.cholesky import n_operations
from ..regression.gram_matrix import KernelMatrix
from ..regression.learning_curve import learning_curve, to_csv
from ..regression.leave_one_out import leave_one_out
from ..regression.memory_needs import has_memory
from ..regression.predict import (
    Predictions,
    ValidationKernel,
    error_percent,
    posterior_variances,
    predict,
    validation_labels,
)
from ..regression.predict import n_operations as n_operations_of_variances
from ..regression.solve import Solution, solve, targets
from ..store.run_directory import RunDirectory
from ..store.stored_matrix import StoredGram, StoredKernel
from .metrics import log_probabilities, output_scale, scaled_log_marginal_likelihood, scores
from .results import ResultFiles, hyperparameters

if TYPE_CHECKING:
    from distributed import Client

Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What is asked of a stored run."""

    N_train: int
    N_vali: int
    N_test: int
    jitter: float = 0.0
    noises: tuple[float, ...] = (0.0,)
    """Of several the best on the validation set is taken."""
    variances: bool = False
    """With class probabilities and their scores."""
    leave_one_out: bool = False
    curve_sizes: tuple[int, ...] = ()
    """Numbers of training images of the learning curve."""
    spectrum: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the errors; a result file keeps it."""
        names = ("N_train", "N_vali", "N_test")
        sizes = {name: getattr(self, name) for name in names}
        return {**sizes, "jitter_asked": self.jitter, "noise_asked": list(self.noises)}

    @property
    def extras(self) -> list[str]:
        """The names of what is asked for besides errors."""
        asked = {
            "variances": self.variances,
            "leave_one_out": self.leave_one_out,
            "learning_curve": bool(self.curve_sizes),
            "spectrum": self.spectrum,
        }
        return [name for name, wanted in asked.items() if wanted]


def classify(
    run: RunDirectory,
    request: Request,
    files: ResultFiles,
    command: str,
    say: Say = print,
    client: "Client | None" = None,
) -> dict[str, Any]:
    """
    Solve, predict, and write the result: the errors as soon as they are known, then what else is asked for.

    :param command: that is recorded with the result.
    :param say: called with lines of text on the way.
    :param client: of a Dask cluster that factorises.
    :return: the result, as it is written.
    :raises UserError: where the run can't be read or solved, or a file can't be written.
    """
    description, labels = run.description(), run.labels()
    Y = targets(labels["Y"][: request.N_train], description.n_classes)
    vali_labels = validation_labels(labels, request.N_train)[: request.N_vali]
    test_labels = labels["Yt"][: request.N_test]
    solution, means, tried = _best(run, Y, request, vali_labels, say, client)
    result = {
        "model": description.model,
        "dataset": description.dataset,
        "fingerprint": description.fingerprint,
        **request.settings,
        "training_error": error_percent(means.train, labels["Y"][: request.N_train]),
        "validation_error": error_percent(means.vali, vali_labels),
        "test_error": error_percent(means.test, test_labels),
        **_diagnostics(solution, Y),
        "noise_search": tried,
        "hyperparameters": hyperparameters(description.kernel),
        "kernel": description.kernel,
        "float_type": description.float_type,
        "n_max": description.n_max,
        "command": command,
        "versions": software(),
        **_of_kernel(run),
    }
    arrays = {"alpha": solution.alpha, "vali": means.vali, "test": means.test}
    arrays.update(labels_vali=vali_labels, labels_test=test_labels)
    result["times"].update(solution.times)

    def write(extras: list[str]) -> None:
        # Kilobytes on Linux.
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        result.update(extras=extras, peak_memory_bytes=peak)
        files.write_arrays(arrays)
        files.write(result)

    write([])
    if request.extras:
        start = time.perf_counter()
        _add_extras(run, request, files, solution, Y, result, arrays, say)
        result["times"]["extras"] = time.perf_counter() - start
        write(request.extras)
    return result


def _diagnostics(solution: Solution, Y: np.ndarray) -> dict[str, Any]:
    s = output_scale(Y, solution.alpha)
    return {
        "jitter": solution.jitter,
        "noise": solution.noise,
        "mean_diagonal": solution.mean_diagonal,
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


def _of_kernel(run: RunDirectory) -> dict[str, Any]:
    """How long the stored kernel took, and who computed it."""
    provenance = run.provenance()
    who = sorted(
        {
            tuple(sorted((key, str(value)) for key, value in part.items() if key not in ("seconds", "pid")))
            for part in provenance
        }
    )
    seconds = sum(part.get("seconds", 0.0) for part in provenance)
    return {"times": {"kernel": seconds}, "kernel_computed_by": [dict(record) for record in who]}


def _add_extras(
    run: RunDirectory,
    request: Request,
    files: ResultFiles,
    solution: Solution,
    Y: np.ndarray,
    result: dict[str, Any],
    arrays: dict[str, np.ndarray],
    say: Say,
) -> None:
    """What is asked for besides errors, into ``result`` and ``arrays``."""
    s = result["output_scale"]
    if request.curve_sizes:
        labels = run.labels()
        validation = StoredKernel(run, "Kxvx"), labels["Yv"]
        test = StoredKernel(run, "Kxtx"), labels["Yt"][: request.N_test]
        points = learning_curve(solution, Y, request.curve_sizes, validation, test)
        files.write_extra("learning_curve.csv", to_csv(points).encode())
        result["learning_curve"] = [vars(point) for point in points]
    if request.variances:
        n_images = request.N_vali + request.N_test
        ratio = n_operations_of_variances(len(Y), n_images) / n_operations(len(Y))
        say(f"Posterior variances of {n_images:,} images: about {duration(ratio * solution.times['factorise'])}.")
        result["scores"] = {}
        kernels: dict[str, KernelMatrix] = {
            "vali": ValidationKernel(StoredGram(run), StoredKernel(run, "Kxvx"), len(Y)),
            "test": StoredKernel(run, "Kxtx"),
        }
        for name, kernel in kernels.items():
            found = posterior_variances(kernel, solution, len(arrays[name]))
            log_p = log_probabilities(arrays[name], s * found)
            result["scores"][name] = scores(log_p, arrays[f"labels_{name}"])
            arrays.update({f"variances_{name}": found, f"log_probabilities_{name}": log_p})
    if request.leave_one_out:
        left_out = leave_one_out(solution, Y)
        result["leave_one_out"] = {
            "error": error_percent(left_out.means, run.labels()["Y"][: len(Y)]),
            "log_predictive_density": left_out.log_predictive_density(Y, s),
        }
    if request.spectrum:
        # Last, so that the factor needn't be there beside it.
        del solution.factor
        arrays["eigenvalues"] = spectrum.eigenvalues(StoredGram(run), len(Y))


def _best(
    run: RunDirectory,
    Y: np.ndarray,
    request: Request,
    vali_labels: np.ndarray,
    say: Say,
    client: "Client | None",
) -> tuple[Solution, Predictions, list[dict[str, float]]]:
    """The solution and means of the noise with the smallest validation error, the first of them; and all errors."""
    Kxx, Kxvx, Kxtx = StoredGram(run), StoredKernel(run, "Kxvx"), StoredKernel(run, "Kxtx")
    best: tuple[Solution, Predictions] | None = None
    tried: list[dict[str, float]] = []
    for noise in request.noises:
        if best is not None and not has_memory(Kxx, len(Y)):
            # For two factors, that is.
            best[0].factor.make_room(run.folder)
        solution = solve(Kxx, Y, request.jitter, noise, say, client, images=lambda: run.images()["X"])
        start = time.perf_counter()
        means = predict(solution, Kxvx, Kxtx, len(vali_labels), request.N_test)
        solution.times["predict"] = time.perf_counter() - start
        error = error_percent(means.vali, vali_labels)
        if best is None or error < min(t["validation_error"] for t in tried):
            best = solution, means
        del solution
        tried.append({"noise": noise, "validation_error": error})
        if len(request.noises) > 1:
            say(f"noise {noise:g}: validation error {error:.2f} %")
    assert best is not None
    return *best, tried
