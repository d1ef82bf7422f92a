"""
The working directory: what stage 1 writes and stage 2 reads.

A run RUN in a working directory WORKDIR is

- ``WORKDIR/RUN/run.jsonl``: the run's description and the labels ``Y``, ``Yv``, ``Yt`` (:mod:`.record`);
- ``WORKDIR/RUN/images.h5``: the images ``X``, ``Xv``, ``Xt``, for workers, which need nothing but this directory; of a
  run that whitens them also whitened, ``whitened/X``, ...;
- ``WORKDIR/RUN/Kxx_0000.h5``, ...: the parts (:mod:`.tiling`, :mod:`.part_file`);
- ``WORKDIR/RUN/Kxx_0000.row_0.npz``, only while a part is being computed: what is finished of its rows of tiles;
- ``WORKDIR/RUN/claims``: which process computes which part;
- ``WORKDIR/RUN.h5``: a view of all parts as whole matrices, for everyone else (:mod:`.view`). It is written last.

Every file is written atomically and sealed (:mod:`.sealed`): before it is believed its bytes are those that were
written, in this place, for this run.
"""

import base64
import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.datasets import Dataset
from ..errors import UserError
from . import image_file, part_file, row_file, upgrade, view
from .atomic import check_writable, remove, remove_leftovers, write_atomically
from .description import Description, differences
from .names import checked_run_name
from .non_finite import refuse_non_finite
from .part_file import Row
from .record import LABELS, Record
from .sealed import Damaged, Seal, read_seal, read_sealed, seal
from .tiling import MATRICES, Part, TileRow

if TYPE_CHECKING:
    from ..data.preprocessing import ZCA

#: The images of each matrix's rows.
ROW_IMAGES = {"Kxx": "X", "Kxvx": "Xv", "Kxtx": "Xt"}


class RunDirectory:
    """
    A run in a working directory.

    :param workdir: the working directory.
    :param name: the run's name.
    :raises UserError: where the name can't be that of a folder in it.
    """

    def __init__(self, workdir: str | os.PathLike, name: str) -> None:
        self.workdir = Path(workdir)
        self.name = checked_run_name(name)
        self.folder = self.workdir / name
        self.view_path = self.workdir / f"{name}.h5"
        self.claims_folder = self.folder / "claims"
        self._record_path = self.folder / "run.jsonl"
        self._images_path = self.folder / "images.h5"
        self._record: Record | None = None

    def check_writable(self) -> None:
        """:raises UserError: where the run's files can't be written. Nothing is left behind."""
        check_writable(self.folder)

    # Stage 1 ---------------------------------------------------------------------------------------------------------

    def begin(self, description: Description, data: Dataset) -> None:
        """
        Begin the run, or go on with it.

        :param data: the images and labels that the description is of.
        :raises UserError: where another run lies in this place; it says what differs.
        """
        is_old = upgrade.is_old(self.folder)
        if is_old:
            upgrade.check_same(self.folder, description)
        record = Record.new(description, {"Y": data.Y, "Yv": data.Yv, "Yt": data.Yt})
        if record.create(self._record_path):
            self._record = record
        else:
            self._record = None
            there = self.description()
            if there.fingerprint != description.fingerprint:
                raise UserError(
                    f"{self.folder} holds another run ({differences(there, description)}): "
                    "choose another --path or --run_name, or delete it."
                )
        # They may be left from a run that was begun and deleted.
        if self._defect_of_images() is not None:
            self._write(self._images_path, image_file.to_bytes(description, data))
        if is_old:
            upgrade.seal_parts(self.folder, description)

    def write_part(self, part: Part, rows: Sequence[Row], provenance: Mapping[str, Any] | None = None) -> None:
        """
        Commit a part.

        :param rows: for each row of tiles its entries [rows, columns] and the diagonal at its images [rows].
        :param provenance: what else to record with it: who computed it, and how long it took.
        :raises UserError: where an entry isn't finite, or the run isn't there any longer: the part isn't written.
        """
        for row, (entries, diagonal) in zip(part.rows, rows, strict=True):
            assert entries.shape == row.shape and diagonal.shape == (row.shape[0],)
            refuse_non_finite(row, entries, diagonal)
        diagonals = {
            str(row.start): base64.b64encode(diagonal.tobytes()).decode()
            for row, (_, diagonal) in zip(part.rows, rows, strict=True)
        }
        content = part_file.to_bytes(part, rows, self.description().n_max)
        self._write(self._part_path(part), content, {"provenance": dict(provenance or {}), "diagonals": diagonals})
        self._forget_kept_rows(part)

    def keep_row(
        self,
        part: Part,
        row: TileRow,
        entries: np.ndarray,
        diagonal: np.ndarray | None,
        engine: str,
        seconds: float = 0.0,
    ) -> None:
        """
        Put a row of an unfinished part aside, so that a kill loses only what was computed since.

        :param entries: NaN where they aren't computed yet.
        :param diagonal: None where the row isn't finished.
        :param engine: that computed them.
        :param seconds: the time that the row has taken so far.
        """
        if diagonal is not None:
            refuse_non_finite(row, entries, diagonal)
        about = {"entries": row_file.n_entries(row, entries), "seconds": seconds, "engine": engine}
        self._write(self._row_path(part, row), row_file.to_bytes(entries, diagonal), about)

    def kept_row(self, part: Part, row: TileRow, engine: str) -> tuple[np.ndarray, np.ndarray | None] | None:
        """What :meth:`keep_row` put aside for an engine; None where there is nothing, or nothing whole."""
        path = self._row_path(part, row)
        try:
            content, found = read_sealed(path, self.description().fingerprint)
            if found.about.get("engine") != engine:
                return None
            return row_file.from_bytes(content)
        except (FileNotFoundError, Damaged):
            return None
        except OSError as error:
            raise _unreadable(path, error) from error

    def kept_so_far(self, part: Part, engine: str | None = None) -> tuple[int, float]:
        """
        Of an unfinished part, how many entries were put aside, and the seconds that they took.

        :param engine: only what this engine computed.
        """
        entries, seconds = 0, 0.0
        for row in part.rows:
            try:
                about = read_seal(self._row_path(part, row), self.description().fingerprint).about
            except (OSError, Damaged):
                continue
            if engine in (None, about.get("engine")):
                entries += about.get("entries", row.entries)
                seconds += about.get("seconds", 0.0)
        return entries, seconds

    def missing_parts(self, verify: bool = False) -> tuple[list[Part], dict[str, str]]:
        """
        The parts still to be computed, and for those of which a file is there, why it doesn't count.

        :param verify: read every byte of the parts and check its SHA-256, not only each file's seal and length.
        :raises UserError: where a part is there and can't be read, which is no reason to compute it again.
        """
        missing, reasons = [], {}
        for part in self.description().tiling.parts():
            path = self._part_path(part)
            try:
                if verify:
                    self._check_part(part)
                else:
                    read_seal(path, self.description().fingerprint)
            except FileNotFoundError:
                missing.append(part)
                if path.is_symlink():
                    reasons[part.name] = "it is a link to nothing"
            except Damaged as reason:
                missing.append(part)
                reasons[part.name] = str(reason)
            except OSError as error:
                raise _unreadable(path, error) from error
        return missing, reasons

    def is_done(self, part: Part) -> bool:
        """Whether a part is on disk, of the right length, and of this run."""
        try:
            read_seal(self._part_path(part), self.description().fingerprint)
        except (FileNotFoundError, Damaged):
            return False
        except OSError as error:
            raise _unreadable(self._part_path(part), error) from error
        return True

    def discard(self, name: str) -> None:
        """Delete a part's file, which was found damaged."""
        remove(self.folder / f"{name}.h5")

    def write_view(self) -> None:
        """
        Write the view over a complete run, where it isn't there yet.

        :raises UserError: where parts are missing, the images and labels aren't the run's, or another file lies in the
            view's place.
        """
        self.check_complete()
        if view.defect(self.view_path, self.description()) is None:
            return
        self.check_data()
        view.write(self.view_path, self.name, self.description(), self.labels())

    def remove_leftovers(self) -> None:
        """Remove what killed processes left: this host's temporary files, and kept rows of parts that are done."""
        for folder in (self.workdir, self.folder, self.claims_folder):
            remove_leftovers(folder)
        kept = {path.name.split(".")[0] for path in self.folder.glob("*.row_*.npz")}
        for part in self.description().tiling.parts():
            if part.name in kept and self.is_done(part):
                self._forget_kept_rows(part)

    def forget_claims(self) -> None:
        """Remove what claims are left of a complete run: of a process killed just after its part was on disk."""
        if self.claims_folder.is_symlink():
            return
        for pattern in ("*.claim", "*.takeover", ".*.now"):
            for path in self.claims_folder.glob(pattern):
                with contextlib.suppress(OSError):
                    path.unlink()

    @property
    def id(self) -> str:
        """Tells the run from one that was deleted and begun anew, also with the same description."""
        return self._read_record().id

    def check_still_ours(self) -> None:
        """:raises UserError: where the run was deleted, or begun anew, since this object has read its record."""
        mine = self._read_record()
        try:
            there = Record.read(self._record_path)
        except FileNotFoundError:
            there = None
        if there is None or there.id != mine.id:
            raise UserError(
                f"The run in {self.folder} was deleted or begun anew while this program was at work on it; nothing was "
                "written over: start again, if it is still to be computed."
            )

    # Stage 2 ---------------------------------------------------------------------------------------------------------

    def description(self) -> Description:
        """The run's description. :raises UserError: where there is no run, or it can't be read."""
        return self._read_record().description

    def labels(self) -> dict[str, np.ndarray]:
        """The class numbers "Y" [N_train], "Yv" [N_vali] and "Yt" [N_test], int64."""
        return self._read_record().labels

    def images(self) -> dict[str, np.ndarray]:
        """
        The images "X" [N_train, D], "Xv" [N_vali, D] and "Xt" [N_test, D], in the run's precision, as they
        are given to the kernel: whitened where the run whitens them.

        :raises UserError: where they aren't there, or can't be read.
        """
        images = self._stored_images(whitened="zca" in self.description().preprocessing)
        return {name: values.astype(self.description().float_type) for name, values in images.items()}

    def raw_images(self) -> dict[str, np.ndarray]:
        """The same before whitening, float32."""
        return self._stored_images()

    def whitening(self) -> "ZCA | None":
        """What new images have to be transformed by, or None. :raises UserError: as :meth:`images`."""
        description = self.description()
        return image_file.whitening(description, self.raw_images()["X"]) if description.preprocessing else None

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
        """
        :raises UserError: where the run's images or labels aren't those that its description was made for.

        Images that aren't there aren't missed.
        """
        if os.path.lexists(self._images_path):
            images, labels, description = self._stored_images(), self.labels(), self.description()
            X, Xv, Xt = (images[name] for name in ("X", "Xv", "Xt"))
            Y, Yv, Yt = (labels[name] for name in LABELS)
            shape, n_classes = description.image_shape, description.n_classes
            there = Dataset(description.dataset, X, Y, Xv, Yv, Xt, Yt, shape, n_classes)
            if there.data_hash() != description.data_hash:
                raise UserError(
                    f"The images and labels in {self.folder} aren't those that the run was begun with (their SHA-256 "
                    "differs): move the folder away and compute the run again."
                )

    def defects_beside_parts(self) -> dict[str, str]:
        """
        Which files of a complete run besides its parts have to be written again, and why, after a look at every byte.

        :raises UserError: where the images and labels aren't the run's, or a file can't be read.
        """
        images, of_view = self._defect_of_images(), view.defect(self.view_path, self.description())
        if images is None:
            self.check_data()
        defects = {self._images_path.name: images, self.view_path.name: of_view}
        return {name: reason for name, reason in defects.items() if reason is not None}

    def read_rows(self, matrix: str) -> Iterator[tuple[TileRow, np.ndarray]]:
        """
        The stored rows of tiles of a matrix, in order, as they were computed (float32 or float64).

        The next part is read and verified by another thread meanwhile.

        :raises UserError: where a part can't be read or a byte of it is wrong.
        """
        assert matrix in MATRICES
        parts = [part for part in self.description().tiling.parts() if part.rows[0].matrix == matrix]
        with ThreadPoolExecutor(1, thread_name_prefix="read ahead") as ahead:
            following = ahead.submit(self._read_part, parts[0])
            for i, part in enumerate(parts):
                content, _ = following.result()
                if i + 1 < len(parts):
                    following = ahead.submit(self._read_part, parts[i + 1])
                for row in part.rows:
                    yield row, self._row(part, content, row)[0]

    def read_upper(self, start: int, stop: int, left: int, right: int) -> np.ndarray:
        """
        Rows ``start`` to ``stop`` and columns ``left`` to ``right`` of Kxx, float64, from on or above its diagonal.

        :param left: ``start``, and then ``right`` is ``stop``: a whole symmetric block; or at least ``stop``.
        """
        assert (left, right) == (start, stop) or left >= stop
        block = np.zeros((stop - start, right - left))
        for part in self.description().tiling.parts():
            wanted = [row for row in part.rows if row.matrix == "Kxx" and row.start < stop and start < row.stop]
            if not wanted:
                continue
            content, _ = self._read_part(part)
            for row in wanted:
                top, bottom, first = max(start, row.start), min(stop, row.stop), max(left, row.first_column)
                if first < right:
                    rows = slice(top - row.start, bottom - row.start)
                    columns = slice(first - row.first_column, right - row.first_column)
                    there = self._row(part, content, row, (rows, columns))[0]
                    block[top - start : bottom - start, first - left :] = there
        return np.triu(block) + np.triu(block, 1).T if left == start else block

    def read_diagonal(self, matrix: str) -> np.ndarray:
        """The kernel's diagonal K(x, x) at the images of a matrix's rows: of Kxx the training images."""
        dtype = np.dtype(self.description().float_type).newbyteorder("<")
        pieces = []
        for part in self.description().tiling.parts():
            if part.rows[0].matrix == matrix:
                diagonals = self._read_part_seal(part).about["diagonals"]
                pieces += [np.frombuffer(base64.b64decode(diagonals[str(row.start)]), dtype) for row in part.rows]
        return np.concatenate(pieces).astype(dtype.newbyteorder("="))

    def provenance(self, parts: Sequence[Part] | None = None) -> list[dict[str, Any]]:
        """What was recorded with each part: engine, device, versions, host and "seconds"."""
        parts = self.description().tiling.parts() if parts is None else parts
        return [self._read_part_seal(part).about["provenance"] for part in parts]

    def delete_parts(self) -> None:
        """
        Delete the view, then the parts, and what a solve that was never finished has kept (:mod:`.kept_state`).

        The description, labels and images stay: predictions need these.
        """
        # First, so that no worker that was forgotten puts a part back.
        self._record = self._read_record().renew(self._record_path)
        view.delete(self.view_path)
        for part in self.description().tiling.parts():
            remove(self._part_path(part))
        for path in self.folder.glob("solve_*.state.npz"):
            remove(path)
        with contextlib.suppress(OSError):
            self.claims_folder.rmdir()

    # -----------------------------------------------------------------------------------------------------------------

    def _part_path(self, part: Part) -> Path:
        return self.folder / f"{part.name}.h5"

    def _row_path(self, part: Part, row: TileRow) -> Path:
        return self.folder / f"{part.name}.row_{row.start}.npz"

    def _forget_kept_rows(self, part: Part) -> None:
        """Remove what :meth:`keep_row` put aside; what can't be removed is left to :meth:`remove_leftovers`."""
        for row in part.rows:
            with contextlib.suppress(OSError):
                self._row_path(part, row).unlink(missing_ok=True)

    def _read_record(self) -> Record:
        if self._record is None:
            try:
                self._record = Record.read(self._record_path)
            except FileNotFoundError as error:
                upgrade.refuse_old(self.folder)
                names = ", ".join(runs_in(self.workdir)) or "none"
                raise UserError(
                    f"There is no run {self.name} in {self.workdir} (runs there: {names}): check --path and --model, "
                    "or compute it with save_kernels.py."
                ) from error
        return self._record

    def _write(self, path: Path, content: bytes, about: dict[str, Any] | None = None) -> None:
        self.check_still_ours()
        write_atomically(path, seal(content, path.name, self.description().fingerprint, about))

    def _defect_of_images(self) -> str | None:
        """Why the images have to be written; None where they are there, undamaged."""
        try:
            read_sealed(self._images_path, self.description().fingerprint)
        except FileNotFoundError:
            return "it isn't there"
        except Damaged as reason:
            return str(reason)
        except OSError as error:
            raise _unreadable(self._images_path, error) from error
        return None

    def _stored_images(self, *, whitened: bool = False) -> dict[str, np.ndarray]:
        remedy = "start save_kernels.py again with the same flags, which writes them again and keeps all parts"
        try:
            content, _ = read_sealed(self._images_path, self.description().fingerprint)
            return image_file.from_bytes(content, whitened=whitened)
        except FileNotFoundError as error:
            raise UserError(f"The images of the run aren't in {self._images_path}: {remedy}.") from error
        except Damaged as error:
            raise UserError(f"{self._images_path} is damaged ({error}): {remedy}.") from error
        except OSError as error:
            raise _unreadable(self._images_path, error) from error

    def _check_part(self, part: Part) -> None:
        """:raises Damaged: where a byte is wrong, or an entry isn't finite."""
        content, _ = read_sealed(self._part_path(part), self.description().fingerprint)
        for row in part.rows:
            if not all(np.isfinite(values).all() for values in part_file.from_bytes(content, row)):
                raise Damaged("it holds a number that isn't finite")

    def _read_part(self, part: Part) -> tuple[bytes, Seal]:
        return self._of_part(part, lambda path: read_sealed(path, self.description().fingerprint))

    def _read_part_seal(self, part: Part) -> Seal:
        return self._of_part(part, lambda path: read_seal(path, self.description().fingerprint))

    def _of_part(self, part: Part, read: Any) -> Any:
        path = self._part_path(part)
        try:
            return read(path)
        except FileNotFoundError as error:
            raise UserError(
                f"{path} isn't there any longer: start save_kernels.py again with the same flags, it does only what is "
                "missing."
            ) from error
        except Damaged as error:
            raise _damaged(path, error) from error
        except OSError as error:
            raise _unreadable(path, error) from error

    def _row(self, part: Part, content: bytes, row: TileRow, selection: tuple[slice, ...] = ()) -> Row:
        try:
            entries, diagonal = part_file.from_bytes(content, row, selection)
            if not np.isfinite(entries).all():
                raise Damaged("it holds numbers that aren't finite")
        except Damaged as error:
            raise _damaged(self._part_path(part), error) from error
        return entries, diagonal


def runs_in(workdir: str | os.PathLike) -> list[str]:
    """The names of the runs in a working directory."""
    return sorted(path.parent.name for path in Path(workdir).glob("*/run.jsonl"))


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} can't be read ({error.strerror or error}): check its permissions and its disk.")


def _damaged(path: Path, reason: Damaged) -> UserError:
    return UserError(
        f"{path} can't be read ({reason}): delete this file and start save_kernels.py again with the same flags, it "
        "does only what is missing."
    )
