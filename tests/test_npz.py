"""Arrays are read back to the bit; a file that says more than it holds takes no memory."""

import io
import zipfile

import numpy as np
import pytest

from lidc_xai.bounded import read_npz
from lidc_xai.errors import DataError


def test_what_was_written_comes_back(tmp_path):
    arrays = {"a": np.random.default_rng(0).normal(size=(2, 3, 4)), "meta": np.array("text ü")}
    with (tmp_path / "x.npz").open("wb") as stream:
        np.savez_compressed(stream, **arrays)
    found = read_npz(tmp_path / "x.npz", ("a", "meta"))
    np.testing.assert_array_equal(found["a"], arrays["a"])
    assert str(found["meta"]) == "text ü"
    with pytest.raises(DataError, match=r"no item named 'b.npy'"):
        read_npz(tmp_path / "x.npz", ("b",))
    with pytest.raises(FileNotFoundError):
        read_npz(tmp_path / "none.npz", ("a",))


@pytest.mark.parametrize("shape", ["(10, 10**0)", "(1000000000000,)", "(-1,)", "(3"])
def test_a_header_that_lies(tmp_path, shape):
    good = io.BytesIO()
    np.save(good, np.zeros(4))
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    data = good.getvalue()[:8] + len(header).to_bytes(2, "little") + header.encode() + bytes(32)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", data)
    with pytest.raises(DataError, match="cannot be read as arrays"):
        read_npz(tmp_path / "x.npz", ("a",))


def test_a_pickle_is_not_read(tmp_path):
    with (tmp_path / "x.npz").open("wb") as stream:
        np.savez(stream, a=np.array([{}], dtype=object))
    with pytest.raises(DataError, match="not what it holds"):
        read_npz(tmp_path / "x.npz", ("a",))
