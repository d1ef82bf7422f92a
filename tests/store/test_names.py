"""A run's name can't lead out of the working directory, nor to another file in it."""

import pytest

from cnn_gp.errors import UserError
from cnn_gp.store.run_directory import RunDirectory


@pytest.mark.parametrize("name", ["seed_07", "convnet_gp", "no-sqrt2", "v1.2", "0", "x" * 100])
def test_names_of_runs(tmp_path, name):
    assert RunDirectory(tmp_path, name).folder == tmp_path / name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "/tmp/x",
        "a/b",
        "a\\b",
        ".hidden",
        "a b",
        "ä",
        "a\n",
        "x\0",
        "results",
        "random_search",
        "comparisons",
        "a.h5",
        "a_learning_curve",
    ],
)
def test_other_names_are_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"expected at most 100 letters, digits, .* give another --run_name"):
        RunDirectory(tmp_path, name)


def test_a_long_name_is_refused_in_one_short_line(tmp_path):
    with pytest.raises(UserError, match=r"x\.\.\. \(300 characters\)") as refused:
        RunDirectory(tmp_path, "x" * 300)
    assert len(str(refused.value)) < 300
