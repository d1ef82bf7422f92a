"""Files that are written atomically: complete under their names, or not there."""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError
from ..processes import host_id, started

_REMEDIES = {
    **dict.fromkeys((errno.EACCES, errno.EPERM), "choose a place where you have the permission to write"),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "choose another place, or move that file away"),
    errno.EISDIR: "move this folder away, or choose another place",
    errno.EROFS: "choose a place on a file system that isn't read-only",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space or choose another place"),
}

#: What systems answer where a file system has no hard links.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)


def not_written(path: Path, error: OSError) -> UserError:
    """The error of a file or folder that the system refused to write: what is wrong, and what to do."""
    remedy = _REMEDIES.get(error.errno or 0, "check the place, or choose another")
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        what = f"{_first_file(path)} is a file, not a folder"
    else:
        what = error.strerror or str(error)
    return UserError(f"{path} can't be written ({what}): {remedy}, then start again; what was finished is kept.")


def check_writable(folder: Path) -> None:
    """
    Check that files can be written in a folder, which needn't be there yet; nothing is left behind.

    :raises UserError: where they can't.
    """
    there = folder
    try:
        while not _is_there(there):
            there = there.parent
        with _temporary(there / "probe", b""):
            pass
    except OSError as error:
        raise not_written(folder, error) from error


def _is_there(path: Path) -> bool:
    """:raises OSError: where that can't be said: no permission, a file in the place of a folder."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True


def _first_file(path: Path) -> Path:
    """What is in the way of a folder at a path, or of one above it."""
    return next((place for place in (*reversed(path.parents), path) if place.is_file()), path)


def write_atomically(path: Path, content: str | bytes) -> None:
    """
    Write a file, in place of one that may be there; its folders are made.

    :raises UserError: where it can't be written; nothing is left behind, and what was there stays.
    """
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
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                raise UserError(
                    f"{path} can't be written ({error.strerror}): its file system has no hard links, by which several "
                    "programs share a run; choose a place on another one."
                ) from error
        try:
            flush_folder(path.parent)
        except OSError:
            # Else a claim would be there that its process knows nothing of, and be waited for.
            with contextlib.suppress(OSError):
                path.unlink()
            raise
    except OSError as error:
        raise not_written(path, error) from error
    return True


def remove(path: Path) -> None:
    """Remove a file that may be there. :raises UserError: where it can't be removed."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "check the place")
        raise UserError(f"{path} can't be removed ({error.strerror}): {remedy}, or remove it yourself.") from error


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
    temporary = temporary_path(path, "tmp")
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


def temporary_path(path: Path, kind: str) -> Path:
    """
    A new name beside a path, which :func:`remove_leftovers` knows.

    :param kind: "tmp" for a file, "staging" for a folder of files.
    """
    # The process says whether it is a leftover; the random part tells it from one of another container's process.
    return path.with_name(f".{path.name[:100]}.{_host()}.{os.getpid()}.{uuid.uuid4().hex[:12]}.{kind}")


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders in a folder that processes of this host left when they were killed."""
    pattern = re.compile(rf"\..+\.{_host()}\.(\d+)\.[0-9a-f]{{12}}\.(tmp|staging)")
    try:
        matches = [pattern.fullmatch(path.name) for path in folder.iterdir()]
    except OSError:
        # It isn't there, or this program may not read it.
        return
    for match in matches:
        if match and started(int(match[1])) is None:
            path = folder / match[0]
            with contextlib.suppress(OSError):
                if match[2] == "staging":
                    shutil.rmtree(path)
                else:
                    path.unlink()


def _host() -> str:
    return hashlib.sha256(host_id().encode()).hexdigest()[:8]
