"""The writers of tables: CSV for programs, aligned text for the terminal, Markdown for pages."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tabulate import SEPARATING_LINE, DataRow, Line, TableFormat, tabulate

#: Columns are two spaces apart, and dashes are below the header.
_TEXT = TableFormat(
    lineabove=None,
    linebelowheader=Line("", "-", "  ", ""),
    linebetweenrows=None,
    linebelow=None,
    headerrow=DataRow("", "  ", ""),
    datarow=DataRow("", "  ", ""),
    padding=0,
    with_header_hide=None,
)


class Table(NamedTuple):
    """What :func:`to_text` and :func:`to_markdown` write."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    alignment: str


def to_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """
    A line for the header and one for each row, which end in CR LF (RFC 4180).

    :param rows: at least one; the keys of the first are the columns, and the others have the same.
    """
    rows = list(rows)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_text(header: Sequence[str], rows: Sequence[Sequence[str]], alignment: str) -> str:
    """
    A table for the terminal, without a line break at its end.

    :param alignment: a letter for each column: "l" for left or "r" for right.
    """
    # The header is given as a row: tabulate makes every column two characters wider than its header.
    lines = _tabulate([header, SEPARATING_LINE, *rows], alignment, tablefmt=_TEXT).splitlines()
    return "\n".join(line.rstrip() for line in lines)


def to_markdown(header: Sequence[str], rows: Sequence[Sequence[str]], alignment: str) -> str:
    """A table for a Markdown page, otherwise as :func:`to_text`."""
    return _tabulate(rows, alignment, headers=header, tablefmt="pipe")


def _tabulate(rows: Sequence[Any], alignment: str, **options: Any) -> str:
    sides = [{"l": "left", "r": "right"}[letter] for letter in alignment]
    return tabulate(rows, colalign=sides, disable_numparse=True, **options)
