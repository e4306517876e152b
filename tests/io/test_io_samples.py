"""Samples that are in memory become the recording that a file of them would."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch
from wideband import spherical

from risfast import Localizer
from risfast.errors import ShapeError
from risfast.geometry import Region, SensorArray
from risfast.io import from_samples, read
from risfast.setup import Setup

RATE, LENGTH = 16000.0, 8000
POSITIONS = np.random.default_rng(1).uniform(-0.1, 0.1, (6, 3)) * [1, 1, 0.2]
PLACE = (0.3, 0.2, 0.8)
BAND = {"frequency_hz": (1000.0, 2000.0)}


@pytest.fixture(scope="module")
def sound() -> np.ndarray:
    return spherical(POSITIONS, [PLACE], RATE, LENGTH)


@pytest.mark.parametrize(
    "how", [BAND, {"frequency_hz": [800.0, 1500.0], "block_size": 256}, {"third_octave": 1000, "speed_m_s": 340.0}]
)
def test_samples_in_memory_and_in_a_file_are_the_same_recording(sound, how, tmp_path):
    with h5py.File(tmp_path / "sound.h5", "w") as file:
        file["time_data"] = sound
        file["time_data"].attrs["sample_freq"] = RATE
    from_file = read(tmp_path / "sound.h5", positions_m=POSITIONS, flagged=[2], **how)
    recording = from_samples(sound, RATE, POSITIONS, flagged=[2], **how)
    torch.testing.assert_close(recording.covariance, from_file.covariance, rtol=0, atol=0)
    for name in ("array", "wavelengths_m", "frequencies_hz", "effective_snapshots", "flagged", "speed_m_s"):
        assert getattr(recording, name) == getattr(from_file, name)
    assert recording.provenance.notes == from_file.provenance.notes


def test_numbers_of_any_kind_are_samples(sound):
    expected = from_samples(sound, RATE, POSITIONS, **BAND).covariance
    whole = np.round(sound / np.abs(sound).max() * 32000)
    scale = (np.abs(sound).max() / 32000) ** 2
    for samples in (torch.from_numpy(sound), sound.tolist(), np.asfortranarray(sound), sound[::-1][::-1]):
        torch.testing.assert_close(from_samples(samples, RATE, POSITIONS, **BAND).covariance, expected)
    found = from_samples(whole.astype(np.int16), RATE, POSITIONS.tolist(), **BAND).covariance * scale
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max()))


def test_the_source_of_samples_is_found_with_a_setup_or_without(sound):
    region = Region((-1.0, 1.0), (-0.6, 0.6), (0.3, 3.0))
    setup = Setup(SensorArray(POSITIONS, 343.0 / 2000), region, sampling="direct")
    for recording in (from_samples(sound, RATE, POSITIONS, **BAND), from_samples(sound, RATE, setup=setup, **BAND)):
        [found] = Localizer.classical(recording.setup).localize(recording)
        assert len(found) == 1
        np.testing.assert_allclose(found.xyz_m[0], PLACE, atol=0.1)
    assert recording.setup.region == region


@pytest.mark.parametrize(
    ("changed", "error", "told"),
    [
        ({"samples": np.zeros((10, 6), complex)}, TypeError, "samples must be real numbers.*complex128"),
        ({"samples": np.zeros((2, 10, 6))}, ShapeError, r"samples must have shape \(L, N\).*\(2, 10, 6\)"),
        ({"samples": np.zeros((0, 6))}, ShapeError, r"samples must have shape.*\(0, 6\)"),
        ({"samples": np.ones((6, 10))}, ShapeError, r"positions_m must have shape \(10, 3\).*\(6, 3\).*transposed"),
        ({"positions_m": POSITIONS[:5]}, ShapeError, r"positions_m must have shape \(6, 3\).*\(5, 3\)$"),
        ({"positions_m": None}, ValueError, r"give positions_m \(N, 3\), or setup"),
        ({"frequency_hz": None}, ValueError, "give frequency_hz"),
        ({"sample_rate_hz": 0.0}, ValueError, "sample_rate_hz must be a positive number, got 0.0"),
        ({"samples": np.zeros((4000, 6))}, ValueError, "no energy"),
        ({"samples": np.full((4000, 6), np.nan)}, ValueError, "NaN or infinite"),
        ({"frequency_hz": (9000.0, 9500.0)}, ValueError, "frequency_hz must lie within"),
        ({"setup": SensorArray(POSITIONS, 0.2)}, ValueError, "not both"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(sound, changed, error, told):
    given = {"samples": sound, "sample_rate_hz": RATE, "positions_m": POSITIONS, **BAND, **changed}
    with pytest.raises(error, match=told):
        from_samples(**given)
