"""Where a long computation's state is kept, so that it goes on after it was stopped."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from ..errors import UserError
from .cholesky import NotPositiveDefinite

#: Seconds after which the state is kept.
SECONDS_BETWEEN_STATES = 120.0


class Kept(Protocol):
    """Where the state of one computation is kept."""

    def load(self) -> dict[str, np.ndarray] | None:
        """What was saved for this computation, None where there is nothing whole."""

    def save(self, arrays: dict[str, np.ndarray]) -> None:
        """Write it, in place of what was saved before. :raises UserError: where it can't be written."""

    def remove(self) -> None:
        """It is no longer needed."""


@contextlib.contextmanager
def keeping(kept: Kept | None, arrays: Callable[[], dict[str, np.ndarray]]) -> Iterator[Callable[[], None]]:
    """
    Gives the block a function to call after each step; it saves the state every few minutes.

    At the end, and on an error or Ctrl-C, the state is saved too, but not where the matrix isn't positive definite.
    Where it can't be written, the computation goes on without.

    :param arrays: the state after the last whole step.
    """
    saved = time.monotonic()

    def save() -> None:
        if kept is not None:
            with contextlib.suppress(UserError):
                kept.save(arrays())

    def keep() -> None:
        nonlocal saved
        if time.monotonic() - saved > SECONDS_BETWEEN_STATES:
            save()
            saved = time.monotonic()

    try:
        yield keep
    except NotPositiveDefinite:
        if kept is not None:
            kept.remove()
        raise
    except BaseException:
        save()
        raise
    save()
