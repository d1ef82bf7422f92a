"""The state of a long solve in a run's folder: written atomically, sealed, and removed when it is done."""

import io

import numpy as np

from ..npz import npz_bytes
from .atomic import remove, write_atomically
from .run_directory import RunDirectory
from .sealed import Damaged, read_sealed, seal


class KeptState:
    """
    The file ``RUN/NAME.state.npz``.

    :param name: tells the solve from others of the same run: with its size and noise.
    """

    def __init__(self, run: RunDirectory, name: str) -> None:
        self._path = run.folder / f"{name}.state.npz"
        self._owner = run.description().fingerprint

    def load(self) -> dict[str, np.ndarray] | None:
        """What was saved; None where there is nothing, nothing whole, or another run's or another solve's."""
        try:
            content, _ = read_sealed(self._path, self._owner)
        except (OSError, Damaged):
            return None
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}

    def save(self, arrays: dict[str, np.ndarray]) -> None:
        """Write it, in place of what was saved before. :raises UserError: where it can't be written."""
        write_atomically(self._path, seal(npz_bytes(arrays), self._path.name, self._owner))

    def remove(self) -> None:
        """Remove the file."""
        remove(self._path)
