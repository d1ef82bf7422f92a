"""The observation noise chosen from a grid, with one factorisation each."""

import math
from collections.abc import Callable, Iterable

from ..regression.solve import Solution

#: The grid, relative to the mean diagonal.
NOISES = (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def best_noise(
    solve_at: Callable[[float], Solution],
    loss: Callable[[Solution], float],
    noises: Iterable[float] = NOISES,
    make_room: Callable[[Solution], None] = lambda best: None,
) -> tuple[Solution, dict[float, float]]:
    """
    The solution of the noise with the smallest loss, the first of them; and all losses.

    No more than two factors are in memory at a time.

    :param loss: not a number where a solution has none, which then is the best only if no other has one either.
    :param make_room: called with the best solution so far before the next is solved for.
    """
    best: Solution | None = None
    least = math.inf
    losses: dict[float, float] = {}
    for noise in noises:
        if best is not None:
            make_room(best)
        solution = solve_at(noise)
        losses[noise] = loss(solution)
        if best is None or losses[noise] < least:
            best = solution
        # In this order least stays where the loss isn't a number.
        least = min(least, losses[noise])
        del solution
    assert best is not None
    return best, losses
