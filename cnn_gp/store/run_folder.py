"""
A run's folder, and its record, which says which run the files in it belong to.

Every file of a run is sealed with the run's fingerprint and written atomically, and only while the run is the one that
the program has begun with.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from . import upgrade
from .atomic import check_writable, write_atomically
from .description import Description
from .names import checked_run_name
from .record import Record
from .sealed import Seal, read_seal, read_sealed, seal


class RunFolder:
    """
    The folder of a run in a working directory.

    :param workdir: the working directory.
    :param name: the run's name.
    :raises UserError: where the name can't be that of a folder in it.
    """

    def __init__(self, workdir: str | os.PathLike, name: str) -> None:
        self.workdir = Path(workdir)
        self.name = checked_run_name(name)
        self.folder = self.workdir / name
        self._record_path = self.folder / "run.jsonl"
        self._record: Record | None = None

    def check_writable(self) -> None:
        """:raises UserError: where the run's files can't be written. Nothing is left behind."""
        check_writable(self.folder)

    def create(self, record: Record) -> bool:
        """Write the record where there is none. :return: whether there was none; else the one there counts."""
        created = record.create(self._record_path)
        self._record = record if created else None
        return created

    def renew(self) -> None:
        """
        Give the run another id: whoever still works for the old one notices, and puts no part back.

        :raises UserError: where the run was deleted or begun anew; that one is left as it is.
        """
        self.check_still_ours()
        self._record = self._read_record().renew(self._record_path)

    @property
    def id(self) -> str:
        """Tells the run from one that was deleted and begun anew, also with the same description."""
        return self._read_record().id

    def check_still_ours(self) -> None:
        """:raises UserError: where the run was deleted, or begun anew, since this object has read its record."""
        mine = self._read_record()
        try:
            there = Record.read(self._record_path)
        except FileNotFoundError:
            there = None
        if there is None or there.id != mine.id:
            raise UserError(
                f"The run in {self.folder} was deleted or begun anew while this program was at work on it; nothing was "
                "written over: start again, if it is still to be computed."
            )

    def description(self) -> Description:
        """The run's description. :raises UserError: where there is no run, or it can't be read."""
        return self._read_record().description

    def labels(self) -> dict[str, np.ndarray]:
        """The class numbers "Y" [N_train], "Yv" [N_vali] and "Yt" [N_test], int64."""
        return self._read_record().labels

    def write(self, path: Path, content: bytes, about: dict[str, Any] | None = None) -> None:
        """
        Write a file of the run.

        :param about: what is to be known without reading the file, in JSON's types: into its seal.
        :raises UserError: where it can't be written, or the run isn't there any longer.
        """
        self.check_still_ours()
        write_atomically(path, seal(content, path.name, self.description().fingerprint, about))

    def read(self, path: Path) -> tuple[bytes, Seal]:
        """
        A file of the run, every byte of it verified.

        :raises FileNotFoundError: where it isn't there.
        :raises Damaged: where it isn't what was written, or another run's.
        :raises UserError: where the disk can't read it.
        """
        with self.reading(path):
            return read_sealed(path, self.description().fingerprint)

    def read_seal(self, path: Path) -> Seal:
        """The seal of a file of the run; of its content only the length is verified. Raises as :meth:`read`."""
        with self.reading(path):
            return read_seal(path, self.description().fingerprint)

    @contextlib.contextmanager
    def reading(self, path: Path) -> Iterator[None]:
        """A block that reads a file: what the disk can't read is a :class:`~cnn_gp.errors.UserError`."""
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{path} can't be read ({reason}): check its permissions and its disk.") from error

    def _read_record(self) -> Record:
        if self._record is None:
            try:
                self._record = Record.read(self._record_path)
            except FileNotFoundError as error:
                upgrade.refuse_old(self.folder)
                names = ", ".join(runs_in(self.workdir)) or "none"
                raise UserError(
                    f"There is no run {self.name} in {self.workdir} (runs there: {names}): check --path and --model, "
                    "or compute it with save_kernels.py."
                ) from error
        return self._record


def runs_in(workdir: str | os.PathLike) -> list[str]:
    """The names of the runs in a working directory."""
    return sorted(path.parent.name for path in Path(workdir).glob("*/run.jsonl"))
