"""What the README and docs say of the results is what results/ holds."""

import json
import re

import pytest
from conftest import ROOT

from cnn_gp.architectures import PAPER_ERRORS

RESULTS = ROOT / "results" / "mnist"


def stored(model):
    path = RESULTS / f"{model}.json"
    return json.loads(path.read_text()) if path.exists() else None


def table(text, heading):
    """The cells of the first table after a heading, by the name in back quotes of each line."""
    lines = text.split(heading)[1].split("\n\n|")[1].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {re.search("`(.*?)`", " ".join(row))[1]: row for row in rows}


@pytest.mark.parametrize("model", PAPER_ERRORS)
def test_the_readmes_table_is_what_is_stored(model):
    row = table((ROOT / "README.md").read_text(), "## The paper, reproduced")[model]
    result = stored(model)
    assert row[2:4] == [f"{error:.2f}" for error in PAPER_ERRORS[model]]
    if result is None:
        assert row[4:] == ["not yet", "not yet"]
        return
    assert row[4:] == [f"{result[key]:.2f}" for key in ("validation_error", "test_error")]
    assert (result["N_train"], result["N_vali"], result["N_test"]) == (50_000, 10_000, 10_000)
    # Within 0.05 of the paper's, the issue of reproducing it.
    assert abs(result["validation_error"] - PAPER_ERRORS[model][0]) <= 0.05
    assert abs(result["test_error"] - PAPER_ERRORS[model][1]) <= 0.05


def test_every_result_names_what_made_it():
    paths = list((ROOT / "results").rglob("*.json"))
    if not paths:
        pytest.skip("results/ is empty")
    for path in paths:
        result = json.loads(path.read_text())
        drawn = path.parent.name == "convergence"
        assert result["command"].startswith(f"python scripts/{'plot_convergence' if drawn else 'classify_gp'}.py")
        for record in (result["versions"], *result.get("kernel_computed_by", ())):
            assert re.fullmatch("[0-9a-f]{12}", record["commit"]), (path, record["commit"])
            assert record["processor"] and record["python"]
        assert drawn or result["relative_residual"] < 1e-9


def test_results_are_small():
    assert sum(path.stat().st_size for path in (ROOT / "results").rglob("*") if path.is_file()) < 20e6
