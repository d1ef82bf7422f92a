"""The results of a run: one JSON file, one line of CSV, and the table that a person reads."""

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import UserError
from ..kernels.architectures import PAPER_ERRORS
from ..npz import read_npz
from ..store.atomic import write_atomically

#: What decides a result, besides the run's fingerprint: another one isn't written over it unasked.
_SETTINGS = ("fingerprint", "N_train", "N_vali", "N_test", "jitter_asked", "noise_asked")

_CSV_COLUMNS = (
    "model dataset N_train N_vali N_test training_error validation_error test_error jitter noise relative_residual "
    "log_marginal_likelihood condition_number n_convolutions filter_sizes strides paddings nonlinearities var_weights "
    "var_biases n_skips kernel_seconds solve_seconds float_type n_max fingerprint"
).split()


def hyperparameters(kernel_description: dict[str, Any]) -> dict[str, Any]:
    """A summary of a kernel's description: numbers of layers and what is in them."""
    layers = list(_walk(kernel_description["network"]))
    convolutions = [layer for layer in layers if layer["layer"] == "Conv"]
    weighted = [layer for layer in layers if "var_weight" in layer]
    nonlinearities = [layer for layer in layers if layer["layer"].startswith("Ex")]
    return {
        "n_convolutions": len(convolutions),
        "filter_sizes": _distinct(c["filter_size"] for c in convolutions),
        "strides": _distinct(c["stride"] for c in convolutions),
        "paddings": _distinct(c["padding"] for c in convolutions),
        "nonlinearities": _distinct(_nonlinearity(layer) for layer in nonlinearities),
        "var_weights": _distinct(layer["var_weight"] for layer in weighted),
        "var_biases": _distinct(layer["var_bias"] for layer in weighted),
        "n_skips": sum(layer["layer"] == "Sum" for layer in layers),
    }


def _walk(layer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield layer
    for child in layer.get("layers", layer.get("branches", ())):
        yield from _walk(child)


def _nonlinearity(layer: dict[str, Any]) -> str:
    if layer["layer"] == "ExErf":
        return "erf"
    return ("sqrt2*" if layer["multiply_by_sqrt2"] else "") + ("ReLU" if layer["exponent"] == 1 else "step")


def _distinct(values: Iterator[Any]) -> list[Any]:
    return list(dict.fromkeys(tuple(v) if isinstance(v, list) else v for v in values))


class ResultFiles:
    """
    ``FOLDER/RUN.json`` and ``FOLDER/RUN.csv``, and beside them ``RUN_predictions.npz`` and ``RUN_learning_curve.csv``.

    :param folder: where results lie.
    :param name: the run's name.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.json_path = folder / f"{name}.json"
        self.csv_path = folder / f"{name}.csv"
        self.arrays_path = folder / f"{name}_predictions.npz"

    def read(self) -> dict[str, Any] | None:
        """The result, or None where there is none. :raises UserError: where it can't be read."""
        try:
            return json.loads(self.json_path.read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise UserError(f"{self.json_path} can't be read ({error}): move it away and start again.") from error

    def finished(self, settings: dict[str, Any]) -> dict[str, Any] | None:
        """
        The result of these settings, if it is there, CSV included.

        :param settings: the values of "fingerprint", "N_train", "N_vali", "N_test", "jitter_asked" and "noise_asked".
        :raises UserError: where a result of other settings is there.
        """
        there = self.read()
        if there is None:
            return None
        differing = [key for key in _SETTINGS if there.get(key) != settings[key]]
        if differing:
            named = "; ".join(f"{key} is {there.get(key)} there and {settings[key]} asked for" for key in differing)
            raise UserError(f"{self.json_path} holds another result ({named}): give --overwrite, or another --csv_dir.")
        return there if self.csv_path.exists() else None

    def check_writable(self) -> None:
        """:raises UserError: where nothing can be written there: said before hours of work, not after."""
        probe = self.json_path.with_name(f".{self.json_path.name}.probe")
        write_atomically(probe, lambda content: _write_text(content, ""))
        probe.unlink(missing_ok=True)

    def write_extra(self, name: str, content: bytes) -> None:
        """``FOLDER/RUN_NAME``, atomically."""
        path = self.json_path.with_name(f"{self.json_path.stem}_{name}")
        write_atomically(path, lambda file: _write_bytes(file, content))

    def write_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """alpha, the means and what else there is of the validation and test images, atomically."""
        write_atomically(self.arrays_path, lambda content: np.savez(content, **arrays))

    def read_arrays(self) -> dict[str, np.ndarray]:
        """What :meth:`write_arrays` wrote. :raises UserError: where it isn't there or can't be read."""
        return read_npz(self.arrays_path, "start classify_gp.py again with --overwrite")

    def write(self, result: dict[str, Any]) -> None:
        """Write both files, each atomically."""
        text = json.dumps(result, indent=2) + "\n"
        write_atomically(self.csv_path, lambda content: _write_csv(content, result))
        write_atomically(self.json_path, lambda content: _write_text(content, text))


def _write_text(content: BinaryIO, text: str) -> None:
    content.write(text.encode())


def _write_bytes(content: BinaryIO, data: bytes) -> None:
    content.write(data)


def _write_csv(content: BinaryIO, result: dict[str, Any]) -> None:
    flat = {
        **result,
        **result["hyperparameters"],
        "kernel_seconds": result["times"].get("kernel"),
        "solve_seconds": sum(v for key, v in result["times"].items() if key != "kernel"),
    }
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(_CSV_COLUMNS)
    writer.writerow([_cell(flat[column]) for column in _CSV_COLUMNS])
    _write_text(content, text.getvalue())


def _cell(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return " ".join("x".join(map(str, v)) if isinstance(v, list | tuple) else str(v) for v in value)


def read_all(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """The results in a folder, by run name."""
    return [
        {"run": path.stem, **(ResultFiles(path.parent, path.stem).read() or {})}
        for path in sorted(Path(folder).glob("*.json"))
    ]


def table(results: Sequence[dict[str, Any]]) -> str:
    """Errors in %, a line per run, with the paper's beside them where there are any for the data set."""
    header = ["run", "dataset", "N_train", "training", "validation", "test", "jitter", "residual"]
    papers = [PAPER_ERRORS.get(r["model"]) if r["dataset"] == "mnist" else None for r in results]
    footer = "Errors in %."
    if any(papers):
        header += ["paper: validation", "test"]
        footer += " The paper's are for 50,000 training images."
    rows = [header]
    for result, paper in zip(results, papers, strict=True):
        row = [result["run"], result["dataset"], f"{result['N_train']:,}"]
        row += [f"{result[key]:.2f}" for key in ("training_error", "validation_error", "test_error")]
        row += [f"{result['jitter']:g}", f"{result['relative_residual']:.0e}"]
        row += [f"{error:.2f}" for error in paper] if paper else [""] * (len(header) - len(row))
        rows.append(row)
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    rows.insert(1, ["-" * width for width in widths])
    aligned = [
        [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        for row in rows
    ]
    return "\n".join(["  ".join(row).rstrip() for row in aligned] + [footer])
