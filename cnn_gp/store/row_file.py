"""What a file of a row of tiles holds that is put aside until its part is finished: its entries, NaN where missing."""

import io

import numpy as np

from .tiling import TileRow


def to_bytes(entries: np.ndarray, diagonal: np.ndarray | None) -> bytes:
    """
    The file's content.

    :param entries: [rows, columns].
    :param diagonal: [rows]; None where the row isn't finished.
    """
    content = io.BytesIO()
    np.savez(content, entries=entries, **({} if diagonal is None else {"variances": diagonal}))
    return content.getvalue()


def from_bytes(content: bytes) -> tuple[np.ndarray, np.ndarray | None]:
    """The inverse of :func:`to_bytes`."""
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return file["entries"], file.get("variances")


def n_entries(row: TileRow, entries: np.ndarray) -> int:
    """How many of a row's entries are there; those that only mirror others aren't counted."""
    there = ~np.isnan(entries)
    if row.matrix == "Kxx":
        there[np.tril_indices(row.shape[0], -1)] = False
    return int(there.sum())
