"""Files with variables: .npz, .mat of version 5 to 7.3, HDF5; written by numpy, scipy, h5py and MATLAB itself."""

from __future__ import annotations

import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import torch

from risfast.errors import FileFormatError
from risfast.geometry import PlanarArray
from risfast.io import SPEED_OF_LIGHT_M_S, Recording, Snapshots
from risfast.simulate import read

N, LENGTH = 5, 12


def positions(n=N, seed=3):
    return np.random.default_rng(seed).normal(size=(n, 3))


def complex_normal(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / np.sqrt(2)


def wishart(n=N, seed=0):
    X = complex_normal(4 * n, n, seed=seed)
    return X.T @ X.conj() / len(X)


def write_npz(path, variables):
    np.savez(path, **variables)


def write_compressed_npz(path, variables):
    np.savez_compressed(path, **variables)


def write_mat5(path, variables):
    scipy.io.savemat(path, variables)


def write_mat7(path, variables):
    scipy.io.savemat(path, variables, do_compression=True)


def write_mat73(path, variables):
    """As MATLAB 7.3 stores it: every axis reversed, complex numbers as (real, imag) records, a user block."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in variables.items():
            values = np.atleast_2d(np.asarray(value)).T
            if values.dtype.kind == "c":
                part = values.real.dtype
                records = np.empty(values.shape, [("real", part), ("imag", part)])
                records["real"], records["imag"] = values.real, values.imag
                values = records
            file[name] = values
            file[name].attrs["MATLAB_class"] = np.bytes_("double")


def write_hdf5(path, variables):
    with h5py.File(path, "w") as file:
        for name, value in variables.items():
            file[name] = value


WRITERS = {
    "plain.npz": write_npz,
    "compressed.npz": write_compressed_npz,
    "five.mat": write_mat5,
    "seven.mat": write_mat7,
    "seventhree.mat": write_mat73,
    "plain.h5": write_hdf5,
}


@pytest.fixture(params=sorted(WRITERS))
def write(request, tmp_path):
    """A function from variables to the path of a file of one kind."""

    def to(**variables):
        path = tmp_path / request.param
        WRITERS[request.param](path, variables)
        return path

    return to


def array_of(n=N):
    return {"positions_m": positions(n), "wavelength_m": 0.3}


def test_a_covariance_comes_back_with_its_array(write):
    R = wishart()
    recording = read(write(R=R, **array_of()))
    assert recording.covariance.dtype == torch.complex128
    np.testing.assert_allclose(recording.covariance[0], R, rtol=1e-12)
    np.testing.assert_array_equal(recording.array.positions_m, positions())
    assert recording.array.wavelength_m == 0.3
    assert recording.flagged == ()
    assert recording.snapshots is None


def test_snapshots_come_back_and_make_the_sample_covariance(write):
    X = complex_normal(LENGTH, N).astype(np.complex64)
    recording = read(write(snapshots=X, **array_of()))
    np.testing.assert_array_equal(recording.snapshots.read(), X)
    expected = sum(np.outer(x, x.conj()) for x in X.astype(np.complex128)) / LENGTH
    np.testing.assert_allclose(recording.with_covariance().covariance[0], expected, rtol=1e-12, atol=1e-14)


def test_snapshots_codes_and_channel_of_a_surface(write):
    codes, channel, y = complex_normal(LENGTH, N), complex_normal(3, N, seed=1), complex_normal(LENGTH, 3, seed=2)
    recording = read(write(y=y, codes=codes, channel=channel, **array_of()))
    np.testing.assert_array_equal(recording.snapshots.read(), y)
    np.testing.assert_array_equal(recording.codes, codes)
    np.testing.assert_array_equal(recording.channel, channel)
    with pytest.raises(ValueError, match="received behind a surface"):
        recording.with_covariance()


def test_a_transposed_matrix_is_turned_and_said_so(write):
    X = complex_normal(LENGTH, N)
    recording = read(write(X=X.T.copy(), positions_m=positions().T.copy(), wavelength_m=0.3))
    np.testing.assert_array_equal(recording.snapshots.read(), X)
    np.testing.assert_array_equal(recording.array.positions_m, positions())
    assert any("X was 5 x 12" in note for note in recording.provenance.notes)
    assert any("positions_m was 3 x 5" in note for note in recording.provenance.notes)


def test_variables_of_other_names_are_mapped(write):
    R = wishart()
    path = write(Rxx=R, mic=positions(), lam=0.25, other=np.zeros(3))
    with pytest.raises(FileFormatError, match=r"neither a covariance.*Rxx \(5 x 5\).*fields=\{'covariance': NAME\}"):
        read(path)
    with pytest.raises(FileFormatError, match=r"positions of the elements are missing.*mic \(5 x 3\)"):
        read(path, fields={"covariance": "Rxx"})
    with pytest.raises(FileFormatError, match=r"wavelength is missing.*wavelength_m.*fields"):
        read(path, fields={"covariance": "Rxx", "positions_m": "mic"})
    recording = read(path, fields={"covariance": "Rxx", "positions_m": "mic", "wavelength_m": "lam"})
    np.testing.assert_allclose(recording.covariance[0], R, rtol=1e-12)
    assert recording.array.wavelength_m == 0.25
    with pytest.raises(FileFormatError, match="mapped to 'Ryy', which is not there"):
        read(path, fields={"covariance": "Ryy"})
    with pytest.raises(ValueError, match="unknown field 'covar'"):
        read(path, fields={"covar": "Rxx"})


def test_frequency_and_speed_give_the_wavelength(write):
    path = write(R=wishart(), positions_m=positions(), frequency_hz=1e9)
    with pytest.raises(FileFormatError, match="the speed of the waves"):
        read(path)
    assert read(path, speed_m_s=SPEED_OF_LIGHT_M_S).array.wavelength_m == SPEED_OF_LIGHT_M_S / 1e9
    assert read(path, speed_m_s=343.0, frequency_hz=1e3).array.wavelength_m == 0.343
    assert read(path, wavelength_m=2.0).array.wavelength_m == 2.0


def test_the_array_of_the_caller_wins(write, tmp_path):
    path = write(R=wishart(), positions_m=np.zeros((N, 3)), wavelength_m=9.0)
    array = PlanarArray.linear(N, 0.1, 0.2)
    given = read(path, array=array).array
    assert torch.equal(given.positions_m, array.positions_m)
    assert given.wavelength_m == 0.2
    toml = tmp_path / "array.toml"
    toml.write_text("[rectangular]\nn_h = 5\nn_v = 1\nspacing_m = 0.1\nwavelength_m = 0.2\n")
    assert torch.equal(read(path, array=toml).array.positions_m, array.positions_m)
    with pytest.raises(FileFormatError, match="5 x 5 matrices, but the array has 4"):
        read(path, array=PlanarArray.linear(4, 0.1, 0.2))


def test_dead_and_flagged_elements_are_left_out_with_reasons(write):
    R = wishart()
    R[2], R[:, 2] = 0, 0
    recording = read(write(R=R, **array_of()), flagged=[4])
    assert [(item.index, item.reason) for item in recording.flagged] == [(2, "no power"), (4, "left out by hand")]
    keep = [0, 1, 3]
    np.testing.assert_allclose(recording.covariance[0], R[np.ix_(keep, keep)], rtol=1e-12)
    np.testing.assert_array_equal(recording.array.positions_m, positions()[keep])
    with pytest.raises(FileFormatError, match=r"some, not all, of 0 \.\. 4, got \[2, 9\]"):
        read(write(R=R, **array_of()), flagged=[9])


def test_dead_elements_of_snapshots_are_left_out_of_their_covariance(write):
    X = complex_normal(LENGTH, N)
    X[:, 1] = 0
    recording = read(write(X=X, **array_of())).with_covariance()
    assert [(item.index, item.reason) for item in recording.flagged] == [(1, "no power")]
    assert recording.covariance.shape == (1, 4, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"R": np.full((N, N), np.nan)}, "NaN"),
        ({"R": complex_normal(N, N)}, "not Hermitian"),
        ({"R": complex_normal(N, N + 2)}, "not square"),
        ({"R": -np.eye(N)}, "negative powers"),
        ({"R": np.zeros((N, N))}, "not all, of"),
        ({"R": np.zeros((0, 0))}, "empty|declared|no"),
        ({"positions_m": np.zeros((N, 2))}, r"must be \(N, 3\)"),
        ({"positions_m": np.full((N, 3), np.inf)}, "NaN or infinite"),
        ({"positions_m": positions() + 1j}, "real numbers of metres"),
        ({"wavelength_m": -1.0}, "must be a positive number"),
        ({"wavelength_m": np.ones(2)}, "must be a single number"),
        ({"X": complex_normal(LENGTH, N)}, r"'R' \(covariance\) and 'X' \(snapshots\) are there; choose one"),
    ],
)
def test_wrong_contents_are_named(write, change, message):
    path = write(**{"R": wishart(), **array_of(), **change})
    with pytest.raises(FileFormatError, match=message) as caught:
        read(path)
    assert path.name in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": complex_normal(LENGTH, 4)}, r"12 x 4, and there are 3 antennas"),
        ({"y": np.ones((LENGTH, 3))}, "real; snapshots are complex"),
        ({"codes": complex_normal(LENGTH + 1, N)}, r"codes must be \(L = 12, 5\)"),
        ({"codes": complex_normal(LENGTH, N + 1)}, "must have 5 columns"),
        ({"channel": np.full((3, N), np.nan)}, "NaN"),
    ],
)
def test_wrong_parts_of_a_surface_are_named(write, change, message):
    codes, channel, y = complex_normal(LENGTH, N), complex_normal(3, N, seed=1), complex_normal(LENGTH, 3, seed=2)
    path = write(**{"y": y, "codes": codes, "channel": channel, **array_of(), **change})
    with pytest.raises(FileFormatError, match=message):
        read(path)


def test_snapshots_that_are_not_finite_are_named_by_row_and_column_when_they_are_read(write):
    X = complex_normal(LENGTH, N)
    X[7, 2] = np.nan
    recording = read(write(X=X, **array_of()))
    with pytest.raises(FileFormatError, match=r"row 7, column 2; .*flagged=\(2,\)"):
        recording.with_covariance()
    assert read(write(X=X, **array_of()), flagged=[2]).with_covariance().covariance.shape == (1, 4, 4)


def test_batches_of_covariances_also_as_matlab_pages(tmp_path):
    R = np.stack([wishart(seed=seed) for seed in range(3)])
    np.savez(tmp_path / "b.npz", R=R, **array_of())
    scipy.io.savemat(tmp_path / "b.mat", {"R": np.moveaxis(R, 0, -1), **array_of()})
    for name in ("b.npz", "b.mat"):
        np.testing.assert_allclose(read(tmp_path / name).covariance, R, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "c16", "c8"])
@pytest.mark.parametrize("compressed", [False, True])
def test_every_numeric_class_of_scipys_mat_files(tmp_path, dtype, compressed):
    from risfast.io.formats.mat5 import Mat5Container

    values = (np.random.default_rng(1).normal(size=(4, 7)) * 50).astype(dtype)
    if np.dtype(dtype).kind == "c":
        values = values + np.array(1j, dtype) * values.T[:4, :1]
    path = tmp_path / "x.mat"
    scipy.io.savemat(
        path, {"some": np.ones(2), "x": values, "cube": values.reshape(2, 2, 7)}, do_compression=compressed
    )
    container = Mat5Container(path)
    assert container.holds == {"some": (1, 2), "x": (4, 7), "cube": (2, 2, 7)}
    np.testing.assert_array_equal(container.load("x"), values)
    np.testing.assert_array_equal(container.load("cube"), values.reshape(2, 2, 7))


MATLAB_FILES = Path(scipy.io.__file__).parent / "matlab" / "tests" / "data"


@pytest.mark.skipif(not MATLAB_FILES.is_dir(), reason="this scipy comes without its MATLAB test files")
def test_files_that_matlab_itself_wrote_read_as_scipy_reads_them():
    from risfast.io.formats.mat5 import Mat5Container

    seen = 0
    for path in sorted(MATLAB_FILES.glob("test[!h]*_[67].*_*.mat")):
        container = Mat5Container(path)
        for name, shape, kind in scipy.io.whosmat(path):
            if kind in ("double", "single", "int8", "uint8", "int16", "uint16", "int32", "uint32"):
                assert container.holds[name] == shape
                np.testing.assert_array_equal(container.load(name), scipy.io.loadmat(path)[name])
                seen += 1
            elif kind in ("cell", "struct", "char", "sparse", "function", "object"):
                with pytest.raises(FileFormatError, match="only full arrays of numbers"):
                    container.load(name)
    assert seen >= 8


@pytest.mark.skipif(not MATLAB_FILES.is_dir(), reason="this scipy comes without its MATLAB test files")
def test_a_file_of_version_73_that_matlab_itself_wrote():
    from risfast.io.formats.hdf5 import Hdf5Container

    container = Hdf5Container(MATLAB_FILES / "testhdf5_7.4_GLNX86.mat")
    assert container.holds == {"testdouble": (1, 9)}
    np.testing.assert_array_equal(container.load("testdouble"), np.linspace(0, 2 * np.pi, 9)[None])


def test_pickles_are_never_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    np.savez(tmp_path / "bomb.npz", R=np.array([Bomb()], dtype=object), **array_of())
    with pytest.raises(FileFormatError, match="pickled Python objects, which are never opened"):
        read(tmp_path / "bomb.npz")
    assert not (tmp_path / "ran").exists()


def test_hdf5_never_leads_into_another_file(tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["R"] = wishart()
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["R"] = h5py.ExternalLink("secret.h5", "/R")
    with pytest.raises(FileFormatError, match="neither a covariance"):
        read(tmp_path / "link.h5")
    with h5py.File(tmp_path / "virtual.h5", "w", libver="latest") as file:
        layout = h5py.VirtualLayout((N, N), complex)
        layout[:] = h5py.VirtualSource(tmp_path / "secret.h5", "R", (N, N))
        file.create_virtual_dataset("R", layout)
    with pytest.raises(FileFormatError, match="keeps its data in other files"):
        read(tmp_path / "virtual.h5")
    (tmp_path / "raw").write_bytes(wishart().tobytes())
    with h5py.File(tmp_path / "external.h5", "w") as file:
        file.create_dataset("R", (N, N), complex, external=[(str(tmp_path / "raw"), 0, N * N * 16)])
    with pytest.raises(FileFormatError, match="keeps its data in other files"):
        read(tmp_path / "external.h5")


def test_a_declared_size_that_is_not_there_is_refused_before_memory_is_taken(tmp_path):
    with h5py.File(tmp_path / "huge.h5", "w") as file:
        file.create_dataset("R", (1 << 20, 1 << 20), complex, chunks=(64, 64))
    with pytest.raises(FileFormatError, match="never filled, or the file is cut off"):
        read(tmp_path / "huge.h5")
    rows = 1 << 40
    for name in ("R", "X"):
        path = tmp_path / f"huge-{name}.npz"
        with zipfile.ZipFile(path, "w") as archive, archive.open(f"{name}.npy", "w") as stream:
            header = {"descr": "<c16", "fortran_order": False, "shape": (rows, N)}
            np.lib.format.write_array_header_1_0(stream, header)
            stream.write(bytes(1000))
        with pytest.raises(FileFormatError, match=rf"huge-{name}.npz.*{rows}"):
            read(path, **array_of())


@pytest.mark.parametrize("kind", ["npz", "mat", "hdf5", "acoular", "aiaa", "uvh5"])
def test_a_file_of_another_kind_is_refused_whatever_it_is_called(tmp_path, kind):
    for name, content in {
        "text": b"hello, this is not data\n" * 100,
        "empty": b"",
        "pickle": b"\x80\x04K\x01.",
    }.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match=name):
            read(path, format=kind)
    with pytest.raises(FileFormatError, match="no such file"):
        read(tmp_path / "nothing", format=kind)
    with pytest.raises(FileFormatError, match="not a file"):
        read(tmp_path, format=kind)


def test_impossible_options_are_refused_before_the_file_is_opened(tmp_path):
    path = tmp_path / "none.npz"
    for options, message in (
        ({"format": "wav"}, "format must be one of"),
        ({"wavelength_m": 0}, "wavelength_m must be a positive"),
        ({"frequency_hz": float("nan")}, "frequency_hz must be a finite"),
        ({"flagged": [-1]}, "flagged must be indices"),
        ({"array": PlanarArray.linear(3, 1.0, 1.0), "positions_m": positions()}, "not both"),
    ):
        with pytest.raises(ValueError, match=message):
            read(path, **options)


def test_a_recording_refuses_parts_that_do_not_belong_together():
    array = PlanarArray.linear(N, 0.1, 0.2)
    X = Snapshots.of(complex_normal(LENGTH, N))
    with pytest.raises(ValueError, match="exactly one"):
        Recording(array)
    with pytest.raises(ValueError, match=r"covariance must be \(B, 5, 5\)"):
        Recording(array, covariance=torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match=r"snapshots must be \(L, 2\)"):
        Recording(array, snapshots=X, channel=torch.zeros(2, N))
    with pytest.raises(ValueError, match=r"start and stop must lie within 0 \.\. 12"):
        X.read(3, 99)


def test_blocks_cover_every_row_once_whatever_their_size():
    X = complex_normal(LENGTH, N)
    for size in (1, 100, 333, 1 << 20):
        blocks = list(Snapshots.of(X).blocks(size))
        np.testing.assert_array_equal(torch.cat(blocks), X)
    assert {len(block) for block in list(Snapshots.of(X).blocks(1, multiple_of=5))[:-1]} == {5}
