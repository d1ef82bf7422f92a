"""Claims: one process each, taken over when their process is dead or silent."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from cnn_gp.compute.claims import Claims, claimed
from cnn_gp.errors import UserError
from cnn_gp.processes import host_id
from helpers.waiting import wait_until


def test_a_claim_is_one_processs(tmp_path):
    mine, other = Claims(tmp_path), Claims(tmp_path)
    assert mine.take("Kxx_0000") and not other.take("Kxx_0000") and not mine.take("Kxx_0000")
    assert other.take("Kxx_0001")
    other.release("Kxx_0000")
    assert not other.take("Kxx_0000")
    mine.release("Kxx_0000")
    assert other.take("Kxx_0000")
    assert set(claimed(tmp_path)) == {"Kxx_0000", "Kxx_0001"}
    other.release_all()
    assert claimed(tmp_path) == {} and list(tmp_path.iterdir()) == []


def test_a_dead_processs_claim_is_taken_over_at_once(tmp_path):
    program = (
        "import sys; from pathlib import Path;"
        " from cnn_gp.compute.claims import Claims; Claims(Path(sys.argv[1])).take('a')"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    assert (tmp_path / "a.claim").exists()
    assert Claims(tmp_path).take("a")


def test_a_reused_process_number_is_not_the_claims_owner(tmp_path):
    Claims(tmp_path).take("a")
    owner = json.loads((tmp_path / "a.claim").read_text())
    (tmp_path / "a.claim").write_text(json.dumps({**owner, "started": owner["started"] - 60}))
    assert Claims(tmp_path).take("a")


@pytest.mark.parametrize("content", ['{"host": "elsewhere", "pid": 1, "started": 5.0, "token": "t"}', "", '{"host'])
def test_another_hosts_claim_is_taken_over_after_the_timeout(tmp_path, content):
    path = tmp_path / "a.claim"
    path.write_text(content)
    claims = Claims(tmp_path, timeout=60)
    assert not claims.take("a")
    an_hour_ago = time.time() - 3600
    os.utime(path, (an_hour_ago, an_hour_ago))
    assert claims.take("a")


def test_a_heartbeat_keeps_a_claim(tmp_path):
    mine, path = Claims(tmp_path, heartbeat=0.01), tmp_path / "a.claim"
    mine.take("a")
    owner = json.loads(path.read_text())
    # As another host would see it, which can't know that the process lives.
    path.write_text(json.dumps({**owner, "host": "elsewhere"}))
    os.utime(path, (0, 0))
    wait_until(lambda: path.stat().st_mtime > 0)
    assert not Claims(tmp_path, timeout=3600).take("a")


def test_the_heartbeat_ends_with_the_last_claim_and_begins_again_with_the_next(tmp_path):
    before = set(threading.enumerate())
    claims = Claims(tmp_path, heartbeat=0.01)

    def beating():
        return [thread for thread in set(threading.enumerate()) - before if thread.name == "heartbeat"]

    for _ in range(2):
        assert claims.take("a") and claims.take("b")
        os.utime(tmp_path / "a.claim", (0, 0))
        wait_until(lambda: (tmp_path / "a.claim").stat().st_mtime > 0)
        assert len(beating()) == 1
        claims.release_all()
        wait_until(lambda: not beating())


def test_of_many_that_take_over_an_abandoned_claim_one_wins(tmp_path):
    for i in range(20):
        (tmp_path / f"{i}.claim").write_text('{"host": "elsewhere", "pid": 1, "started": 5.0, "token": "t"}')
        os.utime(tmp_path / f"{i}.claim", (0, 0))
    from concurrent.futures import ThreadPoolExecutor

    contenders = [Claims(tmp_path) for _ in range(8)]
    won: list[list[int]] = []
    # One that comes while another is removing the claim is told to look again later.
    for _ in range(2):
        with ThreadPoolExecutor(8) as pool:
            won += pool.map(lambda claims: [i for i in range(20) if claims.take(str(i))], contenders)
    assert sorted(i for wins in won for i in wins) == list(range(20))


@pytest.mark.parametrize(
    "content", ["null", "5", "[]", '{"host": 3, "pid": 1}', '{"host": "a"}', '{"pid": "x", "host": "a"}']
)
def test_a_file_that_is_no_claim_times_out_as_one(tmp_path, content):
    path = tmp_path / "a.claim"
    path.write_text(content)
    claims = Claims(tmp_path)
    assert not claims.take("a")
    assert "unreadable" in claimed(tmp_path)["a"]
    os.utime(path, (0, 0))
    assert claims.take("a")


def test_a_link_to_nowhere_times_out_too(tmp_path):
    (tmp_path / "a.claim").symlink_to("nowhere")
    assert not Claims(tmp_path).take("a")
    os.utime(tmp_path / "a.claim", (0, 0), follow_symlinks=False)
    assert Claims(tmp_path).take("a")
    assert not (tmp_path / "a.claim").is_symlink() and not (tmp_path / "nowhere").exists()


def test_a_folder_in_a_claims_place_is_one_line_and_kept(tmp_path):
    (tmp_path / "a.claim").mkdir()
    (tmp_path / "a.claim" / "somebodys").touch()
    os.utime(tmp_path / "a.claim", (0, 0))
    with pytest.raises(UserError, match=r"a\.claim is abandoned and can't be removed"):
        Claims(tmp_path).take("a")
    assert (tmp_path / "a.claim" / "somebodys").exists()


def test_a_claim_of_the_future_is_taken_over_once_it_was_watched_for_the_timeout(tmp_path, monkeypatch):
    path = tmp_path / "a.claim"
    path.write_text('{"host": "elsewhere", "pid": 1, "started": "5", "token": "t"}')
    tomorrow = time.time() + 86400
    os.utime(path, (tomorrow, tomorrow))
    clock = [1000.0]
    claims = Claims(tmp_path, timeout=60)
    monkeypatch.setattr("cnn_gp.compute.claims.time.monotonic", lambda: clock[0])
    assert not claims.take("a")
    clock[0] += 59
    assert not claims.take("a")
    # It was touched: its owner lives.
    os.utime(path, (tomorrow + 1, tomorrow + 1))
    clock[0] += 59
    assert not claims.take("a")
    clock[0] += 61
    assert claims.take("a")


def test_a_claim_that_cannot_be_made_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    claims = Claims(tmp_path)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    for operation in ("fsync", "link"):
        with monkeypatch.context() as patch:
            patch.setattr(f"cnn_gp.store.atomic.os.{operation}", full)
            with pytest.raises(
                UserError, match=r"a\.claim can't be written \(No space left on device\): free some space"
            ):
                claims.take("a")
        assert not list(tmp_path.iterdir())
    assert claims.take("a")
    # A claim that can't be given back times out: what ended the work matters more.
    with monkeypatch.context() as patch:
        patch.setattr("cnn_gp.compute.claims.Path.unlink", full)
        claims.release("a")


def test_claims_that_cannot_be_made_are_one_line(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match=r"a\.claim can't be written \(.*/run is a file, not a folder\): choose"):
        Claims(tmp_path / "run" / "claims").take("a")


def test_a_claim_is_complete_from_its_first_moment(tmp_path, monkeypatch):
    """One that was cut short would be waited for until it times out."""
    seen = []
    real = os.link

    def link(source, target):
        real(source, target)
        seen.append(json.loads(target.read_text())["pid"])

    monkeypatch.setattr("cnn_gp.store.atomic.os.link", link)
    assert Claims(tmp_path).take("a") and seen == [os.getpid()]


def test_a_takeover_whose_process_is_dead_is_finished_by_the_next(tmp_path):
    dead = json.dumps({"host": host_id(), "pid": 2**22 + 1, "started": 1.0, "token": "a"})
    for name in ("a.claim", "a.takeover"):
        (tmp_path / name).write_text(dead)
    claims = Claims(tmp_path)
    assert [claims.take("a") for _ in range(2)] == [False, True]
    assert {path.name for path in tmp_path.iterdir()} == {"a.claim"}
