"""Reading covariances: every layout gives the same matrix, and every wrong file its own sentence."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse
import torch

from risfast.errors import FileFormatError
from risfast.geometry import SensorArray
from risfast.io import read

COMPOUND = np.dtype([("real", "<f8"), ("imag", "<f8")])


def read_covariance(path: Path, *, n: int = 5, **options: Any) -> torch.Tensor:
    """The covariance of a file without an array in it."""
    result = read(path, setup=SensorArray.linear(n, 0.1, 0.3), **options).covariance
    assert result is not None
    return result


def covariance(batch: int | None = None, n: int = 5, seed: int = 0) -> np.ndarray:
    """Hermitian, with imaginary parts that a transposition would flip."""
    rng = np.random.default_rng(seed)
    shape = (n, n + 2) if batch is None else (batch, n, n + 2)
    factor = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    return factor @ np.conj(np.swapaxes(factor, -1, -2))


def write_npz(path: Path, **values: Any) -> Path:
    np.savez(path, **values)
    return path


def write_matlab_73(path: Path, **values: np.ndarray) -> Path:
    """HDF5 as MATLAB writes it: user block with a header, reversed axes, complex numbers as (real, imag) records."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in values.items():
            reversed_axes = np.ascontiguousarray(value.T)
            if np.iscomplexobj(value):
                record = np.empty(reversed_axes.shape, COMPOUND)
                record["real"], record["imag"] = reversed_axes.real, reversed_axes.imag
                reversed_axes = record
            file.create_dataset(name, data=reversed_axes).attrs["MATLAB_class"] = np.bytes_("double")
        file.create_group("#refs#").create_dataset("a", data=np.zeros(2))
    with path.open("r+b") as stream:
        header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"
        stream.write(header)
    return path


def write_hdf5(path: Path, **values: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in values.items():
            file[name] = value
    return path


def write_mat5(path: Path, **values: Any) -> Path:
    scipy.io.savemat(path, values, do_compression=True)
    return path


def write_compound_hdf5(path: Path, **values: np.ndarray) -> Path:
    records = {}
    for name, value in values.items():
        records[name] = np.empty(value.shape, COMPOUND)
        records[name]["real"], records[name]["imag"] = value.real, value.imag
    return write_hdf5(path, **records)


WRITERS = {
    "npz": ("x.npz", write_npz),
    "mat5": ("x.mat", write_mat5),
    "mat73": ("x.mat", write_matlab_73),
    "h5": ("x.h5", write_hdf5),
    "h5 records": ("x.hdf5", write_compound_hdf5),
}


@pytest.fixture(params=list(WRITERS))
def writer(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    name, write = WRITERS[request.param]
    return lambda **values: write(tmp_path / name, **values)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_one_matrix_is_read_the_right_way_round_from_every_format(writer: Any, n: int) -> None:
    expected = covariance(n=n)
    result = read_covariance(writer(R=expected), n=n)
    assert result.shape == (1, n, n)
    assert result.dtype == torch.complex128
    np.testing.assert_allclose(result[0].numpy(), expected, rtol=1e-15)


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_a_batch_is_read_from_every_format(writer: Any, batch: int) -> None:
    expected = covariance(batch=batch)
    np.testing.assert_allclose(read_covariance(writer(covariance=expected)).numpy(), expected, rtol=1e-15)


@pytest.mark.parametrize(("name", "write"), [("x.mat", write_mat5), ("x.mat", write_matlab_73)])
def test_matlab_pages_are_a_batch(tmp_path: Path, name: str, write: Any) -> None:
    expected = covariance(batch=3)
    pages = np.moveaxis(expected, 0, -1)
    np.testing.assert_allclose(read_covariance(write(tmp_path / name, R=pages)).numpy(), expected, rtol=1e-15)


def test_matlab_attribute_turns_an_h5_file_back_too(tmp_path: Path) -> None:
    expected = covariance()
    path = write_matlab_73(tmp_path / "x.h5", R=expected)
    np.testing.assert_allclose(read_covariance(path)[0].numpy(), expected, rtol=1e-15)


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        ("complex64", torch.complex64),
        ("float32", torch.complex64),
        ("int64", torch.complex128),
        (">c16", torch.complex128),
    ],
)
def test_precision_of_the_file_is_kept(tmp_path: Path, stored: str, read: torch.dtype) -> None:
    values = np.array([[4, 1], [1, 3]]).astype(stored)
    result = read_covariance(write_npz(tmp_path / "x.npz", R=values), n=2)
    assert result.dtype == read
    np.testing.assert_array_equal(result[0].numpy(), [[4, 1], [1, 3]])


def test_result_is_exactly_hermitian_after_rounding_in_the_file(tmp_path: Path) -> None:
    rounded = covariance() + 1e-7 * np.random.default_rng(1).normal(size=(5, 5))
    result = read_covariance(write_npz(tmp_path / "x.npz", R=rounded))[0]
    assert torch.equal(result, result.mH)


def test_fields_name_the_variable_also_inside_groups(tmp_path: Path) -> None:
    first, second = covariance(seed=1), covariance(seed=2)
    path = write_hdf5(tmp_path / "x.h5", **{"R": first, "night/two": second})
    np.testing.assert_allclose(read_covariance(path, fields={"covariance": "night/two"})[0].numpy(), second, rtol=1e-15)


class Wrong(NamedTuple):
    file: str
    make: Any
    words: str
    options: tuple[tuple[str, Any], ...] = ()


@pytest.mark.parametrize(("name", "write"), [("x.npz", write_hdf5), ("x.h5", write_npz), ("x.npz", write_mat5)])
def test_the_content_of_a_file_decides_and_not_its_name(tmp_path: Path, name: str, write: Any) -> None:
    expected = covariance()
    real = tmp_path / {write_hdf5: "real.h5", write_npz: "real.npz", write_mat5: "real.mat"}[write]
    write(real, R=expected)
    real.rename(tmp_path / name)
    np.testing.assert_allclose(read_covariance(tmp_path / name)[0].numpy(), expected, rtol=1e-15)


def write_bytes(content: bytes) -> Any:
    return lambda path: path.write_bytes(content)


def write_zip_text(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("R", "hello")


def save_under_another_name(path: Path, suffix: str, save: Any) -> None:
    real = path.with_suffix(suffix)
    save(real, covariance())
    real.rename(path)


def with_entry(value: complex) -> np.ndarray:
    matrix = covariance()
    matrix[1, 3] = value
    return matrix


SYMMETRIC = covariance() + covariance().T + 1j * np.ones((5, 5))
WRONG = {
    "missing": Wrong("x.npz", lambda path: None, "no such file"),
    "folder": Wrong("x.npz", lambda path: path.mkdir(), "not a file"),
    "empty": Wrong("x.npz", write_bytes(b""), "the file is empty"),
    "empty mat": Wrong("x.mat", write_bytes(b""), "the file is empty"),
    "unknown suffix": Wrong("x.txt", write_bytes(b"1 2"), "something else, not one of npz, mat, hdf5.*numpy.savez"),
    "no suffix": Wrong("x", write_bytes(b"1 2"), "something else, not one of npz, mat, hdf5"),
    "text named npz": Wrong("x.npz", write_bytes(b"hello"), "something else.*first bytes are b'hello'.*name is wrong"),
    "npy named npz": Wrong("x.npz", lambda p: save_under_another_name(p, ".npy", np.save), "single NumPy array"),
    "pickle named npz": Wrong(
        "x.npz", lambda p: p.write_bytes(pickle.dumps(covariance())), "Python pickle, which is never"
    ),
    "text named mat": Wrong("x.mat", write_bytes(b"hello" * 99), "something else.*first bytes are b'hellohel'"),
    "objects": Wrong("x.npz", lambda p: write_npz(p, R=np.array([{}, 1], dtype=object)), "pickled Python objects"),
    "not an array inside": Wrong("x.npz", write_zip_text, "'R' cannot be read as a NumPy .npz archive"),
    "text inside": Wrong(
        "x.npz", lambda p: write_npz(p, R=np.array(["a", "b"])), "real or complex numbers, got dtype <U1"
    ),
    "bool": Wrong("x.npz", lambda p: write_npz(p, R=np.eye(3, dtype=bool)), "got dtype bool"),
    "cell": Wrong(
        "x.mat", lambda p: write_mat5(p, R=np.array([[1], "a"], dtype=object)), "'R' is a cell .*only full arrays"
    ),
    "sparse": Wrong(
        "x.mat",
        lambda p: write_mat5(p, R=scipy.sparse.eye_array(4, format="csc")),
        "'R' is a sparse .*only full arrays",
    ),
    "no known key": Wrong(
        "x.npz",
        lambda p: write_npz(p, Rxx=covariance(), f=[1]),
        r"neither a covariance \(covariance or R\).*Rxx \(5 x 5\), f \(1\)",
    ),
    "no variables": Wrong("x.h5", write_hdf5, "it holds nothing"),
    "asked key missing": Wrong(
        "x.mat",
        lambda p: write_mat5(p, R=covariance()),
        "mapped to 'S', which is not there; the file holds R",
        (("fields", {"covariance": "S"}),),
    ),
    "two keys": Wrong(
        "x.npz",
        lambda p: write_npz(p, R=covariance(), covariance=covariance()),
        "both 'covariance' and 'R' are there; choose with fields=",
    ),
    "nothing in it": Wrong("x.npz", lambda p: write_npz(p, R=np.empty((0, 0))), "is empty"),
    "hdf5 empty": Wrong("x.h5", lambda p: write_hdf5(p, R=h5py.Empty("f8")), "'R' is empty"),
    "vector": Wrong("x.npz", lambda p: write_npz(p, R=np.ones(7)), r"has shape 7; expected one covariance \(N, N\)"),
    "snapshots": Wrong("x.npz", lambda p: write_npz(p, R=np.ones((64, 5))), r"64 snapshots of 5.*X.T @ X.conj\(\) / L"),
    "snapshots across": Wrong(
        "x.npz", lambda p: write_npz(p, R=np.ones((5, 64))), r"64 snapshots of 5.*X @ X.conj\(\).T / L"
    ),
    "few snapshots": Wrong("x.npz", lambda p: write_npz(p, R=np.ones((3, 5))), "3 snapshots of 5", (("n", 5),)),
    "batch last": Wrong("x.npz", lambda p: write_npz(p, R=np.ones((5, 5, 3))), r"moveaxis\(R, -1, 0\)"),
    "parts apart": Wrong("x.npz", lambda p: write_npz(p, R=np.ones((3, 5, 5, 2))), "expected one covariance"),
    "parts apart 3D": Wrong(
        "x.npz", lambda p: write_npz(p, R=np.ones((4, 5, 2))), "real and imaginary parts side by side"
    ),
    "other array": Wrong(
        "x.npz", lambda p: write_npz(p, R=covariance()), "5 x 5 matrices, but the array has 6", (("n", 6),)
    ),
    "nan": Wrong("x.npz", lambda p: write_npz(p, R=with_entry(np.nan)), "holds 1 values that are NaN"),
    "inf": Wrong("x.mat", lambda p: write_mat5(p, R=with_entry(np.inf)), "holds 1 values that are NaN"),
    "not hermitian": Wrong("x.npz", lambda p: write_npz(p, R=with_entry(99)), r"not Hermitian: .* \(matrix 0 of 1\)$"),
    "real part": Wrong(
        "x.npz",
        lambda p: write_npz(p, R=covariance().real + np.triu(np.ones((5, 5)))),
        "imaginary part may have been lost",
    ),
    "no conjugate": Wrong(
        "x.npz", lambda p: write_npz(p, R=SYMMETRIC), "the conjugate in R = .* may have been forgotten"
    ),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG.keys())
def test_each_wrong_file_gets_its_own_sentence(case: Wrong, tmp_path: Path) -> None:
    path = tmp_path / case.file
    case.make(path)
    with pytest.raises(FileFormatError, match=case.words) as caught:
        read_covariance(path, **dict(case.options))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    objects = write_npz(tmp_path / "x.npz", R=np.array([Payload(mark)], dtype=object))
    with np.load(objects, allow_pickle=True) as archive:
        assert archive["R"].shape == (1,)
    assert mark.is_dir()  # so the payload works
    mark.rmdir()
    for path in (objects, tmp_path / "y.npz"):
        if not path.exists():
            path.write_bytes(pickle.dumps(Payload(mark)))
        with pytest.raises(FileFormatError, match="never opened"):
            read_covariance(path)
        assert not mark.exists()


def test_a_file_cut_off_anywhere_is_refused(writer: Any) -> None:
    path = writer(R=covariance(batch=2, n=7))
    content = path.read_bytes()
    for length in sorted({1, 2, 8, 100, 127, 128, 129, 600, *range(3, len(content) - 1, max(1, len(content) // 40))}):
        if length >= len(content):
            continue
        path.write_bytes(content[:length])
        with pytest.raises(FileFormatError):
            read_covariance(path, n=7)


@pytest.mark.parametrize("kind", ["npz", "mat5"])  # both carry checksums of their values
def test_a_damaged_byte_never_ends_in_anything_but_the_matrix_or_a_file_error(kind: str, tmp_path: Path) -> None:
    name, write = WRITERS[kind]
    expected = covariance(n=7)
    path = write(tmp_path / name, R=expected)
    content = bytearray(path.read_bytes())
    refused = 0
    for position in range(0, len(content), max(1, len(content) // 150)):
        damaged = bytearray(content)
        damaged[position] ^= 0x5A
        path.write_bytes(damaged)
        try:
            result = read_covariance(path, n=7)
        except FileFormatError:
            refused += 1
        else:
            np.testing.assert_allclose(result[0].numpy(), expected, rtol=1e-15)
    assert refused > 50
