"""The random search's results: a line per network."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

_COLUMNS = (
    "seed kind layers filter stride padding nonlinearity skips var_weight var_bias N_train validation_error test_error"
).split()


def rows(results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each result of the search, the smallest validation error first."""
    found = []
    for r in results:
        h = r["hyperparameters"]
        found.append(
            {
                "seed": int(r["run"].removeprefix("seed_")),
                "kind": "residual" if h["n_skips"] else "plain",
                "layers": h["n_convolutions"],
                "filter": _joined("x".join(map(str, _pair(size))) for size in h["filter_sizes"]),
                "stride": _joined(str(_pair(stride)[0]) for stride in h["strides"]),
                "padding": _joined(h["paddings"]),
                "nonlinearity": _joined(h["nonlinearities"]),
                "skips": h["n_skips"],
                "var_weight": f"{h['var_weights'][0]:.4f}",
                "var_bias": f"{h['var_biases'][0]:.4f}",
                "N_train": r["N_train"],
                "validation_error": f"{r['validation_error']:.2f}",
                "test_error": f"{r['test_error']:.2f}",
            }
        )
    return sorted(found, key=lambda row: (float(row["validation_error"]), row["seed"]))


def to_csv(found: Sequence[dict[str, Any]]) -> str:
    """:func:`rows` as CSV."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _COLUMNS)
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue()


def to_markdown(found: Sequence[dict[str, Any]]) -> list[str]:
    """:func:`rows` as the lines of a table; errors in %."""
    lines = ["| " + " | ".join(_COLUMNS).replace("_", " ") + " |", "|" + "---|" * len(_COLUMNS)]
    return lines + ["| " + " | ".join(str(row[column]) for column in _COLUMNS) + " |" for row in found]


def _pair(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value, value)


def _joined(values: Iterable[str]) -> str:
    return " ".join(dict.fromkeys(values))
