"""Writing what stage 2 and the report make."""

from pathlib import Path
from typing import BinaryIO

from ..store.atomic import write_atomically


def write_file(path: Path, content: str | bytes) -> None:
    """Write text (UTF-8) or bytes atomically. :raises UserError: where the file can't be written."""

    def write(file: BinaryIO) -> None:
        file.write(content.encode() if isinstance(content, str) else content)

    write_atomically(path, write)
