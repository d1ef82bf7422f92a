"""Sums of arrays that end at the same row, in any order."""

import numpy as np
import pytest

from cnn_gp.regression.tree_sum import halves, tree_sum


@pytest.mark.parametrize("n", [1, 2, 3, 6, 8, 13])
def test_the_order_in_which_the_terms_come_changes_no_bit(n, rng):
    leaves = [rng.normal(size=(4 + 3 * (n - i), 2)) for i in range(n)]

    def summed(order):
        return tree_sum(((int(i), leaves[i].copy()) for i in order), n)

    found = summed(range(n))
    expected = sum(np.concatenate([np.zeros((3 * i, 2)), leaf]) for i, leaf in enumerate(leaves))
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-14)
    for order in (reversed(range(n)), rng.permutation(n), rng.permutation(n)):
        np.testing.assert_array_equal(summed(order), found)


def test_halves_are_branches_of_whole_trees():
    assert halves(0, 2) == ((0, 1), (1, 2))
    assert halves(0, 13) == ((0, 8), (8, 13)) and halves(8, 13) == ((8, 12), (12, 13))
