"""A progress bar on a terminal, plain lines elsewhere."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any

from tqdm import tqdm

_SILENT = ContextVar("silent", default=False)


@contextmanager
def silent(silent: bool = True) -> Iterator[None]:
    """In its block, and in this thread, a :class:`Progress` shows nothing."""
    before = _SILENT.set(silent)
    try:
        yield
    finally:
        _SILENT.reset(before)


class Progress:
    """
    Counts units of work, from any thread: a tqdm bar on a terminal, a line every half minute in a log file.

    The first line that says how much time is left comes as soon as a rate is known.

    :param total: all units, those done before included.
    :param unit: what they are.
    :param done: units done before, which don't count for the rate.
    """

    _SECONDS_BETWEEN_LINES = 30.0
    _SECONDS_TO_A_RATE = 5.0

    def __init__(self, total: int, unit: str, done: int = 0) -> None:
        self.total = total
        """It may be changed: where it was an estimate."""
        self._unit, self._done = unit, done
        self._lock = threading.Lock()
        self._said = time.monotonic()
        self._has_said_rate = False
        # The first units may have waited for a compiler: the rate is that of those after them.
        self._first: tuple[float, int] | None = None
        self._bar: Any = None
        self._silent = _SILENT.get()
        if sys.stderr.isatty() and not self._silent:
            self._bar = tqdm(total=total, initial=done, unit=f" {unit}", unit_scale=True, dynamic_ncols=True)

    def __call__(self, units: int, note: str = "") -> None:
        """Count units that are done, and show the note beside the count."""
        with self._lock:
            self._done += units
            now = time.monotonic()
            if self._bar is not None:
                self._bar.total = self.total
                if note:
                    self._bar.set_postfix_str(note, refresh=False)
                self._bar.update(units)
            elif not self._silent and self._is_due(now):
                self._said, self._has_said_rate = now, self._first is not None
                line = f"{self._done / self.total:6.1%}  {self._done:,} of {self.total:,} {self._unit}"
                if self._first is not None:
                    rate = max(self._done - self._first[1], 1) / max(now - self._first[0], 1e-6)
                    line += f", {_number(rate)} per second, {duration((self.total - self._done) / rate)} left"
                line += f", {note}" if note else ""
                try:
                    print(line, file=sys.stderr, flush=True)
                except OSError:
                    # Nobody reads it any more: no reason to lose hours of work.
                    self._silent = True
            if self._first is None:
                self._first = now, self._done

    def _is_due(self, now: float) -> bool:
        if self._first is not None and not self._has_said_rate:
            return now - self._first[0] >= min(self._SECONDS_TO_A_RATE, self._SECONDS_BETWEEN_LINES)
        return now - self._said >= self._SECONDS_BETWEEN_LINES

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()


def _number(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def duration(seconds: float) -> str:
    """A time for people: "45 s", "12 min" or "3 h 40 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
