"""Fixtures that the tests of the workers share."""

import pytest

from helpers.matrices import bytes_of
from helpers.small_runs import complete, make_data
from helpers.workers import SIZES


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run's matrices."""
    path = tmp_path_factory.mktemp("whole")
    return bytes_of(complete(path, make_data(**SIZES)).folder)
