"""Results: what is written is read back, and what isn't a result is refused in a line that names the key."""

import json
import math
from dataclasses import dataclass, replace

import pytest

from cnn_gp import GELU, Abs, Conv, Dense, ExErf, ExReLU, LeakyReLU, NNGPKernel, Sequential, Sin
from cnn_gp.evaluation.classify import Request
from cnn_gp.evaluation.decode import decode
from cnn_gp.evaluation.errors_table import errors_as_text
from cnn_gp.evaluation.hyperparameters import hyperparameters
from cnn_gp.evaluation.results import Result
from cnn_gp.evaluation.search_table import rows
from helpers.results import FULL, KERNEL, PLAIN


def test_the_files_content():
    values = json.loads(FULL.to_json())
    assert list(values)[:3] == ["model", "dataset", "fingerprint"] and "run" not in values
    assert values["scores"]["test"] == {
        "negative_log_likelihood": 0.1,
        "brier_score": 0.2,
        "expected_calibration_error": 0.3,
    }
    assert values["learning_curve"][0]["N_train"] == 500 and values["leave_one_out"]["error"] == 4.0
    assert not {"learning_curve", "scores", "leave_one_out"} & json.loads(PLAIN.to_json()).keys()
    header, line, end = FULL.to_csv().split("\r\n")
    cells = dict(zip(header.split(","), line.split(","), strict=True))
    assert (cells["filter_sizes"], cells["nonlinearities"], end) == ("3x5 3", "sqrt2*ReLU erf", "")
    assert (cells["kernel_seconds"], cells["solve_seconds"], cells["test_error"]) == ("2.0", "0.75", "10.0")


def test_what_is_not_known_yet_is_null_in_the_file_and_nan_when_read():
    """NaN is no JSON: other languages' readers refuse it."""
    unknown = replace(FULL, log_determinant=math.nan, extreme_eigenvalues=(math.nan, 2.0))

    def refused(name):
        raise AssertionError(name)

    values = json.loads(unknown.to_json(), parse_constant=refused)
    assert values["log_determinant"] is None and values["extreme_eigenvalues"] == [None, 2.0]
    found = decode(Result, {**values, "run": FULL.run})
    assert math.isnan(found.log_determinant) and math.isnan(found.extreme_eigenvalues[0])
    assert found.extreme_eigenvalues[1] == 2.0


def test_every_nonlinearity_has_a_name():
    layers = [ExReLU(), ExReLU(2, multiply_by_sqrt2=True), ExReLU(0), ExErf(), GELU(), LeakyReLU(0.1), Abs(), Sin()]
    network = Sequential(*(part for layer in layers for part in (Conv(3), layer)), Dense())
    names = hyperparameters(NNGPKernel(network, [1, 4, 4]).describe()).nonlinearities
    assert names == ("ReLU", "sqrt2*ReLU^2", "step", "erf", "GELU", "LeakyReLU", "Abs", "Sin")


def test_hyperparameters_of_a_description():
    h = hyperparameters(KERNEL)
    assert (h.n_convolutions, h.filter_sizes, h.strides, h.paddings) == (2, ((3, 5), 3), (2,), ("SAME",))
    assert (h.nonlinearities, h.var_weights, h.var_biases, h.n_skips) == (("sqrt2*ReLU", "erf"), (2.0,), (0.5,), 1)


def test_not_a_number_is_read_back():
    """Eigenvalues that weren't found."""
    result = replace(PLAIN, extreme_eigenvalues=(math.nan, 1.0), condition_number=math.nan)
    again = Result.from_json(result.to_json(), "made")
    assert math.isnan(again.extreme_eigenvalues[0]) and math.isnan(again.condition_number)


def without(key):
    values = json.loads(FULL.to_json())
    *path, last = key.split(".")
    inner = values
    for name in path:
        inner = inner[name]
    del inner[last]
    return values


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (without("test_error"), "the key test_error is missing"),
        (without("scores.vali.brier_score"), "the key scores.vali.brier_score is missing"),
        ({**json.loads(FULL.to_json()), "colour": 1}, "the key colour is unknown"),
        ({**json.loads(FULL.to_json()), "leave_one_out": {"error": "1"}}, "log_predictive_density is missing"),
        ({**json.loads(FULL.to_json()), "N_train": "many"}, "N_train holds 'many', expected a value of type int"),
        ({**json.loads(FULL.to_json()), "N_train": True}, "N_train holds 'True'"),
        ({**json.loads(FULL.to_json()), "extreme_eigenvalues": [1.0]}, "extreme_eigenvalues holds .* 2 values"),
        ({**json.loads(FULL.to_json()), "times": [1.0]}, "times holds .* expected an object"),
        ({**json.loads(FULL.to_json()), "times": {"kernel": "1"}}, "times.kernel holds '1'"),
        ({**json.loads(FULL.to_json()), "noise_search": [{"noise": 0.0}]}, r"noise_search\[0\].validation_error"),
        ([], r"the file holds '\[\]', expected an object"),
    ],
)
def test_what_isnt_a_result_is_refused_with_the_key(values, said):
    with pytest.raises(ValueError, match=said):
        Result.from_json(json.dumps(values), "made")


def test_a_request_gets_the_extras_of_the_result_that_it_replaces():
    request = Request(1000, 20, 30, spectrum=True, curve_sizes=(100, 500))
    assert request.lacking(PLAIN) == request.lacking(FULL) == ["learning_curve", "spectrum"]
    assert replace(request, curve_sizes=(500,)).lacking(FULL) == ["spectrum"]
    assert request.with_extras_of(PLAIN, None) == request
    whole = request.with_extras_of(FULL, None)
    assert whole.extras == ("variances", "leave_one_out", "learning_curve", "spectrum")
    assert whole.curve_sizes == (100, 500, 1000)


def test_an_ensembles_scores_without_its_own_output_scale_are_computed_again():
    class Run:
        class Description:
            fingerprint = "cd"

        description = Description

    there = replace(PLAIN, extras=("ensemble",), scores=FULL.scores, nngp_fingerprint="cd", ensemble_output_scale=2.0)
    request = Request(1000, 20, 30, nngp=Run())
    assert request.lacking(there) == []
    assert request.lacking(replace(there, ensemble_output_scale=None)) == ["ensemble"]
    assert request.lacking(replace(there, nngp_fingerprint="ef")) == ["ensemble"]


def test_the_papers_errors_stand_beside_mnists():
    of_paper = replace(PLAIN, run="convnet_gp", dataset="mnist")
    lines = errors_as_text([PLAIN, of_paper]).splitlines()
    assert lines[0].endswith("  jitter  residual  paper: validation  paper: test")
    assert lines[2].endswith("1e-09     1e-12") and lines[3].endswith("1e-12               0.71         1.03")
    assert lines[4] == "Errors in %. The paper's are for 50,000 training images."
    assert errors_as_text([PLAIN]).splitlines()[-1] == "Errors in %."
    # A run of another name may be of another depth or variance.
    assert "paper" not in errors_as_text([replace(of_paper, run="shallow")])
    whitened = errors_as_text([replace(of_paper, preprocessing={"flip": True, "zca": 0.01})])
    assert "mnist, flip, zca 0.01" in whitened and "paper" not in whitened


def test_the_searchs_rows_are_in_the_order_of_their_errors():
    runs = [replace(PLAIN, run=run) for run in ("seed_1234", "seed_02", "seed_13", "of_its_own")]
    best = replace(PLAIN, run="seed_40", validation_error=4.0)
    found = rows([*runs, best])
    assert [row["seed"] for row in found] == ["40", "2", "13", "1234", "of_its_own"]
    assert found[0]["kind"] == "residual" and found[0]["filter"] == "3x5 3x3"


def test_decoding_follows_the_annotations():
    @dataclass(frozen=True)
    class Inner:
        flag: bool
        size: int | tuple[int, ...]
        name: str | None = None

    assert decode(Inner, {"flag": True, "size": [1, 2]}) == Inner(True, (1, 2))
    assert decode(Inner, {"flag": False, "size": 3, "name": "a"}) == Inner(False, 3, "a")
    for value in ({"flag": 1, "size": 3}, {"flag": True, "size": 1.5}, {"flag": True, "size": ["a"]}):
        with pytest.raises(ValueError, match="holds"):
            decode(Inner, value)
