"""The statistics of the covariance fit and their gradient, against numpy and against automatic differentiation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_atoms import steering

from risfast.geometry import SensorArray
from risfast.models.atoms import AtomAxes, AtomGrid
from risfast.models.base import Measurement
from risfast.models.unrolled import UnrolledBackbone, UnrolledOptions, _factor, statistics
from risfast.simulate.scenes import SystemConfig, generate_scenes

AXES = AtomAxes(7, 5, 3)


def problem(n_snapshots, n_antennas, batch=2):
    array = SensorArray.rectangular(4, 3)
    config = SystemConfig(array=array, n_antennas=n_antennas, n_snapshots=n_snapshots)
    scenes = generate_scenes(config, 1, range(batch))
    grid = AtomGrid(config.setup, AXES)
    phi = scenes.channel[:, None] * scenes.codes[:, :, None]
    power = torch.rand(batch, *AXES.shape, generator=torch.Generator().manual_seed(0)) * 0.1
    noise = torch.linspace(0.5, 0.9, batch)
    return grid, scenes.y, phi, power, noise


def by_formula(grid, y, phi, power, noise):
    """n, d, noise numerator and denominator in complex128, differentiable."""
    a = torch.as_tensor(steering(grid.array, AXES))
    y, phi = y.to(torch.complex128), phi.to(torch.complex128)
    x = torch.einsum("bg,gn,gm->bnm", power.flatten(1).to(torch.complex128), a, a.conj())
    m = y.shape[2]
    r = phi @ x[:, None] @ phi.mH + noise[:, None, None, None] * torch.eye(m)
    inverse = torch.linalg.inv(r)
    u = inverse @ y[..., None]
    atoms = phi @ a.mT
    n = (atoms.conj() * u).sum(2).abs().square().sum(1)
    d = torch.einsum("blmg,blmk,blkg->bg", atoms.conj(), inverse, atoms).real
    traces = inverse.diagonal(dim1=-2, dim2=-1).real.sum((1, 2))
    return n.reshape(power.shape), d.reshape(power.shape), u.abs().square().sum((1, 2, 3)), traces


@pytest.mark.parametrize(("n_snapshots", "n_antennas"), [(1, 1), (5, 4), (3, 7)])
def test_values_and_gradients_match_the_formulas(n_snapshots, n_antennas):
    grid, y, phi, power, noise = problem(n_snapshots, n_antennas)
    p, s = power.clone().requires_grad_(), noise.clone().requires_grad_()
    found = statistics(p, s, y, grid.transform(phi), grid)
    p64, s64 = power.double().requires_grad_(), noise.double().requires_grad_()
    exact = by_formula(grid, y, phi, p64, s64)
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(value.shape, generator=generator) for value in found]
    for value, reference in zip(found, exact, strict=True):
        assert float((value - reference).abs().max().detach()) <= 2e-3 * float(reference.abs().max().detach())
    sum((value * w).sum() for value, w in zip(found, weights, strict=True)).backward()
    sum((value * w).sum() for value, w in zip(exact, weights, strict=True)).backward()
    for gradient, reference in ((p.grad, p64.grad), (s.grad, s64.grad)):
        assert float((gradient - reference).abs().max()) <= 4e-3 * float(reference.abs().max())


def test_statistics_do_not_depend_on_the_order_of_snapshots_or_on_the_batch():
    grid, y, phi, power, noise = problem(6, 4, batch=3)
    whole = statistics(power, noise, y, grid.transform(phi), grid)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    other = statistics(power, noise, y[:, order], grid.transform(phi[:, order]), grid)
    one = statistics(power[1:2], noise[1:2], y[1:2], grid.transform(phi[1:2]), grid)
    for a, b, c in zip(whole, other, one, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(a.abs().max()))
        torch.testing.assert_close(a[1:2], c, rtol=1e-4, atol=1e-5 * float(a.abs().max()))


def test_the_classical_step_never_lowers_the_likelihood():
    grid, y, phi, power, noise = problem(8, 4)
    a = steering(grid.array, AXES)

    def log_likelihood(p):
        total = 0.0
        for b in range(len(p)):
            x = np.einsum("g,gn,gm->nm", p[b].flatten().double().numpy(), a, a.conj())
            for snapshot in range(y.shape[1]):
                operator = phi[b, snapshot].numpy().astype(np.complex128)
                r = operator @ x @ operator.conj().T + float(noise[b]) * np.eye(y.shape[2])
                seen = y[b, snapshot].numpy().astype(np.complex128)
                total -= np.linalg.slogdet(r)[1] + (seen.conj() @ np.linalg.solve(r, seen)).real
        return total

    before = log_likelihood(power)
    for _ in range(3):
        s = statistics(power, noise, y, grid.transform(phi), grid)
        power = power * (s.numerator / s.denominator).clamp_min(0).sqrt()
        after = log_likelihood(power)
        assert after > before
        before = after


def test_a_covariance_that_rounding_made_indefinite_is_loaded_and_only_that_one():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, 4, 4, dtype=torch.complex64, generator=generator)
    r = x @ x.mH + torch.eye(4)
    r[0, 1] = torch.diag(torch.tensor([1.0, 1.0, 1.0, -1e-3])).to(torch.complex64)
    factor = _factor(r)
    torch.testing.assert_close(factor[0, [0, 2]], torch.linalg.cholesky(r[0, [0, 2]]))
    assert torch.isfinite(torch.view_as_real(factor)).all()
    mended = (factor[0, 1] @ factor[0, 1].mH - r[0, 1]).diagonal().real
    assert float(mended.min()) > 1e-3
    assert float(mended.max()) < 0.03
    # However far below zero: by what its own eigenvalue says, and no more.
    far = torch.diag(torch.tensor([1.0, -5.0])).to(torch.complex64)[None, None]
    torch.testing.assert_close(_factor(far)[0, 0] @ _factor(far)[0, 0].mH, far[0, 0] + 10 * torch.eye(2))
    # What came in from outside is not hidden, and stays where it is.
    r[0, 2, 0, 0] = torch.nan
    outside = torch.isnan(torch.view_as_real(_factor(r))).flatten(2).any(-1)
    assert outside.tolist() == [[False, False, True]]


def test_many_steps_on_a_clean_scene_stay_finite():
    array = SensorArray.rectangular(6, 6)
    config = SystemConfig(array=array, n_antennas=4, n_snapshots=8, snr_db=(60.0, 60.0), n_sources=(1, 1))
    scenes = generate_scenes(config, 3, range(4))
    fit = UnrolledBackbone(config.setup, UnrolledOptions(steps=40, corrections=False, axes=AtomAxes(15, 9, 6)))
    with torch.no_grad():
        estimate = fit(Measurement.of(scenes, noise_known=True))
    assert torch.isfinite(estimate.power).all()
