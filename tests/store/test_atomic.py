"""Atomic files: what may be written, and one line for each way in which it can't be."""

import errno
import os

import pytest

from cnn_gp.errors import UserError
from cnn_gp.store import atomic
from cnn_gp.store.atomic import check_writable, write_atomically


@pytest.mark.parametrize("content", ["é\n", "é\n".encode()])
def test_text_and_bytes(tmp_path, content):
    path = tmp_path / "a" / "b" / "file"
    for _ in range(2):
        write_atomically(path, content)
        assert path.read_bytes() == "é\n".encode()
    assert [file.name for file in path.parent.iterdir()] == ["file"]


REFUSALS = {
    errno.EACCES: r"\(Permission denied\): choose a place where you have the permission to write",
    errno.EROFS: r"\(Read-only file system\): choose a place on a file system that isn't read-only",
    errno.ENOSPC: r"\(No space left on device\): free some space",
    errno.EDQUOT: r"\(Disk quota exceeded\): free some space",
    errno.EIO: r"\(Input/output error\): check the place",
}


@pytest.mark.parametrize("number", REFUSALS, ids=errno.errorcode.get)
def test_what_the_system_refuses_is_said_with_a_remedy_that_fits(tmp_path, monkeypatch, number):
    def refuse(*arguments, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic, "open", refuse, raising=False)
    monkeypatch.setattr(atomic.os, "open", refuse)
    for check in (lambda: write_atomically(tmp_path / "file", ""), lambda: check_writable(tmp_path / "new" / "run")):
        with pytest.raises(UserError, match=f"^{tmp_path}/.* can't be written {REFUSALS[number]}.*, then start"):
            check()
    assert list(tmp_path.iterdir()) == []


def test_a_file_whose_folder_cannot_be_flushed_is_not_left_behind(tmp_path, monkeypatch):
    def refuse(folder):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(atomic, "flush_folder", refuse)
    with pytest.raises(UserError, match="Input/output error"):
        atomic.create_exclusively(tmp_path / "file", "")
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_hard_links_is_named(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(atomic.os, "link", refuse)
    with pytest.raises(UserError, match=r"file can't be written \(.*\): its file system has no hard links, .* another"):
        atomic.create_exclusively(tmp_path / "file", "")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "runs" / "run"):
        said = f"can't be written \\({tmp_path}/file is a file, not a folder\\): choose another place, or"
        with pytest.raises(UserError, match=said):
            check_writable(folder)
        with pytest.raises(UserError, match=said):
            write_atomically(folder / "name", "")
    with pytest.raises(UserError, match="choose a shorter name"):
        check_writable(tmp_path / ("x" * 300))


def test_the_check_of_a_place_leaves_nothing(tmp_path, monkeypatch):
    check_writable(tmp_path / "not" / "there" / "yet")
    check_writable(tmp_path)
    monkeypatch.chdir(tmp_path)
    check_writable(atomic.Path("runs/run"))
    assert list(tmp_path.iterdir()) == []
