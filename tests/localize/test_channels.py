"""Faulty channels, found in covariances that numpy simulates, and left out by the localizer."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import oracles
import pytest
import torch
from scipy import special

from risfast.errors import ShapeError
from risfast.geometry import Region, SensorArray
from risfast.localize import Localizer, PipelineOptions
from risfast.localize.channels import _likely_db as likely_db
from risfast.localize.channels import faulty_channels, of_channels, suspected
from risfast.localize.likelihood import Likelihood, SourceState
from risfast.models import Measurement
from risfast.models.direct import SteeredAtoms
from risfast.setup import Setup

TURN = np.arange(64) * math.pi * (3 - math.sqrt(5))
RADIUS = 0.5 * np.sqrt((np.arange(64) + 0.5) / 64)
ARRAYS = {
    "line": SensorArray.linear(9, 0.05, 0.1),
    "ring": SensorArray.circular(8, 0.08, 0.1),
    "spiral": SensorArray(torch.tensor(np.c_[RADIUS * np.cos(TURN), RADIUS * np.sin(TURN), 0 * TURN]), 0.0858),
}
SETUPS = {name: Setup(array, sampling="direct") for name, array in ARRAYS.items()}
ATOMS = {name: SteeredAtoms(setup) for name, setup in SETUPS.items()}


def fields(rng, setup, sources, snapshots):
    """Of sources at random places, (L, N), of unit power, and where they are."""
    region, shape = setup.region, sources
    azimuth, elevation = (0.9 * rng.uniform(*ends, shape) for ends in (region.azimuth_rad, region.elevation_rad))
    places = np.stack([azimuth, elevation, rng.uniform(0.5, 5, shape)], -1)
    a = oracles.steering(setup.array.positions_m.numpy(), setup.array.wavelength_m, places)
    return oracles.complex_normal(rng, snapshots, sources) @ a / math.sqrt(sources), places


def noisy(rng, x, snr_db):
    return x + 10 ** (-snr_db / 20) * oracles.complex_normal(rng, *x.shape)


def covariance_of(x):
    return torch.tensor(x.T @ x.conj() / len(x))


def turning(rng, x, channels):
    x[:, channels] *= np.exp(2j * np.pi * rng.uniform(size=(len(x), len(channels))))


def drifting(rng, x, channels):
    cycles = 3 * rng.uniform(0.5, 1.5, len(channels)) * np.linspace(0, 1, len(x))[:, None]
    x[:, channels] *= np.exp(2j * np.pi * (cycles + rng.uniform(size=len(channels))))


def turning_together(rng, x, channels):
    x[:, channels] *= np.exp(2j * np.pi * rng.uniform(size=(len(x), 1)))


def dead(rng, x, channels):
    x[:, channels] = 0


def loud(rng, x, channels):
    x[:, channels] *= 15


def exchanged(rng, x, channels):
    x[:, channels] = x[:, channels[::-1]]


FAULTS = {
    turning: (3, "not phase-locked"),
    drifting: (3, "not phase-locked"),
    turning_together: (3, "not phase-locked"),
    dead: (1, "below|dead"),
    loud: (1, "above"),
    exchanged: (2, "exchanged"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_a_recording_without_a_fault_has_none(name):
    """None in 12 000 of these; one here would be chance."""
    rng, setup, wrong = np.random.default_rng(1), SETUPS[name], 0
    for _ in range(150):
        sources, snapshots = int(rng.integers(1, 5)), int(rng.choice([20, 50, 100, 200]))
        x, _ = fields(rng, setup, sources, snapshots)
        matrix = covariance_of(noisy(rng, x, rng.uniform(0, 20)))
        wrong += bool(faulty_channels(matrix, snapshots, setup, ATOMS[name]))
    assert wrong <= 1


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_faults_are_found_and_named(name, fault):
    rng, setup, found = np.random.default_rng(2), SETUPS[name], 0
    count, reason = FAULTS[fault]
    for _ in range(20):
        x, _ = fields(rng, setup, 1, 200)
        channels = rng.permutation(setup.array.n_elements)[:count]
        fault(rng, x, channels)
        told = faulty_channels(covariance_of(noisy(rng, x, 20)), 200, setup, ATOMS[name])
        assert all(any(word in each.reason for word in reason.split("|")) for each in told if each.channel in channels)
        found += {each.channel for each in told} == set(channels.tolist())
    # An exchange of elements where the wave has nearly the same phase, or that another place explains, does no harm.
    assert found >= (16 if fault is exchanged else 19)


def test_noise_alone_and_silence_and_few_channels():
    rng, setup = np.random.default_rng(3), SETUPS["line"]
    noise = oracles.complex_normal(rng, 50, 9)
    assert faulty_channels(covariance_of(noise), 50, setup) == []
    assert faulty_channels(covariance_of(noise[:1]), 1, setup) == []
    noise[:, 4] = 0
    [silent] = faulty_channels(covariance_of(noise), 50, setup)
    assert silent == (4, "no power")
    pair = Setup(SensorArray.linear(2, 0.05, 0.1), sampling="direct")
    assert faulty_channels(covariance_of(noise[:, :2]), 50, pair) == []
    with pytest.raises(ShapeError, match="covariance must have shape"):
        faulty_channels(torch.eye(3), 10, setup)


def test_gains_that_are_known_are_no_fault():
    rng, setup = np.random.default_rng(4), SETUPS["line"]
    x, _ = fields(rng, setup, 1, 200)
    gains = np.ones(9, dtype=complex)
    gains[2], gains[5] = 30, 1j
    matrix = covariance_of(noisy(rng, x, 20) * gains)
    assert [each.channel for each in faulty_channels(matrix, 200, setup)] == [2]
    assert faulty_channels(matrix, 200, setup.replace(gains=tuple(gains.tolist()))) == []


def test_a_band_alone_does_not_decide():
    rng = np.random.default_rng(5)
    setup = Setup(ARRAYS["line"], sampling="direct", wavelengths_m=(0.1, 0.11, 0.12))
    x, places = fields(rng, SETUPS["line"], 1, 200)
    matrices = []
    for wavelength in setup.wavelengths_m:
        a = oracles.steering(setup.array.positions_m.numpy(), wavelength, places)
        x = oracles.complex_normal(rng, 200, 1) @ a
        turning(rng, x, [3, 7])
        matrices.append(covariance_of(noisy(rng, x, 20)))
    assert [each.channel for each in faulty_channels(torch.stack(matrices), 200, setup)] == [3, 7]


def test_part_of_a_measurement_is_that_of_its_channels():
    rng, setup = np.random.default_rng(6), SETUPS["line"]
    x, places = fields(rng, setup, 1, 30)
    x = torch.tensor(noisy(rng, x, 10))
    gains = torch.tensor(np.exp(0.3 * rng.standard_normal(9) + 1j * rng.standard_normal(9)))
    noise = torch.tensor(oracles.wishart(rng, 9, 40))
    whitening = torch.linalg.inv(torch.linalg.cholesky(noise))
    used = torch.tensor([0, 2, 3, 6, 8])
    part = of_channels(Measurement.direct((x * gains)[None], whitening=whitening[None]).with_gains(gains), used)
    array = SensorArray(setup.array.positions_m[used], setup.array.wavelength_m)
    position = torch.tensor(places)[None] * torch.tensor([1.0, 1.0, 0.0]) + torch.tensor([0.0, 0.0, 1 / places[0, 2]])
    one = torch.ones(1, 1, dtype=torch.float64)
    state = SourceState(position, 2 * one, 0.3 * one[0], one.bool())
    value = float(Likelihood(part, array).value(state))
    a = oracles.steering(array.positions_m.numpy(), setup.array.wavelength_m, places)[0]
    covariance = 2 * np.outer(a, a.conj()) + 0.3 * (noise / gains[:, None] / gains.conj())[used][:, used].numpy()
    fields_used = x[:, used].numpy()
    expected = -sum(np.real(np.vdot(row, np.linalg.solve(covariance, row))) for row in fields_used)
    expected -= len(fields_used) * np.linalg.slogdet(covariance)[1]
    # White noise of power one stands for the covariance of the noise of these channels.
    own = (noise / gains[:, None] / gains.conj())[used][:, used].numpy()
    expected += len(fields_used) * np.linalg.slogdet(own)[1]
    assert value == pytest.approx(expected, rel=1e-9)


def test_the_localizer_does_without_faulty_channels():
    rng = np.random.default_rng(7)
    setup = SETUPS["line"].replace(region=Region((-1.2, 1.2), (0.0, 0.0), (0.3, math.inf)))
    localizer = Localizer.classical(setup)
    scenes, places = [], []
    for fault, channels in ((None, []), (turning, [1, 4, 8]), (dead, [6]), (turning, [1, 4, 8])):
        x, place = fields(rng, setup, 1, 200)
        if fault is not None:
            fault(rng, x, channels)
        scenes.append(noisy(rng, x, 20))
        places.append(place[0])
    result = localizer.analyse(np.stack(scenes))
    for sources, place in zip(result.sources, places, strict=True):
        assert len(sources) == 1
        assert abs(float(sources.azimuth[0]) - place[0]) < 0.02
    said = [note.split(" is left out")[0] for note in result.notes if "is left out" in note]
    assert said == [f"scene {s}: channel {c}" for s, c in ((1, 1), (1, 4), (1, 8), (2, 6), (3, 1), (3, 4), (3, 8))]
    assert result.factor.shape[:2] == (4, 9)
    assert bool((result.factor[1, [1, 4, 8]] == 0).all())
    assert result.noise_power.shape == (4,)
    # Indices are those of the data, whatever order the model has; alone, the rest says the same.
    order = rng.permutation(9)
    turned = localizer.analyse(
        scenes[1][:, order], array=SensorArray(setup.array.positions_m[torch.tensor(order)], setup.array.wavelength_m)
    )
    assert {int(n.split()[1]) for n in turned.notes if "left out" in n} == {
        int(np.argmax(order == c)) for c in (1, 4, 8)
    }
    np.testing.assert_allclose(turned.sources[0].position, result.sources[1].position, rtol=1e-6)
    every = Localizer.classical(setup, options=PipelineOptions(channels="all")).analyse(scenes[1])
    assert not any("left out" in note for note in every.notes)


def test_too_many_faulty_channels_are_said_and_taken():
    rng = np.random.default_rng(8)
    setup = SETUPS["ring"]
    x, _ = fields(rng, setup, 1, 100)
    x[:, :6] = 0
    result = Localizer.classical(setup).analyse(x + 1e-3 * oracles.complex_normal(rng, *x.shape) * (np.arange(8) > 5))
    assert "6 of 8 channels look faulty, too many to do without: all are used" in result.notes[0]
    assert "channels 0, 1, 2, 3, 4, 5; no power" in result.notes[0]
    assert not any("left out" in note for note in result.notes)


@pytest.mark.parametrize("dead_ones", [5, 6])
def test_where_most_channels_are_dead_they_are_the_faulty_ones(dead_ones):
    rng, setup = np.random.default_rng(9), SETUPS["line"]
    for _ in range(20):
        x, _ = fields(rng, setup, 1, 100)
        channels = rng.permutation(9)[:dead_ones]
        x[:, channels] = 0.01 * oracles.complex_normal(rng, 100, dead_ones)
        told = faulty_channels(covariance_of(x), 100, setup)
        assert {each.channel for each in told} == set(channels.tolist())
        assert all("below" in each.reason for each in told)
    # A few loud ones with a hum of their own are no reason to do without those that hear the source.
    x, _ = fields(rng, setup, 1, 100)
    x = noisy(rng, x, 10)
    x[:, :3] += 30 * oracles.complex_normal(rng, 100, 1)
    assert {each.channel for each in faulty_channels(covariance_of(x), 100, setup)} == {0, 1, 2}


@pytest.mark.parametrize("name", ARRAYS)
def test_a_recording_that_is_not_suspected_has_no_fault(name):
    rng, setup = np.random.default_rng(10), SETUPS[name]
    matrices, faulty = [], []
    for number in range(40):
        x, _ = fields(rng, setup, 1 + number % 3, 100)
        fault = [None, *FAULTS][number % (len(FAULTS) + 1)]
        if fault is not None:
            fault(rng, x, rng.permutation(setup.array.n_elements)[: FAULTS[fault][0]])
        matrices.append(covariance_of(noisy(rng, x, 15)))
        faulty.append(bool(faulty_channels(matrices[-1], 100, setup, ATOMS[name])))
    told = suspected(torch.stack(matrices)[:, None], 100)
    assert not bool((torch.tensor(faulty) & ~told).any())
    assert sum(faulty) > 15
    many = [covariance_of(noisy(rng, fields(rng, SETUPS["spiral"], 3, 100)[0], 15)) for _ in range(20)]
    assert int(suspected(torch.stack(many)[:, None], 100).sum()) <= 2


@pytest.mark.parametrize("snapshots", [31.0, 32.0, 200.0])
def test_many_snapshots_leave_no_channel_of_noise_20_db_off(snapshots):
    """Where the distribution of the power is not looked up, it says the same."""
    for n in (4, 4096):
        low, high = (
            inverse(snapshots, 1e-4 / n) / snapshots for inverse in (special.gammaincinv, special.gammainccinv)
        )
        assert low > 0.01
        assert high < 100
        assert likely_db(n, snapshots) == (-20.0, 20.0)
    assert likely_db(8, 1.0)[0] < -40


def test_the_first_scene_waits_for_no_module_that_it_does_not_need():
    """The import of these takes seconds."""
    code = (
        "import sys, torch; from risfast import Localizer, SensorArray, Setup; "
        "setup = Setup(SensorArray.linear(4, 0.05, 0.1), sampling='direct'); "
        "Localizer.classical(setup).localize(torch.randn(50, 4, dtype=torch.complex64)); "
        "print([name for name in ('sympy', 'scipy.special') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_channels_is_an_option_of_two_values():
    with pytest.raises(ValueError, match="channels must be 'check' or 'all'"):
        PipelineOptions(channels="some")


def test_a_short_line_with_two_sources_and_a_single_snapshot_lose_no_channel():
    """Every other element of a short line may hear two sources alike, and one snapshot fits any exchange."""
    setup = Setup(SensorArray.linear(5, 0.05, 0.1), sampling="direct")
    rng = np.random.default_rng(7)
    place = np.radians([-30.8, 29.4])
    a = oracles.steering(setup.array.positions_m.numpy(), 0.1, np.c_[place, 0 * place, 1e9 + 0 * place])
    for _ in range(40):
        x = noisy(rng, oracles.complex_normal(rng, 200, 2) @ a / math.sqrt(2), 20)
        assert not faulty_channels(covariance_of(x), 200, setup)
        one = noisy(rng, oracles.complex_normal(rng, 1, 1) @ a[:1], 20)
        assert not faulty_channels(covariance_of(one), 1, setup)
