"""
A run's record, ``RUN/run.jsonl``: what the run computes, and the labels. It is made before anything else of the run.

One line of JSON, then the seal's (:mod:`.sealed`). It is created exclusively: of two programs that begin different runs
in one place, one is refused. Its ``id`` tells a run from one that was deleted and begun anew with the same settings.
"""

import json
import uuid
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ..errors import UserError
from .atomic import create_exclusively, write_atomically
from .description import Description
from .sealed import Damaged, read_sealed, seal

LABELS = ("Y", "Yv", "Yt")


@dataclass(frozen=True)
class Record:
    """What is in the file."""

    id: str
    description: Description
    labels_json: dict[str, list[int]]

    @classmethod
    def new(cls, description: Description, labels: dict[str, np.ndarray]) -> "Record":
        """The record of a run that begins."""
        return cls(uuid.uuid4().hex, description, {name: labels[name].tolist() for name in LABELS})

    @cached_property
    def labels(self) -> dict[str, np.ndarray]:
        """The class numbers "Y" [N_train], "Yv" [N_vali] and "Yt" [N_test], int64."""
        return {name: np.array(values, np.int64) for name, values in self.labels_json.items()}

    def create(self, path: Path) -> bool:
        """Write it where there is none. :return: whether there was none. :raises UserError: it can't be written."""
        return create_exclusively(path, self._content(path))

    def renew(self, path: Path) -> "Record":
        """Write it anew under another id: whoever still works for the old one notices. The labels stay."""
        record = replace(self, id=uuid.uuid4().hex)
        write_atomically(path, record._content(path))
        return record

    def _content(self, path: Path) -> bytes:
        fields = {"id": self.id, "description": json.loads(self.description.to_json()), "labels": self.labels_json}
        return seal(json.dumps(fields, sort_keys=True).encode(), path.name, self.description.fingerprint)

    @classmethod
    def read(cls, path: Path) -> "Record":
        """
        :raises FileNotFoundError: where there is none.
        :raises UserError: where it can't be read or is damaged; it says what to do.
        """
        try:
            content, found = read_sealed(path, None)
            fields = json.loads(content)
            description = Description.from_json(json.dumps(fields["description"]))
            if found.owner != description.fingerprint:
                raise Damaged("it belongs to another run")
            sizes = {name: len(fields["labels"][name]) for name in LABELS}
            if list(sizes.values()) != [description.N_train, description.N_vali, description.N_test]:
                raise Damaged(f"it has labels of {sizes} images, which its description doesn't")
            return cls(fields["id"], description, fields["labels"])
        except FileNotFoundError:
            if path.is_symlink():
                raise UserError(f"{path} is a link to nothing: restore what it points to, or remove it.") from None
            raise
        except (Damaged, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is damaged ({error}): move this file alone away and start save_kernels.py again with the same "
                "flags, which writes it again and keeps all parts of the same run."
            ) from error
        except OSError as error:
            raise UserError(f"{path} can't be read ({error.strerror}): check its permissions and its disk.") from error
