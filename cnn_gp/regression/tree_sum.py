"""
Sums whose bits depend neither on threads, nor on the order in which the terms come, nor on where a branch is summed.

The terms are the leaves of a binary tree. They are arrays that end at the same row, the first the longest, as the
products of the rows of a triangle are.
"""

from collections.abc import Iterable

import numpy as np


def tree_sum(parts: Iterable[tuple[int, np.ndarray]], n: int) -> np.ndarray:
    """
    The sum of n arrays, which are written over.

    :param parts: (number from 0 to n - 1, array) in any order; in order, or in reverse, few arrays wait at a time.
    """
    if n == 1:
        ((_, total),) = parts
        return total
    siblings = _siblings(n)
    waiting: dict[tuple[int, int], np.ndarray] = {}
    for leaf, total in parts:
        branch = leaf, leaf + 1
        while branch in siblings:
            sibling = siblings[branch]
            if sibling not in waiting:
                break
            first, second = (branch, sibling) if branch < sibling else (sibling, branch)
            other = waiting.pop(sibling)
            total = add_at_end(total, other) if branch is first else add_at_end(other, total)
            branch = first[0], second[1]
        waiting[branch] = total
    return waiting[0, n]


def halves(first: int, stop: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The two branches of the tree's branch with the leaves from ``first`` to ``stop``, two or more."""
    middle = first + 2 ** ((stop - first - 1).bit_length() - 1)
    return (first, middle), (middle, stop)


def add_at_end(total: np.ndarray, part: np.ndarray) -> np.ndarray:
    """``total``, to which a shorter array that ends at the same row is added."""
    total[len(total) - len(part) :] += part
    return total


def _siblings(n: int) -> dict[tuple[int, int], tuple[int, int]]:
    """For each branch of a tree with n leaves the one that it is added to."""
    found = {}
    left = [(0, n)]
    while left:
        first, stop = left.pop()
        if stop - first > 1:
            one, other = halves(first, stop)
            found[one], found[other] = other, one
            left += [one, other]
    return found
