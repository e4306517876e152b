"""The default backbone: untrained it is the classical fit; its invariances; what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from test_atoms import steering

from risfast.errors import ShapeError
from risfast.geometry import SensorArray
from risfast.models import Measurement, build_backbone
from risfast.models.atoms import AtomAxes
from risfast.models.unrolled import UnrolledBackbone, UnrolledOptions
from risfast.setup import Setup
from risfast.simulate.scenes import SystemConfig, generate_scenes

AXES = AtomAxes(7, 5, 3)
ARRAY = SensorArray.rectangular(4, 3)
SETUP = SystemConfig(array=ARRAY).setup
SMALL = UnrolledOptions(steps=3, width=4, head_width=5, range_cells=2, columns=20, axes=AXES)


def scenes_of(n_snapshots=6, batch=3, n_antennas=4, seed=1):
    config = SystemConfig(array=ARRAY, n_antennas=n_antennas, n_snapshots=n_snapshots, n_sources=(1, 2))
    return generate_scenes(config, seed, range(batch))


def backbone(options=SMALL, trained=False):
    torch.manual_seed(0)
    module = UnrolledBackbone(SETUP, options)
    if trained:  # no parameter at its special starting value
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


def classical_fit(scenes, steps, noise):
    """The majorise-minimise iteration in float64 numpy, scene by scene; noise [B] or None to estimate it."""
    a = steering(ARRAY, AXES)
    m, count = scenes.y.shape[2], scenes.y.shape[1]
    powers, noises = [], []
    for b in range(len(scenes)):
        y = scenes.y[b].numpy().astype(np.complex128)
        phi = (scenes.channel[b] * scenes.codes[b][:, None]).numpy().astype(np.complex128)
        unit, gain = np.mean(np.abs(y) ** 2), np.mean(np.abs(phi) ** 2) * a.shape[1]
        y, phi = y / math.sqrt(unit), phi / math.sqrt(gain)
        atoms = np.einsum("lmn,gn->lgm", phi, a)
        matched = np.abs(np.einsum("lgm,lm->lg", atoms.conj(), y)) ** 2
        own = np.sum(np.abs(atoms) ** 2, (0, 2))
        p = matched.sum(0) / own**2
        s = 0.3 if noise is None else float(noise[b]) / unit
        p *= (1 - s) / (np.sum(p * own) / (count * m))
        for _ in range(steps):
            numerator, denominator, u2, trace = np.zeros(len(p)), np.zeros(len(p)), 0.0, 0.0
            for snapshot in range(count):
                r = (atoms[snapshot].T * p) @ atoms[snapshot].conj() + s * np.eye(m)
                inverse = np.linalg.inv(r)
                u = inverse @ y[snapshot]
                numerator += np.abs(atoms[snapshot].conj() @ u) ** 2
                denominator += np.einsum("gm,mk,gk->g", atoms[snapshot].conj(), inverse, atoms[snapshot]).real
                u2 += np.sum(np.abs(u) ** 2)
                trace += np.trace(inverse).real
            p = p * np.sqrt(numerator / denominator)
            s = s if noise is not None else s * math.sqrt(u2 / trace)
        powers.append(p.reshape(AXES.shape) * unit / gain)
        noises.append(s * unit)
    return np.array(powers), np.array(noises)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("corrections", [True, False])
def test_untrained_it_is_the_classical_fit(known, corrections):
    scenes = scenes_of()
    module = backbone(UnrolledOptions(**{**SMALL.__dict__, "corrections": corrections}))
    with torch.no_grad():
        estimate = module(Measurement.of(scenes, noise_known=known))
    power, noise = classical_fit(scenes, 3, scenes.noise_power if known else None)
    assert np.abs(estimate.power.numpy() - power).max() <= 1e-2 * power.max()
    np.testing.assert_allclose(estimate.noise_power.numpy(), noise, rtol=1e-2)


def test_the_factor_is_the_strongest_atoms_on_the_manifold():
    scenes = scenes_of()
    module = backbone()
    with torch.no_grad():
        estimate = module(Measurement.of(scenes, noise_known=True))
    a = steering(ARRAY, AXES)
    for b in range(len(scenes)):
        p = estimate.power[b].flatten().double().numpy()
        strongest = np.argsort(-p, kind="stable")[:20]
        exact = (a[strongest].T * p[strongest]) @ a[strongest].conj()
        found = estimate.covariance()[b].numpy()
        assert np.abs(found - exact).max() <= 1e-4 * np.abs(exact).max()


def test_scaling_the_measurements_scales_the_answer():
    scenes = scenes_of()
    module = backbone(trained=True)
    with torch.no_grad():
        one = module(Measurement.of(scenes, noise_known=True))
        louder = Measurement(scenes.y * 30, scenes.codes, scenes.channel * 0.5, scenes.noise_power * 900)
        other = module(louder)
    torch.testing.assert_close(other.power, one.power * 3600, rtol=1e-3, atol=1e-3 * 3600 * float(one.power.max()))
    torch.testing.assert_close(other.sources.log_intensity, one.sources.log_intensity, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("known", [True, False])
def test_the_order_of_snapshots_and_the_batch_do_not_matter(known):
    scenes = scenes_of(n_snapshots=5)
    module = backbone(trained=True)
    order = torch.tensor([4, 2, 0, 1, 3])
    noise = scenes.noise_power if known else None
    with torch.no_grad():
        one = module(Measurement(scenes.y, scenes.codes, scenes.channel, noise))
        other = module(Measurement(scenes.y[:, order], scenes.codes[:, order], scenes.channel, noise))
        single = module(Measurement(scenes.y, scenes.codes, scenes.channel, noise)[1:2])
    scale = float(one.power.max())
    torch.testing.assert_close(other.power, one.power, rtol=1e-3, atol=1e-4 * scale)
    torch.testing.assert_close(single.power, one.power[1:2], rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize(("n_snapshots", "n_antennas"), [(1, 4), (3, 1), (17, 2)])
def test_any_number_of_snapshots_and_antennas(n_snapshots, n_antennas):
    scenes = scenes_of(n_snapshots, 2, n_antennas)
    module = backbone(trained=True)
    with torch.no_grad():
        estimate = module(Measurement.of(scenes, noise_known=False))
    assert estimate.factor.shape == (2, 12, 20)
    assert torch.isfinite(torch.view_as_real(estimate.factor)).all()
    assert torch.isfinite(estimate.sources.log_intensity).all()
    assert len(module.sources(estimate)) == 2


def test_every_learned_part_gets_a_gradient():
    scenes = scenes_of()
    module = backbone(trained=True)
    estimate = module(Measurement.of(scenes, noise_known=False))
    loss = estimate.covariance().abs().square().sum() + estimate.sources.log_intensity.sum()
    (loss + estimate.sources.offset.square().sum()).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_no_measurement_is_too_loud_or_silent():
    scenes = scenes_of()
    module = backbone(trained=True)
    for y in (torch.zeros_like(scenes.y), scenes.y * 1e12, scenes.y * 1e-12):
        with torch.no_grad():
            estimate = module(Measurement(y, scenes.codes, scenes.channel))
        assert torch.isfinite(torch.view_as_real(estimate.factor)).all()
        assert len(module.sources(estimate)) == len(scenes)


def test_an_empty_batch_gives_empty_results():
    scenes = scenes_of()
    module = backbone(trained=True)
    with torch.no_grad():
        estimate = module(Measurement.of(scenes, noise_known=True)[:0])
    assert estimate.factor.shape == (0, 12, 20)
    assert module.sources(estimate) == []


FAR = {
    "a plane before it": Setup(ARRAY),
    "round a ring": Setup(SensorArray.circular(8, 0.3, 0.3, plane="xz")),
    "planar waves": Setup(ARRAY, wavefront="planar"),
}


@pytest.mark.parametrize("name", FAR)
def test_regions_that_follow_from_the_array_are_covered_out_to_the_far_field(name):
    setup = FAR[name]
    generator = torch.Generator().manual_seed(2)
    n = setup.array.n_elements
    parts = [torch.randn(2, *shape, dtype=torch.complex64, generator=generator) for shape in ((6, 4), (6, n), (4, n))]
    torch.manual_seed(0)
    module = UnrolledBackbone(setup, UnrolledOptions(steps=2, width=4, head_width=5, range_cells=2, columns=20))
    with torch.no_grad():
        module.head.cells.bias[:2] = 1.0  # sources expected everywhere
        estimate = module(Measurement(*parts))
    assert torch.isfinite(torch.view_as_real(estimate.factor)).all()
    axes = module.atoms.axes
    assert axes.region == setup.region
    a = steering(setup.array, axes, setup.wavefront)
    p = estimate.power[0].flatten().double().numpy()
    strongest = np.argsort(-p, kind="stable")[:20]
    exact = (a[strongest].T * p[strongest]) @ a[strongest].conj()
    assert np.abs(estimate.covariance()[0].numpy() - exact).max() <= 1e-3 * np.abs(exact).max()
    for sources in module.sources(estimate):
        assert len(sources) > 0
        assert not sources.position.isnan().any()
        assert sources.azimuth.isfinite().all()
        assert setup.wavefront != "planar" or bool(sources.range.isinf().all())


def test_the_registry_rebuilds_it_from_plain_values():
    module = backbone(trained=True)
    again = build_backbone("unrolled", SETUP, module.options())
    again.load_state_dict(module.state_dict())
    scenes = scenes_of()
    with torch.no_grad():
        one, two = (m(Measurement.of(scenes, noise_known=True)) for m in (module, again.eval()))
    assert torch.equal(one.power, two.power)
    assert again.options() == module.options()


def test_wrong_requests_are_refused():
    with pytest.raises(ValueError, match="backbone must be one of"):
        build_backbone("resnet", SETUP)
    with pytest.raises(ValueError, match="unknown field"):
        build_backbone("unrolled", SETUP, {"layers": 3})
    with pytest.raises(ValueError, match="steps must be at least 1"):
        build_backbone("unrolled", SETUP, {"steps": 0})
    other = generate_scenes(SystemConfig(array=SensorArray.rectangular(2, 2), n_antennas=4, n_snapshots=3), 0, range(1))
    with pytest.raises(ShapeError, match="N = 12 columns"):
        backbone()(Measurement.of(other))
    with pytest.raises(ShapeError):
        Measurement(other.y.mT, other.codes, other.channel)
