"""
Runs that version 0.1 began: their files are HDF5 without seals (:mod:`.sealed`), their description ``run.h5``.

Stage 1 checks their parts by HDF5's own checksums and seals them; nothing is computed again. Stage 2 refuses them till
then.
"""

import base64
import io
import json
from pathlib import Path

import h5py
import numpy as np

from ..errors import UserError
from .atomic import remove, write_atomically
from .description import Description, differences
from .sealed import Damaged, read_seal, seal
from .tiling import Part


def is_old(folder: Path) -> bool:
    """Whether a folder holds a run of version 0.1, or one that is being sealed."""
    return (folder / "run.h5").exists()


def refuse_old(folder: Path) -> None:
    """:raises UserError: where stage 1 has to seal the run first."""
    if is_old(folder):
        raise UserError(
            f"{folder} was written by cnn_gp 0.1, whose files have no digests: start save_kernels.py once with the "
            "same flags, which checks and seals them; nothing is computed again."
        )


def check_same(folder: Path, description: Description) -> None:
    """:raises UserError: where the old run is another one; it says what differs."""
    path = folder / "run.h5"
    try:
        with h5py.File(path, "r") as file:
            there = Description.from_json(file.attrs["description"])
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} can't be read ({' '.join(str(error).split())}): move this file alone away and start again with "
            "the same flags, which keeps all parts of the same run."
        ) from error
    if there.fingerprint != description.fingerprint:
        raise UserError(
            f"{folder} holds another run ({differences(there, description)}): "
            "choose another --path or --run_name, or delete it."
        )


def seal_parts(folder: Path, description: Description) -> None:
    """
    Seal the parts that aren't yet, once HDF5's checksums have passed; those that fail are left to be computed again.

    :raises UserError: where one can't be read or written; the next start goes on.
    """
    for part in description.tiling.parts():
        path = folder / f"{part.name}.h5"
        try:
            read_seal(path, description.fingerprint)
        except FileNotFoundError:
            continue
        except Damaged:
            content = _content(path)
            about = _checked(content, part, description)
            if about is not None:
                write_atomically(path, seal(content, path.name, description.fingerprint, about))
        except OSError as error:
            raise _not_read(path, error) from error
    remove(folder / "run.h5")


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _not_read(path, error) from error


def _not_read(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} can't be read ({error.strerror}): check its permissions and its disk.")


def _checked(content: bytes, part: Part, description: Description) -> dict | None:
    """What the seal says of an old part of this content; None where it isn't whole."""
    diagonals = {}
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            if file.attrs["fingerprint"] != description.fingerprint:
                return None
            for row in part.rows:
                entries, diagonal = file[f"{row.start}/entries"][()], file[f"{row.start}/variances"][()]
                whole = (entries.shape, diagonal.shape) == (row.shape, row.shape[:1])
                if not (whole and np.isfinite(entries).all() and np.isfinite(diagonal).all()):
                    return None
                diagonals[str(row.start)] = base64.b64encode(diagonal.tobytes()).decode()
            return {"provenance": json.loads(file.attrs["provenance"]), "diagonals": diagonals}
    except (OSError, KeyError, RuntimeError, ValueError):
        return None
