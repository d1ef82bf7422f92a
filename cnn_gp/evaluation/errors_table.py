"""The table of the runs' errors, with the paper's beside them where there are any for the data set."""

from collections.abc import Sequence

from ..kernels.architectures import PAPER_ERRORS
from .results import Result
from .tables import Table, to_text


def errors_as_text(results: Sequence[Result]) -> str:
    """A line per run, for the terminal; the paper's columns only where they have entries."""
    with_paper = any(map(_paper, results))
    header = ["run", "dataset", "N_train", "training", "validation", "test", "jitter", "residual"]
    rows = []
    for r in results:
        errors = map(percent, (r.training_error, r.validation_error, r.test_error))
        rows.append([r.run, r.data, f"{r.N_train:,}", *errors, *_accuracy(r)])
    footer = "Errors in %."
    if with_paper:
        header += ["paper: validation", "paper: test"]
        rows = [[*row, *_paper_cells(r)] for row, r in zip(rows, results, strict=True)]
        footer += " The paper's are for 50,000 training images."
    return f"{to_text(header, rows, 'll' + 'r' * (len(header) - 2))}\n{footer}"


def errors_table(results: Sequence[Result]) -> Table:
    """A line per run, for a page; the paper's columns only where they have entries."""
    with_paper = papers_footnote(results) is not None
    header = ["run", "data", "training images", "validation error, %", "test error, %"]
    header += [*(["paper: validation, %", "paper: test, %"] if with_paper else []), "jitter", "residual"]
    rows = []
    for r in results:
        errors = [percent(r.validation_error), percent(r.test_error), *(_paper_cells(r) if with_paper else [])]
        rows.append([r.run, r.data, f"{r.N_train:,}", *errors, *_accuracy(r)])
    return Table(header, rows, "ll" + "r" * (len(header) - 2))


def papers_footnote(results: Sequence[Result]) -> str | None:
    """The sentence below :func:`errors_table` where it has the paper's errors; None where it has none."""
    return "The paper's errors are for 50,000 training images." if any(map(_paper, results)) else None


def percent(error: float) -> str:
    """An error in % as all tables show it."""
    return f"{error:.2f}"


def _paper(result: Result) -> tuple[float, float] | None:
    # A run of another name may be of another depth or variance.
    return PAPER_ERRORS.get(result.run) if result.data == "mnist" and result.run == result.model else None


def _paper_cells(result: Result) -> list[str]:
    paper = _paper(result)
    return ["", ""] if paper is None else [percent(error) for error in paper]


def _accuracy(result: Result) -> list[str]:
    return [f"{result.jitter:g}", f"{result.relative_residual:.0e}"]
