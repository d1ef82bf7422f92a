"""The result of a run, and its files: JSON, one line of CSV, the arrays of its predictions, its learning curve."""

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..npz import npz_bytes, read_npz
from ..regression.learning_curve import Point
from .decode import decode
from .files import write_file
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


@dataclass(frozen=True)
class NoiseTried:
    """A noise that was tried, and the error in % that it had."""

    noise: float
    validation_error: float


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
class Result:
    """
    The result of a run: what stage 2 found, and what it was found with.

    Errors are in %, times in seconds; jitter and noise are relative to ``mean_diagonal``. The JSON file has the fields'
    names for keys, except ``run``, which is the file's name, and those that are None.
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
    """What was found besides the errors: of "variances", "leave_one_out", "learning_curve" and "spectrum"."""
    peak_memory_bytes: int
    learning_curve: tuple[Point, ...] | None = None
    scores: SetScores | None = None
    leave_one_out: LeaveOneOutScores | None = None

    @property
    def settings(self) -> Settings:
        """What decided it."""
        return Settings(**{field.name: getattr(self, field.name) for field in fields(Settings)})

    @property
    def solve_seconds(self) -> float:
        """All of stage 2."""
        return sum(seconds for step, seconds in self.times.items() if step != "kernel")

    def to_json(self) -> str:
        """The content of the result's JSON file."""
        values = {key: value for key, value in asdict(self).items() if key != "run" and value is not None}
        return json.dumps(values, indent=2) + "\n"

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


class ResultFiles:
    """
    ``FOLDER/RUN.json`` and ``FOLDER/RUN.csv``, and beside them ``RUN_predictions.npz`` and ``RUN_learning_curve.csv``.

    :param folder: where results lie.
    :param name: the run's name.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.json_path = folder / f"{name}.json"
        self.csv_path = folder / f"{name}.csv"
        self.arrays_path = folder / f"{name}_predictions.npz"
        self.curve_path = folder / f"{name}_learning_curve.csv"

    def read(self) -> Result | None:
        """The result, or None where there is none. :raises UserError: where it can't be read."""
        try:
            return Result.from_json(self.json_path.read_text(), self.name)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self.json_path} can't be read ({reason}): move it away and start again.") from error

    def finished(self, settings: Settings) -> Result | None:
        """
        The result of these settings, if it is there, CSV included.

        :raises UserError: where a result of other settings is there.
        """
        there = self.read()
        if there is None:
            return None
        pairs = {key: (value, getattr(settings, key)) for key, value in vars(there.settings).items()}
        differing = {key: map(json.dumps, pair) for key, pair in pairs.items() if pair[0] != pair[1]}
        if differing:
            named = "; ".join(f"{key} is {old} there and {new} asked for" for key, (old, new) in differing.items())
            raise UserError(f"{self.json_path} holds another result ({named}): give --overwrite, or another --csv_dir.")
        return there if self.csv_path.exists() else None

    def check_writable(self) -> None:
        """:raises UserError: where nothing can be written there: said before hours of work, not after."""
        probe = self.json_path.with_name(f".{self.json_path.name}.probe")
        write_file(probe, "")
        probe.unlink(missing_ok=True)

    def read_arrays(self) -> dict[str, np.ndarray]:
        """What :meth:`write` wrote of them. :raises UserError: where it isn't there or can't be read."""
        return read_npz(self.arrays_path, "start classify_gp.py again with --overwrite")

    def write(self, result: Result, arrays: dict[str, np.ndarray]) -> None:
        """
        Write all files, each atomically, the JSON last.

        :param arrays: alpha, the means and what else there is of the validation and test images.
        """
        if result.learning_curve is not None:
            write_file(self.curve_path, to_csv(map(vars, result.learning_curve)))
        write_file(self.arrays_path, npz_bytes(arrays))
        write_file(self.csv_path, result.to_csv())
        write_file(self.json_path, result.to_json())


def read_all(folder: str | os.PathLike) -> list[Result]:
    """The results in a folder, by run name. :raises UserError: where one of them can't be read."""
    found = [ResultFiles(path.parent, path.stem).read() for path in sorted(Path(folder).glob("*.json"))]
    return [result for result in found if result is not None]
