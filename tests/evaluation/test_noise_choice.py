"""Which noise of a grid is taken."""

import math

import pytest

from cnn_gp.evaluation.noise_choice import best_noise


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ({0.0: 3.0, 0.1: 2.0, 1.0: 2.0}, 0.1),
        # As of a solve that didn't converge, whose leave-one-out variances may be below 0.
        ({0.0: math.nan, 0.1: 3.0, 1.0: 2.0}, 1.0),
        ({0.0: 3.0, 0.1: math.nan, 1.0: 2.0}, 1.0),
        ({0.0: 2.0, 0.1: math.nan, 1.0: 3.0}, 0.0),
        ({0.0: math.nan, 0.1: math.nan}, 0.0),
    ],
)
def test_the_smallest_loss_is_taken_and_one_that_is_no_number_never_instead_of_one(losses, best):
    bests: list[float] = []
    found, all_losses = best_noise(lambda noise: noise, losses.__getitem__, losses, bests.append)
    assert found == best and list(all_losses) == list(losses)
    # Before each solve but the first there is room to be made for another.
    assert len(bests) == len(losses) - 1
