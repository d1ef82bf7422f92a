"""What is asked of a solution besides errors: learning curve, variances and probabilities, leave-one-out, spectrum."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..progress import duration
from ..regression import ensemble, spectrum
from ..regression.cholesky import n_operations
from ..regression.ensemble_scale import ensemble_output_scale, n_left_out
from ..regression.gram_matrix import KernelMatrix
from ..regression.iterative import IterativeFactor
from ..regression.learning_curve import learning_curve
from ..regression.leave_one_out import leave_one_out
from ..regression.predict import ValidationKernel, error_percent, posterior_variances
from ..regression.predict import n_operations as n_operations_of_variances
from ..regression.solve import Solution
from ..store.run_directory import RunDirectory
from ..store.stored_matrix import StoredGram, StoredKernel
from .metrics import log_probabilities, output_scale, scores
from .results import LeaveOneOutScores, Result, SetScores

if TYPE_CHECKING:
    from .classify import Request

Say = Callable[[str], None]


def with_extras(
    run: RunDirectory,
    request: "Request",
    solution: Solution,
    Y: np.ndarray,
    result: Result,
    arrays: dict[str, np.ndarray],
    say: Say,
) -> Result:
    """
    The result with what is asked for besides errors.

    :param solution: of the run, for the targets Y [N_train, classes]; with a spectrum its factor is given up.
    :param result: with the errors.
    :param arrays: of the result's predictions; what is found is added to them.
    :param say: called with lines of text on the way.
    :raises UserError: where the run can't be read, or the memory for the spectrum isn't there.
    """
    s = result.output_scale
    if request.curve_sizes:
        labels = run.labels()
        validation = StoredKernel(run, "Kxvx"), labels["Yv"][: request.N_vali]
        test = StoredKernel(run, "Kxtx"), labels["Yt"][: request.N_test]
        points = learning_curve(solution, Y, request.curve_sizes, validation, test)
        result = replace(result, learning_curve=tuple(points))
    if request.variances or request.nngp is not None:
        n_images = request.N_vali + request.N_test
        if request.nngp is None:
            kind, n_right_sides, count = "Posterior variances", n_images, n_operations_of_variances
        else:
            kind, count = "Variances of the trained ensemble", ensemble.n_operations
            n_right_sides = n_images + n_left_out(len(Y))
        say(f"{kind} of {n_images:,} images: about {_seconds(solution, n_right_sides, count(len(Y), n_right_sides))}.")
        for name, kernel in _kernels(run, len(Y)).items():
            n_rows = len(arrays[name])
            if request.nngp is None:
                found = posterior_variances(kernel, solution, n_rows)
            else:
                K, K_train = _kernels(request.nngp, len(Y))[name], StoredGram(request.nngp)
                found, of_process = ensemble.ensemble_variances(kernel, K, K_train, solution, n_rows)
                arrays[f"gaussian_process_variances_{name}"] = of_process
            arrays[f"variances_{name}"] = found
        if request.nngp is None:
            result = replace(result, scores=_set_scores("", s, solution.noise_variance, arrays))
        else:
            of_ensemble = ensemble_output_scale(StoredGram(request.nngp), solution)
            # The noise regularises the ensemble's networks; their outputs have none.
            result = replace(
                result,
                scores=_set_scores("", of_ensemble, 0.0, arrays),
                ensemble_output_scale=of_ensemble,
                gaussian_process_scores=_set_scores("gaussian_process_", s, solution.noise_variance, arrays),
                nngp_fingerprint=request.nngp.description().fingerprint,
            )
    if request.leave_one_out:
        # Where leave-one-out chose the noise, its scores are known.
        (known,) = (tried.leave_one_out for tried in result.noise_search if tried.noise == result.noise)
        result = replace(result, leave_one_out=known or left_out_scores(solution, Y, say))
    if request.spectrum:
        # Last, so that the factor needn't be there beside it.
        del solution.factor
        arrays["eigenvalues"] = spectrum.eigenvalues(StoredGram(run), len(Y))
    return result


def left_out_scores(solution: Solution, Y: np.ndarray, say: Say) -> LeaveOneOutScores:
    """The leave-one-out scores of a solution for targets Y, at its output scale."""
    if isinstance(solution.factor, IterativeFactor):
        say(f"Leave-one-out of {len(Y):,} images: about {_seconds(solution, len(Y), 0)}.")
    left_out = leave_one_out(solution, Y)
    density = left_out.log_predictive_density(Y, output_scale(Y, solution.alpha))
    return LeaveOneOutScores(error_percent(left_out.means, Y.argmax(axis=1)), density)


def _kernels(run: RunDirectory, N: int) -> dict[str, KernelMatrix]:
    """The run's matrices between the validation and the test images and the first N training images."""
    validation = ValidationKernel(StoredGram(run), StoredKernel(run, "Kxvx"), N)
    return {"vali": validation, "test": StoredKernel(run, "Kxtx")}


def _set_scores(kind: str, s: float, noise_variance: float, arrays: dict[str, np.ndarray]) -> SetScores:
    """
    The scores for the output scale s and the variances of a kind; their log probabilities go into ``arrays``.

    :param kind: what the names of the arrays begin with.
    """
    found = {}
    for name in ("vali", "test"):
        log_p = log_probabilities(arrays[name], s * (arrays[f"{kind}variances_{name}"] + noise_variance))
        arrays[f"{kind}log_probabilities_{name}"] = log_p
        found[name] = scores(log_p, arrays[f"labels_{name}"])
    return SetScores(**found)


def _seconds(solution: Solution, n_right_sides: int, n_factor_operations: float) -> str:
    """
    About how long it takes, as text, judged by the solve.

    :param n_right_sides: that conjugate gradients solve for.
    :param n_factor_operations: that a factor takes in their place.
    """
    N, n_columns = solution.alpha.shape
    if isinstance(solution.factor, IterativeFactor):
        return duration(n_right_sides / n_columns * solution.times["solve"])
    return duration(n_factor_operations / n_operations(N) * solution.times["factorise"])
