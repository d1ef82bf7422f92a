"""Means and standard deviations over training sets, and their files."""

import math

import pytest

from cnn_gp.errors import UserError
from cnn_gp.evaluation.training_sets import Files, TrainingSets, spreads, table
from cnn_gp.regression.training_sets import TrainingSet

SETS = (
    TrainingSet(20, 0, 3.0, 5.0, 0.0),
    TrainingSet(10, 0, 6.0, 8.0, 0.0),
    TrainingSet(10, 10, 8.0, 8.0, 1e-10),
)
FOUND = TrainingSets("digits", "abc", 20, 30, 1e-3, 0.0, SETS, "python scripts/training_sets.py", {"numpy": "2"})


def test_means_and_deviations_by_hand():
    small, large = spreads(SETS)
    assert (small.N_train, small.sets, small.validation_mean, small.test_mean) == (10, 2, 7, 8)
    assert (small.validation_deviation, small.test_deviation) == (pytest.approx(math.sqrt(2)), 0)
    assert (large.N_train, large.sets, large.test_mean) == (20, 1, 5) and math.isnan(large.test_deviation)
    assert table([small, large]).rows == [
        ["10", "2", "7.00", "1.41", "8.00", "0.00"],
        ["20", "1", "3.00", "", "5.00", ""],
    ]


def test_files_are_read_as_they_were_written(tmp_path):
    files = Files(tmp_path, "run")
    assert files.read() is None
    files.write(FOUND)
    assert files.read() == FOUND and FOUND.is_as_asked(files.read())
    lines = files.csv_path.read_text().splitlines()
    assert lines[0] == "N_train,first,validation_error,test_error,jitter" and len(lines) == 4
    files.json_path.write_text(files.json_path.read_text()[:-20])
    with pytest.raises(UserError, match=r"run\.json can't be read .* move it away and start training_sets\.py again"):
        files.read()
