"""Sealed files: every wrong byte is found before anything is parsed."""

import io

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnn_gp.store.sealed import Damaged, read_seal, read_sealed, seal, state_of, verify_sealed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sealed")


@settings(deadline=None, max_examples=300)
@given(content=st.binary(max_size=400), data=st.data())
def test_every_changed_bit_is_found(folder, content, data):
    whole = bytearray(seal(content, "a.bin", "run 1"))
    path = folder / "a.bin"
    path.write_bytes(whole)
    assert read_sealed(path, "run 1")[0] == content
    with open(path, "rb") as file:
        assert verify_sealed(file, path, "run 1") == state_of(file)
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    whole[bit // 8] ^= 1 << bit % 8
    path.write_bytes(whole)
    with pytest.raises(Damaged):
        read_sealed(path, "run 1")
    with open(path, "rb") as file, pytest.raises(Damaged):
        verify_sealed(file, path, "run 1")


@settings(deadline=None, max_examples=100)
@given(content=st.binary(max_size=400), data=st.data())
def test_a_file_cut_short_or_too_long_is_found_without_reading_it(folder, content, data):
    whole = seal(content, "b.bin", "run 1")
    path = folder / "b.bin"
    path.write_bytes(whole)
    assert read_seal(path, "run 1").n_bytes == len(content)
    kept = data.draw(st.integers(0, len(whole) - 1))
    for wrong in (whole[:kept], whole + b"x", b"x" + whole):
        path.write_bytes(wrong)
        with pytest.raises(Damaged):
            read_seal(path, "run 1")


def test_another_place_and_another_run_are_found(tmp_path):
    (tmp_path / "a").write_bytes(seal(b"123", "a", "run 1"))
    (tmp_path / "b").write_bytes((tmp_path / "a").read_bytes())
    for read in (read_seal, read_sealed):
        read(tmp_path / "a", "run 1")
        read(tmp_path / "a", None)
        with pytest.raises(Damaged, match="it was written as a"):
            read(tmp_path / "b", "run 1")
        with pytest.raises(Damaged, match="it belongs to another run"):
            read(tmp_path / "a", "run 2")
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "c", "run 1")


def test_other_programs_read_sealed_hdf5_and_npz_files(tmp_path):
    numbers = np.arange(12.0).reshape(3, 4)
    content = io.BytesIO()
    with h5py.File(content, "w", libver="latest") as file:
        file.create_dataset("x", data=numbers, chunks=(1, 4), fletcher32=True)
    (tmp_path / "x.h5").write_bytes(seal(content.getvalue(), "x.h5", "run"))
    with h5py.File(tmp_path / "x.h5", "r") as file:
        np.testing.assert_array_equal(file["x"][()], numbers)
    content = io.BytesIO()
    np.savez(content, x=numbers)
    (tmp_path / "x.npz").write_bytes(seal(content.getvalue(), "x.npz", "run"))
    with np.load(tmp_path / "x.npz") as file:
        np.testing.assert_array_equal(file["x"], numbers)
