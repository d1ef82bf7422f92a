"""How much memory there is: the machine's, and a control group's limit."""

import psutil
import pytest

from cnn_gp import memory
from cnn_gp.errors import UserError


def test_the_machines_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_CONTROL_GROUP", tmp_path / "none")
    assert 1e8 < memory.available() <= psutil.virtual_memory().total


@pytest.mark.parametrize(("limit", "expected"), [("5000000", 3_300_000), ("1000000", 0), ("max", None)])
def test_a_control_groups_limit_counts_without_its_file_cache(tmp_path, monkeypatch, limit, expected):
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("2000000\n")
    (tmp_path / "memory.stat").write_text("anon 1700000\nactive_file 100000\ninactive_file 200000\n")
    monkeypatch.setattr(memory, "_CONTROL_GROUP", tmp_path)
    assert memory.available() == expected if expected is not None else memory.available() > 1e8


def test_too_little_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 2_000_000_000)
    memory.check(2_000_000_000, "The matrix", "take fewer images")
    with pytest.raises(UserError, match=r"^The matrix needs 3.0 GB of memory and 2.0 GB are available: take fewer im"):
        memory.check(3_000_000_000, "The matrix", "take fewer images")
