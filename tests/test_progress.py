"""Progress: a bar on a terminal, lines in a log."""

import pytest

from cnn_gp.progress import Progress, duration, silent


def test_lines_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr(Progress, "_SECONDS_BETWEEN_LINES", 0.0)
    with Progress(1000, "entries", done=200) as progress:
        progress(300)
        progress(500)
    first, second = capsys.readouterr().err.splitlines()
    assert first == " 50.0%  500 of 1,000 entries"
    assert second.startswith("100.0%  1,000 of 1,000 entries, ") and second.endswith("0 s left")


def test_the_time_left_is_said_as_soon_as_there_is_a_rate(capsys, monkeypatch):
    times = iter([100.0, 110.0, 112.0, 115.5, 120.0, 150.0])
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    with Progress(1000, "entries") as progress:
        for _ in range(5):
            progress(10)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "  3.0%  30 of 1,000 entries, 3.6 per second, 4 min left"
    assert second == "  5.0%  50 of 1,000 entries, 1 per second, 16 min left"


@pytest.mark.parametrize("terminal", [False, True])
def test_nothing_where_it_is_silent(capsys, monkeypatch, terminal):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    monkeypatch.setattr(Progress, "_SECONDS_BETWEEN_LINES", 0.0)
    with silent():
        progress = Progress(1000, "entries")
    with progress:
        progress(1000)
    assert capsys.readouterr().err == ""
    with silent(), silent(False), Progress(1000, "entries") as progress:
        progress(1000)
    assert capsys.readouterr().err != ""


def test_a_total_that_is_estimated_anew_and_a_note(capsys, monkeypatch):
    monkeypatch.setattr(Progress, "_SECONDS_BETWEEN_LINES", 0.0)
    with Progress(1000, "iterations") as progress:
        progress.total = 20
        progress(10, "residual 1.0e-03")
        monkeypatch.setattr("time.monotonic", lambda: progress._first[0] + 4.0)
        progress(5, "residual 1.0e-05")
    first, second = capsys.readouterr().err.splitlines()
    assert first == " 50.0%  10 of 20 iterations, residual 1.0e-03"
    assert second == " 75.0%  15 of 20 iterations, 1.2 per second, 4 s left, residual 1.0e-05"


def test_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Progress(1000, "entries") as progress:
        progress(1000)
    shown = capsys.readouterr().err
    assert "100%" in shown and "entries/s" in shown


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (13_200, "3 h 40 min")]
)
def test_durations_for_people(seconds, text):
    assert duration(seconds) == text


def test_a_log_that_nobody_can_write_to_ends_no_computation(monkeypatch):
    """As after the end of a `tee` that wrote the log."""

    class Closed:
        def isatty(self):
            return False

        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(Progress, "_SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr("sys.stderr", Closed())
    with Progress(1000, "entries") as progress:
        progress(500)
        progress(500)
