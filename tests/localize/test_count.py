"""The probability of each number of sources: its integrals by brute force, whole scenes, invariances, refusals."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from risfast.errors import FileFormatError
from risfast.geometry import Region, SensorArray
from risfast.localize import Localizer, PipelineOptions
from risfast.localize.bands import likelihood_of
from risfast.localize.count import COUNT_FILE, CountModel, count_evidence, load_counts, save_counts
from risfast.localize.polish import PolishOptions, start_of
from risfast.localize.source_sets import atoms_of
from risfast.models.base import Measurement
from risfast.models.pretrained import DEFAULT_MODEL
from risfast.setup import Setup
from risfast.simulate.scenes import SystemConfig, generate_scenes

WAVELENGTH = 0.3
LINE = SensorArray(torch.tensor([[0.15 * (i - 1.5), 0.0, 0.0] for i in range(4)], dtype=torch.float64), WAVELENGTH)
AZIMUTH = (-math.pi / 3, math.pi / 3)
FIXED = Setup(LINE, Region(AZIMUTH, (0.0, 0.0), (2.0, 2.0)), sampling="direct")
POWER_RANGE = math.log(1e4)


def steering(azimuth: np.ndarray) -> np.ndarray:
    """a [..., N] of points two metres away, from the formula."""
    point = 2.0 * np.stack([np.sin(azimuth), 0 * azimuth, np.cos(azimuth)], -1)
    distance = np.linalg.norm(point[..., None, :] - LINE.positions_m.numpy(), axis=-1)
    return np.exp(2j * np.pi / WAVELENGTH * (2.0 - distance))


def brute_force(x: np.ndarray, most: int) -> list[float]:
    """log of the integral of p(x | azimuths, power, noise) over azimuths, log power and log noise, K = 0, 1, 2."""
    length, n = x.shape
    sample = x.T @ x.conj() / length
    received = np.trace(sample).real / n
    noise = np.log(received) + np.linspace(-3.0, 1.0, 21)
    power = np.log(received) + np.linspace(-4, 2, 21)
    azimuth = np.linspace(*AZIMUTH, 41)

    def log_likelihood(covariance: np.ndarray) -> np.ndarray:
        _, logdet = np.linalg.slogdet(covariance)
        fit = np.trace(np.linalg.solve(covariance, np.broadcast_to(sample, covariance.shape)), axis1=-2, axis2=-1)
        return -length * (logdet + fit.real)

    def integral(values: np.ndarray, *steps: float) -> float:
        top = values.max()
        return float(top + np.log(np.exp(values - top).sum()) + sum(map(math.log, steps)))

    d_noise, d_power, d_azimuth = noise[1] - noise[0], power[1] - power[0], 1 / 40
    eye = np.eye(n)
    results = [integral(log_likelihood(np.exp(noise)[:, None, None] * eye), d_noise)]
    a = steering(azimuth)
    outer = a[:, :, None] * a[:, None].conj()
    for k in range(1, most + 1):
        sets = outer if k == 1 else outer[:, None] + outer[None]
        sets = sets.reshape(-1, n, n)
        values = np.concatenate(
            [log_likelihood(np.exp(p) * sets[None] + np.exp(noise)[:, None, None, None] * eye).ravel() for p in power]
        )
        results.append(integral(values, d_noise, d_power, *[d_azimuth] * k) - math.log(POWER_RANGE))
    return results


def evidence_of(setup: Setup, x: torch.Tensor, powers: str = "equal", most: int = 4) -> torch.Tensor:
    measurement = Measurement.direct(x)
    atoms = atoms_of(setup)
    state, box = start_of(measurement, None, atoms, PolishOptions(max_sources=most), None)
    return count_evidence(likelihood_of(measurement, setup), state, box, atoms, powers)


@pytest.mark.parametrize("azimuths", [(), (0.2,), (-0.5, 0.4)])
def test_evidence_is_the_integral_by_brute_force(azimuths: tuple[float, ...]) -> None:
    rng = np.random.default_rng(len(azimuths))
    noise = rng.standard_normal((60, 4)) + 1j * rng.standard_normal((60, 4))
    symbols = rng.standard_normal((60, len(azimuths))) + 1j * rng.standard_normal((60, len(azimuths)))
    x = symbols @ steering(np.array(azimuths)).reshape(-1, 4) + 0.5 * noise
    expected = np.array(brute_force(x, 2))
    found = evidence_of(FIXED, torch.from_numpy(x)[None])[0, :3].numpy()
    assert int(found.argmax()) == int(expected.argmax()) == len(azimuths)
    # Where a number is likely, Laplace's integral is close; one that is not has no sharp maximum.
    gap, true_gap = found - found[len(azimuths)], expected - expected[len(azimuths)]
    for k in range(3):
        if true_gap[k] > -3:
            assert gap[k] == pytest.approx(true_gap[k], abs=1.5)
        else:
            assert gap[k] < -2.5


RING = SensorArray(
    torch.tensor(
        [[0.2 * math.cos(t), 0.2 * math.sin(t), 0.0] for t in torch.arange(10).mul(2 * math.pi / 10).tolist()],
        dtype=torch.float64,
    ),
    WAVELENGTH,
)


def test_the_number_is_found_at_another_array_with_none_one_and_several_sources() -> None:
    system = SystemConfig(
        RING, n_antennas=10, n_snapshots=60, range_m=(0.5, 2.0), snr_db=(10.0, 20.0), sampling="direct",
        n_sources=(0, 3), min_separation_rad=0.6,
    )  # fmt: skip
    scenes = generate_scenes(system, 5, range(24))
    localizer = Localizer.classical(system.setup)
    found = localizer.analyse(scenes.y.to(torch.complex128), count="equal").count_probability
    assert found is not None
    assert found.shape == (24, PolishOptions().max_sources + 1)
    torch.testing.assert_close(found.sum(1), torch.ones(24, dtype=torch.float64))
    right = found.argmax(1) == scenes.n_sources
    assert int(right.sum()) >= 22
    assert set(scenes.n_sources.tolist()) == {0, 1, 2, 3}


@pytest.fixture(scope="module")
def surface() -> tuple[SystemConfig, Localizer]:
    return SystemConfig(n_snapshots=16, snr_db=(10.0, 20.0), n_sources=(1, 3)), Localizer.from_pretrained()


def test_unequal_powers_are_counted_with_a_spread_of_their_own(surface: tuple[SystemConfig, Localizer]) -> None:
    system, localizer = surface
    scenes = generate_scenes(replace(system, gain="inverse_range", range_m=(0.5, 5.0)), 8, range(16))
    right = {}
    for powers in ("equal", "spread"):
        found = localizer.analyse(Measurement.of(scenes), count=powers).count_probability
        assert found is not None
        right[powers] = int((found.argmax(1) == scenes.n_sources).sum())
    assert right["spread"] >= 11
    assert right["spread"] >= right["equal"]


def test_probabilities_depend_on_neither_scale_nor_batch(surface: tuple[SystemConfig, Localizer]) -> None:
    system, localizer = surface
    scenes = generate_scenes(system, 9, range(4))
    whole = Measurement.of(scenes)
    found = localizer.analyse(whole, count="equal").count_probability
    assert found is not None
    alone = localizer.analyse(whole[torch.tensor([2])], count="equal").count_probability
    louder = localizer.analyse(replace(whole, y=whole.y * 1e6), count="equal").count_probability
    assert alone is not None
    assert louder is not None
    torch.testing.assert_close(alone[0], found[2], atol=1e-3, rtol=0)
    torch.testing.assert_close(louder, found, atol=1e-3, rtol=0)


def test_it_is_made_only_where_it_is_asked_for(surface: tuple[SystemConfig, Localizer]) -> None:
    system, localizer = surface
    result = localizer.analyse(Measurement.of(generate_scenes(system, 9, range(1))))
    assert result.count_probability is None
    assert "count" not in result.seconds


def test_refusals(surface: tuple[SystemConfig, Localizer]) -> None:
    system, localizer = surface
    with pytest.raises(ValueError, match="count must be one of off, equal, spread; got 'two'"):
        PipelineOptions(count="two")
    scenes = generate_scenes(system, 9, range(1))
    with pytest.raises(ValueError, match="count='equal' follows from the polish"):
        localizer.analyse(Measurement.of(scenes), count="equal", polish=False)
    stored = Localizer(localizer.backbone, localizer.setup, PipelineOptions(count="equal"))
    assert stored.analyse(Measurement.of(scenes), polish=False).count_probability is None
    bands = Setup(RING, FIXED.region, sampling="direct", wavelengths_m=(0.3, 0.2))
    x = torch.randn(1, 2, 8, 10, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="counted in one band, and the measurement is of 2"):
        Localizer.classical(bands).analyse(x, count="equal")
    assert system.n_snapshots == 16
    assert localizer.options.count == "off"


def test_where_the_array_is_off_no_number_is_weighed() -> None:
    system = SystemConfig(
        SensorArray.rectangular(6, 6), n_antennas=36, n_snapshots=200, snr_db=(25.0, 25.0), sampling="direct",
        n_sources=(1, 1),
    )  # fmt: skip
    scenes = generate_scenes(system, 3, range(2))
    rng = torch.Generator().manual_seed(1)
    gains = 1 + 0.3 * torch.randn(36, dtype=torch.complex128, generator=rng)
    result = Localizer.classical(system.setup).analyse(scenes.y.to(torch.complex128) * gains, count="equal")
    assert result.mismatch is not None
    assert result.count_probability is not None
    off = torch.tensor([bool((m > 0).any()) for m in result.mismatch])
    assert bool(off.any())
    assert torch.equal(result.count_probability.isnan().all(1), off)


def test_models_of_counts_are_kept_and_damage_is_named(tmp_path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(DEFAULT_MODEL, folder)
    (folder / COUNT_FILE).unlink()
    models = {"equal": CountModel(0.4, (1.0, 0.0, -2.0)), "spread": CountModel()}
    assert load_counts(folder) == ({}, {})
    save_counts(folder, models, {"equal": {"scenes": 3}})
    assert load_counts(folder) == (models, {"equal": {"scenes": 3}})
    evidence = torch.tensor([[0.0, 1.0, 3.0, 2.0]], dtype=torch.float64)
    expected = np.exp(0.4 * np.array([0.0, 1, 3, 2]) + [1.0, 0.0, -2.0, -2.0])
    np.testing.assert_allclose(models["equal"].probability(evidence)[0], expected / expected.sum())
    content = json.loads((folder / COUNT_FILE).read_text())
    of_equal = ({"temperature": -1}, {"temperature": "x"}, {"offsets": []}, {"offsets": [None]})
    for damage in (*({"equal": content["equal"] | one} for one in of_equal), {"weights": "0" * 64}):
        (folder / COUNT_FILE).write_text(json.dumps(content | damage))
        with pytest.raises(FileFormatError, match=COUNT_FILE):
            load_counts(folder)
    (folder / COUNT_FILE).write_text("[")
    with pytest.raises(FileFormatError, match=COUNT_FILE):
        Localizer.load(folder)


def test_near_waves_that_decay_are_one_source() -> None:
    line = SensorArray(torch.tensor([[0.07 * (i - 3.5), 0.0, 0.0] for i in range(8)], dtype=torch.float64), 0.15)
    setup = Setup(line, sampling="direct")
    rng = torch.Generator().manual_seed(2)
    point = torch.tensor([0.1, 0.0, 0.33], dtype=torch.float64)
    distance = torch.linalg.vector_norm(line.positions_m - point, dim=1)
    wave = torch.exp(-2j * math.pi / 0.15 * distance) * distance.mean() / distance
    symbols, noise = (torch.randn(6, 100, n, dtype=torch.complex128, generator=rng) for n in (1, 8))
    result = Localizer.classical(setup).analyse(symbols * wave + 10**-1.5 * noise, count="equal")
    assert result.count_probability is not None
    weighed = result.count_probability[~result.count_probability[:, 0].isnan()]
    assert len(weighed) >= 4
    assert bool((weighed.argmax(1) == 1).all())


def test_data_in_any_unit_have_the_same_powers_relative_to_theirs() -> None:
    system = SystemConfig(
        RING, n_antennas=10, n_snapshots=60, range_m=(0.5, 2.0), snr_db=(15.0, 15.0), sampling="direct",
        n_sources=(1, 1),
    )  # fmt: skip
    x = generate_scenes(system, 1, range(2)).y.to(torch.complex128)
    localizer = Localizer.classical(system.setup)
    one = localizer.analyse(x, count="equal")
    for exponent in (-20, 20):
        other = localizer.analyse(x * 2.0**exponent, count="equal")
        for first, second in zip(one.sources, other.sources, strict=True):
            torch.testing.assert_close(second.power, first.power.double() * 4.0**exponent, rtol=1e-6, atol=0)
        torch.testing.assert_close(other.factor * 2.0**-exponent, one.factor)
        torch.testing.assert_close(other.noise_power * 4.0**-exponent, one.noise_power, rtol=1e-6, atol=0)
        torch.testing.assert_close(other.count_probability, one.count_probability, rtol=0, atol=1e-6)


@pytest.mark.parametrize("snr_db", [30.0, 60.0])
def test_little_noise_is_found_and_is_no_mismatch(snr_db: float) -> None:
    system = SystemConfig(
        RING, n_antennas=10, n_snapshots=100, range_m=(0.5, 2.0), snr_db=(snr_db, snr_db), sampling="direct",
        n_sources=(1, 1),
    )  # fmt: skip
    scenes = generate_scenes(system, 4, range(6), dtype=torch.complex128)
    result = Localizer.classical(system.setup).analyse(scenes.y)
    torch.testing.assert_close(result.noise_power, scenes.noise_power.double(), rtol=0.15, atol=0)
    assert not any(bool((m > 0).any()) for m in result.mismatch)


def test_a_setup_reaches_the_far_field() -> None:
    setup = Setup(RING, sampling="direct")
    assert math.isinf(setup.region.range_m[1])
    rng = torch.Generator().manual_seed(4)
    direction = torch.tensor([math.sin(0.3) * math.cos(0.1), math.sin(0.1)], dtype=torch.float64)
    wave = torch.exp(2j * math.pi / WAVELENGTH * (RING.positions_m[:, :2] @ direction))
    symbols, noise = (torch.randn(1, 40, n, dtype=torch.complex128, generator=rng) for n in (1, 10))
    x = symbols * wave + 0.2 * noise
    found = Localizer.classical(setup).analyse(x, count="equal").count_probability
    assert found is not None
    assert int(found.argmax()) == 1
    assert bool(evidence_of(setup, x, "spread").isfinite().all())
