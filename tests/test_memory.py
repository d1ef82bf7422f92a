"""How much memory there is: the machine's, and a control group's limit."""

import psutil
import pytest

from cnn_gp import memory
from cnn_gp.errors import UserError


def test_the_machines_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_OWN_GROUP", tmp_path / "none")
    monkeypatch.setattr(memory, "_CONTROL_GROUPS", tmp_path / "none")
    assert 1e8 < memory.available() <= psutil.virtual_memory().total


@pytest.mark.parametrize(("limit", "expected"), [("5000000", 3_300_000), ("1000000", 0), ("max", None)])
@pytest.mark.parametrize(
    ("own", "limited"),
    [
        # In a container its own group is the root, or is seen from outside; a batch job's step is in the job's group.
        ("0::/\n", "."),
        ("0::/../../kubepods/pod7\n", "."),
        ("12:pids:/user\n0::/system.slice/job_7/step_0\n", "system.slice/job_7"),
        ("0::/system.slice/job_7\n", "system.slice/job_7"),
    ],
)
def test_a_control_groups_limit_counts_without_its_file_cache(tmp_path, monkeypatch, limit, expected, own, limited):
    group = tmp_path / "groups" / limited
    group.mkdir(parents=True)
    (group / "memory.max").write_text(f"{limit}\n")
    (group / "memory.current").write_text("2000000\n")
    (group / "memory.stat").write_text("anon 1700000\nactive_file 100000\ninactive_file 200000\n")
    (tmp_path / "own").write_text(own)
    monkeypatch.setattr(memory, "_CONTROL_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(memory, "_OWN_GROUP", tmp_path / "own")
    assert memory.available() == expected if expected is not None else memory.available() > 1e8


def test_too_little_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 2_000_000_000)
    memory.check(2_000_000_000, "The matrix", "take fewer images")
    with pytest.raises(UserError, match=r"^The matrix needs 3.0 GB of memory and 2.0 GB are available: take fewer im"):
        memory.check(3_000_000_000, "The matrix", "take fewer images")
