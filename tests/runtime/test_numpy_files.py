"""NumPy files from elsewhere: every kind of damage is told in a line, nothing is unpickled, nothing expands unasked."""

import struct
import zipfile

import numpy as np
import pytest

from ssdd_jax.errors import UserError
from ssdd_jax.runtime import numpy_files

HEADERS = {
    "an open bracket": ("{'descr': '<f4', 'fortran_order': False, 'shape': (3,", "not a file of NumPy arrays"),
    "an open string": ("{'descr': '''<f4", "not a file of NumPy arrays"),
    "more numbers than a machine has": (
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1152921504606846976, 4), }",
        "not a file of NumPy arrays",
    ),
    "more digits than a number has": (
        "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999999,), }",
        "not a file of NumPy arrays",
    ),
    "objects": ("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", "pickled objects, which are never loaded"),
    "a list": ("[1, 2]", "not a file of NumPy arrays"),
}


def write(path, header):
    header = header.ljust(117) + "\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(64))


def read(path):
    with numpy_files.opened(path) as array:
        return array


@pytest.mark.parametrize("reader", [read, numpy_files.mapped])
@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_lies(name, reader, tmp_path):
    header, words = HEADERS[name]
    write(tmp_path / "a.npy", header)
    with pytest.raises(UserError, match=words) as error:
        reader(tmp_path / "a.npy")
    assert "\n" not in str(error.value) and "a.npy" in str(error.value)


@pytest.mark.parametrize("reader", [read, numpy_files.mapped])
def test_a_missing_file_and_a_folder(reader, tmp_path):
    with pytest.raises(UserError, match="a.npy is missing"):
        reader(tmp_path / "a.npy")
    with pytest.raises(UserError, match="cannot be read"):
        reader(tmp_path)


def test_an_archive_is_no_array(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    with pytest.raises(UserError, match="an archive of several"):
        numpy_files.mapped(tmp_path / "a.npz")


def test_damage_within_an_archive_is_told_when_it_is_indexed(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(100.0), y=np.zeros(3))
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(content[:200] + b"\0\1\2\3" + content[204:])
    with pytest.raises(UserError, match="a.npz is not a file of NumPy arrays, or a damaged one: Bad CRC"):
        with numpy_files.opened(tmp_path / "a.npz") as archive:
            np.testing.assert_array_equal(archive["y"], np.zeros(3))
            archive["x"]


def test_an_archive_that_expands_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(numpy_files, "EXPANDED", 1 << 16)
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(1 << 17))
    with pytest.raises(UserError, match="a.npz holds 1,048,.* bytes in .*, which is no archive of images"):
        read(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", x=np.zeros(1 << 17))
    assert read(tmp_path / "b.npz") is not None


def test_a_member_that_is_no_array(tmp_path):
    """NumPy returns it as bytes."""
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", b"\x92NUMPY and so on")
    with pytest.raises(UserError, match="not a file of NumPy arrays"), numpy_files.opened(path) as arrays:
        dict(arrays)
