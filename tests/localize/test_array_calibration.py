"""Calibration of gains and positions, on recordings that numpy simulates, against the bound that it states."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pytest
import torch

from risfast.detect import detect_sources
from risfast.errors import ShapeError
from risfast.geometry import SensorArray
from risfast.localize import Localizer, calibrate
from risfast.setup import Setup
from risfast.sources import Sources

WAVELENGTH = 0.1
SCATTERED = np.random.default_rng(3).uniform(-0.15, 0.15, (16, 3)) * (1, 1, 0)
ARRAYS = {
    "ring": SensorArray.circular(8, 0.08, WAVELENGTH),
    "line": SensorArray.linear(8, 0.05, WAVELENGTH),
    "plane": SensorArray(torch.tensor(SCATTERED), WAVELENGTH),
}


def setup_of(name, wavefront="spherical"):
    return Setup(ARRAYS[name], wavefront=wavefront, sampling="direct")


def random_gains(rng, n):
    """10 % of amplitude and 20 degrees of phase."""
    return (1 + 0.1 * rng.standard_normal(n)) * np.exp(1j * np.radians(20) * rng.standard_normal(n))


def random_places(rng, setup, recordings, sources=1, far=False):
    """(azimuth, elevation, range), one array of K a recording."""
    region, shape = setup.region, (recordings, sources)
    azimuth, elevation = (0.9 * rng.uniform(*ends, shape) for ends in (region.azimuth_rad, region.elevation_rad))
    return np.stack([azimuth, elevation, np.full(shape, 1e6) if far else rng.uniform(0.5, 3, shape)], -1)


def covariance(rng, positions, gains, places, *, snapshots=100, noise=0.03, wavelength=WAVELENGTH):
    a = oracles.steering(positions, wavelength, places)
    x = (oracles.complex_normal(rng, snapshots, len(places)) @ a) * gains
    x = x + math.sqrt(noise) * oracles.complex_normal(rng, *x.shape)
    return torch.tensor(x.T @ x.conj() / snapshots)


def gain_errors(found, gains):
    """Errors of log amplitude and phase, without what is common to all."""
    ratio = found.gains.numpy() / gains
    phase = np.angle(ratio * np.conj(ratio.sum()))
    amplitude = np.log(np.abs(ratio))
    return amplitude - amplitude.mean(), phase - phase.mean()


def without_slope(positions, phase):
    columns = np.c_[np.ones(len(positions)), positions]
    return phase - columns @ np.linalg.lstsq(columns, phase, rcond=None)[0]


def rms(values):
    return float(np.sqrt(np.mean(np.square(values))))


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("sources", [1, 2])
def test_gains_from_sources_at_known_places_reach_the_bound(name, sources):
    rng, setup = np.random.default_rng(1), setup_of(name)
    positions, n = setup.array.positions_m.numpy(), setup.array.n_elements
    errors, bounds = [], []
    for _ in range(6):
        gains, places = random_gains(rng, n), random_places(rng, setup, 4, sources)
        matrices = [covariance(rng, positions, gains, place) for place in places]
        found = calibrate(matrices, setup, 100, sources=torch.tensor(places))
        errors.append(gain_errors(found, gains))
        bounds.append((found.amplitude_deviation.numpy(), found.phase_deviation_rad.numpy()))
        assert found.setup.gains == tuple(found.gains.tolist())
    for error, bound in zip(np.swapaxes(errors, 0, 1), np.swapaxes(bounds, 0, 1), strict=True):
        assert 0.7 * rms(bound) < rms(error) < 1.3 * rms(bound) < 0.03


@pytest.mark.parametrize("name", ARRAYS)
def test_gains_from_sources_that_are_searched_for(name):
    rng, setup = np.random.default_rng(2), setup_of(name, "planar")
    positions, n = setup.array.positions_m.numpy(), setup.array.n_elements
    gains = random_gains(rng, n)
    matrices = [covariance(rng, positions, gains, place) for place in random_places(rng, setup, 4, far=True)]
    found = calibrate(torch.stack(matrices), setup, 100)
    amplitude, phase = gain_errors(found, gains)
    assert rms(amplitude) < 1.5 * rms(found.amplitude_deviation.numpy()) < 0.02
    # Shape alone: the line and the plane may turn all sources.
    assert rms(without_slope(positions, phase)) < 0.03
    slopes = [note for note in found.notes if note.startswith("a linear phase along")]
    assert len(slopes) == {"ring": 0, "line": 1, "plane": 2}[name]
    assert [len(sources) for sources in found.sources] == [1] * 4


def test_gains_that_are_known_already_are_the_beginning():
    rng, setup = np.random.default_rng(8), setup_of("plane")
    positions, gains = setup.array.positions_m.numpy(), np.exp(2j * np.pi * np.random.default_rng(9).uniform(size=16))
    places = random_places(rng, setup, 3)
    matrices = [covariance(rng, positions, gains, place) for place in places]
    known = setup.replace(gains=tuple(gains.tolist()))
    found = calibrate(matrices, known, 100)
    assert rms(without_slope(positions, gain_errors(found, gains)[1])) < 0.03
    for sources, place in zip(found.sources, places, strict=True):
        assert abs(float(sources.azimuth[0]) - place[0, 0]) < 0.1


@pytest.mark.parametrize(("name", "recordings", "part"), [("plane", 6, 20), ("plane", 10, 60), ("ring", 10, 20)])
def test_positions_from_sources_at_known_places(name, recordings, part):
    rng, setup = np.random.default_rng(4), setup_of(name)
    positions, n = setup.array.positions_m.numpy(), setup.array.n_elements
    gains, moved = random_gains(rng, n), WAVELENGTH / part * rng.standard_normal((n, 3)) / math.sqrt(3)
    if name == "ring":
        moved[:, 1] = 0  # all sources stand in its plane
    places = random_places(rng, setup, recordings)
    matrices = [covariance(rng, positions + moved, gains, place, snapshots=200, noise=0.01) for place in places]
    found = calibrate(matrices, setup, 200, sources=torch.tensor(places), positions=True)
    error = found.setup.array.positions_m.numpy() - positions - moved
    bound = found.position_deviation_m.numpy()
    for axis in range(3):
        assert rms(error[:, axis]) <= 1.5 * rms(bound[:, axis]) + 1e-9
    assert rms(error) < 0.8 * rms(moved)
    assert rms(gain_errors(found, gains)[1]) < 1.5 * rms(found.phase_deviation_rad.numpy())
    told = any(note.startswith("positions along y are not determined") for note in found.notes)
    assert told == (name == "ring")


def test_one_source_alone_does_not_tell_positions_from_phases():
    rng, setup = np.random.default_rng(5), setup_of("line")
    place = random_places(rng, setup, 1)
    matrix = covariance(rng, setup.array.positions_m.numpy(), random_gains(rng, 8), place[0])
    found = calibrate([matrix], setup, 100, sources=torch.tensor(place), positions=True)
    assert any("further combinations of gains and positions" in note for note in found.notes)
    assert math.isnan(found.mismatch)


def test_bands_share_the_gains():
    rng, wavelengths = np.random.default_rng(6), (0.1, 0.12, 0.15)
    setup = Setup(ARRAYS["plane"], sampling="direct", wavelengths_m=wavelengths)
    positions, gains = setup.array.positions_m.numpy(), random_gains(rng, 16)
    places = random_places(rng, setup, 2)
    matrices = [
        torch.stack([covariance(rng, positions, gains, place, wavelength=wavelength) for wavelength in wavelengths])
        for place in places
    ]
    found = calibrate(matrices, setup, 100, sources=[Sources.at(torch.tensor(p), torch.ones(1)) for p in places])
    single = calibrate([m[0] for m in matrices], setup_of("plane"), 100, sources=torch.tensor(places))
    for error, deviation in zip(
        gain_errors(found, gains), (found.amplitude_deviation, found.phase_deviation_rad), strict=True
    ):
        assert rms(error) < 1.3 * rms(deviation.numpy())
    assert rms(found.phase_deviation_rad.numpy()) == pytest.approx(
        rms(single.phase_deviation_rad.numpy()) / math.sqrt(3), rel=0.1
    )
    assert found.setup.wavelengths_m == wavelengths


def test_mismatch_is_what_gains_do_not_explain():
    rng, setup = np.random.default_rng(7), setup_of("plane")
    positions, gains = setup.array.positions_m.numpy(), random_gains(rng, 16)
    places = random_places(rng, setup, 8)
    clean = [covariance(rng, positions, gains, place) for place in places]
    # Errors of 20 % that are not the same twice.
    other = 1 + 0.2 * oracles.complex_normal(rng, 8, 16)
    changing = [covariance(rng, positions, gains * own, place) for own, place in zip(other, places, strict=True)]
    assert calibrate(clean, setup, 100, sources=torch.tensor(places)).mismatch < 0.03
    assert calibrate(changing, setup, 100, sources=torch.tensor(places)).mismatch == pytest.approx(0.2, rel=0.25)


@pytest.mark.parametrize("amplitude", [0.0, 0.1])
def test_data_of_a_setup_with_gains_are_read_through_them(amplitude):
    rng, setup = np.random.default_rng(10), setup_of("plane")
    positions, places = setup.array.positions_m.numpy(), random_places(rng, setup, 1, 2)[0]
    gains = np.exp(amplitude * rng.standard_normal(16) + 1j * rng.standard_normal(16))
    x = oracles.complex_normal(rng, 200, 2) @ oracles.steering(positions, WAVELENGTH, places)
    x = x + 0.1 * oracles.complex_normal(rng, *x.shape)
    known = setup.replace(gains=tuple(gains.tolist()))
    [clean] = Localizer.classical(setup).localize(x)
    localizer = Localizer.classical(known)
    [found] = localizer.localize(x * gains)
    tolerance = 1e-6 if amplitude == 0 else 0.05  # noise whose power differs between elements
    np.testing.assert_allclose(found.position, clean.position, rtol=tolerance, atol=tolerance)
    # Elements in another order, and gains that come with the data.
    order = rng.permutation(16)
    [turned] = localizer.localize(x[:, order] * gains[order], array=SensorArray(positions[order], WAVELENGTH))
    np.testing.assert_allclose(turned.position, found.position, rtol=1e-6)
    [brought] = Localizer.classical(setup).localize(x * gains, array=known)
    np.testing.assert_allclose(brought.position, found.position, rtol=1e-6)


def test_detection_divides_the_gains_out():
    rng, setup = np.random.default_rng(11), setup_of("plane")
    gains = random_gains(rng, 16)
    matrix = covariance(rng, setup.array.positions_m.numpy(), np.ones(16), random_places(rng, setup, 1, 2)[0])
    known = setup.replace(gains=tuple(gains.tolist()))
    [clean] = detect_sources(matrix, setup)
    [found] = detect_sources(matrix * torch.tensor(gains[:, None] * gains.conj()), known)
    np.testing.assert_allclose(found.position, clean.position, atol=1e-9)
    np.testing.assert_allclose(found.power, clean.power, rtol=1e-9)


def test_bad_input_is_named():
    setup, matrix = setup_of("line"), torch.eye(8, dtype=torch.complex128)
    place = torch.tensor([[0.1, 0.0, 1.0]])
    surface = Setup(ARRAYS["plane"])
    point = Setup(SensorArray([[0.0, 0.0, 0.0]], 0.1), setup.region, sampling="direct")
    for error, told, call in (
        (ValueError, "sampled directly", lambda: calibrate([matrix], surface, 10)),
        (ValueError, "single element", lambda: calibrate([matrix[:1, :1]], point, 10)),
        (ValueError, "at least one recording", lambda: calibrate([], setup, 10)),
        (ValueError, "snapshots", lambda: calibrate([matrix], setup, 0)),
        (ValueError, "snapshots", lambda: calibrate([matrix], setup, [10, 10])),
        (ShapeError, r"covariances\[0\]", lambda: calibrate([matrix[:4]], setup, 10)),
        (ValueError, r"covariances\[0\].*Hermitian", lambda: calibrate([matrix.tril() + matrix.roll(1, 0)], setup, 9)),
        (TypeError, r"covariances\[0\].*complex", lambda: calibrate([matrix.real], setup, 10)),
        (ValueError, "sources", lambda: calibrate([matrix, matrix], setup, 10, sources=place)),
        (ShapeError, r"sources\[0\]", lambda: calibrate([matrix], setup, 10, sources=place[:, :2])),
        (ValueError, "radians", lambda: calibrate([matrix], setup, 10, sources=place * 100)),
    ):
        with pytest.raises(error, match=told):
            call()
