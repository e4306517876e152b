"""Arrays that are sampled directly: snapshots or a covariance of them, coloured noise, few snapshots, many elements."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch

from risfast.errors import ShapeError
from risfast.geometry import Region, SensorArray
from risfast.localize import Localizer
from risfast.localize.polish import polish_sources
from risfast.models import Measurement
from risfast.models.direct import SteeredAtoms, condensed
from risfast.setup import Setup

SPIRAL = SensorArray(
    torch.tensor(
        [
            [0.3 * math.sqrt(n / 24) * math.cos(2.4 * n), 0.3 * math.sqrt(n / 24) * math.sin(2.4 * n), 0.0]
            for n in range(24)
        ],
        dtype=torch.float64,
    ),
    0.1,
)
SETUP = Setup(SPIRAL, Region((-0.8, 0.8), (-0.5, 0.5), (0.3, 3.0)), sampling="direct")
TRUE = np.array([(0.3, 0.1, 0.9), (-0.4, -0.2, 0.6)])


def snapshots(length, *, scenes=1, seed=0, noise=0.1, powers=(1.0, 0.5)):
    """Fields (scenes, L, N) of two sources, and noise of one power or one for each element."""
    rng = np.random.default_rng(seed)
    a = oracles.steering(SPIRAL.positions_m.numpy(), SPIRAL.wavelength_m, TRUE)
    x = (oracles.complex_normal(rng, scenes, length, 2) * np.sqrt(powers)) @ a
    return x + np.sqrt(noise) * oracles.complex_normal(rng, *x.shape)


def covariance_of(x):
    return x.swapaxes(1, 2) @ x.conj() / x.shape[1]


@pytest.fixture(scope="module")
def localizer():
    return Localizer.classical(SETUP)


def assert_found(sources, true=TRUE):
    assert len(sources) == len(true), sources
    for place in true:
        gap = np.abs(sources.position.numpy() - place)
        assert (gap < (0.03, 0.03, 0.15)).all(1).sum() == 1, sources


@pytest.mark.parametrize("length", [3, 12, 24, 300])
def test_two_sources_are_found_from_few_and_from_many_snapshots(localizer, length):
    result = localizer.analyse(snapshots(length, scenes=2))
    for sources, covariance in zip(result.sources, result.position_covariance, strict=True):
        assert_found(sources)
        assert (torch.linalg.eigvalsh(covariance) > 0).all()
        assert bool((sources.confidence > 0.9).all())
    assert result.noise_power.numpy() == pytest.approx(0.1, rel=0.25)


def test_one_snapshot_holds_one_source(localizer):
    [sources] = localizer.localize(snapshots(1, powers=(1.0, 0.0), noise=0.01))
    assert_found(sources, TRUE[:1])


def test_a_covariance_says_what_its_snapshots_say(localizer):
    for length in (12, 60):
        x = snapshots(length, scenes=2)
        whole = localizer.localize(x)
        for one, other in zip(localizer.localize(covariance_of(x), snapshots=length), whole, strict=True):
            np.testing.assert_allclose(one.position, other.position, rtol=1e-4)
            np.testing.assert_allclose(one.power, other.power, rtol=1e-4)
        [single] = localizer.localize(covariance_of(x)[0].astype(np.complex64), snapshots=length)
        np.testing.assert_allclose(single.position, whole[0].position, rtol=1e-3)


def test_what_is_no_covariance_is_refused(localizer):
    x = snapshots(30)
    with pytest.raises(ShapeError, match="must be a covariance of shape"):
        localizer.localize(x, snapshots=30)
    with pytest.raises(ValueError, match="not Hermitian"):
        localizer.localize(covariance_of(x) * 1j, snapshots=30)
    with pytest.raises(ValueError, match="not positive semi-definite"):
        localizer.localize(covariance_of(x) - 10 * np.eye(24), snapshots=30)
    for wrong in (0, True, math.inf, math.nan, [5, 5]):
        with pytest.raises(ValueError, match="snapshots must be a number"):
            localizer.localize(covariance_of(x), snapshots=wrong)


def test_strong_noise_of_some_channels_is_no_source_where_it_is_told(localizer):
    noise = np.where(np.arange(24) % 6 == 0, 20.0, 0.05)
    x = snapshots(200, noise=noise)
    for told in (noise, 7 * np.diag(noise), np.diag(noise)[None]):
        [sources] = localizer.localize(x, noise_covariance=told)
        assert_found(sources)
    exact = replace(localizer.options, polish=replace(localizer.options.polish, imperfect=False), channels="all")
    [blind] = Localizer.classical(localizer.setup, options=exact).localize(x)
    assert len(blind) > 2


@pytest.mark.parametrize("wrong", [np.ones(23), np.ones((2, 24, 24))])
def test_the_shape_of_a_noise_covariance_is_checked(localizer, wrong):
    with pytest.raises(ShapeError, match="noise_covariance"):
        localizer.localize(snapshots(30), noise_covariance=wrong)


def test_a_noise_covariance_must_be_definite_and_is_of_direct_sampling(localizer):
    x = snapshots(30)
    with pytest.raises(ValueError, match="positive definite"):
        localizer.localize(x, noise_covariance=np.arange(24.0))
    surface = Localizer.classical(SETUP.replace(sampling="surface"))
    with pytest.raises(ValueError, match="sampled directly"):
        surface.localize(x, np.ones_like(x), np.eye(24, dtype=complex)[None], noise_covariance=np.ones(24))


def test_scaling_the_snapshots_scales_the_powers_alone(localizer):
    x = snapshots(50)
    [one], [other] = localizer.localize(x), localizer.localize(1e-6 * x)
    np.testing.assert_allclose(one.position, other.position, rtol=1e-6)
    np.testing.assert_allclose(1e-12 * one.power, other.power, rtol=1e-6)


def test_the_order_of_snapshots_and_unitary_mixtures_of_them_change_nothing(localizer):
    x = snapshots(40)
    mixing = np.linalg.qr(oracles.complex_normal(np.random.default_rng(1), 40, 40))[0]
    [one], [other] = localizer.localize(x), localizer.localize(mixing @ x)
    np.testing.assert_allclose(one.position, other.position, rtol=1e-4)  # steps end before the last digit


def test_noise_alone_has_no_source(localizer):
    found = localizer.localize(snapshots(60, scenes=12, powers=(0.0, 0.0)))
    assert sum(map(len, found)) == 0


def test_five_hundred_elements():
    rng = np.random.default_rng(0)
    places = torch.as_tensor(np.column_stack([rng.uniform(-0.5, 0.5, (512, 2)), np.zeros(512)]))
    array = SensorArray(places, 0.1)
    setup = Setup(array, Region((0.2, 0.4), (0.0, 0.2), (0.5, 3.0)), sampling="direct")
    a = oracles.steering(array.positions_m.numpy(), array.wavelength_m, TRUE[:1])
    x = oracles.complex_normal(rng, 1, 20, 1) @ a + oracles.complex_normal(rng, 1, 20, 512)
    [sources] = Localizer.classical(setup).localize(x)
    assert_found(sources, TRUE[:1])


def test_the_power_of_atoms_is_the_formula():
    atoms = SteeredAtoms(SETUP)
    w = torch.as_tensor(oracles.complex_normal(np.random.default_rng(2), 2, 24, 3))
    points = atoms.positions.flatten(0, 2).numpy()
    a = oracles.steering(SPIRAL.positions_m.numpy(), SPIRAL.wavelength_m, points)
    exact = (np.abs(a.conj() @ w.numpy()) ** 2).sum(2)
    np.testing.assert_allclose(atoms.power(w), exact, rtol=1e-4, atol=1e-4 * exact.max())


def test_condensed_keeps_the_trace_and_what_stands_out():
    x = torch.as_tensor(snapshots(60)).mT
    lead = condensed(x, 6)
    whole = (lead.basis * lead.value[:, None]) @ lead.basis.mH + lead.floor[:, None, None] * torch.eye(24)
    assert float((whole - x @ x.mH).diagonal(dim1=1, dim2=2).sum(1).abs()) < 1e-9
    strongest = torch.linalg.eigvalsh(x @ x.mH)[0, -2:]
    np.testing.assert_allclose(torch.linalg.eigvalsh(whole)[0, -2:], strongest, rtol=1e-6)


def test_rows_one_by_one_have_the_same_products_and_count():
    pooled = Measurement.direct(torch.as_tensor(snapshots(60)))
    rows = pooled.one_by_one()
    assert rows.y.shape == rows.codes.shape == (1, 60, 24)
    np.testing.assert_allclose(rows.y.mT @ rows.y.conj(), pooled.y.mT @ pooled.y.conj())


def test_the_polish_takes_pooled_snapshots():
    x = torch.as_tensor(snapshots(30))
    raw = Measurement(x, torch.ones_like(x), torch.eye(24, dtype=x.dtype)[None])
    with pytest.raises(ValueError, match="pooled"):
        polish_sources(raw, None, SteeredAtoms(SETUP))
    [sources] = Localizer.classical(SETUP).localize(raw)  # which sees that they are of the elements
    assert_found(sources)


@pytest.mark.parametrize("wrong", [-np.eye(24), np.eye(24) + np.triu(np.ones((24, 24)), 1)])
def test_a_noise_covariance_that_is_none_is_refused(localizer, wrong):
    with pytest.raises(ValueError, match="noise_covariance must be"):
        localizer.localize(snapshots(30), noise_covariance=wrong)
