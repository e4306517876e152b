"""What gains, positions, reflections and spreading waves do to the answer: no more sources, and said."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch

from risfast import Localizer, Region, SensorArray, Setup
from risfast.localize.bands import likelihood_of
from risfast.localize.likelihood import Box, Likelihood, SourceState, ascend
from risfast.localize.mismatch import Signals, explained
from risfast.models.base import Measurement

LENGTH, WAVELENGTH = 200, 0.1
POSITIONS = np.stack([0.05 * (np.arange(9) - 4), np.zeros(9), np.zeros(9)], 1)
LINE = Setup(SensorArray(POSITIONS, WAVELENGTH), Region((-1.0, 1.0), (0.0, 0.0), (0.5, math.inf)), sampling="direct")
SOURCES = np.array([[-0.5, 0.0, 2.0], [0.4, 0.0, 1.0]])
LOCALIZER = Localizer.classical(LINE)


def received(rng, signatures, snr_db=20.0):
    """Snapshots (L, N) of signals of unit power with signatures (K, N), and noise."""
    signal = oracles.complex_normal(rng, LENGTH, len(signatures)) @ signatures
    noise = oracles.complex_normal(rng, *signal.shape)
    return signal + math.sqrt(len(signatures) * 10 ** (-snr_db / 10)) * noise


def bent(case, rng, sources):
    positions = POSITIONS
    if case == "positions":
        positions = POSITIONS + WAVELENGTH / 20 * rng.standard_normal(POSITIONS.shape) * [1, 0, 0]
    a = oracles.steering(positions, WAVELENGTH, sources)
    if case == "gains":
        a = a * (1 + 0.1 * rng.standard_normal(9)) * np.exp(0.1j * rng.standard_normal(9))
    if case == "reflection":
        a[0] += 0.5j * oracles.steering(POSITIONS, WAVELENGTH, np.array([[0.0, 0.0, 3.0]]))[0]
    return a


@pytest.mark.parametrize("case", ["gains", "positions", "reflection"])
@pytest.mark.parametrize("count", [1, 2])
def test_an_array_that_is_a_little_off_makes_no_more_sources(case, count):
    rng = np.random.default_rng(2)
    x = np.stack([received(rng, bent(case, rng, SOURCES[:count])) for _ in range(6)])
    found = LOCALIZER.analyse(x)
    for sources, mismatch in zip(found.sources, found.mismatch, strict=True):
        assert len(sources) == count
        np.testing.assert_allclose(sources.azimuth.sort().values, SOURCES[:count, 0], atol=0.06)
        assert float(mismatch.max()) > 1e-3
    assert "not quite point sources" in found.notes[0]
    exact = replace(LOCALIZER.options, polish=replace(LOCALIZER.options.polish, imperfect=False))
    trusting = Localizer.classical(LINE, options=exact).localize(x)
    assert sum(map(len, trusting)) > 6 * count  # what it would be otherwise


def test_a_strong_reflection_is_told_beside_the_sources():
    rng = np.random.default_rng(2)
    found = LOCALIZER.analyse(received(rng, bent("reflection", rng, SOURCES[:1])))
    [copies] = found.copies
    assert float((copies.azimuth - 0.0).abs().min()) < 0.05


def test_exact_data_are_left_as_they_are():
    rng = np.random.default_rng(3)
    x = np.stack([received(rng, oracles.steering(POSITIONS, WAVELENGTH, SOURCES), snr) for snr in (0, 10, 20, 30)])
    found = LOCALIZER.analyse(x)
    exact = replace(LOCALIZER.options, polish=replace(LOCALIZER.options.polish, imperfect=False))
    trusting = Localizer.classical(LINE, options=exact).localize(x)
    for sources, mismatch, before in zip(found.sources, found.mismatch, trusting, strict=True):
        np.testing.assert_array_equal(sources.position, before.position)
        assert float(mismatch.max()) == 0.0
    assert not any("point sources" in note for note in found.notes)
    assert all(len(c) == 0 for c in found.copies)


def test_positions_are_as_uncertain_as_the_signatures():
    """Over many arrays that are off, errors have the deviation that is reported."""
    rng = np.random.default_rng(4)
    x = np.stack([received(rng, bent("gains", rng, SOURCES[:1]), 30.0) for _ in range(60)])
    found = LOCALIZER.analyse(x)
    assert all(len(s) == 1 for s in found.sources)
    error = np.array([float(s.azimuth[0]) - SOURCES[0, 0] for s in found.sources])
    told = np.array([float(c[0, 0, 0]) ** 0.5 for c in found.position_covariance])
    assert 0.75 < np.sqrt(np.mean((error / told) ** 2)) < 1.35


def test_the_evidence_is_the_likelihood_of_the_eigenvectors_less_the_cost_of_the_signatures():
    rng = np.random.default_rng(5)
    x = received(rng, bent("gains", rng, SOURCES[:1]))
    likelihood = Likelihood(Measurement.direct(torch.as_tensor(x)[None]), LINE.array)
    position = torch.tensor([[[SOURCES[0, 0], 0.0, 1 / SOURCES[0, 2]]]], dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    state = SourceState(position, one, one[:, 0] / 100, torch.ones(1, 1, dtype=torch.bool))
    found = Signals(likelihood, price=1e9).evidence(likelihood, state)  # of no other signals
    s = x.T @ x.conj() / LENGTH
    value, vector = np.linalg.eigh(s)
    floor = value[:-1].mean()
    free = -LENGTH * (math.log(value[-1]) + 8 * math.log(floor) + 9)
    signature = vector[:, -1] * math.sqrt(value[-1] - floor)
    a = oracles.steering(POSITIONS, WAVELENGTH, SOURCES[:1])[0]
    off = np.linalg.norm(signature) ** 2 - abs(np.vdot(a, signature)) ** 2 / 9
    excess = off / 8 / (floor / LENGTH)
    assert excess > 1
    assert float(found.evidence[0]) == pytest.approx(free - 8 * (math.log(excess) + 1), rel=1e-10)
    assert float(found.mismatch[0, 0]) == pytest.approx(
        8 * (off / 8 - floor / LENGTH) / np.linalg.norm(signature) ** 2, rel=1e-8
    )


def test_waves_that_spread_are_taken_for_what_they_are():
    """Before a near source the elements at the ends hear less: exact amplitudes are one source, not several."""
    positions = np.stack([0.05 * (np.arange(16) - 7.5), np.zeros(16), np.zeros(16)], 1)
    setup = Setup(SensorArray(positions, WAVELENGTH), Region((-1.0, 1.0), (0.0, 0.0), (0.2, 5.0)), sampling="direct")
    place = np.array([[0.2, 0.0, 0.4]])
    distance = np.linalg.norm(0.4 * oracles.direction(0.2, 0.0) - positions, axis=1)
    signature = oracles.steering(positions, WAVELENGTH, place) * (0.4 / distance)
    rng = np.random.default_rng(6)
    found = Localizer.classical(setup).analyse(received(rng, signature, 30.0))
    [sources] = found.sources
    assert len(sources) == 1
    np.testing.assert_allclose(sources.position[0], place[0], atol=2e-3)
    assert float(sources.power[0]) == pytest.approx(1.0, rel=0.3)
    assert float(found.mismatch[0].max()) == 0.0  # the model is exact again


def test_the_decay_of_spreading_waves_and_its_derivatives_are_those_of_the_formula():
    rng = np.random.default_rng(7)
    x = torch.as_tensor(oracles.complex_normal(rng, 1, 5, 9))
    likelihood = Likelihood(Measurement.direct(x), LINE.array).with_spreading(torch.ones(1, dtype=torch.float64))
    position = torch.tensor([[[0.3, 0.1, 1 / 0.6], [-0.4, 0.0, 0.01]]], dtype=torch.float64)
    seen = likelihood.seen(position, derivatives=True)[0, 0].numpy()  # (N, 4, K)
    for k, (azimuth, elevation, inverse) in enumerate(position[0].numpy()):

        def response(az, el, s):
            distance = np.linalg.norm(oracles.direction(az, el) / s - POSITIONS, axis=1)
            return np.exp(2j * math.pi / WAVELENGTH * (1 / s - distance)) / (s * distance)

        at = np.array([azimuth, elevation, inverse])
        np.testing.assert_allclose(seen[:, 0, k], response(*at), rtol=1e-9)
        for axis in range(3):
            step = np.eye(3)[axis] * 1e-6
            slope = (response(*(at + step)) - response(*(at - step))) / 2e-6
            np.testing.assert_allclose(seen[:, 1 + axis, k], slope, rtol=1e-5, atol=1e-6)


def test_sources_that_explain_the_data_are_known_and_one_too_few_is_not():
    rng = np.random.default_rng(6)
    x = np.stack([received(rng, bent("exact", rng, SOURCES), 10.0) for _ in range(20)])
    measurement = Measurement.direct(torch.tensor(x))
    likelihood = likelihood_of(measurement, LINE)
    position = torch.tensor(SOURCES).expand(20, 2, 3) ** torch.tensor([1.0, 1.0, -1.0])
    noise = torch.full((20,), 0.2, dtype=torch.float64)
    box = Box.of(LINE, 1e-6 * noise, 1e-6 * noise)
    known = []
    for count in (2, 1):
        mask = (torch.arange(2) < count).expand(20, 2)
        state = SourceState(position.clone(), torch.ones(20, 2, dtype=torch.float64), noise, mask)
        known.append(int(explained(likelihood, ascend(likelihood, state, box, 20)).sum()))
    assert known[0] >= 12  # one deviation of a chi-square: five of six
    assert known[1] == 0
    silent = ascend(likelihood, replace(state, mask=torch.zeros_like(mask)), box, 20)
    assert not bool(explained(likelihood, silent).any())
