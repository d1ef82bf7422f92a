"""The state of a long computation in a run's folder: written atomically, sealed, removed when the result is written."""

import io
from pathlib import Path

import numpy as np

from ..npz import npz_bytes
from .atomic import remove, remove_leftovers
from .run_folder import RunFolder
from .sealed import Damaged

_ENDING = ".state.npz"


class KeptState:
    """
    The file ``RUN/NAME.state.npz``.

    :param name: tells the solve from others of the same run: with its size and noise.
    """

    def __init__(self, run: RunFolder, name: str) -> None:
        self._run, self._path = run, run.folder / f"{name}{_ENDING}"

    def load(self) -> dict[str, np.ndarray] | None:
        """
        What was saved; None where there is nothing, nothing whole, or another run's or another solve's.

        :raises UserError: where the disk can't read it, which is no reason to begin anew and write it over.
        """
        remove_leftovers(self._path.parent)
        try:
            content, _ = self._run.read(self._path)
        except (FileNotFoundError, Damaged):
            return None
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}

    def save(self, arrays: dict[str, np.ndarray]) -> None:
        """Write it, in place of what was saved before. :raises UserError: where it can't be written."""
        self._run.write(self._path, npz_bytes(arrays))

    def remove(self) -> None:
        """Remove the file."""
        remove(self._path)


def remove_states(folder: Path) -> None:
    """Remove all states in a run's folder. :raises UserError: where one can't be removed."""
    for path in folder.glob(f"*{_ENDING}"):
        remove(path)
