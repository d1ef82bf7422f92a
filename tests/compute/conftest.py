"""Fixtures that the tests of the workers share."""

import pytest

from helpers.small_runs import complete, make_data
from helpers.workers import SIZES, datasets_of


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run's matrices."""
    path = tmp_path_factory.mktemp("whole")
    complete(path, make_data(**SIZES))
    return datasets_of(path)
