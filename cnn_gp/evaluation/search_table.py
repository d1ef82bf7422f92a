"""The random search's results: a line per network."""

from collections.abc import Iterable, Sequence

from .errors_table import percent
from .hyperparameters import PerAxis
from .results import Result
from .tables import Table


def rows(results: Iterable[Result]) -> list[dict[str, str]]:
    """A row for each result of the search, the smallest validation error first; errors in %."""
    found = [_row(result) for result in results]
    return sorted(found, key=lambda row: (float(row["validation_error"]), len(row["seed"]), row["seed"]))


def as_table(rows: Sequence[dict[str, str]]) -> Table:
    """:func:`rows` as a table for a page."""
    header = [column.replace("_", " ") for column in rows[0]]
    return Table(header, [list(row.values()) for row in rows], "rlrllllrrrrrr")


def _row(result: Result) -> dict[str, str]:
    h = result.hyperparameters
    return {
        "seed": _seed(result),
        "kind": "residual" if h.n_skips else "plain",
        "layers": str(h.n_convolutions),
        "filter": _joined("x".join(map(str, _per_axis(size))) for size in h.filter_sizes),
        "stride": _joined(str(_per_axis(stride)[0]) for stride in h.strides),
        "padding": _joined(h.paddings),
        "nonlinearity": _joined(h.nonlinearities),
        "skips": str(h.n_skips),
        "var_weight": f"{h.var_weights[0]:.4f}",
        "var_bias": f"{h.var_biases[0]:.4f}",
        "N_train": str(result.N_train),
        "validation_error": percent(result.validation_error),
        "test_error": percent(result.test_error),
    }


def _seed(result: Result) -> str:
    """The seed; of a run with a name of its own, that."""
    seed = result.run.removeprefix("seed_")
    return str(int(seed)) if seed.isdecimal() else result.run


def _per_axis(value: PerAxis) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value, value)


def _joined(values: Iterable[str]) -> str:
    return " ".join(dict.fromkeys(values))
