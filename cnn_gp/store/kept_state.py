"""The state of a long computation in a run's folder: written atomically, sealed, removed when the result is written."""

import io

import numpy as np

from ..errors import UserError
from ..npz import npz_bytes
from .atomic import remove, remove_leftovers
from .run_folder import RunFolder
from .sealed import Damaged


class KeptState:
    """
    The file ``RUN/NAME.state.npz``.

    :param name: tells the solve from others of the same run: with its size and noise.
    """

    def __init__(self, run: RunFolder, name: str) -> None:
        self._run, self._path = run, run.folder / f"{name}.state.npz"

    def load(self) -> dict[str, np.ndarray] | None:
        """What was saved; None where there is nothing, nothing whole, or another run's or another solve's."""
        remove_leftovers(self._path.parent)
        try:
            content, _ = self._run.read(self._path)
        except (FileNotFoundError, UserError, Damaged):
            return None
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}

    def save(self, arrays: dict[str, np.ndarray]) -> None:
        """Write it, in place of what was saved before. :raises UserError: where it can't be written."""
        self._run.write(self._path, npz_bytes(arrays))

    def remove(self) -> None:
        """Remove the file."""
        remove(self._path)
