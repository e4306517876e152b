"""The likelihood of pooled snapshots: that of the same snapshots one by one, and the formula of their covariance."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch

from risfast.geometry import SensorArray
from risfast.localize.likelihood import Likelihood, SourceState
from risfast.models.base import Measurement

ARRAY = SensorArray.rectangular(3, 2)
N = ARRAY.n_elements


def snapshots(length, scenes=2, seed=0):
    return torch.as_tensor(oracles.complex_normal(np.random.default_rng(seed), scenes, length, N))


def one_by_one(x):
    """The same snapshots through a surface that changes nothing."""
    return Measurement(x, torch.ones_like(x), torch.eye(N, dtype=x.dtype).expand(len(x), N, N))


def state(scenes=2):
    generator = torch.Generator().manual_seed(1)
    position = torch.rand(scenes, 2, 3, dtype=torch.float64, generator=generator) - 0.5
    position[..., 2] = 0.3 + torch.rand(scenes, 2, dtype=torch.float64, generator=generator)
    power, noise = torch.rand(scenes, 2, dtype=torch.float64) + 0.5, torch.rand(scenes, dtype=torch.float64) + 0.5
    return SourceState(position, power, noise, torch.tensor([[True, True], [False, True]])[:scenes])


@pytest.mark.parametrize("length", [1, 4, N, 23])
def test_pooled_snapshots_say_the_same_as_the_snapshots_one_by_one(length):
    x, at = snapshots(length), state()
    pooled = Measurement.direct(x)
    assert pooled.y.shape[1] == min(length, N)
    few, all_of_them = (Likelihood(m, ARRAY) for m in (pooled, one_by_one(x)))
    assert few.size == all_of_them.size == length * N
    np.testing.assert_allclose(few.value(at), all_of_them.value(at), rtol=1e-12)
    np.testing.assert_allclose(few.losses(at), all_of_them.losses(at), rtol=1e-11)
    for name in ("value", "gradient", "information"):
        one, other = (getattr(likelihood.derivatives(at), name).numpy() for likelihood in (few, all_of_them))
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10)
    path = at.position[:, :1].expand(-1, 5, -1) * torch.linspace(0.5, 1.5, 5)[:, None]
    for one, other in zip(few.profile(at, path), all_of_them.profile(at, path), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(pooled.received, one_by_one(x).received, rtol=1e-13)


@pytest.mark.parametrize("length", [1, 23])
def test_the_value_is_the_formula_of_the_sample_covariance(length):
    x, at = snapshots(length), state()
    values = Likelihood(Measurement.direct(x), ARRAY).value(at)
    for b in range(2):
        there = at.mask[b].numpy()
        position = at.position[b].numpy()[there]
        points = np.column_stack([position[:, :2], 1 / position[:, 2]])
        a = oracles.steering(ARRAY.positions_m.numpy(), ARRAY.wavelength_m, points).T
        r = (a * at.power[b].numpy()[there]) @ a.conj().T + float(at.noise[b]) * np.eye(N)
        s = np.einsum("lm,ln->mn", x[b].numpy(), x[b].numpy().conj()) / length
        exact = -length * (np.linalg.slogdet(r)[1] + np.trace(np.linalg.solve(r, s)).real)
        assert float(values[b]) == pytest.approx(exact, rel=1e-12)


def test_whitened_snapshots_have_the_likelihood_of_their_coloured_noise():
    x, at = snapshots(9, scenes=1), state(1)
    mixing = torch.as_tensor(oracles.complex_normal(np.random.default_rng(5), N, N))
    coloured = mixing @ mixing.mH + torch.eye(N)
    factor = torch.linalg.cholesky(coloured)
    whitening = torch.linalg.inv(factor)[None]
    value = float(Likelihood(Measurement.direct(x, whitening=whitening), ARRAY).value(at))
    position = at.position[0].numpy()
    a = oracles.steering(
        ARRAY.positions_m.numpy(), ARRAY.wavelength_m, np.column_stack([position[:, :2], 1 / position[:, 2]])
    ).T
    r = (a * at.power[0].numpy()) @ a.conj().T + float(at.noise[0]) * coloured.numpy()
    s = np.einsum("lm,ln->mn", x[0].numpy(), x[0].numpy().conj())
    exact = -9 * np.linalg.slogdet(r)[1] - np.trace(np.linalg.solve(r, s)).real
    # The change of variables costs log |det W|^2 a snapshot.
    assert value == pytest.approx(exact + 9 * np.linalg.slogdet(coloured.numpy())[1], rel=1e-11)


def test_the_cost_does_not_depend_on_how_many_snapshots_there_are():
    assert Measurement.direct(snapshots(500)).y.shape == Measurement.direct(snapshots(50)).y.shape == (2, N, N)
