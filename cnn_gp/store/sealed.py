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
from dataclasses import asdict, dataclass
from pathlib import Path

#: The seal's line is shorter than this.
_LONGEST = 1024


class Damaged(Exception):
    """A file was read, and is not what was written: the reason, for a message. Errors of the disk are OSError."""


@dataclass(frozen=True)
class Seal:
    """The last line of a sealed file."""

    file: str
    """The name that it was written under."""
    owner: str
    """What it belongs to: a run's identifier."""
    n_bytes: int
    """Before the seal."""
    sha256: str
    """Of these bytes, hexadecimal."""

    def check(self, file: str, owner: str | None) -> None:
        """:raises Damaged: where the file is another one's, or at another's place."""
        if self.file != file:
            raise Damaged(f"it was written as {self.file}")
        if owner is not None and self.owner != owner:
            raise Damaged("it belongs to another run")


def seal(content: bytes, file: str, owner: str) -> bytes:
    """The content with its seal."""
    line = json.dumps(asdict(Seal(file, owner, len(content), hashlib.sha256(content).hexdigest())))
    assert len(line) + 2 <= _LONGEST
    return content + b"\n" + line.encode() + b"\n"


def read_seal(path: Path, owner: str | None) -> Seal:
    """
    The seal of a file that is of the right length: whether it is there and whole, without reading it.

    :param owner: what it should belong to; None: it doesn't matter.
    :raises Damaged: where there is no seal, or another file's; only :func:`read_sealed` reads the content.
    :raises OSError: where the file isn't there or can't be read.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - _LONGEST)
        file.seek(start)
        found, length = _parse(file.read())
    if found.n_bytes + length != size:
        raise Damaged(f"it has {size} bytes in place of {found.n_bytes + length}")
    found.check(path.name, owner)
    return found


def read_sealed(path: Path, owner: str | None) -> bytes:
    """
    The content of a file, verified.

    :raises Damaged: where a byte isn't what was written, or the file is another one's.
    :raises OSError: where the file isn't there or can't be read.
    """
    whole = path.read_bytes()
    found, length = _parse(whole[-_LONGEST:])
    content = memoryview(whole)[: len(whole) - length]
    if found.n_bytes != len(content):
        raise Damaged(f"it has {len(whole)} bytes in place of {found.n_bytes + length}")
    if hashlib.sha256(content).hexdigest() != found.sha256:
        raise Damaged("its SHA-256 is wrong")
    found.check(path.name, owner)
    return bytes(content)


def _parse(tail: bytes) -> tuple[Seal, int]:
    """The seal at the end of a file, and how many bytes it takes."""
    before, newline, line = tail[:-1].rpartition(b"\n")
    if not newline or tail[-1:] != b"\n":
        raise Damaged("it has no seal")
    try:
        found = Seal(**json.loads(line))
    except (ValueError, TypeError) as error:
        raise Damaged("it has no seal") from error
    if not isinstance(found.n_bytes, int):
        raise Damaged("it has no seal")
    return found, len(tail) - len(before)
