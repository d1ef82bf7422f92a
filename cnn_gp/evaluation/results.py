"""The result of a run, as JSON and as one line of CSV."""

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..regression.learning_curve import Point
from .decode import decode, without_nan
from .hyperparameters import Hyperparameters
from .metrics import Scores
from .tables import to_csv

_CSV_COLUMNS = (
    "model dataset N_train N_vali N_test training_error validation_error test_error jitter noise relative_residual "
    "log_marginal_likelihood condition_number n_convolutions filter_sizes strides paddings nonlinearities var_weights "
    "var_biases n_skips kernel_seconds solve_seconds float_type n_max fingerprint"
).split()


@dataclass(frozen=True)
class Settings:
    """What decides a result: one of other settings isn't written over it without --overwrite."""

    fingerprint: str
    """Of the run's description."""
    N_train: int
    N_vali: int
    N_test: int
    jitter_asked: float
    noise_asked: tuple[float, ...]
    noise_by: str = "validation"
    """What chose among several: the smallest error on the "validation" images, or "loo", the largest leave-one-out log
    predictive density."""


@dataclass(frozen=True)
class SetScores:
    """The scores of the class probabilities on the validation and the test images."""

    vali: Scores
    test: Scores


@dataclass(frozen=True)
class LeaveOneOutScores:
    """The leave-one-out error in %, and the sum over images and classes of the log predictive density."""

    error: float
    log_predictive_density: float


@dataclass(frozen=True)
class NoiseTried:
    """A noise that was tried, the validation error in % that it had, and its leave-one-out scores where they chose."""

    noise: float
    validation_error: float
    leave_one_out: LeaveOneOutScores | None = None


@dataclass(frozen=True)
class Result:
    """
    The result of a run: what stage 2 found, and what it was found with.

    Errors are in %, times in seconds; jitter and noise are relative to ``mean_diagonal``. The JSON file has the fields'
    names for keys, except ``run``, which is the file's name, and those that are None, here and in what it holds.
    """

    run: str
    model: str
    dataset: str
    fingerprint: str
    N_train: int
    N_vali: int
    N_test: int
    jitter_asked: float
    noise_asked: tuple[float, ...]
    training_error: float
    validation_error: float
    test_error: float
    jitter: float
    noise: float
    mean_diagonal: float
    """The mean of the kernel's diagonal over the training images."""
    output_scale: float
    """The kernel's factor of maximum marginal likelihood."""
    relative_residual: float
    refinements: int
    log_marginal_likelihood: float
    """NaN, as are the next three (the tuple is empty), where the program was stopped before it was estimated."""
    scaled_log_marginal_likelihood: float
    """At the output scale."""
    log_marginal_likelihoods: tuple[float, ...]
    """Of each class."""
    log_determinant: float
    extreme_eigenvalues: tuple[float, float]
    """Estimates of the smallest and the largest of the system's matrix; not a number where they weren't found."""
    condition_number: float
    noise_search: tuple[NoiseTried, ...]
    hyperparameters: Hyperparameters
    kernel: dict[str, Any]
    """The kernel's description."""
    float_type: str
    n_max: int
    command: str
    versions: dict[str, str]
    """Of what solved, and its machine."""
    times: dict[str, float]
    """"kernel" of the stored kernel, and the steps of stage 2."""
    kernel_computed_by: tuple[dict[str, str], ...]
    """The different versions, machines, devices and engines that computed the run's parts."""
    extras: tuple[str, ...]
    """
    What was found besides the errors: "variances" or "ensemble", "leave_one_out", "learning_curve" and "spectrum". With
    "variances", variances and scores are the Gaussian process's, with "ensemble" those of the trained ensemble.
    """
    peak_memory_bytes: int
    noise_by: str = "validation"
    """Of :class:`Settings`."""
    preprocessing: dict[str, Any] | None = None
    """What was done to the images, "zca" and "flip", as in the run's description; None where nothing was."""
    solver: str = "cholesky"
    """Or "cg": conjugate gradients. Then the log marginal likelihood is an estimate."""
    preconditioner_rank: int | None = None
    iterations: int | None = None
    log_marginal_likelihood_standard_error: float | None = None
    learning_curve: tuple[Point, ...] | None = None
    scores: SetScores | None = None
    gaussian_process_scores: SetScores | None = None
    """Where ``scores`` are the trained ensemble's: those of the Gaussian process with the neural tangent kernel."""
    ensemble_output_scale: float | None = None
    """Of a trained ensemble: the factor of its variances in ``scores``, found by leave-one-out."""
    leave_one_out: LeaveOneOutScores | None = None
    nngp_fingerprint: str | None = None
    """Of the run with the Gaussian process's kernel that the ensemble's variance was computed with."""
    id: str | None = field(default=None, compare=False)
    """Of the writing: another one each time."""
    files: dict[str, str] | None = field(default=None, compare=False)
    """The names of the files that were written with it, and their SHA-256; None in those of version 0.1."""

    @property
    def settings(self) -> Settings:
        """What decided it."""
        return Settings(**{f.name: getattr(self, f.name) for f in fields(Settings)})

    @property
    def noise_variance(self) -> float:
        """Of the observations, at the kernel's scale."""
        return self.noise * self.mean_diagonal

    @property
    def solve_seconds(self) -> float:
        """All of stage 2, for every noise that was tried."""
        return sum(seconds for step, seconds in self.times.items() if step != "kernel")

    @property
    def data(self) -> str:
        """The data set's name, and what was done to its images."""
        done = (name if value is True else f"{name} {value:g}" for name, value in (self.preprocessing or {}).items())
        return ", ".join([self.dataset, *done])

    def to_json(self) -> str:
        """The content of the result's JSON file."""
        values = asdict(self, dict_factory=lambda items: {key: value for key, value in items if value is not None})
        del values["run"]
        return json.dumps(without_nan(values), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, run: str) -> "Result":
        """
        The inverse of :meth:`to_json`.

        :param run: the run's name.
        :raises ValueError: where the text isn't JSON, or with the key that is missing, unknown or of another type.
        """
        values = json.loads(text)
        return decode(cls, {**values, "run": run} if isinstance(values, dict) else values)

    def to_csv(self) -> str:
        """The content of the result's CSV file: the most important numbers."""
        values = {
            **vars(self),
            **vars(self.hyperparameters),
            "kernel_seconds": self.times.get("kernel"),
            "solve_seconds": self.solve_seconds,
        }
        return to_csv([{column: _cell(values[column]) for column in _CSV_COLUMNS}])


def _cell(value: Any) -> Any:
    if not isinstance(value, tuple):
        return value
    return " ".join("x".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in value)
