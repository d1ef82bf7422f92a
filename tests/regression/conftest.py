"""The run that several modules solve by conjugate gradients."""

import numpy as np
import pytest

from cnn_gp.regression.gram_matrix import leading_rows
from cnn_gp.regression.solve import targets
from helpers.iterative import N_MAX, N
from helpers.matrices import stored
from helpers.small_runs import complete, make_data


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return complete(tmp_path_factory.mktemp("iterative"), make_data(N, 30, 30), n_max=N_MAX, float_type="float32")


@pytest.fixture(scope="module")
def K(run):
    K = np.zeros((N, N))
    for start, entries in leading_rows(stored(run)[0], N):
        K[start : start + len(entries), start:] = entries
    return np.triu(K) + np.triu(K, 1).T


@pytest.fixture(scope="module")
def Y(run):
    return targets(run.labels()["Y"], 3)
