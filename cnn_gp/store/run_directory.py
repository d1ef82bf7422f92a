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

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.datasets import Dataset
from ..errors import UserError
from . import image_file, upgrade, view
from .atomic import remove_leftovers
from .description import Description, differences
from .kept_rows import KeptRows
from .kept_state import remove_states
from .part_file import Row
from .parts import Parts
from .record import LABELS, Record
from .run_folder import RunFolder
from .sealed import Damaged
from .tiling import Part

if TYPE_CHECKING:
    from ..data.preprocessing import ZCA

#: The images of each matrix's rows.
ROW_IMAGES = {"Kxx": "X", "Kxvx": "Xv", "Kxtx": "Xt"}


class RunDirectory(RunFolder):
    """
    A run in a working directory.

    :param workdir: the working directory.
    :param name: the run's name.
    :raises UserError: where the name can't be that of a folder in it.
    """

    def __init__(self, workdir: str | os.PathLike, name: str) -> None:
        super().__init__(workdir, name)
        self.view_path = self.workdir / f"{name}.h5"
        self.claims_folder = self.folder / "claims"
        self._images_path = self.folder / "images.h5"
        self.parts = Parts(self)
        self.kept_rows = KeptRows(self)

    # Stage 1 ---------------------------------------------------------------------------------------------------------

    def begin(self, description: Description, data: Dataset) -> None:
        """
        Begin the run, or go on with it.

        :param data: the images and labels that the description is of.
        :raises UserError: where another run lies in this place, and it says what differs, or another file in that of
            the view.
        """
        # Whether there is a place for it is to be known now, not after hours of work; its defects don't matter yet.
        view.defect(self.view_path, description)
        is_old = upgrade.is_old(self.folder)
        if is_old:
            upgrade.check_same(self.folder, description)
        record = Record.new(description, {"Y": data.Y, "Yv": data.Yv, "Yt": data.Yt})
        if not self.create(record):
            there = self.description()
            if there.fingerprint != description.fingerprint:
                raise UserError(
                    f"{self.folder} holds another run ({differences(there, description)}): "
                    "choose another --path or --run_name, or delete it."
                )
        # They may be left from a run that was begun and deleted.
        if self._defect_of_images() is not None:
            self.write(self._images_path, image_file.to_bytes(description, data))
        if is_old:
            upgrade.seal_parts(self.folder, description)

    def write_part(self, part: Part, rows: Sequence[Row], provenance: Mapping[str, Any] | None = None) -> None:
        """:meth:`.Parts.write`; then what was put aside of the part is removed."""
        self.parts.write(part, rows, provenance)
        self.kept_rows.forget(part)

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
        kept = self.kept_rows.parts()
        for part in self.description().tiling.parts():
            if part.name in kept and self.parts.is_done(part):
                self.kept_rows.forget(part)

    def forget_claims(self) -> None:
        """Remove what claims are left of a complete run: of a process killed just after its part was on disk."""
        if self.claims_folder.is_symlink():
            return
        for pattern in ("*.claim", "*.takeover", ".*.now"):
            for path in self.claims_folder.glob(pattern):
                with contextlib.suppress(OSError):
                    path.unlink()

    # Stage 2 ---------------------------------------------------------------------------------------------------------

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
        return image_file.whitening(description, self.raw_images()["X"]) if "zca" in description.preprocessing else None

    def check_complete(self) -> None:
        """:raises UserError: where parts are missing or unusable; it lists them."""
        missing, reasons = self.parts.missing()
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

        Where there is no file of images, nothing is checked.
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

    def delete_parts(self) -> None:
        """
        Delete the view, then the parts, what was put aside of them, and what solves have kept whose result was never
        written (:mod:`.kept_state`).

        The description, labels and images stay: predictions need these.

        :raises UserError: where a file can't be removed, or the run was deleted or begun anew: nothing is deleted then.
        """
        # First, so that no worker that was forgotten puts a part back.
        self.renew()
        view.delete(self.view_path)
        self.parts.delete()
        for part in self.description().tiling.parts():
            self.kept_rows.forget(part)
        remove_states(self.folder)
        self.forget_claims()
        with contextlib.suppress(OSError):
            self.claims_folder.rmdir()

    # -----------------------------------------------------------------------------------------------------------------

    def _defect_of_images(self) -> str | None:
        """Why the images have to be written; None where they are there, undamaged."""
        try:
            self.read(self._images_path)
        except FileNotFoundError:
            return "it isn't there"
        except Damaged as reason:
            return str(reason)
        return None

    def _stored_images(self, *, whitened: bool = False) -> dict[str, np.ndarray]:
        remedy = "start save_kernels.py again with the same flags, which writes them again and keeps all parts"
        try:
            content, _ = self.read(self._images_path)
            return image_file.from_bytes(content, whitened=whitened)
        except FileNotFoundError as error:
            raise UserError(f"The images of the run aren't in {self._images_path}: {remedy}.") from error
        except Damaged as error:
            raise UserError(f"{self._images_path} is damaged ({error}): {remedy}.") from error
