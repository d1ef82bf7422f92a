"""
Several files that belong together: they appear together, whenever the process is killed.

The new files are written into a folder of their own, which is then renamed to ``.ROOT.commit``: from that moment on
they count, and whoever comes next moves them to their places, if the process that wrote them no longer can. ``ROOT`` is
the file that names the others and their digests, so that a reader recognises files that don't belong together.
"""

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from .atomic import flush_folder, make_folder


class Superseded(Exception):
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
    :raises OSError: where a file can't be written; nothing is written.
    """
    make_folder(folder)
    staging = folder / f".{root}.{uuid.uuid4().hex}.staging"
    staging.mkdir()
    try:
        for name, content in files.items():
            assert content, f"{name} is empty, which stands for a file to be removed"
            _write(staging / name, content)
        for name in set(remove) - set(files):
            _write(staging / name, b"")
        flush_folder(staging)
        with _locked(folder / f".{root}.lock"):
            finish(folder, root)
            if _content(folder / root) != seen:
                raise Superseded
            staging.rename(_commit_folder(folder, root))
            flush_folder(folder)
            finish(folder, root)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def finish(folder: Path, root: str) -> None:
    """
    Move the files of a commit that was cut short to their places. Every reader calls it first; usually there is none.

    :raises OSError: where they can't be moved.
    """
    commit = _commit_folder(folder, root)
    try:
        names = sorted((path.name for path in commit.iterdir()), key=lambda name: (name == root, name))
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        # Another process may be at it too.
        with contextlib.suppress(FileNotFoundError):
            if (commit / name).stat().st_size:
                os.replace(commit / name, folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
                (commit / name).unlink()
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
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that ends with the process; none where the file system has no locks."""
    with open(path, "ab") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
