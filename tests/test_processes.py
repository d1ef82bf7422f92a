"""Processes: there, gone, or waiting for their parent to look."""

import math
import os
import subprocess
import sys

import psutil
import pytest

from cnn_gp.processes import host_id, is_same_process, started


def test_a_process_is_known_by_its_number_and_start():
    here = os.getpid()
    since = started(here)
    assert since is not None and is_same_process(here, since)
    # As another process reads it: the system's start is rounded.
    assert is_same_process(here, since + 1)
    for other in (since - 60, since + 60, None, "5"):
        assert not is_same_process(here, other)
    assert str(host_id()).split("/")[0] == os.uname().nodename


def test_a_dead_process_is_not_there_and_neither_is_a_zombie():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    since = started(process.pid)
    assert is_same_process(process.pid, since)
    process.kill()
    # Until it is waited for it is a zombie.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE
    assert started(process.pid) is None
    process.wait()
    assert started(process.pid) is None and not is_same_process(process.pid, since)


def test_a_process_is_still_the_same_when_the_clock_is_set(monkeypatch):
    since, boot, real = started(os.getpid()), psutil.boot_time() + 3600, psutil.Process.create_time
    monkeypatch.setattr(psutil, "boot_time", lambda: boot)
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: real(process) + 3600)
    assert is_same_process(os.getpid(), since)


@pytest.mark.parametrize("number", [-1, 10**30])
def test_what_is_no_process_number_is_not_there(number):
    assert started(number) is None


def test_a_process_of_which_the_system_tells_nothing_may_be_there(monkeypatch):
    def denied(process):
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr(psutil.Process, "status", denied)
    assert math.isnan(started(os.getpid())) and is_same_process(os.getpid(), 1e9)
