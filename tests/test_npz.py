"""Arrays in .npz files, written and read back; what isn't one is refused in a line."""

import contextlib

import numpy as np
import pytest

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


def test_any_damage_is_refused_or_read(tmp_path):
    """Every byte changed in turn: nothing but a UserError is raised."""
    content = npz_bytes({"a": np.arange(2, dtype=np.int8)})
    for index in range(len(content)):
        damaged = bytearray(content)
        damaged[index] ^= 0xFF
        (tmp_path / "damaged.npz").write_bytes(damaged)
        with contextlib.suppress(UserError):
            read_npz(tmp_path / "damaged.npz", "look at it")
