"""What benchmarks/README.md says of preconditioners is what the JSON files beside it hold."""

import json

import pytest

from helpers.paths import ROOT

#: The rows of the tables, and the files' names for them.
PRECONDITIONERS = {
    "none": "none",
    "pivoted Cholesky": "pivoted",
    "randomly pivoted Cholesky": "randomly pivoted",
    "randomised Nystrom": "Nystrom",
}
NOISES = (0, 1e-6, 1e-4, 1e-3)


@pytest.mark.parametrize(("name", "N"), [("conjugate_gradients", 12_000), ("conjugate_gradients_50000", 50_000)])
def test_the_iterations_are_those_that_were_measured(name, N):
    result = json.loads((ROOT / "benchmarks" / f"{name}.json").read_text())
    assert result["N"] == N and all(solve["residual"] < 1e-6 for solve in result["solves"])
    measured = {(solve["preconditioner"], solve["noise"]): solve["iterations"] for solve in result["solves"]}
    text = (ROOT / "benchmarks" / "README.md").read_text().split(f"(`{name}.json`)")[1]
    lines = [line for line in text.split("\n\n")[1].splitlines() if line.startswith("|")][2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0] for row in rows] == list(PRECONDITIONERS)
    for row in rows:
        found = [measured[PRECONDITIONERS[row[0]], noise] for noise in NOISES]
        assert row[1:5] == [f"{iterations:,}" for iterations in found]
