"""Real visibilities: HERA, MWA and a broken file of the ATA, as pyuvdata wrote them (see data/README.md)."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import oracles
import pytest
import torch

from risfast import Localizer, Region, SearchGrid, Setup
from risfast.errors import FileFormatError
from risfast.io import SPEED_OF_LIGHT_M_S
from risfast.ops import bartlett_spectrum, mvdr_spectrum
from risfast.simulate import read

DATA = Path(__file__).parents[1] / "data"
HERA, MWA, ATA = DATA / "hera19.uvh5", DATA / "mwa128.uvh5", DATA / "ata_garbage.uvh5"
# A quarter of the sky around the zenith; the planar wavefront does not know the range.
GRID = SearchGrid.box(61, 41, (1.0,), np.radians(60.0), np.radians(40.0))


def image(path, channel, polarization, leave_out=()):
    """Matrix, east-north-up positions and wavelength straight from the file, row by row, in float64."""
    with h5py.File(path) as file:
        header = {name: file["Header"][name][()] for name in file["Header"] if name != "phase_center_catalog"
                  and isinstance(file["Header"][name], h5py.Dataset)}  # fmt: skip
        data = file["Data/visdata"][()]
    data = data.reshape(len(data), header["freq_array"].size, -1)[:, channel, polarization]
    antennas = [a for a in sorted({*header["ant_1_array"], *header["ant_2_array"]}) if a not in leave_out]
    R = np.zeros((len(antennas), len(antennas)), complex)
    for first, second, value in zip(header["ant_1_array"], header["ant_2_array"], data, strict=True):
        if first in antennas and second in antennas:
            i, j = antennas.index(first), antennas.index(second)
            R[i, j], R[j, i] = value, np.conj(value)
    latitude, longitude = np.radians(header["latitude"]), np.radians(header["longitude"])
    east = np.array([-np.sin(longitude), np.cos(longitude), 0])
    up = np.array([np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)])
    north = np.cross(up, east)
    listed = list(header["antenna_numbers"])
    positions = np.array([[header["antenna_positions"][listed.index(a)] @ axis for axis in (east, north, up)]
                          for a in antennas])  # fmt: skip
    return R, positions, SPEED_OF_LIGHT_M_S / float(header["freq_array"].reshape(-1)[channel])


def spectra_db(recording):
    R = recording.covariance.to(torch.complex64)
    options = {"wavefront": "planar", "reduce": "none"}
    return [
        oracles.decibel(spectrum(R, recording.array, GRID, **options)[0, ..., 0].double().numpy())
        for spectrum in (mvdr_spectrum, bartlett_spectrum)
    ]


@pytest.mark.parametrize(
    ("path", "channel", "polarization", "name", "leave_out"),
    [(HERA, 1, 0, None, ()), (HERA, 3, 0, None, ()), (MWA, 0, 0, "xx", (76,)), (MWA, 0, 1, "yy", (76,))],
)
def test_capon_and_bartlett_images_agree_with_an_independent_one(path, channel, polarization, name, leave_out):
    R, positions, wavelength = image(path, channel, polarization, leave_out)
    recording = read(path, frequency_hz=SPEED_OF_LIGHT_M_S / wavelength, polarization=name)
    points = oracles.box(GRID.azimuth_rad.numpy(), GRID.elevation_rad.numpy(), GRID.range_m.numpy())
    A = oracles.steering(positions, wavelength, points, "planar")
    capon, bartlett = spectra_db(recording)
    # complex64 in, so that the documented 1e-3 dB of every method holds against float64.
    for actual, expected in ((capon, oracles.capon(R[None], A)), (bartlett, oracles.bartlett(R[None], A))):
        np.testing.assert_allclose(actual.reshape(-1), oracles.decibel(expected).reshape(-1), atol=1e-3, rtol=0)


def test_hera_comes_whole():
    recording = read(HERA, frequency_hz=150.78e6)
    assert recording.covariance.shape == (1, 19, 19)
    assert recording.flagged == ()
    assert recording.provenance.details["telescope_name"] == "HERA"
    assert any("disagree by up to 33.7 m" in note for note in recording.provenance.notes)


def test_the_flagged_tile_of_the_mwa_is_left_out_and_named():
    recording = read(MWA, polarization="xx")
    assert recording.covariance.shape == (1, 127, 127)
    (flag,) = recording.flagged
    assert (flag.name, flag.reason) == ("76", "all of its baselines are flagged or missing")
    assert not any("disagree" in note for note in recording.provenance.notes)


def test_the_garbage_of_the_ata_is_refused_with_the_reason():
    with pytest.raises(FileFormatError, match=r"nsamples.*negative or not finite.*-1\.22914e\+12.*not to be trusted"):
        read(ATA, polarization="xx", frequency_hz=1252e6)


def changed(source, tmp_path, edit):
    path = tmp_path / source.name
    shutil.copyfile(source, path)
    with h5py.File(path, "r+") as file:
        edit(file)
    return path


def test_the_same_garbage_with_proper_weights_is_refused_for_its_autocorrelations(tmp_path):
    path = changed(ATA, tmp_path, lambda file: file["Data/nsamples"].write_direct(np.ones_like(file["Data/nsamples"])))
    with pytest.raises(FileFormatError, match="the autocorrelation of antenna 5 is not positive"):
        read(path, polarization="xx", frequency_hz=1252e6)


def set_values(name, index, value):
    def edit(file):
        file[name][index] = value

    return edit


def replace(name, values):
    def edit(file):
        del file[name]
        file[name] = values

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (replace("Header/phase_center_catalog/0/cat_type", "sidereal"), "phased to a source"),
        (replace("Header/latitude", np.nan), "latitude and longitude"),
        (replace("Header/antenna_positions", np.zeros((4, 3))), "antenna_positions must be"),
        (replace("Header/antenna_numbers", np.arange(1000, 1113)), "not in antenna_numbers"),
        (replace("Header/ant_1_array", np.zeros(3, int)), "must have 190 entries"),
        (replace("Header/freq_array", np.linspace(137e6, 162e6, 7)), "Data/visdata must be"),
        (replace("Header/polarization_array", np.array([-7])), "is no covariance"),
        (replace("Data/visdata", np.zeros((190, 4, 1))), "must be complex"),
        (replace("Data/flags", np.ones((190, 4, 1), bool)), "fewer than two antennas"),
        (set_values("Data/visdata", (5, 2, 0), np.nan), "NaN or infinite values that are not flagged"),
        (set_values("Data/visdata", (7, 2, 0), 1e6), "times as large as their autocorrelations allow"),
        (lambda file: file.__delitem__("Header/ant_2_array"), "Header/ant_2_array is missing"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path, edit, message):
    path = changed(HERA, tmp_path, edit)
    with pytest.raises(FileFormatError, match=message):
        read(path, frequency_hz=150.78e6)


def test_a_flagged_baseline_and_a_dead_antenna_cost_one_antenna_each(tmp_path):
    def edit(file):
        first, second = file["Header/ant_1_array"][()], file["Header/ant_2_array"][()]
        dead = (first == first[0]) | (second == first[0])
        visibilities, flags = file["Data/visdata"][()], file["Data/flags"][()]
        visibilities[dead] = 0
        other = np.flatnonzero(~dead & (first != second))[0]
        flags[other] = True
        file["Data/visdata"][...], file["Data/flags"][...] = visibilities, flags

    recording = read(changed(HERA, tmp_path, edit), frequency_hz=150.78e6)
    assert recording.n_elements == 17
    assert sorted(flag.reason for flag in recording.flagged) == [
        "1 of its baselines are flagged or missing",
        "no power",
    ]


def test_frequency_and_polarisation_must_be_chosen_where_there_are_several():
    with pytest.raises(FileFormatError, match=r"4 frequencies from 1\.37109e\+08 to 1\.625e\+08 Hz; choose one"):
        read(HERA)
    with pytest.raises(FileFormatError, match="is outside of what the file holds"):
        read(HERA, frequency_hz=1e9)
    with pytest.raises(FileFormatError, match="polarisations xx, yy; choose one of xx, yy"):
        read(MWA)
    with pytest.raises(FileFormatError, match="got 'rr'"):
        read(MWA, polarization="rr")


def test_a_strong_source_in_the_sky_of_hera_is_localised_in_the_far_field():
    half = np.pi / 2
    recording = read(HERA, frequency_hz=137.1e6)
    region = Region((-half, half), (-half, half), (1e6, np.inf))
    localizer = Localizer.classical(Setup(recording.array, region, sampling="direct"))
    [sources] = localizer.localize(recording.covariance, snapshots=1000, n_sources=1)
    assert len(sources) == 1
    assert bool(sources.range.isnan().all())
    # The beam toward it holds about the most power; the likelihood weighed other sources, too, that were not asked for.
    R, positions, wavelength = image(HERA, 0, 0)
    azimuth, elevation = float(sources.azimuth[0]), float(sources.elevation[0])
    around = np.linspace(-0.03, 0.03, 7)
    points = oracles.box(azimuth + around, elevation + around, np.array([1.0]))
    power = oracles.bartlett(R[None], oracles.steering(positions, wavelength, points, "planar")).reshape(7, 7)
    assert power[3, 3] > 0.9 * power.max()
    assert power[3, 3] > 1.5 * np.trace(R).real / len(R) ** 2


@pytest.mark.parametrize(("path", "how"), [(HERA, {"frequency_hz": 162.5e6}), (MWA, {"polarization": "xx"})])
def test_an_empty_sky_has_no_sources(path, how):
    recording = read(path, **how)
    region = Region((-0.02, 0.02), (-0.02, 0.02), (1e6, np.inf))
    localizer = Localizer.classical(Setup(recording.array, region, sampling="direct"))
    assert len(localizer.localize(recording.covariance, snapshots=1000)[0]) == 0
