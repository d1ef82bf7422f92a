"""Errors with disjoint training sets, against plain linear algebra and the learning curve."""

import numpy as np
import pytest

from cnn_gp.errors import UserError
from cnn_gp.regression.learning_curve import learning_curve
from cnn_gp.regression.solve import solve, targets
from cnn_gp.regression.training_sets import disjoint_sets, errors_of_training_sets
from helpers.matrices import stored
from helpers.small_runs import complete, make_data

NOISE = 1e-2


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """23 training, 9 validation and 7 test images in tiles of 4."""
    return complete(tmp_path_factory.mktemp("run"), make_data(), n_max=4)


def sets_of(run, sets, noise=NOISE):
    labels = run.labels()
    gram, Kxvx, Kxtx = stored(run)
    Y = targets(labels["Y"], run.description().n_classes)
    return errors_of_training_sets(gram, Y, sets, (Kxvx, labels["Yv"]), (Kxtx, labels["Yt"]), noise=noise)


def test_the_sets_follow_each_other():
    assert disjoint_sets(23, [5, 11, 23], 3) == [(5, 0), (5, 5), (5, 10), (11, 0), (11, 11), (23, 0)]
    for size in (0, 24):
        with pytest.raises(UserError, match=f"Training sets of {size} images are asked for; expected 1 to 23"):
            disjoint_sets(23, [5, size], 3)


def test_the_errors_are_those_of_plain_linear_algebra(run):
    sets = disjoint_sets(23, [5, 11], 20)
    labels = run.labels()
    gram, *kernels = stored(run)
    K = gram.block(0, 23, 0, 23)
    Y = targets(labels["Y"], run.description().n_classes)
    found = sets_of(run, sets)
    assert [(one.N_train, one.first) for one in found] == sets and {one.jitter for one in found} == {0}
    for one in found:
        its = slice(one.first, one.first + one.N_train)
        block = K[its, its]
        alpha = np.linalg.solve(block + NOISE * block.diagonal().mean() * np.eye(len(block)), Y[its])
        for kernel, error, key in zip(kernels, (one.validation_error, one.test_error), ("Yv", "Yt"), strict=True):
            rows = np.concatenate([entries for _, entries in kernel.rows()]).astype(np.float64)
            wrong = (rows[:, its] @ alpha).argmax(axis=1) != labels[key]
            assert error == pytest.approx(100 * wrong.mean())
    # They differ, so that the columns of another set would be seen.
    assert len({(one.validation_error, one.test_error) for one in found}) > 1


def test_the_first_set_is_the_learning_curves(run):
    labels = run.labels()
    gram, Kxvx, Kxtx = stored(run)
    Y = targets(labels["Y"], run.description().n_classes)
    solution = solve(gram, Y, noise=NOISE)
    sizes = [5, 11, 23]
    curve = learning_curve(solution, Y, sizes, (Kxvx, labels["Yv"]), (Kxtx, labels["Yt"]))
    found = sets_of(run, [(n, 0) for n in sizes])
    assert [(one.N_train, one.validation_error, one.test_error) for one in found] == [
        (point.N_train, point.validation_error, point.test_error) for point in curve
    ]
