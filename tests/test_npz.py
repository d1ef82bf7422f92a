"""Arrays in .npz files, written and read back; what isn't one is refused in a line."""

import contextlib
import io
import zipfile

import numpy as np
import pytest

from cnn_gp import memory
from cnn_gp.errors import UserError
from cnn_gp.npz import npz_bytes, read_npz

ARRAYS = {"a": np.arange(3.0), "b": np.array("text")}


def test_what_is_written_is_read_back(tmp_path):
    (tmp_path / "a.npz").write_bytes(npz_bytes(ARRAYS))
    found = read_npz(tmp_path / "a.npz", "look at it")
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)


def test_what_isnt_one_is_refused(tmp_path):
    np.save(tmp_path / "one_array.npy", ARRAYS["a"])
    np.savez(tmp_path / "objects.npz", a=np.array([{}]))
    (tmp_path / "short.npz").write_bytes(npz_bytes(ARRAYS)[:100])
    (tmp_path / "text.npz").write_text("not an archive")
    for name in ("one_array.npy", "objects.npz", "short.npz", "text.npz", "missing.npz", "."):
        with pytest.raises(UserError, match=r"can't be read as an \.npz file .*: look at it") as refusal:
            read_npz(tmp_path / name, "look at it")
        assert "\n" not in str(refusal.value)


def test_only_the_arrays_that_are_wanted_are_read(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(3), other=np.array([{}]))
    found = read_npz(tmp_path / "a.npz", "look at it", ("x", "x_test"))
    assert list(found) == ["x"] and found["x"].tolist() == [0, 1, 2]


def test_a_header_that_claims_more_than_there_is_takes_no_memory(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)})
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(80))
    with pytest.raises(UserError, match=r"x.npy has 208 bytes, but 8,000,000,000,000 by its header"):
        read_npz(tmp_path / "huge.npz", "look at it")


def test_an_array_larger_than_the_memory_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.npz").write_bytes(npz_bytes({"a": np.zeros(1000)}))
    monkeypatch.setattr(memory, "available", lambda: 7999)
    with pytest.raises(UserError, match=r"a.npy of .*a.npz needs 0.0 GB of memory"):
        read_npz(tmp_path / "a.npz", "look at it")


def test_any_damage_is_refused_or_read(tmp_path):
    """Every byte changed in turn: nothing but a UserError is raised."""
    content = npz_bytes({"a": np.arange(2, dtype=np.int8)})
    for index in range(len(content)):
        damaged = bytearray(content)
        damaged[index] ^= 0xFF
        (tmp_path / "damaged.npz").write_bytes(damaged)
        with contextlib.suppress(UserError):
            read_npz(tmp_path / "damaged.npz", "look at it")
