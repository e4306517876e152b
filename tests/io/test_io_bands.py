"""Recordings in many narrow bands at once: which bins, their covariances, and how much the segments are worth."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import oracles
import pytest
import torch
from wideband import SPEED, spherical

from risfast import Localizer
from risfast.errors import FileFormatError, ShapeError
from risfast.geometry import Region, SensorArray
from risfast.io import Recording, Snapshots, read, write_recording
from risfast.io import welch as module
from risfast.io.bands import BandRequest, segment_length, third_octave_edges
from risfast.io.welch import effective_segments, narrowband_covariances
from risfast.setup import Setup

RATE, LENGTH, BLOCK = 16000.0, 16000, 512
POSITIONS = np.random.default_rng(1).uniform(-0.1, 0.1, (6, 3)) * [1, 1, 0.2]
PLACE = (0.3, 0.2, 0.8)


def write_time(path: Path, values: np.ndarray, rate: float = RATE) -> Path:
    """As acoular stores samples in time."""
    with h5py.File(path, "w") as file:
        file["time_data"] = values
        file["time_data"].attrs["sample_freq"] = rate
    return path


@pytest.fixture(scope="module")
def sound() -> np.ndarray:
    return spherical(POSITIONS, [PLACE], RATE, LENGTH)


@pytest.fixture(scope="module")
def file(sound: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_time(tmp_path_factory.mktemp("bands") / "sound.h5", sound)


def by_formula(values: np.ndarray, rate: float, frequency: float, block: int) -> np.ndarray:
    """Mean of X X^H over half-overlapping segments, X of the formula of the transform with a periodic Hann window."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(block) / block)
    turn = np.exp(-2j * np.pi * frequency / rate * np.arange(block))
    total, count = np.zeros((values.shape[1],) * 2, complex), 0
    for start in range(0, len(values) - block + 1, block // 2):
        line = (window * turn) @ values[start : start + block] / window.sum()
        total += np.outer(line, line.conj())
        count += 1
    return total / count


def test_each_band_is_the_covariance_of_its_bin(file: Path, sound: np.ndarray) -> None:
    wanted = [1000.0, 2500.0, 4000.0]
    recording = read(file, positions_m=POSITIONS, frequency_hz=wanted, block_size=BLOCK)
    assert recording.frequencies_hz == tuple(wanted)
    assert recording.covariance.shape == (1, 3, 6, 6)
    for frequency, matrix in zip(wanted, recording.covariance[0], strict=True):
        np.testing.assert_allclose(matrix, 2 * by_formula(sound, RATE, frequency, BLOCK), rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(recording.wavelengths_m, SPEED / np.array(wanted), rtol=1e-14)
    assert recording.array.wavelength_m == SPEED / 4000
    assert recording.setup.wavelengths_m == recording.wavelengths_m
    assert recording.setup.sampling == "direct"


def test_one_of_many_is_what_it_is_alone(file: Path) -> None:
    how: dict[str, Any] = {"positions_m": POSITIONS, "block_size": BLOCK}
    many = read(file, frequency_hz=np.array([1000.0, 2500.0]), **how)
    one = read(file, frequency_hz=2500.0, **how)
    assert one.covariance.shape == (1, 6, 6)
    assert one.wavelengths_m == (one.array.wavelength_m,)
    assert one.frequencies_hz == (one.frequency_hz,) == (2500.0,)
    assert len(one.effective_snapshots) == 1
    assert many.effective_snapshots == one.effective_snapshots * 2
    np.testing.assert_allclose(many.covariance[:, 1], one.covariance, rtol=1e-12, atol=1e-16)


def test_the_strongest_eigenvector_is_the_wave_of_the_source_in_every_band(file: Path) -> None:
    recording = read(file, positions_m=POSITIONS, frequency_hz=(800.0, 5000.0))
    azimuth, elevation = math.atan2(PLACE[0], PLACE[2]), math.asin(PLACE[1] / np.linalg.norm(PLACE))
    place = np.array([[azimuth, elevation, np.linalg.norm(PLACE)]])
    assert recording.n_bands == 32
    for wavelength, matrix in zip(recording.wavelengths_m, recording.covariance[0].numpy(), strict=True):
        expected = oracles.steering(POSITIONS, wavelength, place)[0]
        strongest = np.linalg.eigh(matrix)[1][:, -1]
        likeness = abs(expected.conj() @ strongest) ** 2 / np.vdot(expected, expected).real
        assert likeness > 0.97  # amplitudes fall with the distance, which the steering vector leaves out
        assert abs(expected @ strongest) ** 2 / np.vdot(expected, expected).real < 0.9  # not that of its mirror image


def test_complex_baseband_has_bins_on_both_sides_of_its_centre() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=(3000, 4)) + 1j * rng.normal(size=(3000, 4))
    found = narrowband_covariances(Snapshots.of(values), 1000.0, [-250.0, 0.0, 125.0], block_size=64)
    assert found.frequencies_hz == (-250.0, 0.0, 125.0)
    for frequency, matrix in zip(found.frequencies_hz, found.covariance, strict=True):
        np.testing.assert_allclose(matrix, by_formula(values, 1000.0, frequency, 64), rtol=1e-10, atol=1e-13)


def test_all_bands_are_made_in_one_pass(sound: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = narrowband_covariances(Snapshots.of(sound), RATE, [1000.0, 3000.0], block_size=256)
    taken: list[tuple[int, int]] = []

    def load(start: int, stop: int) -> np.ndarray:
        taken.append((start, stop))
        return sound[start:stop]

    monkeypatch.setattr(module, "_BLOCK_BYTES", 16 * 6 * 1000)
    parts = narrowband_covariances(Snapshots(sound.shape, sound.dtype, load), RATE, [1000.0, 3000.0], block_size=256)
    assert [start for start, _ in taken] == [0, *(stop for _, stop in taken[:-1])]
    assert taken[-1][1] == LENGTH
    assert len(taken) == 16
    np.testing.assert_allclose(parts.covariance, whole.covariance, rtol=1e-12, atol=1e-18)


@pytest.mark.parametrize(
    ("window", "hop", "segments"), [("hann", 8, 8), ("hann", 4, 12), ("boxcar", 16, 8), ("hann", 8, 1)]
)
def test_segments_are_worth_as_many_as_the_variance_of_their_mean_says(window: str, hop: int, segments: int) -> None:
    """Of independent powers of one bin of white noise (an exponential law) mean^2 / variance is their number."""
    size, trials = 16, 40000
    weights = {"hann": 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size), "boxcar": np.ones(size)}[window]
    rng = np.random.default_rng(5)
    length = size + (segments - 1) * hop
    noise = rng.normal(size=(trials, length)) + 1j * rng.normal(size=(trials, length))
    turn = np.exp(-2j * np.pi * 5 / size * np.arange(size))
    lines = [noise[:, start : start + size] @ (weights * turn) for start in range(0, length - size + 1, hop)]
    power = (np.abs(np.array(lines)) ** 2).mean(0)
    simulated = power.mean() ** 2 / power.var()
    # The variance of a variance of so many nearly normal values: 2 / trials, and 6 / segments of excess kurtosis.
    deviation = math.sqrt((2 + 6 / segments) / trials)
    assert len(lines) == segments
    assert effective_segments(weights, hop, segments) == pytest.approx(simulated, rel=4 * deviation)
    if hop == size or segments == 1:
        assert effective_segments(weights, hop, segments) == segments


def test_third_octaves_meet_at_their_edges_and_have_nominal_names() -> None:
    nominal = [25, 31.5, 40, 50, 63, 80, 100, 125, 160, 200, 250, 315, 400, 500, 630, 800, 1000, 1250, 1600, 2000, 2500]
    nominal += [3150, 4000, 5000, 6300, 8000, 10000, 12500, 16000, 20000]
    edges = [third_octave_edges(centre) for centre in nominal]
    for k, (centre, (low, high)) in enumerate(zip(nominal, edges, strict=True)):
        exact = 1000 * 10 ** ((k - 16) / 10)
        assert exact == pytest.approx(centre, rel=0.013)
        assert (low, high) == pytest.approx((exact * 10**-0.05, exact * 10**0.05), rel=1e-12)
    assert [high for _, high in edges[:-1]] == pytest.approx([low for low, _ in edges[1:]], rel=1e-12)
    for wrong in (1024, 0, -1000, 31):
        with pytest.raises(ValueError, match="nominal centres of IEC 61260"):
            third_octave_edges(wrong)


def test_a_band_is_all_of_its_bins_or_an_even_share_of_them(file: Path) -> None:
    how: dict[str, Any] = {"positions_m": POSITIONS, "block_size": BLOCK}
    width = RATE / BLOCK
    recording = read(file, frequency_hz=(1000.0, 1500.0), **how)
    assert recording.frequencies_hz == tuple(width * np.arange(32, 49))
    thinned = read(file, frequency_hz=(1000.0, 1500.0), most_bands=5, **how)
    np.testing.assert_allclose(np.diff(thinned.frequencies_hz), 4 * width)
    assert (thinned.frequencies_hz[0], thinned.frequencies_hz[-1]) == (1000.0, 1500.0)
    assert any("5 of the 17 bins" in note for note in thinned.provenance.notes)
    thirds = read(file, third_octave=[1000, 2000], **how)
    expected = [f for f in width * np.arange(1, 256) if 891.25 < f < 1122.02 or 1778.28 < f < 2238.72]
    assert len(expected) == 22
    assert thirds.frequencies_hz == pytest.approx(expected)
    assert read(file, third_octave=1000, **how).n_bands == 7
    narrow = read(file, frequency_hz=(1001.0, 1002.0), **how)
    assert narrow.frequencies_hz == (1000.0,)
    assert any("no bin lies within 1001 .. 1002 Hz" in note for note in narrow.provenance.notes)
    beyond = read(file, frequency_hz=(7900.0, 9000.0), **how)
    assert beyond.frequencies_hz == pytest.approx([7906.25, 7937.5, 7968.75])  # not 8000, which has no phase
    assert any("what lies within" in note for note in beyond.provenance.notes)
    double = read(file, frequency_hz=[1000.0, 1001.0, 2000.0], **how)
    assert double.frequencies_hz == (1000.0, 2000.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frequency_hz": (5000.0, 800.0)}, "low < high"),
        ({"frequency_hz": (1000.0, 2000.0, 3000.0)}, "one band"),
        ({"frequency_hz": []}, "at least one"),
        ({"frequency_hz": [1000.0, math.nan]}, "finite number"),
        ({"frequency_hz": [[1000.0], [1.0, 2.0]]}, "finite number"),
        ({"frequency_hz": "1000"}, "finite number"),
        ({"frequency_hz": [1000.0, 9000.0]}, r"must lie within 31\.25 \.\. 7968\.75 Hz"),
        ({"frequency_hz": (9000.0, 9500.0)}, "must lie within"),
        ({"frequency_hz": [0.0]}, "must lie within"),
        ({"third_octave": [1000, 1100]}, "the nearest is 1000"),
        ({"third_octave": 1000, "frequency_hz": 1000.0}, "not both"),
        ({"frequency_hz": [1000.0], "wavelength_m": 0.3}, "give speed_m_s"),
        ({"frequency_hz": (1.0, 2.0), "most_bands": 0}, "most_bands"),
        ({"frequency_hz": 1000.0, "block_size": 2.5}, "block_size"),
        ({"frequency_hz": [1000.0], "block_size": 2}, "leaves no bins"),
        ({"frequency_hz": 8000.0}, r"no phase in real samples at 16000 Hz; choose one within 31\.25 \.\. 7968\.75 Hz"),
        ({"frequency_hz": 7990.0}, "bin at 8000 Hz"),
        ({"third_octave": [500, 1000, 2000], "most_bands": 2}, "third_octave names 3 bands, and most_bands is 2"),
    ],
)
def test_what_cannot_be_is_refused(file: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(file, positions_m=POSITIONS, **{"block_size": BLOCK, **options})


def test_segments_are_as_long_as_the_array_needs_and_the_recording_allows() -> None:
    band = BandRequest.of((800.0, 5000.0), None)
    assert band is not None
    # 0.5 m of sound: 10 * 16000 * 0.5 / 343 = 233 samples and more, four times that where there are 64 segments of it.
    assert segment_length(band, 16000.0, 0.5 / 343, 16000 * 60, 8) == 1024
    assert segment_length(band, 16000.0, 0.5 / 343, 16000 * 2, 8) == 512
    assert segment_length(band, 16000.0, 0.5 / 343, 8000, 8) == 256
    assert segment_length(band, 16000.0, 0.5 / 343, 8000, 160) == 128
    third = BandRequest.of(None, 100)  # 23 Hz wide: 695 samples
    assert segment_length(third, 16000.0, 0.1 / 343, 16000 * 60, 8) == 1024
    for channels in (4, 200):
        for length in (2000, 20000):
            block = segment_length(band, 16000.0, 1.0, length, channels)
            least = max(channels // 2, 32)
            assert (2 * length - block) // block >= least
            assert (2 * length - 2 * block) // (2 * block) < least


def test_an_explicit_segment_wins_and_what_was_chosen_is_said(file: Path) -> None:
    how: dict[str, Any] = {"positions_m": POSITIONS, "frequency_hz": (1000.0, 3000.0)}
    assert any("segments of 256" in note for note in read(file, **how).provenance.notes)
    notes = read(file, **how, block_size=64).provenance.notes
    assert any("499 segments of 64, worth 472.8 independent" in note for note in notes)
    assert any("are not narrow" in note for note in read(file, **how, block_size=32).provenance.notes)


def test_bands_without_energy_are_left_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    spectrum = np.fft.rfft(rng.normal(size=(LENGTH, 6)), axis=0)
    spectrum[np.fft.rfftfreq(LENGTH, 1 / RATE) > 3000] = 0
    values = np.fft.irfft(spectrum, LENGTH, axis=0)
    how: dict[str, Any] = {"positions_m": POSITIONS, "block_size": BLOCK}
    # Twice periodic, so that a Hann window leaks nothing that rounding does not.
    repeated = np.fft.irfft(spectrum[:: LENGTH // BLOCK], BLOCK, axis=0)
    path = write_time(tmp_path / "low.h5", np.tile(repeated, (30, 1)))
    recording = read(path, frequency_hz=[1000.0, 2000.0, 5000.0], **how)
    assert recording.frequencies_hz == (1000.0, 2000.0)
    assert any("without energy: 5000 Hz" in note for note in recording.provenance.notes)
    with pytest.raises(FileFormatError, match="no energy at 5000, 6000 Hz"):
        read(path, frequency_hz=[5000.0, 6000.0], **how)
    assert read(write_time(tmp_path / "all.h5", values), frequency_hz=[1000.0, 5000.0], **how).n_bands == 2


def test_channels_and_positions_must_be_as_many(file: Path) -> None:
    with pytest.raises(
        FileFormatError, match="has 6 channels, but the array has 5 elements; give the positions of all"
    ):
        read(file, positions_m=POSITIONS[:5], frequency_hz=(800.0, 5000.0))


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_bands_survive_a_file(file: Path, tmp_path: Path, suffix: str) -> None:
    recording = read(file, positions_m=POSITIONS, frequency_hz=[1000.0, 2000.0, 3000.0], flagged=[2])
    assert recording.covariance.shape == (1, 3, 5, 5)
    write_recording(tmp_path / f"x{suffix}", recording)
    again = read(tmp_path / f"x{suffix}")
    assert again.setup == recording.setup
    for name in ("wavelengths_m", "frequencies_hz", "effective_snapshots", "speed_m_s"):
        assert getattr(again, name) == getattr(recording, name)
    np.testing.assert_array_equal(again.covariance, recording.covariance)
    with pytest.raises(FileFormatError, match="all of them are read"):
        read(tmp_path / f"x{suffix}", frequency_hz=1000.0)


def test_bands_are_not_for_mat_files(file: Path, tmp_path: Path) -> None:
    recording = read(file, positions_m=POSITIONS, frequency_hz=[1000.0, 2000.0])
    with pytest.raises(FileFormatError, match=r"covariances of 2 bands are written as \.h5 or \.npz"):
        write_recording(tmp_path / "x.mat", recording)
    write_recording(tmp_path / "one.mat", read(file, positions_m=POSITIONS, frequency_hz=1000.0))
    assert read(tmp_path / "one.mat").effective_snapshots == pytest.approx([117.5], rel=0.05)


def test_covariances_of_bands_from_a_file_of_ones_own(tmp_path: Path) -> None:
    R = np.stack([np.eye(6) * k for k in (1.0, 2.0, 3.0)])
    np.savez(tmp_path / "x.npz", R=R, positions_m=POSITIONS, frequencies_hz=[1000.0, 2000.0, 4000.0], speed_m_s=340.0)
    recording = read(tmp_path / "x.npz")
    assert recording.wavelengths_m == (0.34, 0.17, 0.085)
    assert recording.effective_snapshots is None
    np.testing.assert_array_equal(recording.covariance[0], R)
    np.savez(tmp_path / "x.npz", R=R[:2], positions_m=POSITIONS, wavelengths_m=[0.3, 0.2, 0.1])
    with pytest.raises(FileFormatError, match="'wavelengths_m' must be 2 positive numbers"):
        read(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", R=R[:1, None], positions_m=POSITIONS, wavelength_m=0.3)
    with pytest.raises(FileFormatError, match="the wavelengths of 1 bands are missing"):
        read(tmp_path / "x.npz")
    np.savez(
        tmp_path / "x.npz",
        R=R,
        positions_m=POSITIONS,
        wavelengths_m=[0.3, 0.2, 0.1],
        effective_snapshots=[9.0, 9.0, -1.0],
    )
    with pytest.raises(FileFormatError, match="'effective_snapshots' must be 3 positive numbers"):
        read(tmp_path / "x.npz")


def test_a_setup_of_bands_chooses_the_frequencies_and_keeps_its_gains(file: Path) -> None:
    gains = tuple(1 + 0.1j * k for k in range(6))
    region = Region((-1.0, 1.0), (-0.5, 0.5), (0.2, 3.0))
    array = SensorArray(POSITIONS, 0.1)
    waves = (SPEED / 3000, SPEED / 1500)
    setup = Setup(array, region, sampling="direct", speed_m_s=SPEED, wavelengths_m=waves, gains=gains)
    recording = read(file, setup=setup, flagged=[1], block_size=BLOCK)
    assert recording.frequencies_hz == (1500.0, 3000.0)
    assert recording.setup.region == region
    assert recording.setup.gains == gains[:1] + gains[2:]
    assert recording.setup.wavelengths_m == pytest.approx(waves[::-1])
    assert read(file, setup=setup, frequency_hz=[2000.0], block_size=BLOCK).wavelengths_m == (SPEED / 2000,)


def test_matrices_of_many_frequencies_are_chosen_from_a_benchmark_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    X = rng.normal(size=(6, 40, 5)) + 1j * rng.normal(size=(6, 40, 5))
    csm = np.einsum("alf,blf->abf", X, X.conj())
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["CsmData/csmReal"], file["CsmData/csmImaginary"] = csm.real, csm.imag
        file["CsmData/binCenterFrequenciesHz"] = 500.0 * np.arange(1, 6)
        file["CsmData"].attrs["fftSign"] = 1
    recording = read(tmp_path / "x.h5", positions_m=POSITIONS, frequency_hz=(900.0, 2100.0))
    assert recording.frequencies_hz == (1000.0, 1500.0, 2000.0)
    assert recording.wavelengths_m == pytest.approx(SPEED / np.array([1000.0, 1500.0, 2000.0]))
    np.testing.assert_allclose(recording.covariance[0], np.moveaxis(csm[..., 1:4], -1, 0), rtol=1e-14)
    assert recording.effective_snapshots is None
    assert read(tmp_path / "x.h5", positions_m=POSITIONS, frequency_hz=[1600.0]).frequency_hz == 1500.0
    with pytest.raises(FileFormatError, match=r"3000 \.\. 4000 Hz is outside of what the file holds, 500 to 2500 Hz"):
        read(tmp_path / "x.h5", positions_m=POSITIONS, frequency_hz=(3000.0, 4000.0))


def test_formats_of_one_frequency_say_so(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="of visibilities one frequency is read at a time"):
        read(Path(__file__).parents[1] / "data" / "hera19.uvh5", frequency_hz=[1.5e8, 1.51e8])
    np.savez(tmp_path / "x.npz", R=np.eye(6), positions_m=POSITIONS, wavelength_m=0.3)
    with pytest.raises(FileFormatError, match="several frequencies are made of samples in time"):
        read(tmp_path / "x.npz", frequency_hz=[1.5e8, 1.51e8])
    setup = Setup(SensorArray(POSITIONS, 0.1), sampling="direct", wavelengths_m=(0.2, 0.1))
    with pytest.raises(FileFormatError, match="the setup is of 2 bands, and the file holds one"):
        read(tmp_path / "x.npz", setup=setup)


@pytest.mark.parametrize("band", [3000.0, [2000.0, 3000.0, 4000.0]])
def test_a_localizer_takes_the_recording_with_what_it_is_worth(file: Path, band: Any) -> None:
    recording = read(file, positions_m=POSITIONS, frequency_hz=band, block_size=BLOCK)
    localizer = Localizer.classical(recording.setup)
    [found] = localizer.localize(recording, n_sources=1)
    assert float((found.xyz_m[0] - torch.tensor(PLACE, dtype=torch.float64)).norm()) < 0.05
    given: dict[str, Any] = {"snapshots": list(recording.effective_snapshots), "n_sources": 1}
    [same] = localizer.localize(recording.covariance, **given)
    torch.testing.assert_close(same.position, found.position, rtol=1e-9, atol=1e-9)
    # A number that is given goes before the recording's.
    more: dict[str, Any] = {"snapshots": [value / 10 for value in recording.effective_snapshots], "n_sources": 1}
    told, plain = (localizer.analyse(x, **more).position_covariance[0] for x in (recording, recording.covariance))
    torch.testing.assert_close(told, plain, rtol=1e-9, atol=0)
    assert float(told[0, 0, 0]) > 2 * float(localizer.analyse(recording, n_sources=1).position_covariance[0][0, 0, 0])
    unknown = replace(recording, effective_snapshots=None)
    with pytest.raises(ValueError, match="not how many snapshots it is the mean of: give snapshots="):
        localizer.localize(unknown)


def test_snapshots_and_their_covariance_are_the_same_recording() -> None:
    array = SensorArray(POSITIONS, 0.1)
    rng = np.random.default_rng(8)
    a = oracles.steering(POSITIONS, 0.1, np.array([[0.3, 0.1, 0.9]]))[0]
    x = np.outer(rng.normal(size=(30, 2)) @ [1, 1j], a) + 0.1 * rng.normal(size=(30, 6, 2)) @ [1, 1j]
    recording = Recording(array, snapshots=Snapshots.of(x))
    localizer = Localizer.classical(recording.setup)
    [first], [second] = localizer.localize(recording), localizer.localize(recording.with_covariance())
    torch.testing.assert_close(first.position, second.position, rtol=1e-4, atol=1e-5)


def test_the_parts_of_a_recording_in_bands_belong_together() -> None:
    array = SensorArray(POSITIONS, 0.1)
    matrix = np.eye(6, dtype=complex)
    two = torch.from_numpy(np.stack([matrix, matrix])[None])
    with pytest.raises(ShapeError, match=r"covariance must be \(B, 2, 6, 6\)"):
        Recording(array, two[0], wavelengths_m=(0.2, 0.1))
    with pytest.raises(ShapeError, match="shortest of wavelengths_m must be the array's"):
        Recording(array, two, wavelengths_m=(0.2, 0.3))
    with pytest.raises(ShapeError, match="effective_snapshots must be 2 numbers"):
        Recording(array, two, wavelengths_m=(0.2, 0.1), effective_snapshots=(5.0,))
    with pytest.raises(ShapeError, match="snapshots are of one band"):
        Recording(array, snapshots=Snapshots.of(matrix), wavelengths_m=(0.2, 0.1))
    assert Recording(array, snapshots=Snapshots.of(matrix)).with_covariance().effective_snapshots == (6.0,)
