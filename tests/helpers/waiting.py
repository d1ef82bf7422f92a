"""Waiting for something that will happen, however busy the machine is."""

import time
from collections.abc import Callable

#: Seconds after which a test that waits is broken, not slow.
PATIENCE = 900.0


def wait_until(happened: Callable[[], object]) -> None:
    """Return once something has happened; fail where it doesn't."""
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, "it didn't happen"
        time.sleep(0.005)
