"""Files that are there complete, or not at all."""

import contextlib
import io
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from ..errors import UserError


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """
    Make a file so that it is there complete, or not at all.

    :param write: writes the content to a file in memory. HDF5 crashes the process where its disk fills up, so it never
        gets to see the disk; a plain write fails with an error.
    :raises UserError: where the file can't be written (a full disk, no permission); nothing is left behind.
    """
    content = io.BytesIO()
    write(content)
    # Not one of this process's threads may share the name with another process's.
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise UserError(
            f"{path} can't be written ({error}): free some space or choose another place, then start again; "
            "what was finished before is kept."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
