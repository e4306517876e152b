"""Results, recordings and spectra as files, read back by those who will read them: scipy, h5py, pyarrow, ourselves."""

from __future__ import annotations

import csv
import json
import math

import h5py
import numpy as np
import pytest
import scipy.io
import torch

from risfast import PlanarArray, SearchGrid, Sources
from risfast.errors import FileFormatError, ShapeError
from risfast.io import (
    RESULT_SUFFIXES,
    Provenance,
    Recording,
    Snapshots,
    source_rows,
    write_recording,
    write_results,
    write_spectrum,
)
from risfast.ops import mvdr_spectrum
from risfast.setup import Setup
from risfast.simulate import read

ARRAY = PlanarArray.rectangular(3, 2)
GRID = SearchGrid.box(7, 5, (0.6, 1.0, 3.0), 0.5, 0.25)


def sources(*rows):
    values = torch.tensor(rows, dtype=torch.float64).reshape(-1, 7)
    return Sources(*values[:, :6].unbind(-1), at_edge=values[:, 6] > 0)


NAN = math.nan
SCENES = [
    sources((0.1, -0.2, 1.5, 100.0, 0.9, NAN, 1), (-0.3, 0.1, NAN, 10.0, 0.5, NAN, 0)),
    sources(),
    sources((0.0, 0.0, 4.0, 1.0, NAN, 12.5, 0)),
]
# By hand: degrees of the radians above, and 10 log10 of the powers.
EXPECTED = {
    "scene": [0, 0, 2],
    "source": [0, 1, 0],
    "azimuth_deg": [math.degrees(0.1), math.degrees(-0.3), 0.0],
    "elevation_deg": [math.degrees(-0.2), math.degrees(0.1), 0.0],
    "range_m": [1.5, NAN, 4.0],
    "x_m": [1.5 * math.sin(0.1) * math.cos(-0.2), NAN, 0.0],
    "y_m": [1.5 * math.sin(-0.2), NAN, 0.0],
    "z_m": [1.5 * math.cos(0.1) * math.cos(-0.2), NAN, 4.0],
    "power_db": [20.0, 10.0, 0.0],
    "confidence": [0.9, 0.5, NAN],
    "prominence_db": [NAN, NAN, 12.5],
    "at_edge": [1, 0, 0],
}
SETUP = Setup(ARRAY, wavefront="planar", speed_m_s=3e8)


def columns_of(path):
    """Columns of a file of results, by the reader of its format."""
    if path.suffix == ".csv":
        with path.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        return {name: [float(row[name] or "nan") for row in rows] for name in rows[0]}
    if path.suffix == ".json":
        document = json.loads(path.read_text())
        assert Setup.from_json(document["setup"]) == SETUP
        assert [len(scene) for scene in document["scenes"]] == [2, 0, 1]
        rows = [row for scene in document["scenes"] for row in scene]
        assert [row["at_edge"] for row in rows] == [True, False, False]
        return {name: [NAN if row[name] is None else row[name] for row in rows] for name in rows[0]}
    if path.suffix == ".mat":
        variables = scipy.io.loadmat(path)
        assert variables["n_scenes"].item() == 3
        assert Setup.from_json(json.loads(variables["setup"].item())) == SETUP
        assert all(variables[name].shape == (3, 1) for name in EXPECTED)
        return {name: variables[name][:, 0].tolist() for name in EXPECTED}
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed (pip install 'risfast[parquet]')")
    table = parquet.read_table(path)
    assert table.schema.metadata[b"n_scenes"] == b"3"
    assert Setup.from_json(json.loads(table.schema.metadata[b"setup"])) == SETUP
    assert str(table.schema.field("at_edge").type) == "bool"
    assert str(table.schema.field("scene").type) == "int64"
    return table.to_pydict()


@pytest.mark.parametrize("suffix", RESULT_SUFFIXES)
def test_results_come_back_from_every_format(tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed (pip install 'risfast[parquet]')")
    path = tmp_path / f"results{suffix}"
    write_results(path, SCENES, SETUP)
    columns = columns_of(path)
    assert list(columns) == list(EXPECTED)
    for name, values in EXPECTED.items():
        np.testing.assert_allclose(columns[name], values, rtol=1e-12, err_msg=name)
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", RESULT_SUFFIXES)
def test_no_sources_at_all_are_written_too(tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed (pip install 'risfast[parquet]')")
    write_results(tmp_path / f"none{suffix}", [sources()])
    assert (tmp_path / f"none{suffix}").stat().st_size > 0


def test_results_without_a_setup_hold_none(tmp_path):
    write_results(tmp_path / "results.json", SCENES)
    assert list(json.loads((tmp_path / "results.json").read_text())) == ["scenes"]
    write_results(tmp_path / "results.mat", SCENES)
    assert "setup" not in scipy.io.loadmat(tmp_path / "results.mat")


def test_a_source_without_power_is_written_too(tmp_path):
    silent = sources((0.0, 0.0, 4.0, 0.0, 0.5, NAN, 0))
    assert source_rows([silent])[0]["power_db"] == -math.inf
    write_results(tmp_path / "silent.json", [silent])
    assert json.loads((tmp_path / "silent.json").read_text())["scenes"][0][0]["power_db"] is None


def test_an_unknown_ending_and_a_missing_package_are_named(tmp_path, monkeypatch):
    with pytest.raises(FileFormatError, match="results are written as"):
        write_results(tmp_path / "results.xlsx", SCENES)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(FileFormatError, match=r"needs the package pyarrow.*pip install 'risfast\[parquet\]'"):
        write_results(tmp_path / "results.parquet", SCENES)
    assert not list(tmp_path.iterdir())


def wishart(count, n=ARRAY.n_elements):
    generator = torch.Generator().manual_seed(count)
    X = torch.randn(count, n, 3 * n, dtype=torch.complex128, generator=generator)
    return X @ X.mH


@pytest.mark.parametrize("suffix", [".h5", ".npz", ".mat"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_covariance_survives_the_round_trip(tmp_path, suffix, count):
    recording = Recording(ARRAY, covariance=wishart(count), frequency_hz=1e9)
    path = tmp_path / f"R{suffix}"
    write_recording(path, recording)
    again = read(path)
    torch.testing.assert_close(again.covariance, recording.covariance, rtol=1e-14, atol=0)
    assert torch.equal(again.array.positions_m, ARRAY.positions_m)
    assert (again.array.wavelength_m, again.frequency_hz) == (ARRAY.wavelength_m, 1e9)


@pytest.mark.parametrize("suffix", [".h5", ".npz", ".mat"])
def test_snapshots_of_a_surface_survive_the_round_trip(tmp_path, suffix):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(9, 6, dtype=torch.complex64, generator=generator)
    channel = torch.randn(4, 6, dtype=torch.complex64, generator=generator)
    y = torch.randn(9, 4, dtype=torch.complex64, generator=generator)
    path = tmp_path / f"y{suffix}"
    write_recording(path, Recording(ARRAY, snapshots=Snapshots.of(y.numpy()), codes=codes, channel=channel))
    again = read(path)
    assert torch.equal(again.snapshots.read(), y)
    assert torch.equal(again.codes, codes)
    assert torch.equal(again.channel, channel)


def test_matlab_sees_a_plain_matrix_with_pages_last(tmp_path):
    R = wishart(2)
    write_recording(tmp_path / "R.mat", Recording(ARRAY, covariance=R))
    variables = scipy.io.loadmat(tmp_path / "R.mat")
    np.testing.assert_allclose(variables["covariance"][:, :, 1], R[1], rtol=1e-14)
    assert variables["positions_m"].shape == (6, 3)
    assert variables["wavelength_m"].item() == ARRAY.wavelength_m
    with pytest.raises(FileFormatError, match="cannot be told from their transpose"):
        write_recording(tmp_path / "six.mat", Recording(ARRAY, covariance=wishart(6)))


def test_hdf5_keeps_where_a_recording_came_from(tmp_path):
    recording = Recording(ARRAY, covariance=wishart(1), provenance=Provenance("a.uvh5", "UVH5", {"x": "y"}, ("note",)))
    write_recording(tmp_path / "R.h5", recording.without([2], "broken"))
    with h5py.File(tmp_path / "R.h5") as file:
        kept = json.loads(file.attrs["provenance"])
        assert file["positions_m"].attrs["units"] == "m"
    assert kept == {
        "path": "a.uvh5", "format": "UVH5", "details": {"x": "y"}, "notes": ["note"], "flagged": [[2, "2", "broken"]]
    }  # fmt: skip


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "R.h5"
    path.write_bytes(b"before")
    values = np.full((4, 6), np.nan, np.complex64)
    with pytest.raises(FileFormatError, match="NaN"):
        write_recording(path, Recording(ARRAY, snapshots=Snapshots.of(values)))
    assert path.read_bytes() == b"before"
    assert [item.name for item in tmp_path.iterdir()] == ["R.h5"]


@pytest.mark.parametrize("reduce", ["max", "none"])
def test_a_spectrum_carries_its_axes_and_units(tmp_path, reduce):
    R = wishart(2).to(torch.complex64)
    result = mvdr_spectrum(R, ARRAY, GRID, reduce=reduce)
    power, plane = (result.power, result.plane) if reduce == "max" else (result, None)
    write_spectrum(tmp_path / "s.h5", power, GRID, plane=plane)
    with h5py.File(tmp_path / "s.h5") as file:
        np.testing.assert_array_equal(file["power"], power)
        assert file["power"].attrs["units"] == "1"
        np.testing.assert_allclose(file["azimuth"], np.degrees(GRID.azimuth_rad.numpy()), rtol=1e-12)
        assert [file[name].attrs["units"] for name in ("azimuth", "elevation", "range")] == ["deg", "deg", "m"]
        labels = [dimension.label for dimension in file["power"].dims]
        assert labels == ["scene", "azimuth", "elevation", "range"][: power.ndim]
        np.testing.assert_array_equal(file["power"].dims[2][0], file["elevation"])
        if plane is not None:
            np.testing.assert_array_equal(file["range_of_maximum"], GRID.range_m.numpy()[plane.numpy()])


def test_a_spectrum_of_another_grid_is_refused(tmp_path):
    with pytest.raises(ShapeError, match=r"power must be \(B, 7, 5\)"):
        write_spectrum(tmp_path / "s.h5", torch.ones(1, 5, 7), GRID)
    with pytest.raises(ShapeError, match="plane must be"):
        write_spectrum(tmp_path / "s.h5", torch.ones(2, 7, 5), GRID, plane=torch.zeros(1, 7, 5, dtype=torch.int32))
    with pytest.raises(FileFormatError, match=r"written as \.h5"):
        write_spectrum(tmp_path / "s.png", torch.ones(1, 7, 5), GRID)
    assert not list(tmp_path.iterdir())
