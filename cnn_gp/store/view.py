"""A run's view, ``WORKDIR/RUN.h5``: all its parts as whole matrices, for other programs."""

import io
from pathlib import Path

import h5py
import numpy as np

from ..errors import UserError
from .atomic import remove, write_atomically
from .description import Description
from .sealed import Damaged, read_sealed, seal

#: What the kernel's diagonal at the rows of a matrix is called.
_DIAGONALS = {"Kxx": "Kx_diag", "Kxvx": "Kv_diag", "Kxtx": "Kt_diag"}


def write(path: Path, name: str, description: Description, labels: dict[str, np.ndarray]) -> None:
    """
    Write the view of a complete run.

    :param name: the run's, whose folder lies beside the view.
    """
    tiling = description.tiling
    content = io.BytesIO()
    with h5py.File(content, "w", libver="latest") as file:
        wholes = {
            matrix: h5py.VirtualLayout((height, tiling.N_train), description.float_type)
            for matrix, height in tiling.heights.items()
        }
        diagonals = {
            matrix: h5py.VirtualLayout((height,), description.float_type) for matrix, height in tiling.heights.items()
        }
        for part in tiling.parts():
            # Relative to the view: the working directory can be moved.
            source = f"{name}/{part.name}.h5"
            for row in part.rows:
                entries = h5py.VirtualSource(source, f"{row.start}/entries", row.shape)
                wholes[row.matrix][row.start : row.stop, row.first_column :] = entries
                diagonal = h5py.VirtualSource(source, f"{row.start}/variances", row.shape[:1])
                diagonals[row.matrix][row.start : row.stop] = diagonal
        for matrix in wholes:
            file.create_virtual_dataset(matrix, wholes[matrix], fillvalue=np.nan)
            file.create_virtual_dataset(_DIAGONALS[matrix], diagonals[matrix], fillvalue=np.nan)
        for key, values in labels.items():
            file[key] = values
        file.attrs["description"] = description.to_json()
        file.attrs["fingerprint"] = description.fingerprint
        file.attrs["complete"] = True
    write_atomically(path, seal(content.getvalue(), path.name, description.fingerprint))


def delete(path: Path) -> None:
    """Delete a view, and nothing else that may lie in its place."""
    if _is_a_view(path):
        remove(path)


def defect(path: Path, description: Description) -> str | None:
    """
    Why this run's view has to be written; None where it is there, undamaged.

    :raises UserError: where something else lies in its place, or it can't be read.
    """
    try:
        read_sealed(path, description.fingerprint)
        return None
    except (FileNotFoundError, NotADirectoryError):
        return "it isn't there"
    except Damaged as reason:
        if _is_a_view(path):
            return str(reason)
        raise UserError(
            f"{path} isn't a view that save_kernels.py wrote ({reason}), and is kept: move it away and start again, so "
            "that the run's view can be written there."
        ) from reason
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}): check its permissions and its disk.") from error


def _is_a_view(path: Path) -> bool:
    """Whether a file names itself, damaged or not, as what :func:`write` wrote."""
    try:
        with open(path, "rb") as file:
            content = file.read(1 << 26)
    except OSError:
        return False
    return b"complete" in content and b"fingerprint" in content and content.startswith(b"\x89HDF")
