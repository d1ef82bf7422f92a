"""A finished run from Python: every byte is verified before it is believed."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .. import memory
from ..errors import UserError
from .run_directory import RunDirectory
from .stored_matrix import StoredGram, StoredKernel
from .tiling import MATRICES


def open_run(path: str | os.PathLike) -> "StoredRun":
    """
    A finished run of ``save_kernels.py``.

    .. code-block:: python

        run = cnn_gp.open_run("runs/digits/resnet_gp")
        Kxx, Y = run.matrix("Kxx"), run.labels["Y"]

    :param path: the run's folder, WORKDIR/RUN.
    :raises UserError: where there is no run, it isn't finished, or its images and labels aren't those that it was begun
        with.
    """
    # The last part of "." is no name.
    folder = Path(path).absolute()
    if folder.suffix == ".h5":
        raise UserError(f"{path} is the name of a run's view; expected the run's folder: {folder.with_suffix('')}.")
    run = RunDirectory(folder.parent, folder.name)
    run.check_complete()
    run.check_data()
    return StoredRun(run)


class StoredRun:
    """
    What :func:`open_run` returns. The matrices are "Kxx" [N_train, N_train], "Kxvx" [N_vali, N_train] and "Kxtx"
    [N_test, N_train], in the run's precision (float32 or float64).

    Whatever is read is read from the disk anew; keep what is needed twice.

    :raises UserError: by all that reads: where a file isn't there any longer, can't be read, or isn't what was written,
        and where a matrix isn't one of the three.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run

    @property
    def directory(self) -> RunDirectory:
        """The run's files."""
        return self._run

    @property
    def labels(self) -> dict[str, np.ndarray]:
        """The class numbers "Y" [N_train], "Yv" [N_vali] and "Yt" [N_test], int64."""
        return {name: values.copy() for name, values in self._run.labels().items()}

    @property
    def images(self) -> dict[str, np.ndarray]:
        """
        The images "X" [N_train, D], "Xv" [N_vali, D] and "Xt" [N_test, D], channel first, in the run's precision; as
        the kernel is given them, whitened where the run whitens them.
        """
        return self._run.images()

    def diagonal(self, matrix: str) -> np.ndarray:
        """K(x, x) of the images of a matrix's rows: [N_train], [N_vali] or [N_test], in the run's precision."""
        return self._stored(matrix).diagonal()

    def rows(self, matrix: str) -> Iterator[tuple[int, np.ndarray]]:
        """
        A matrix, some rows at a time: (first row, entries), in order, so that it needn't fit in memory.

        Entries are [rows, N_train]; those of the symmetric "Kxx" begin at the diagonal, [rows, N_train - first row].
        """
        return self._stored(matrix).rows()

    def matrix(self, matrix: str) -> np.ndarray:
        """
        A whole matrix; "Kxx" is exactly symmetric.

        :raises UserError: where there isn't the memory for it, too.
        """
        description = self._run.description()
        shape = description.tiling.heights[self._checked(matrix)], description.N_train
        dtype = np.dtype(description.float_type)
        n_bytes = shape[0] * shape[1] * dtype.itemsize
        memory.check(n_bytes, f"{matrix}, {shape[0]:,} x {shape[1]:,} entries,", "read it row by row, with rows()")
        K = np.empty(shape, dtype)
        for start, entries in self.rows(matrix):
            stop = start + len(entries)
            if matrix == "Kxx":
                K[start:stop, start:] = entries
                K[stop:, start:stop] = entries[:, stop - start :].T
            else:
                K[start:stop] = entries
        return K

    def _stored(self, matrix: str) -> StoredKernel:
        return StoredGram(self._run) if self._checked(matrix) == "Kxx" else StoredKernel(self._run, matrix)

    def _checked(self, matrix: str) -> str:
        if matrix not in MATRICES:
            raise UserError(f"The matrix is {matrix!r}; expected one of {', '.join(MATRICES)}.")
        return matrix
