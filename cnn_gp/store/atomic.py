"""Files that are written atomically: complete under their names, or not there."""

import contextlib
import errno
import hashlib
import io
import os
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import UserError
from ..processes import host_id, started

_REMEDIES = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some of your quota there",
    errno.EACCES: "get permission to write there, or choose another place",
    errno.EPERM: "get permission to write there, or choose another place",
    errno.EROFS: "mount it for writing, or choose another place",
    errno.ENOTDIR: "choose a place whose parent is a folder",
    errno.EISDIR: "move this folder away, or choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


def not_written(path: Path, error: OSError) -> UserError:
    """The one line for a file that couldn't be written: why, and what to do."""
    remedy = _REMEDIES.get(error.errno or 0, "check that disk, or choose another place")
    return UserError(
        f"{path} can't be written ({error.strerror or error}): {remedy}, then start again; what was finished is kept."
    )


def write_atomically(path: Path, content: str | bytes | Callable[[BinaryIO], object]) -> None:
    """
    Write a file, in place of one that may be there; its folders are made.

    :raises UserError: where it can't be written; nothing is left behind, and what was there stays.
    """
    if callable(content):
        buffer = io.BytesIO()
        content(buffer)
        content = buffer.getvalue()
    try:
        make_folder(path.parent)
        with _temporary(path, content) as temporary:
            os.replace(temporary, path)
        flush_folder(path.parent)
    except OSError as error:
        raise not_written(path, error) from error


def create_exclusively(path: Path, content: str | bytes) -> bool:
    """
    Write a file where there is none under this name, not even a link.

    :return: whether there was none.
    :raises UserError: where it can't be written; nothing is left behind.
    """
    try:
        make_folder(path.parent)
        with _temporary(path, content) as temporary:
            try:
                # Unlike a rename it fails where the name is taken.
                os.link(temporary, path)
            except FileExistsError:
                return False
        flush_folder(path.parent)
    except OSError as error:
        raise not_written(path, error) from error
    return True


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, so that they survive a power cut."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for parent in missing:
        flush_folder(parent.parent)


def flush_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut, where the file system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems can't for folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def _temporary(path: Path, content: str | bytes) -> Iterator[Path]:
    """A file beside the path, on the disk; it is gone at the end, unless it was renamed."""
    # The process says whether it is a leftover; the random part tells it from one of another container's process.
    temporary = path.with_name(f".{path.name[:100]}.{_host()}.{os.getpid()}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        # Exclusively: never through a link.
        with open(temporary, "xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files in a folder that processes of this host left when they were killed."""
    pattern = re.compile(rf"\..+\.{_host()}\.(\d+)\.[0-9a-f]{{12}}\.tmp")
    for path in folder.glob(".*.tmp"):
        match = pattern.fullmatch(path.name)
        if match and started(int(match[1])) is None:
            with contextlib.suppress(OSError):
                path.unlink()


def _host() -> str:
    return hashlib.sha256(host_id().encode()).hexdigest()[:8]
