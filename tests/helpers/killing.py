"""
Ends a process before one of its file operations, as a kill does, or makes the operation fail, as a disk does.

Operations are those that change something in a folder, an open for writing, a write, and a flush of a file or folder.
"""

import builtins
import errno
import io
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from cnn_gp.regression import conjugate_gradients, kept
from cnn_gp.store.kept_state import KeptState

#: The exit status of a process that was ended so.
KILLED = 77

#: What a process writes of which an operation fails.
FAILED = "An operation fails.\n"

#: What changes something in a folder, by the names of its functions in ``os``.
_OPERATIONS = ("replace", "rename", "link", "symlink", "mkdir", "rmdir", "unlink", "truncate", "utime")


def kill_before(number: int, place: str) -> None:
    """End this process before the file operation of this number, from 0 on, in a folder or those in it."""

    def kill(count: int) -> None:
        if count == number:
            # Nothing is tidied up.
            os._exit(KILLED)

    for patch in _patches(place, kill):
        patch.start()


def kill_after_states(number: int) -> None:
    """Let conjugate gradients keep their state after each iteration; kill this process (-9) after so many of them."""
    kept.SECONDS_BETWEEN_STATES = 0.0
    real, saved = KeptState.save, [0]

    def save(self: KeptState, arrays: dict[str, np.ndarray]) -> None:
        real(self, arrays)
        saved[0] += 1
        if saved[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)

    mock.patch.object(KeptState, "save", save).start()


def keep_states_and_kill_before(number: int, place: str) -> None:
    """:func:`kill_before`, with states that are kept after each iteration."""
    kept.SECONDS_BETWEEN_STATES = 0.0
    kill_before(number, place)


def begin_no_solve() -> None:
    """Let conjugate gradients go on from a state that was kept, or fail."""
    mock.patch.object(conjugate_gradients, "_begin", side_effect=AssertionError("begun anew")).start()


@dataclass
class Fault:
    """An operation that fails, in a folder or those in it."""

    number: int
    """From 0 on."""
    place: str
    code: int
    lasting: bool = False
    """All operations that follow fail, too."""
    happened: bool = False

    def _fail(self, count: int) -> None:
        if count == self.number or (self.lasting and count > self.number):
            self.happened = True
            os.write(1, FAILED.encode())
            raise OSError(self.code, os.strerror(self.code))

    def begin(self) -> None:
        """From now on in this process, or to the end of a context."""
        self._patched = _patches(self.place, self._fail, reads=self.code in (errno.EIO, errno.EMFILE))
        for patch in self._patched:
            patch.start()

    def __enter__(self) -> "Fault":
        self.begin()
        return self

    def __exit__(self, *error: object) -> None:
        for patch in self._patched:
            patch.stop()


def _patches(place: str, before: Callable[[int], None], reads: bool = False) -> list[Any]:
    """Patches that call a function before each operation in a place, with its number; opens for reading too."""
    number = -1

    def next_operation() -> None:
        nonlocal number
        number += 1
        before(number)

    def counted(real: Callable[..., Any], counts: Callable[..., bool]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if counts(*arguments, **options):
                next_operation()
            return real(*arguments, **options)

        return call

    def is_there(path: Any, folder: int | None = None) -> bool:
        if isinstance(path, int):
            return _path_of(path).is_relative_to(place)
        return ((Path.cwd() if folder is None else _path_of(folder)) / path).is_relative_to(place)

    def changes(path: Any, *others: Any, dir_fd: int | None = None, **options: Any) -> bool:
        return is_there(path, dir_fd)

    def creates(path: Any, flags: int, *others: Any, dir_fd: int | None = None) -> bool:
        return bool(flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR)) and is_there(path, dir_fd)

    def opened(path: Any, mode: str = "r", *others: Any, **options: Any) -> Any:
        writes = not set(mode).isdisjoint("wax+")
        if not (writes or reads) or not is_there(path):
            return real_open(path, mode, *others, **options)
        next_operation()
        if not writes:
            return real_open(path, mode, *others, **options)
        return _Counted(real_open(path, mode, *others, **options), next_operation)

    real_open = builtins.open
    patches = [mock.patch.object(os, name, counted(getattr(os, name), changes)) for name in _OPERATIONS]
    patches.append(mock.patch.object(os, "fsync", counted(os.fsync, is_there)))
    patches.append(mock.patch.object(os, "open", counted(os.open, creates)))
    patches += [mock.patch.object(module, "open", opened) for module in (builtins, io)]
    return patches


class _Counted:
    """A file of which each write is an operation."""

    def __init__(self, file: Any, before: Callable[[], None]) -> None:
        self._file, self._before = file, before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_Counted":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, content: Any) -> int:
        self._before()
        return self._file.write(content)


def _path_of(handle: int) -> Path:
    return Path(f"/proc/self/fd/{handle}").readlink()
