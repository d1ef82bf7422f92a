"""What a run computes: what decides its numbers, and its fingerprint."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from ..data.datasets import Dataset
from ..errors import UserError
from .tiling import Tiling

#: The version of the working directory's layout (:mod:`cnn_gp.store.run_directory`); part of the fingerprint.
FORMAT = 1


@dataclass(frozen=True)
class Description:
    """What a run computes: two runs with equal descriptions have the same numbers."""

    model: str
    kernel: dict[str, Any]
    dataset: str
    data_hash: str
    image_shape: tuple[int, ...]
    n_classes: int
    N_train: int
    N_vali: int
    N_test: int
    n_max: int
    float_type: str
    preprocessing: dict[str, Any] = field(default_factory=dict)
    """
    {"flip": True} where the training images have their mirror images among them, {"zca": regularization} where all are
    whitened. ``data_hash`` and the sizes are with flips, and before whitening, in whose rounding machines differ.
    """

    @classmethod
    def of(
        cls,
        data: Dataset,
        *,
        model: str,
        kernel: dict[str, Any],
        n_max: int,
        float_type: str,
        preprocessing: dict[str, Any] | None = None,
    ) -> "Description":
        """
        The description of a run of a kernel on a data set.

        :param kernel: the kernel's own description.
        :param preprocessing: as :attr:`preprocessing`, or none.
        """
        N_train, N_vali, N_test = data.sizes
        return cls(
            model=model,
            kernel=kernel,
            dataset=data.name,
            data_hash=data.data_hash(),
            image_shape=tuple(data.image_shape),
            n_classes=data.n_classes,
            N_train=N_train,
            N_vali=N_vali,
            N_test=N_test,
            n_max=n_max,
            float_type=float_type,
            preprocessing=preprocessing or {},
        )

    @property
    def tiling(self) -> Tiling:
        """The run's tiles."""
        return Tiling(self.N_train, self.N_vali, self.N_test, self.n_max)

    def to_json(self) -> str:
        """The description as one line of JSON with sorted keys."""
        return json.dumps({"format": FORMAT, **self._fields()}, sort_keys=True)

    def _fields(self) -> dict[str, Any]:
        # Without preprocessing as it was before there was any: the fingerprints of stored runs stay.
        return {name: value for name, value in asdict(self).items() if name != "preprocessing" or value}

    @classmethod
    def from_json(cls, text: str) -> "Description":
        """The inverse of :meth:`to_json`. :raises UserError: where it is of another version's format."""
        fields = json.loads(text)
        found = fields.pop("format", None)
        if found != FORMAT:
            raise UserError(
                f"The run is of format {found!r}; this version reads format {FORMAT}: compute the run in another "
                "--path, or use the version of cnn_gp that wrote it."
            )
        return cls(**{**fields, "image_shape": tuple(fields["image_shape"])})

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the description, hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def differences(there: Description, asked: Description) -> str:
    """The first three places in which two descriptions differ, with both values, as text."""
    old, new = ({"preprocessing": {}, **json.loads(one.to_json())} for one in (there, asked))
    found = list(_differing(old, new, ""))
    return "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")


def _differing(old: Any, new: Any, path: str) -> Iterator[str]:
    """Where two JSON values differ, leaf by leaf."""
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        for key in old:
            yield from _differing(old[key], new[key], f"{path}.{key}" if path else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from _differing(a, b, f"{path}[{i}]")
    elif old != new:
        yield f"{path} is {_short(old)} there and {_short(new)} asked for"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:60]}..."
