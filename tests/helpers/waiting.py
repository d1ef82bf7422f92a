"""Waiting for something that will happen, however busy the machine is."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

#: Seconds after which a test that waits is broken, not slow.
PATIENCE = 900.0


def wait_until(happened: Callable[[], object]) -> None:
    """Return once something has happened; fail where it doesn't."""
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, "it didn't happen"
        time.sleep(0.005)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail where what is in the context, in the main thread, takes longer."""

    def fail(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"it hangs: more than {seconds} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
