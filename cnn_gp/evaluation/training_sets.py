"""The errors of a run with several disjoint training sets as files, and their means and standard deviations."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..regression.training_sets import TrainingSet
from ..store.atomic import write_atomically
from .decode import decode, without_nan
from .tables import Table, to_csv


@dataclass(frozen=True)
class TrainingSets:
    """The file ``FOLDER/training_sets/RUN.json``."""

    dataset: str
    fingerprint: str
    """Of the run."""
    N_vali: int
    N_test: int
    noise: float
    jitter: float
    """The smallest that was tried; each set has what its solve took."""
    sets: tuple[TrainingSet, ...]
    command: str
    versions: dict[str, str]

    def is_as_asked(self, other: "TrainingSets") -> bool:
        """Whether another one is of the same run, settings and training sets, whatever was found."""

        def asked(of: TrainingSets) -> tuple:
            return of.fingerprint, of.noise, of.jitter, [(one.N_train, one.first) for one in of.sets]

        return asked(self) == asked(other)

    def to_json(self) -> str:
        """The file's content."""
        return json.dumps(without_nan(asdict(self)), indent=2, allow_nan=False) + "\n"


@dataclass(frozen=True)
class Spread:
    """Of the training sets of one size; errors in %."""

    N_train: int
    sets: int
    validation_mean: float
    validation_deviation: float
    """Standard deviations, with one degree of freedom less than there are sets; not a number for one set."""
    test_mean: float
    test_deviation: float


class Files:
    """
    ``FOLDER/training_sets/RUN.json`` and, with a line for each set, ``RUN.csv``.

    :param folder: where results lie.
    :param run: the run's name.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self.folder = folder / "training_sets"
        self.json_path = self.folder / f"{run}.json"
        self.csv_path = self.folder / f"{run}.csv"

    def write(self, found: TrainingSets) -> None:
        """:raises UserError: where they can't be written."""
        write_atomically(self.csv_path, to_csv(map(vars, found.sets)))
        write_atomically(self.json_path, found.to_json())

    def read(self) -> TrainingSets | None:
        """None where there is none. :raises UserError: where it can't be read."""
        try:
            return decode(TrainingSets, json.loads(self.json_path.read_bytes()))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{self.json_path} can't be read ({reason}): move it away and start training_sets.py again."
            ) from error


def spreads(sets: Iterable[TrainingSet]) -> list[Spread]:
    """The mean and the standard deviation of the errors for each size, in the order of the sizes."""
    by_size: dict[int, list[TrainingSet]] = {}
    for one in sets:
        by_size.setdefault(one.N_train, []).append(one)
    found = []
    for n, its in sorted(by_size.items()):
        errors = np.array([(one.validation_error, one.test_error) for one in its])
        deviations = errors.std(axis=0, ddof=1) if len(its) > 1 else np.full(2, np.nan)
        (vali, test), (vali_deviation, test_deviation) = errors.mean(axis=0).tolist(), deviations.tolist()
        found.append(Spread(n, len(its), vali, vali_deviation, test, test_deviation))
    return found


def table(found: Iterable[Spread]) -> Table:
    """A line for each size; errors in %."""
    rows = [
        [
            f"{s.N_train:,}",
            f"{s.sets:,}",
            *map(_percent, (s.validation_mean, s.validation_deviation, s.test_mean, s.test_deviation)),
        ]
        for s in found
    ]
    return Table(["N_train", "sets", "validation", "deviation", "test", "deviation"], rows, "rrrrrr")


def _percent(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.2f}"
