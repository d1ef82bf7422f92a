"""A run's matrices as :mod:`cnn_gp.regression.gram_matrix` describes them, read from its parts row by row."""

from collections.abc import Iterator

import numpy as np

from .run_directory import RunDirectory


class StoredKernel:
    """
    Kxvx or Kxtx of a run, [images, training images].

    :raises UserError: by its methods, where a part can't be read or its SHA-256 is wrong.
    """

    def __init__(self, run: RunDirectory, matrix: str) -> None:
        self._run, self._matrix = run, matrix

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """
        (first row, entries [rows, columns]) of each row of tiles, as they were computed (float32 or float64).

        :param start, stop: of those whose first row is from ``start`` on and before ``stop``.
        """
        for row, entries in self._run.parts.read_rows(self._matrix, start, stop):
            yield row.start, entries

    def pieces(self, start: int, width: int) -> Iterator[tuple[int, np.ndarray]]:
        """
        (first column from the row's first, entries [rows, at most width]) of one row of tiles, as they were computed.

        See :meth:`~cnn_gp.store.parts.Parts.read_pieces`.
        """
        return self._run.parts.read_pieces(self._matrix, start, width)

    def diagonal(self) -> np.ndarray:
        """K(x, x) of the images of the rows, [images], in the run's precision."""
        return self._run.parts.read_diagonal(self._matrix)


class StoredGram(StoredKernel):
    """Kxx of a run; its rows start at the diagonal."""

    is_in_memory = False

    def __init__(self, run: RunDirectory) -> None:
        super().__init__(run, "Kxx")
        description = run.description()
        self.N, self.n_max = description.N_train, description.n_max

    def block(self, start: int, stop: int, left: int, right: int) -> np.ndarray:
        """
        Some rows and columns on or right of the diagonal, [stop - start, right - left] float64.

        See :meth:`~cnn_gp.store.parts.Parts.read_upper`.
        """
        return self._run.parts.read_upper(start, stop, left, right)

    def __reduce__(self) -> tuple[type, tuple[RunDirectory]]:
        # For a cluster's workers, which have their own current folder.
        return type(self), (RunDirectory(self._run.workdir.absolute(), self._run.name),)
