"""
Sealed files: what they hold is verified as bytes before anything parses it.

A sealed file ends in one line of JSON, its seal: the name under which it was written, what it belongs to, the number of
bytes before the seal and their SHA-256. So a flipped bit, a file that was cut short, one copied to another's place and
one of another run are all recognised without a parser ever seeing them: HDF5 can hang on a single wrong bit. HDF5 files
and zip archives may have bytes after their end, so that other programs read a sealed file as it is.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

#: Bytes read from the end of a file to find its seal; more where that is longer.
_TAIL = 16384

#: Bytes that are verified at a time.
_AT_A_TIME = 2**20


class Damaged(Exception):
    """A file was read, and is not what was written: the reason, for a message. Errors of the disk are OSError."""


@dataclass(frozen=True)
class Seal:
    """The last line of a sealed file."""

    file: str
    """The name that it was written under."""
    owner: str
    """What it belongs to: a run's fingerprint."""
    n_bytes: int
    """Before the seal."""
    sha256: str
    """Of these bytes, hexadecimal."""
    about: dict[str, Any] = field(default_factory=dict)
    """What else is to be known without reading the file, in JSON's types."""

    def to_line(self) -> bytes:
        """As it is written, with a digest of its own."""
        fields = json.dumps(asdict(self), sort_keys=True)
        return f'\n{{"seal": {fields}, "sha256": "{_digest(fields.encode())}"}}\n'.encode()

    @classmethod
    def from_end(cls, tail: bytes) -> "tuple[Seal, int]":
        """The seal at the end of a file, and how many bytes it takes. :raises Damaged: where there is none."""
        start = tail.rfind(b"\n", 0, len(tail) - 1)
        try:
            found = cls(**json.loads(tail[start:])["seal"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise Damaged("its end is missing or damaged") from error
        # Damaged text may still be JSON: the seal is believed only if writing it again gives the same bytes.
        if start < 0 or found.to_line() != tail[start:]:
            raise Damaged("its end is damaged")
        return found, len(tail) - start

    def check(self, file: str, owner: str | None) -> None:
        """:raises Damaged: where the file is another one's, or at another's place."""
        if self.file != file:
            raise Damaged(f"it was written as {self.file}")
        if owner is not None and self.owner != owner:
            raise Damaged("it belongs to another run")


def seal(content: bytes, file: str, owner: str, about: dict[str, Any] | None = None) -> bytes:
    """The content with its seal."""
    return content + Seal(file, owner, len(content), _digest(content), about or {}).to_line()


def read_seal(path: Path, owner: str | None) -> Seal:
    """
    The seal of a file that is of the right length, without reading all of it.

    :param owner: what it should belong to; None: it doesn't matter.
    :raises Damaged: where there is no seal, or another file's. Only :func:`read_sealed` checks the content.
    :raises OSError: where the file isn't there or can't be read.
    """
    with open(path, "rb") as file:
        return _seal_of(file, path.name, owner)


def read_sealed(path: Path, owner: str | None) -> tuple[bytes, Seal]:
    """
    The content of a file, verified, and its seal.

    :raises Damaged: where a byte isn't what was written, or the file is another one's.
    :raises OSError: where the file isn't there or can't be read.
    """
    with open(path, "rb") as file:
        found = _seal_of(file, path.name, owner)
        file.seek(0)
        # A file of a gigabyte isn't copied once more to cut its seal off.
        content = file.read(found.n_bytes)
    if _digest(content) != found.sha256:
        raise Damaged("its SHA-256 is wrong")
    return content, found


#: What the system says of a file, which is another where the file was replaced or written to.
FileState = tuple[int, int, int, int, int]


def state_of(file: BinaryIO) -> FileState:
    """The state of an open file."""
    there = os.fstat(file.fileno())
    return there.st_dev, there.st_ino, there.st_size, there.st_mtime_ns, there.st_ctime_ns


def verify_sealed(file: BinaryIO, path: Path, owner: str | None) -> FileState:
    """
    Verify an open file without keeping its content.

    :return: the state in which it was verified.
    :raises Damaged: as :func:`read_sealed`. :raises OSError: where the file can't be read.
    """
    # Before it is read: what is written to it meanwhile is another state.
    state = state_of(file)
    found = _seal_of(file, path.name, owner)
    file.seek(0)
    digest, left, buffer = hashlib.sha256(), found.n_bytes, memoryview(bytearray(_AT_A_TIME))
    while left:
        n = file.readinto(buffer[: min(left, _AT_A_TIME)])  # type: ignore[attr-defined]
        if not n:
            raise Damaged("its end is missing")
        digest.update(buffer[:n])
        left -= n
    if digest.hexdigest() != found.sha256:
        raise Damaged("its SHA-256 is wrong")
    return state


def _seal_of(file: BinaryIO, name: str, owner: str | None) -> Seal:
    size = file.seek(0, os.SEEK_END)
    length = min(_TAIL, size)
    while True:
        file.seek(size - length)
        tail = file.read(length)
        if b"\n" in tail[:-1] or length == size:
            break
        length = min(4 * length, size)
    found, length = Seal.from_end(tail)
    if found.n_bytes + length != size:
        raise Damaged(f"it has {size} bytes in place of {found.n_bytes + length}")
    found.check(name, owner)
    return found


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
