"""Ends a process before one of its file operations, as a kill does, or lets that operation fail."""

import builtins
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: The exit status of a process that was ended so.
KILLED = 77

#: What a process says of which an operation fails.
FAILED = "An operation fails.\n"

#: What changes something in a folder, by the names of its functions in ``os``.
_OPERATIONS = ("replace", "rename", "link", "symlink", "mkdir", "rmdir", "unlink", "truncate")


def kill_before(number: int, place: str, error: int | None = None) -> None:
    """
    End this process before the file operation of this number, from 0 on, in a folder or those in it.

    :param error: in place of that, let this one operation fail with an error of the system.

    Operations are those that change something, an open for writing and a flush of a file or folder to the disk.
    """
    done = 0

    def counted(real: Callable[..., Any], counts: Callable[..., bool]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            if counts(*arguments, **options):
                done += 1
                if done == number + 1:
                    if error is None:
                        os._exit(KILLED)
                    os.write(1, FAILED.encode())
                    raise OSError(error, os.strerror(error), str(arguments[0]))
            return real(*arguments, **options)

        return call

    def is_there(path: Any, folder: int | None = None) -> bool:
        if isinstance(path, int):
            return _path_of(path).is_relative_to(place)
        return ((Path.cwd() if folder is None else _path_of(folder)) / path).is_relative_to(place)

    def changes(path: Any, *others: Any, dir_fd: int | None = None, **options: Any) -> bool:
        return is_there(path, dir_fd)

    def writes(path: Any, mode: str = "r", *others: Any, **options: Any) -> bool:
        return not set(mode).isdisjoint("wax+") and is_there(path)

    for name in _OPERATIONS:
        setattr(os, name, counted(getattr(os, name), changes))
    os.fsync = counted(os.fsync, is_there)
    builtins.open = io.open = counted(builtins.open, writes)


def _path_of(handle: int) -> Path:
    return Path(f"/proc/self/fd/{handle}").readlink()
