"""
The files of a result, which appear together and are refused apart.

``RUN.json`` has the names and SHA-256 of the others in its key "files", and in its last line the SHA-256 of all that is
before that line: whatever is read was verified as bytes first. Version 0.1 wrote neither.
"""

import contextlib
import hashlib
import io
import json
import os
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..errors import UserError
from ..npz import npz_bytes, read_npz
from ..store.atomic import check_writable, remove_leftovers
from ..store.sealed import Damaged
from ..store.transaction import commit_together, finish, finish_all
from .results import Result, Settings
from .tables import to_csv

#: How a JSON object ends, and what is put in its place.
_END, _DIGEST = b"\n}\n", b',\n  "sha256": "%s"\n}\n'

T = TypeVar("T")


class Missing(Damaged):
    """A file of a result isn't there."""


class ResultFiles:
    """
    ``FOLDER/RUN.json`` and ``FOLDER/RUN.csv``, and beside them ``RUN_predictions.npz`` and ``RUN_learning_curve.csv``.

    :param folder: where results lie.
    :param name: the run's name.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self.json_path = folder / f"{name}.json"
        self.csv_path = folder / f"{name}.csv"
        self.arrays_path = folder / f"{name}_predictions.npz"
        self.curve_path = folder / f"{name}_learning_curve.csv"

    # Reading ---------------------------------------------------------------------------------------------------------

    def content(self) -> bytes | None:
        """The JSON file as it is, None where there is none. :raises UserError: where it can't be read."""
        finish(self.folder, self.json_path.name)
        try:
            return self.json_path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _unreadable(self.json_path, error) from error

    def parse(self, content: bytes) -> Result:
        """The result of the JSON file with this content. :raises UserError: where it isn't what was written there."""
        try:
            text, is_verified = _without_digest(content)
            result = Result.from_json(text.decode(), self.name)
            if is_verified != (result.files is not None):
                raise ValueError("its end is missing or damaged")
            if result.files is not None and self.csv_path.name not in result.files:
                raise ValueError("it was written under another name")
            return result
        except (ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self.json_path} can't be read ({reason}): move it away and start again.") from error

    def read(self) -> Result | None:
        """The result, or None where there is none. :raises UserError: where it can't be read."""
        content = self.content()
        return None if content is None else self.parse(content)

    def check_settings(self, there: Result, settings: Settings) -> None:
        """:raises UserError: where the result that is there is one of other settings."""
        pairs = {key: (value, getattr(settings, key)) for key, value in vars(there.settings).items()}
        differing = {key: map(json.dumps, pair) for key, pair in pairs.items() if pair[0] != pair[1]}
        if differing:
            named = "; ".join(f"{key} is {old} there and {new} asked for" for key, (old, new) in differing.items())
            raise UserError(f"{self.json_path} holds another result ({named}): give --overwrite, or another --csv_dir.")

    def check_others(self, result: Result) -> None:
        """
        :raises Missing: where a file that was written with the JSON isn't there.
        :raises Damaged: where one isn't what was written with it.
        :raises UserError: where one can't be read.
        """
        if result.files is None and not self.csv_path.exists():
            raise Missing(f"{self.csv_path} is missing")
        for name in result.files or ():
            self._read_other(result, name)

    def read_checked(self) -> Result | None:
        """
        The result, or None where there is none. Files beside it may be gone, as where only the numbers were kept.

        :raises UserError: where it can't be read, or a file beside it isn't one that was written with it.
        """

        def read(result: Result) -> Result:
            for name in result.files or ():
                with contextlib.suppress(Missing):
                    self._read_other(result, name)
            return result

        return self._read_together(read)

    def read_arrays(self, result: Result) -> dict[str, np.ndarray]:
        """
        The arrays that were written with a result.

        :raises UserError: where they aren't there, aren't those that were written with it, or can't be read.
        """
        if result.files is None:
            return read_npz(self.arrays_path, "start classify_gp.py again with the same flags and --overwrite")
        try:
            content = self._read_other(result, self.arrays_path.name)
        except Damaged as reason:
            raise _compute_again(reason) from reason
        return _arrays(content)

    def solution(self, fingerprint: str) -> np.ndarray:
        """
        The solution alpha [N_train, n_classes] of the result that is there.

        :param fingerprint: of the run that it is asked for.
        :raises UserError: where there is none, or it is of another run, or not what was written.
        """
        alpha = self._read_together(lambda result: self._solution(result, fingerprint))
        if alpha is None:
            raise UserError(f"There is no {self.json_path}: start classify_gp.py first, or check --csv_dir.")
        return alpha

    def _solution(self, result: Result, fingerprint: str) -> np.ndarray:
        remedy = "start classify_gp.py again with the same flags and --overwrite"
        if result.fingerprint != fingerprint:
            raise UserError(
                f"{self.json_path} was computed from another kernel than the one that is there now (fingerprint "
                f"{result.fingerprint[:12]}, expected {fingerprint[:12]}): {remedy}."
            )
        if result.files is None:
            raise UserError(
                f"{self.json_path} was written by cnn_gp 0.1, without the SHA-256 of its solution: {remedy}; the "
                "kernel isn't computed again."
            )
        alpha = _arrays(self._read_other(result, self.arrays_path.name))["alpha"]
        if not np.isfinite(alpha).all():
            raise UserError(f"The solution in {self.arrays_path} has numbers that aren't finite: {remedy}.")
        return alpha

    def _read_together(self, read: Callable[[Result], T]) -> T | None:
        """
        What is read of the files of one result, None where there is none.

        :param read: raises Damaged where the files aren't one result's.
        :raises UserError: where they aren't, or can't be read.
        """
        while (content := self.content()) is not None:
            try:
                return read(self.parse(content))
            except Damaged as reason:
                # Unless another program has put another result in their place meanwhile.
                if self.content() == content:
                    raise _compute_again(reason) from reason
        return None

    def _read_other(self, result: Result, name: str) -> bytes:
        """The content of a file that was written with a result. :raises Damaged: where it isn't that."""
        path = self.folder / name
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise Missing(f"{path} is missing") from None
        except OSError as error:
            raise _unreadable(path, error) from error
        if _sha256(content) != (result.files or {}).get(name):
            raise Damaged(f"{path} isn't the file that was written with {self.json_path.name}")
        return content

    # Writing ---------------------------------------------------------------------------------------------------------

    def check_writable(self) -> None:
        """:raises UserError: where nothing can be written there: said before hours of work, not after."""
        check_writable(self.folder)

    def remove_leftovers(self) -> None:
        """Remove what killed processes of this host left in the folder, or above it where it wasn't there yet."""
        for folder in (self.folder, self.folder.parent):
            remove_leftovers(folder)

    def write(self, result: Result, arrays: dict[str, np.ndarray], seen: bytes | None) -> bytes:
        """
        Write all files, together.

        :param arrays: alpha, the means and what else there is of the validation and test images.
        :param seen: the JSON file that is replaced, None where there is none.
        :return: the JSON file.
        :raises Superseded: where another JSON file is there by now.
        :raises UserError: where they can't be written; those that were there stay.
        """
        others = {self.csv_path.name: result.to_csv().encode(), self.arrays_path.name: npz_bytes(arrays)}
        if result.learning_curve is not None:
            others[self.curve_path.name] = to_csv(map(vars, result.learning_curve)).encode()
        digests = {name: _sha256(content) for name, content in others.items()}
        root = _with_digest(replace(result, id=uuid.uuid4().hex, files=digests).to_json().encode())
        commit_together(
            self.folder,
            self.json_path.name,
            {**others, self.json_path.name: root},
            seen=seen,
            remove=[self.curve_path.name],
        )
        return root


def read_all(folder: str | os.PathLike) -> list[Result]:
    """The results in a folder, by run name. :raises UserError: where one can't be read, or its files are mixed."""
    folder = Path(folder)
    try:
        finish_all(folder)
        paths = sorted(folder.glob("[!.]*.json"))
    except OSError as error:
        raise _unreadable(folder, error) from error
    found = [ResultFiles(folder, path.stem).read_checked() for path in paths]
    return [result for result in found if result is not None]


def _with_digest(text: bytes) -> bytes:
    """A JSON object with the SHA-256 of what is before it in its last line."""
    body = text.removesuffix(_END)
    return body + _DIGEST % _sha256(body).encode()


def _without_digest(content: bytes) -> tuple[bytes, bool]:
    """
    The inverse of :func:`_with_digest`.

    :return: the JSON object, and whether there was a digest.
    :raises ValueError: where the digest is another one.
    """
    length = len(_DIGEST % _sha256(b"").encode())
    body, end = content[:-length], content[-length:]
    if end == _DIGEST % _sha256(body).encode():
        return body + _END, True
    before, after = _DIGEST.split(b"%s")
    if end.startswith(before) and end.endswith(after):
        raise ValueError("its SHA-256 is wrong")
    return content, False


def _arrays(content: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return dict(file)


def _compute_again(reason: Damaged) -> UserError:
    return UserError(f"{reason}: start classify_gp.py again with the same flags, which computes it again.")


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} can't be read ({error.strerror}): check its permissions and its disk, or move it away.")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
