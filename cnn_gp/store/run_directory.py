"""
The working directory: what stage 1 writes and stage 2 reads.

A run RUN in a working directory WORKDIR is

- ``WORKDIR/RUN/run.h5``: the run's description (attribute ``description``, JSON) and the labels ``Y``, ``Yv``, ``Yt``;
- ``WORKDIR/RUN/images.h5``: the images ``X``, ``Xv``, ``Xt``, for workers, which need nothing but this directory;
- ``WORKDIR/RUN/Kxx_0000.h5``, ...: the parts (:mod:`.tiling`). A part has a group for each of its rows of blocks,
  named by its first row, with ``entries`` [rows, columns from ``first_column``] and ``variances`` [rows], the kernel's
  diagonal at the images of these rows. A chunk is an n_max block, with HDF5's Fletcher-32 checksum;
- ``WORKDIR/RUN/Kxx_0000.row_0.npz``, only while a part of several rows is being computed: its finished rows;
- ``WORKDIR/RUN/claims``: who is computing what (:mod:`cnn_gp.compute.claims`);
- ``WORKDIR/RUN.h5``: a view of all parts as whole matrices, for everyone else. It is written last.

A file is written under a temporary name, flushed to the disk and renamed: under its own name it is complete. A part
carries its run's fingerprint, so that a part of another run isn't taken for one of this.
"""

import contextlib
import json
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from ..data.datasets import Dataset
from ..errors import UserError
from ..npz import ERRORS as NPZ_ERRORS
from ..processes import is_alive
from .atomic import write_atomically
from .description import Description, differences
from .tiling import MATRICES, BlockRow, Part

#: The images of each matrix's rows, of :meth:`RunDirectory.images`.
ROW_IMAGES = {"Kxx": "X", "Kxvx": "Xv", "Kxtx": "Xt"}

_VARIANCES = {"Kxx": "Kx_diag", "Kxvx": "Kv_diag", "Kxtx": "Kt_diag"}


class RunDirectory:
    """
    A run in a working directory.

    :param workdir: the working directory.
    :param name: the run's name.
    """

    def __init__(self, workdir: str | os.PathLike, name: str) -> None:
        self.workdir = Path(workdir)
        self.name = name
        self.folder = self.workdir / name
        self.view_path = self.workdir / f"{name}.h5"
        self._description_path = self.folder / "run.h5"
        self._images_path = self.folder / "images.h5"
        self.claims_folder = self.folder / "claims"
        self._description: Description | None = None

    # Stage 1 ---------------------------------------------------------------------------------------------------------

    def begin(self, description: Description, data: Dataset) -> None:
        """
        Begin the run, or go on with it.

        :param data: the images and labels that the description is of.
        :raises UserError: where another run lies in this place; it says what differs.
        """
        if self._description_path.exists():
            there = self.description()
            if there.fingerprint != description.fingerprint:
                raise UserError(
                    f"{self.folder} holds another run ({differences(there, description)}): "
                    "choose another --path or --run_name, or delete it."
                )

        def write(content: BinaryIO) -> None:
            with h5py.File(content, "w") as file:
                file.attrs["description"] = description.to_json()
                for name, values in (("Y", data.Y), ("Yv", data.Yv), ("Yt", data.Yt)):
                    file[name] = values

        def write_images(content: BinaryIO) -> None:
            with h5py.File(content, "w", libver="latest") as file:
                for name, values in (("X", data.X), ("Xv", data.Xv), ("Xt", data.Xt)):
                    file.create_dataset(name, data=values, chunks=True, fletcher32=True)

        # The images are deleted with the tiles, and the description stays.
        if not self._images_path.exists():
            write_atomically(self._images_path, write_images)
        if not self._description_path.exists():
            write_atomically(self._description_path, write)

    def write_part(
        self, part: Part, rows: list[tuple[np.ndarray, np.ndarray]], provenance: dict[str, Any] | None = None
    ) -> None:
        """
        Commit a part.

        :param rows: for each row of blocks its entries [rows, columns] and its images' variances [rows].
        :param provenance: what else to record with it: who computed it, and how long it took.
        :raises UserError: where an entry isn't finite: the part isn't written.
        """
        description = self.description()
        for row, (entries, variances) in zip(part.rows, rows, strict=True):
            assert entries.shape == row.shape and variances.shape == (row.shape[0],)
            _refuse_non_finite(row, entries, variances)

        def write(content: BinaryIO) -> None:
            # The latest format has checksums of HDF5's own structures too.
            with h5py.File(content, "w", libver="latest") as file:
                file.attrs["fingerprint"] = description.fingerprint
                file.attrs["provenance"] = json.dumps(provenance or {})
                for row, (entries, variances) in zip(part.rows, rows, strict=True):
                    group = file.create_group(str(row.start))
                    chunks = (row.shape[0], min(description.n_max, row.n_columns))
                    group.create_dataset("entries", data=entries, chunks=chunks, fletcher32=True)
                    group.create_dataset("variances", data=variances, chunks=variances.shape, fletcher32=True)

        write_atomically(self._part_path(part), write)
        for row in part.rows:
            self._row_path(part, row).unlink(missing_ok=True)

    def keep_row(self, part: Part, row: BlockRow, entries: np.ndarray, variances: np.ndarray) -> None:
        """Put a finished row of an unfinished part aside, so that a kill loses only the row at work."""
        _refuse_non_finite(row, entries, variances)
        fingerprint = np.array(self.description().fingerprint)

        def write(content: BinaryIO) -> None:
            np.savez(content, entries=entries, variances=variances, fingerprint=fingerprint)

        write_atomically(self._row_path(part, row), write)

    def kept_row(self, part: Part, row: BlockRow) -> tuple[np.ndarray, np.ndarray] | None:
        """What :meth:`keep_row` put aside; None where there is nothing, or nothing whole."""
        try:
            with np.load(self._row_path(part, row), allow_pickle=False) as file:
                if str(file["fingerprint"]) != self.description().fingerprint or file["entries"].shape != row.shape:
                    return None
                return file["entries"], file["variances"]
        except NPZ_ERRORS:
            return None

    def images(self) -> dict[str, np.ndarray]:
        """The images "X" [N_train, D], "Xv" [N_vali, D] and "Xt" [N_test, D], in the run's precision."""
        try:
            with h5py.File(self._images_path, "r") as file:
                return {name: file[name][()].astype(self.description().float_type) for name in ("X", "Xv", "Xt")}
        except (OSError, KeyError, RuntimeError) as error:
            raise UserError(
                f"{self._images_path} can't be read ({' '.join(str(error).split())}): delete {self.folder} and compute "
                "the run again."
            ) from error

    def missing_parts(self, verify: bool = False) -> tuple[list[Part], dict[str, str]]:
        """
        The parts still to be computed, and for those of which a file is there, why it doesn't count.

        :param verify: read every byte of the parts and check its checksum, not only each file's structure.
        """
        missing, reasons = [], {}
        for part in self.description().tiling.parts():
            reason = self._why_unusable(part, verify)
            if reason is not None:
                missing.append(part)
                if self._part_path(part).exists():
                    reasons[part.name] = reason
        return missing, reasons

    def write_view(self) -> None:
        """Write the view over a complete run. :raises UserError: where parts are missing."""
        self.check_complete()
        description = self.description()
        tiling = description.tiling

        def write(content: BinaryIO) -> None:
            with h5py.File(content, "w", libver="latest") as file:
                for matrix, height in tiling.heights.items():
                    whole = h5py.VirtualLayout((height, tiling.N_train), description.float_type)
                    variances = h5py.VirtualLayout((height,), description.float_type)
                    for part, row in self._rows(matrix):
                        # Relative to the view: the working directory can be moved.
                        source = f"{self.name}/{part.name}.h5"
                        entries = h5py.VirtualSource(source, f"{row.start}/entries", row.shape)
                        whole[row.start : row.stop, row.first_column :] = entries
                        variances[row.start : row.stop] = h5py.VirtualSource(
                            source, f"{row.start}/variances", row.shape[:1]
                        )
                    file.create_virtual_dataset(matrix, whole, fillvalue=np.nan)
                    file.create_virtual_dataset(_VARIANCES[matrix], variances, fillvalue=np.nan)
                for name, values in self.labels().items():
                    file[name] = values
                file.attrs["description"] = description.to_json()
                file.attrs["fingerprint"] = description.fingerprint
                file.attrs["complete"] = True

        write_atomically(self.view_path, write)

    # Stage 2 ---------------------------------------------------------------------------------------------------------

    def description(self) -> Description:
        """The run's description. :raises UserError: where there is no run, or it can't be read."""
        if self._description is None:
            with self._open_description() as file:
                self._description = Description.from_json(file.attrs["description"])
        return self._description

    def labels(self) -> dict[str, np.ndarray]:
        """The class numbers "Y" [N_train], "Yv" [N_vali] and "Yt" [N_test], int64."""
        with self._open_description() as file:
            return {name: file[name][()] for name in ("Y", "Yv", "Yt")}

    def remove_leftovers(self) -> None:
        """Remove the temporary files of processes that are dead on this host."""
        for path in self.folder.glob(".*.tmp"):
            host, _, pid = path.name.removesuffix(".tmp").rpartition(".")
            here = pid.isdecimal() and host.endswith(f".{socket.gethostname()}")
            if here and not is_alive(socket.gethostname(), int(pid)):
                path.unlink(missing_ok=True)

    def forget_claims(self) -> None:
        """Remove what claims are left of a complete run: of a process killed just after its part was on disk."""
        for path in self.claims_folder.glob("*"):
            path.unlink(missing_ok=True)

    def discard(self, name: str) -> None:
        """Delete a part's file, which was found damaged."""
        (self.folder / f"{name}.h5").unlink(missing_ok=True)

    def is_done(self, part: Part) -> bool:
        """Whether a part is on disk, whole and of this run."""
        return self._why_unusable(part) is None

    def check_complete(self) -> None:
        """:raises UserError: where parts are missing or unusable; it lists them."""
        missing, reasons = self.missing_parts()
        if missing:
            total = len(self.description().tiling.parts())
            named = [part.name + (f" ({reasons[part.name]})" if part.name in reasons else "") for part in missing]
            listed = ", ".join(named[:8]) + (f" and {len(named) - 8} more" if len(named) > 8 else "")
            raise UserError(
                f"The run {self.name} in {self.workdir} is incomplete: {len(missing)} of {total} parts are missing: "
                f"{listed}; start save_kernels.py again with the same flags, it does only what is missing."
            )

    def check_data(self) -> None:
        """:raises UserError: where the run's images and labels aren't those that its description was made for."""
        if not self._images_path.exists():
            return
        labels = self.labels()
        with h5py.File(self._images_path, "r") as file:
            X, Xv, Xt = (file[name][()] for name in ("X", "Xv", "Xt"))
        description = self.description()
        shape, n_classes = description.image_shape, description.n_classes
        there = Dataset(description.dataset, X, labels["Y"], Xv, labels["Yv"], Xt, labels["Yt"], shape, n_classes)
        if there.data_hash() != description.data_hash:
            raise UserError(
                f"The images and labels in {self.folder} aren't those that the run was begun with (their SHA-256 "
                "differs): move the folder away and compute the run again."
            )

    def read_rows(self, matrix: str) -> Iterator[tuple[BlockRow, np.ndarray]]:
        """
        The stored rows of tiles of a matrix, in order, as they were computed (float32 or float64).

        :raises UserError: where a part can't be read or its checksum is wrong.
        """
        assert matrix in MATRICES
        for part, row in self._rows(matrix):
            yield row, self._read(part, f"{row.start}/entries")

    def read_upper(self, start: int, stop: int, left: int, right: int) -> np.ndarray:
        """
        Rows ``start`` to ``stop`` and columns ``left`` to ``right`` of Kxx, float64, from on or above its diagonal.

        :param left: ``start``, and then ``right`` is ``stop``: a whole symmetric block; or at least ``stop``.
        """
        assert (left, right) == (start, stop) or left >= stop
        block = np.zeros((stop - start, right - left))
        for part, row in self._rows("Kxx"):
            top, bottom, first = max(start, row.start), min(stop, row.stop), max(left, row.first_column)
            if top < bottom and first < right:
                rows = slice(top - row.start, bottom - row.start)
                columns = slice(first - row.first_column, right - row.first_column)
                there = self._read(part, f"{row.start}/entries", (rows, columns))
                block[top - start : bottom - start, first - left :] = there
        return np.triu(block) + np.triu(block, 1).T if left == start else block

    def read_diagonal(self, matrix: str) -> np.ndarray:
        """The kernel's diagonal K(x, x) at the images of a matrix's rows: of Kxx the training images."""
        return np.concatenate([self._read(part, f"{row.start}/variances") for part, row in self._rows(matrix)])

    def provenance(self, parts: Sequence[Part] | None = None) -> list[dict[str, Any]]:
        """What was recorded with each part: engine, device, versions, host and "seconds"."""
        records = []
        for part in self.description().tiling.parts() if parts is None else parts:
            with h5py.File(self._part_path(part), "r") as file:
                records.append(json.loads(file.attrs["provenance"]))
        return records

    def delete_parts(self) -> None:
        """Delete the view, then the parts and the images. The description and the labels stay."""
        self.view_path.unlink(missing_ok=True)
        self._images_path.unlink(missing_ok=True)
        for part in self.description().tiling.parts():
            self._part_path(part).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.claims_folder.rmdir()

    # -----------------------------------------------------------------------------------------------------------------

    def _part_path(self, part: Part) -> Path:
        return self.folder / f"{part.name}.h5"

    def _row_path(self, part: Part, row: BlockRow) -> Path:
        return self.folder / f"{part.name}.row_{row.start}.npz"

    def _rows(self, matrix: str) -> Iterator[tuple[Part, BlockRow]]:
        for part in self.description().tiling.parts():
            for row in part.rows:
                if row.matrix == matrix:
                    yield part, row

    def _open_description(self) -> h5py.File:
        try:
            return h5py.File(self._description_path, "r")
        except FileNotFoundError as error:
            names = ", ".join(runs_in(self.workdir)) or "none"
            raise UserError(
                f"There is no run {self.name} in {self.workdir} (runs there: {names}): check --path and --model, or "
                "compute it with save_kernels.py."
            ) from error
        except OSError as error:
            raise UserError(
                f"{self._description_path} can't be read ({error}): delete {self.folder} and compute the run again."
            ) from error

    def _why_unusable(self, part: Part, verify: bool = False) -> str | None:
        try:
            with h5py.File(self._part_path(part), "r") as file:
                if file.attrs.get("fingerprint") != self.description().fingerprint:
                    return "it belongs to another run"
                for row in part.rows:
                    entries, variances = file[f"{row.start}/entries"], file[f"{row.start}/variances"]
                    if (entries.shape, variances.shape) != (row.shape, row.shape[:1]):
                        return "its shape is wrong"
                    if verify and not (np.isfinite(entries[()]).all() and np.isfinite(variances[()]).all()):
                        return "it holds a number that isn't finite"
        except FileNotFoundError:
            return "it isn't there"
        except (OSError, KeyError, RuntimeError):
            return "it is damaged"
        return None

    def _read(self, part: Part, dataset: str, selection: tuple[slice, ...] = ()) -> np.ndarray:
        path = self._part_path(part)
        try:
            with h5py.File(path, "r") as file:
                values = file[dataset][selection]
        except (OSError, KeyError, RuntimeError) as error:
            raise UserError(
                f"{path} can't be read ({' '.join(str(error).split())}): delete this file and start save_kernels.py "
                "again with the same flags, it does only what is missing."
            ) from error
        if not np.isfinite(values).all():
            raise UserError(
                f"{path} holds numbers that aren't finite ({dataset}), which save_kernels.py never writes: delete this "
                "file and start save_kernels.py again with the same flags."
            )
        return values


def runs_in(workdir: str | os.PathLike) -> list[str]:
    """The names of the runs in a working directory."""
    return sorted(path.parent.name for path in Path(workdir).glob("*/run.h5"))


class NonFiniteError(UserError):
    """An entry to be committed isn't finite: in row ``row`` and column ``column`` of ``matrix``."""

    def __init__(self, matrix: str, row: int, column: int, where: str = "") -> None:
        self.matrix, self.row, self.column, self._where = matrix, row, column, where
        super().__init__(
            f"{matrix} has a non-finite entry at row {row}, column {column}{where}; nothing of this row of blocks was "
            "written: look at these images, or take --float_type=float64."
        )

    def __reduce__(self) -> tuple[type, tuple[str, int, int, str]]:
        # It comes back from worker processes; an exception would be made anew from its message.
        return type(self), (self.matrix, self.row, self.column, self._where)


def _refuse_non_finite(row: BlockRow, entries: np.ndarray, variances: np.ndarray) -> None:
    bad = np.argwhere(~np.isfinite(entries))
    if len(bad) or not np.isfinite(variances).all():
        i, j = bad[0] if len(bad) else (int(np.argmin(np.isfinite(variances))),) * 2
        raise NonFiniteError(row.matrix, row.start + int(i), row.first_column + int(j))
