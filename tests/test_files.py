"""Reading covariances and arrays: every layout gives the same matrix, and every wrong file its own sentence."""

from __future__ import annotations

import csv
import json
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

from risfast.array_file import read_array
from risfast.errors import FileFormatError
from risfast.files import read_covariance, source_rows, write_sources

COMPOUND = np.dtype([("real", "<f8"), ("imag", "<f8")])


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
    result = read_covariance(writer(R=expected))
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
    result = read_covariance(write_npz(tmp_path / "x.npz", R=values))
    assert result.dtype == read
    np.testing.assert_array_equal(result[0].numpy(), [[4, 1], [1, 3]])


def test_result_is_exactly_hermitian_after_rounding_in_the_file(tmp_path: Path) -> None:
    rounded = covariance() + 1e-7 * np.random.default_rng(1).normal(size=(5, 5))
    result = read_covariance(write_npz(tmp_path / "x.npz", R=rounded))[0]
    assert torch.equal(result, result.mH)


def test_key_names_the_variable_also_inside_groups(tmp_path: Path) -> None:
    first, second = covariance(seed=1), covariance(seed=2)
    path = write_hdf5(tmp_path / "x.h5", **{"R": first, "night/two": second})
    np.testing.assert_allclose(read_covariance(path, key="night/two")[0].numpy(), second, rtol=1e-15)


class Wrong(NamedTuple):
    file: str
    make: Any
    words: str
    options: tuple[tuple[str, Any], ...] = ()


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
    "unknown suffix": Wrong("x.txt", write_bytes(b"1 2"), r"ends in one of .npz, .mat, .h5, .hdf5.*numpy.savez"),
    "no suffix": Wrong("x", write_bytes(b"1 2"), "not 'nothing'"),
    "text named npz": Wrong("x.npz", write_bytes(b"hello"), "not a .npz file.*first bytes b'hello'"),
    "npy named npz": Wrong("x.npz", lambda p: save_under_another_name(p, ".npy", np.save), "single NumPy array"),
    "pickle named npz": Wrong(
        "x.npz", lambda p: p.write_bytes(pickle.dumps(covariance())), "Python pickle, which is never"
    ),
    "hdf5 named npz": Wrong("x.npz", lambda p: write_hdf5(p, R=covariance()), "found HDF5"),
    "zip named mat": Wrong("x.mat", lambda p: save_under_another_name(p, ".npz", np.savez), "found NumPy zip"),
    "text named mat": Wrong("x.mat", write_bytes(b"hello" * 99), "expected MATLAB or HDF5 content"),
    "objects": Wrong("x.npz", lambda p: write_npz(p, R=np.array([{}, 1], dtype=object)), "pickled Python objects"),
    "not an array inside": Wrong("x.npz", write_zip_text, "must be a full array.*bytes"),
    "text inside": Wrong(
        "x.npz", lambda p: write_npz(p, R=np.array(["a", "b"])), "real or complex numbers, got dtype <U1"
    ),
    "bool": Wrong("x.npz", lambda p: write_npz(p, R=np.eye(3, dtype=bool)), "got dtype bool"),
    "cell": Wrong("x.mat", lambda p: write_mat5(p, R=np.array([[1], "a"], dtype=object)), "got dtype object"),
    "sparse": Wrong(
        "x.mat", lambda p: write_mat5(p, R=scipy.sparse.eye_array(4, format="csc")), "must be a full array"
    ),
    "no known key": Wrong(
        "x.npz", lambda p: write_npz(p, Rxx=covariance(), f=[1]), "no variable 'R' or 'covariance'.*Rxx, f"
    ),
    "no variables": Wrong("x.h5", write_hdf5, "holds no variables at all"),
    "asked key missing": Wrong(
        "x.mat", lambda p: write_mat5(p, R=covariance()), "no variable 'S'; the file holds R", (("key", "S"),)
    ),
    "two keys": Wrong(
        "x.npz", lambda p: write_npz(p, R=covariance(), covariance=covariance()), "both 'R' and 'covariance'"
    ),
    "nothing in it": Wrong("x.npz", lambda p: write_npz(p, R=np.empty((0, 0))), "is empty"),
    "hdf5 empty": Wrong("x.h5", lambda p: write_hdf5(p, R=h5py.Empty("f8")), "got Empty"),
    "vector": Wrong("x.npz", lambda p: write_npz(p, R=np.ones(7)), r"has shape 7; expected one covariance \(N, N\)"),
    "snapshots": Wrong("x.npz", lambda p: write_npz(p, R=np.ones((64, 5))), r"64 snapshots of 5.*X.T @ X.conj\(\) / L"),
    "snapshots across": Wrong(
        "x.npz", lambda p: write_npz(p, R=np.ones((5, 64))), r"64 snapshots of 5.*X @ X.conj\(\).T / L"
    ),
    "few snapshots": Wrong(
        "x.npz", lambda p: write_npz(p, R=np.ones((3, 5))), "3 snapshots of 5", (("n_elements", 5),)
    ),
    "batch last": Wrong("x.npz", lambda p: write_npz(p, R=np.ones((5, 5, 3))), r"moveaxis\(R, -1, 0\)"),
    "parts apart": Wrong("x.npz", lambda p: write_npz(p, R=np.ones((3, 5, 5, 2))), "expected one covariance"),
    "parts apart 3D": Wrong(
        "x.npz", lambda p: write_npz(p, R=np.ones((4, 5, 2))), "real and imaginary parts side by side"
    ),
    "other array": Wrong(
        "x.npz", lambda p: write_npz(p, R=covariance()), "5 x 5 matrices, but the array has 6", (("n_elements", 6),)
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
            read_covariance(path)


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
            result = read_covariance(path)
        except FileFormatError:
            refused += 1
        else:
            np.testing.assert_allclose(result[0].numpy(), expected, rtol=1e-15)
    assert refused > 50


def write_toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "array.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_rectangular_array_is_centred_with_rows_fastest(tmp_path: Path) -> None:
    text = "[rectangular]\nn_h = 3\nn_v = 2\nspacing_m = 0.5\nwavelength_m = 0.25\n"
    array = read_array(write_toml(tmp_path, text))
    expected = [[0.5 * (h - 1), 0.5 * (v - 0.5), 0] for h in range(3) for v in range(2)]
    np.testing.assert_allclose(array.positions_m.numpy(), expected)
    assert array.wavelength_m == 0.25


def test_positions_are_read_in_order_from_the_toml_and_from_a_csv_file(tmp_path: Path) -> None:
    expected = [[0.0, 0.1, 0.0], [0.2, -0.1, 0.05], [1.0, 0.0, 0.0]]
    inline = read_array(write_toml(tmp_path, f"wavelength_m = 1\npositions_m = {expected}\n"))
    lines = ["# from the drawing", "x_m, y_m, z_m", "", *(",".join(map(str, row)) for row in expected)]
    (tmp_path / "elements.csv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    tabulated = read_array(write_toml(tmp_path, 'wavelength_m = 1.0\npositions_file = "elements.csv"\n'))
    for array in (inline, tabulated):
        np.testing.assert_array_equal(array.positions_m.numpy(), expected)
        assert array.wavelength_m == 1.0


RECTANGULAR = "[rectangular]\nn_h = 3\nn_v = 2\nspacing_m = 0.5\nwavelength_m = 0.25\n"
WRONG_ARRAYS = {
    "empty": ("", "the file is empty"),
    "comment only": ("# nothing\n", "exactly one of .* got none of them"),
    "not toml": ("n_h: 12\n", "not valid TOML"),
    "both": ("positions_m = [[0,0,0]]\n" + RECTANGULAR, "got rectangular and positions_m"),
    "no form": ("wavelength_m = 1\n", "got none of them"),
    "misspelt": (
        RECTANGULAR.replace("spacing_m", "spacing_mm"),
        r"'spacing_mm' in \[rectangular\]; did you mean spacing_m",
    ),
    "unit left out": ("wavelength = 1\npositions_m = [[0,0,0]]\n", "did you mean wavelength_m"),
    "degrees": ("azimuth_deg = [-60, 60, 361]\n" + RECTANGULAR, "set on the command line, see --grid"),
    "wavelength outside": ("wavelength_m = 1\n" + RECTANGULAR, "stands outside"),
    "missing": ("[rectangular]\nn_h = 3\nn_v = 3\nspacing_m = 1\n", "the key wavelength_m is missing"),
    "missing beside positions": ("positions_m = [[0,0,0]]\n", "the key wavelength_m is missing"),
    "not a table": ("rectangular = 3\n", "must be a table"),
    "fraction of an element": (RECTANGULAR.replace("n_h = 3", "n_h = 3.0"), "n_h must be a whole number >= 1, got 3.0"),
    "no element": (RECTANGULAR.replace("n_v = 2", "n_v = 0"), "n_v must be a whole number >= 1, got 0"),
    "bool": (RECTANGULAR.replace("n_v = 2", "n_v = true"), "n_v must be a whole number >= 1, got True"),
    "text": (RECTANGULAR.replace("0.5", '"0.5"'), "spacing_m must be a positive number of metres, got '0.5'"),
    "negative": (RECTANGULAR.replace("0.25", "-1"), "wavelength_m must be a positive number of metres, got -1"),
    "nan": (RECTANGULAR.replace("0.25", "nan"), "wavelength_m must be a positive number"),
    "no positions": ("wavelength_m = 1\npositions_m = []\n", "at least one element"),
    "two coordinates": ("wavelength_m = 1\npositions_m = [[0,0,0],[1,2]]\n", r"positions_m\[1\] must be \[x, y, z\]"),
    "text position": ("wavelength_m = 1\npositions_m = [[0,0,'1']]\n", r"positions_m\[0\] must be"),
    "infinite position": ("wavelength_m = 1\npositions_m = [[0,0,inf]]\n", r"positions_m\[0\] must be"),
    "no table": ("wavelength_m = 1\npositions_file = 'none.csv'\n", "none.csv: there is no such file"),
    "table name": ("wavelength_m = 1\npositions_file = 3\n", "must be the name of a CSV file"),
}


@pytest.mark.parametrize(("text", "words"), WRONG_ARRAYS.values(), ids=WRONG_ARRAYS.keys())
def test_each_wrong_array_file_gets_its_own_sentence(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=words):
        read_array(write_toml(tmp_path, text))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (b"x,y,z\n", "no element positions"),
        (b"x,y,z\nx,y,z\n", "line 2 must hold"),
        (b"0,0,0\n1,2\n", "line 2 must hold x, y, z in metres, got '1,2'"),
        (b"0 0 0\n1 2 3\n", "line 2 must hold"),
        (b"nan,0,0\n", "line 1 must hold"),
        (b"0,0,0\n1,2,three\n", "line 2 must hold"),
        (b"\xff\xfe\x00", "not a CSV file"),
        (b"", "the file is empty"),
    ],
)
def test_each_wrong_table_of_positions_gets_its_own_sentence(table: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_bytes(table)
    with pytest.raises(FileFormatError, match=words):
        read_array(write_toml(tmp_path, "wavelength_m = 1\npositions_file = 'p.csv'\n"))


def test_toml_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "array.toml").write_bytes(b"\xff\xfe[\x00")
    with pytest.raises(FileFormatError, match="not valid TOML"):
        read_array(tmp_path / "array.toml")


class Found(NamedTuple):
    """The fields of a scene's sources that are written."""

    azimuth: torch.Tensor
    elevation: torch.Tensor
    range: torch.Tensor
    power: torch.Tensor
    confidence: torch.Tensor


class Scene(Found):
    def __len__(self) -> int:
        return self.azimuth.numel()


@pytest.fixture
def scenes() -> list[Scene]:
    values = torch.tensor([[0.1, -0.2], [0.3, -0.05], [2.0, 7.5], [100.0, 0.1], [0.9, 0.25]], dtype=torch.float64)
    empty = torch.empty(0, dtype=torch.float64)
    return [Scene(*values), Scene(*[empty] * 5)]


def test_written_results_are_degrees_metres_and_decibels(scenes: Any, tmp_path: Path) -> None:
    write_sources(tmp_path / "out.json", scenes)
    write_sources(tmp_path / "out.csv", scenes)
    by_scene = json.loads((tmp_path / "out.json").read_text())["scenes"]
    assert [len(scene) for scene in by_scene] == [2, 0]
    with (tmp_path / "out.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    for record in (by_scene[0][1], {key: float(value) for key, value in lines[1].items()}):
        assert (record["scene"], record["source"]) == (0, 1)
        assert record["azimuth_deg"] == pytest.approx(-0.2 * 180 / np.pi)
        assert record["elevation_deg"] == pytest.approx(-0.05 * 180 / np.pi)
        assert record["range_m"] == pytest.approx(7.5)
        assert record["power_db"] == pytest.approx(-10)
        assert record["confidence"] == pytest.approx(0.25)
    assert source_rows(scenes)[0]["power_db"] == pytest.approx(20)


def test_results_in_an_unknown_format_are_refused(scenes: Any, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"\.json or \.csv"):
        write_sources(tmp_path / "out.xlsx", scenes)
    assert not (tmp_path / "out.xlsx").exists()
