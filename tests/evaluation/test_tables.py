"""The writers of tables: bytes of CSV, columns of text and Markdown."""

import pytest

from cnn_gp.evaluation.tables import to_csv, to_markdown, to_text

HEADER = ["run", "data", "error", "of the paper"]
ROWS = [["convnet_gp", "mnist", "0.71", ""], ["a", "digits", "10.00", "1.03"]]


def test_csv():
    rows = ({"a": index, "b": text} for index, text in enumerate(["x,y", "0.10"]))
    assert to_csv(rows) == 'a,b\r\n0,"x,y"\r\n1,0.10\r\n'
    with pytest.raises(ValueError, match="'c'"):
        to_csv([{"a": 1}, {"a": 1, "c": 2}])


def test_text():
    assert to_text(HEADER, ROWS, "llrr").splitlines() == [
        "run         data    error  of the paper",
        "----------  ------  -----  ------------",
        "convnet_gp  mnist    0.71",
        "a           digits  10.00          1.03",
    ]


def test_markdown():
    """Cells are shown as they are given, 10.00 not as 10."""
    header, line, *rows = to_markdown(HEADER, ROWS, "llrr").splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in (header, *rows)]
    assert cells == [HEADER, *ROWS]
    assert [cell.endswith(":") for cell in line.strip("|").split("|")] == [False, False, True, True]
    assert len({len(row) for row in (header, line, *rows)}) == 1
