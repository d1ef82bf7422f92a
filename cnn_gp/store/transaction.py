"""
Several files that belong together: they appear together, whenever the process is killed.

The new files are written into a folder of their own, which is then renamed to ``.ROOT.commit``: from that moment on
they count, and whoever comes next moves them to their places, if the process that wrote them no longer can. ``ROOT`` is
the file that names the others and their digests, so that a reader recognises files that don't belong together.
"""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ..errors import UserError
from .atomic import flush_folder, make_folder, not_written, temporary_path


class Superseded(UserError):
    """Another process has written these files since they were looked at."""


def commit_together(
    folder: Path, root: str, files: Mapping[str, bytes], *, seen: bytes | None, remove: Iterable[str] = ()
) -> None:
    """
    Write some files into a folder, all or none of them.

    :param root: the name of the file that the others belong to, one of ``files``.
    :param files: by name; none is empty.
    :param seen: the root file's content as the caller knows it, None where there was none.
    :param remove: names of files of the earlier content that the new one hasn't.
    :raises Superseded: where the root file is another one by now; nothing is written.
    :raises UserError: where a file can't be written; nothing is written.
    """
    places = {*files, *remove}
    try:
        make_folder(folder)
        staging = temporary_path(folder / root, "staging")
        staging.mkdir()
        try:
            for name, content in files.items():
                assert content, f"{name} is empty, which stands for a file to be removed"
                _write(staging / name, content)
            for name in places - set(files):
                _write(staging / name, b"")
            flush_folder(staging)
            with _locked(folder, root):
                _move(folder, root)
                if _content(folder / root) != seen:
                    raise Superseded(
                        f"{folder / root} was written by another program in the meantime and is kept; nothing was "
                        "written over it: start again, or choose another folder."
                    )
                # Nothing can be moved there, which is known too late once the commit counts.
                for name in places:
                    if (folder / name).is_dir() and not (folder / name).is_symlink():
                        raise not_written(folder / name, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))
                staging.rename(_commit_folder(folder, root))
                flush_folder(folder)
                _move(folder, root)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise not_written(folder / root, error) from error


def finish(folder: Path, root: str) -> None:
    """
    Move the files of a commit that was cut short to their places. Every reader calls it first; usually there is none.

    :raises UserError: where they can't be moved.
    """
    try:
        if _commit_folder(folder, root).is_dir():
            with _locked(folder, root):
                _move(folder, root)
    except OSError as error:
        raise not_written(folder / root, error) from error


def finish_all(folder: Path) -> None:
    """:func:`finish` for every commit in a folder. :raises UserError: where files can't be moved."""
    for commit in folder.glob(".*.commit"):
        finish(folder, commit.name.removeprefix(".").removesuffix(".commit"))


def _move(folder: Path, root: str) -> None:
    """Move a commit's files to their places, the root file last."""
    commit = _commit_folder(folder, root)
    try:
        names = sorted((path.name for path in commit.iterdir()), key=lambda name: (name == root, name))
    except FileNotFoundError:
        return
    for name in names:
        try:
            if (commit / name).stat().st_size:
                os.replace(commit / name, folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
                (commit / name).unlink()
        except FileNotFoundError:
            # Another process is at it too, where the file system has no locks.
            continue
        except OSError as error:
            raise not_written(folder / name, error) from error
    flush_folder(folder)
    with contextlib.suppress(OSError):
        commit.rmdir()


def _commit_folder(folder: Path, root: str) -> Path:
    return folder / f".{root}.commit"


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _write(path: Path, content: bytes) -> None:
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _locked(folder: Path, root: str) -> Iterator[None]:
    """Hold a lock that ends with the process; none where the file system has no locks."""
    path = folder / f".{root}.lock"
    while True:
        with open(path, "ab") as file:
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            # Whoever held it has removed the file: a lock of a file that is gone keeps nobody out.
            if not _is_at(file.fileno(), path):
                continue
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    path.unlink()
            return


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one of this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
