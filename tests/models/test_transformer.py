"""The baseline transformer: shapes, invariances, bounds, gradients, and what it refuses."""

import json
import math
from dataclasses import replace

import oracles
import pytest
import torch

from risfast.errors import ShapeError
from risfast.evaluate import match
from risfast.geometry import Region, SearchGrid, SensorArray
from risfast.losses import factor_nmse, position_huber
from risfast.models import CovarianceEstimate, Measurement
from risfast.models.transformer import TransformerBackbone, TransformerOptions
from risfast.simulate.scenes import SystemConfig, generate_scenes

SMALL_ARRAY = SensorArray.rectangular(4, 3)
SMALL = TransformerOptions(n_antennas=5, width=16, n_heads=2, n_layers=2, hidden=24, n_columns=3, column_width=8)
SYSTEM = SystemConfig(array=SMALL_ARRAY, n_antennas=5, n_snapshots=9, n_sources=(1, 3), code_kinds=("random",))


def backbone(options=SMALL, setup=SYSTEM.setup, seed=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TransformerBackbone(setup, options)


def measurement_of(count=4, seed=7, noise_known=True, **system):
    return Measurement.of(generate_scenes(replace(SYSTEM, **system), seed, range(count)), noise_known=noise_known)


def difference(a, b):
    return float((a - b).detach().abs().max())


def assert_same(a, b, **tolerance):
    torch.testing.assert_close(a.factor, b.factor, **tolerance)
    torch.testing.assert_close(a.positions, b.positions, **tolerance)


def test_the_default_has_about_340_thousand_parameters():
    count = sum(p.numel() for p in backbone(TransformerOptions(), SystemConfig().setup).parameters())
    assert 330_000 <= count <= 350_000


@pytest.mark.parametrize("snapshots", [1, 2, 9, 33])
@pytest.mark.parametrize("noise_known", [True, False])
def test_it_takes_any_number_of_snapshots_with_noise_known_or_not(snapshots, noise_known):
    measurement = measurement_of(3, n_snapshots=snapshots, noise_known=noise_known)
    estimate = backbone()(measurement)
    assert isinstance(estimate, CovarianceEstimate)
    assert estimate.factor.shape == (3, 12, 6)
    assert estimate.factor.dtype == torch.complex64
    assert estimate.positions.shape == (3, 5, 3)
    assert bool(torch.isfinite(torch.view_as_real(estimate.factor)).all())
    assert (estimate.power, estimate.sources) == (None, None)
    assert estimate.noise_power is measurement.noise_power


def test_an_empty_batch_gives_an_empty_estimate():
    assert backbone()(measurement_of(2)[:0]).factor.shape == (0, 12, 6)


def test_each_scene_is_estimated_by_itself():
    module, measurement = backbone(), measurement_of(5)
    whole = module(measurement)
    for b in range(5):
        alone = module(measurement[b : b + 1])
        torch.testing.assert_close(alone.factor[0], whole.factor[b])
        torch.testing.assert_close(alone.positions[0], whole.positions[b])


def test_the_order_of_the_snapshots_does_not_matter_but_their_pairing_does():
    module, m = backbone(), measurement_of()
    order = torch.tensor([4, 0, 8, 2, 7, 1, 6, 3, 5])
    expected = module(m)
    assert_same(module(replace(m, y=m.y[:, order], codes=m.codes[:, order])), expected)
    mixed = module(replace(m, y=m.y[:, order]))
    assert difference(mixed.factor, expected.factor) > 1e-4


@pytest.mark.parametrize("scale", [1e-6, 37.0])
def test_the_scale_of_the_measurements_does_not_matter(scale):
    module, m = backbone(), measurement_of()
    assert_same(module(replace(m, y=m.y * scale, noise_power=m.noise_power * scale**2)), module(m))


@pytest.mark.parametrize("name", ["y", "codes", "channel", "noise_power"])
def test_everything_that_is_known_reaches_the_estimate(name):
    module, m = backbone(), measurement_of()
    changed = replace(m, **{name: getattr(m, name) * torch.rand(4, *[1] * (getattr(m, name).ndim - 1)).add(2)})
    if name == "y":  # its scale is left out, its direction is not
        changed = replace(m, y=m.y.conj().resolve_conj())
    assert difference(module(changed).factor, module(m).factor) > 1e-5


def test_the_estimate_for_unknown_noise_is_another_and_the_same_for_any_noise():
    module, m = backbone(), measurement_of()
    unknown = module(replace(m, noise_power=None))
    assert difference(unknown.factor, module(m).factor) > 1e-5
    assert_same(module(measurement_of(noise_known=False)), unknown)


def test_silence_and_noise_of_any_power_give_finite_estimates_and_gradients():
    m = measurement_of()
    power = torch.tensor([0.0, 1e-30, 1e30, 1.0])
    for y in (m.y, torch.zeros_like(m.y)):
        module = backbone()
        estimate = module(replace(m, y=y, noise_power=power))
        (estimate.factor.abs().square().sum() + estimate.positions.sum()).backward()
        assert all(bool(torch.isfinite(p.grad).all()) for p in module.parameters())


@pytest.mark.parametrize("region", [SYSTEM.setup.region, Region((-0.3, 1.2), (0.1, 0.4), (1.0, 3.0))])
def test_columns_and_positions_stay_within_their_bounds_for_any_weights(region):
    module = backbone(setup=SYSTEM.setup.replace(region=region))
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(300)
    estimate = module(measurement_of(16))
    norm = estimate.factor.detach().norm(dim=1)
    assert float(norm.max()) <= math.sqrt(12) * (1 + 1e-5)
    assert float(norm.max()) > 0.9 * math.sqrt(12)
    ends = (region.azimuth_rad, region.elevation_rad, [math.log(r) for r in region.range_m])
    azimuth, elevation, r = estimate.positions.detach().unbind(-1)
    for value, (low, high) in zip((azimuth, elevation, r.log()), ends, strict=True):
        beyond = 0.03 * (high - low)  # a tanh reaches the bounds only at infinity: they are put a little outside
        assert low - beyond <= float(value.min())
        assert float(value.max()) <= high + beyond
        assert float(value.max() - value.min()) > 0.5 * (high - low)  # such weights reach both


@pytest.mark.parametrize("noise_known", [True, False])
def test_every_parameter_has_a_finite_gradient(noise_known):
    module, scenes = backbone(), generate_scenes(SYSTEM, 7, range(4))
    estimate = module(Measurement.of(scenes, noise_known=noise_known))
    loss = factor_nmse(estimate.factor, scenes.true_factor()) + position_huber(
        estimate.positions, scenes.position, scenes.mask
    )
    loss.sum().backward()
    for name, p in module.named_parameters():
        assert p.grad is not None, name
        assert bool(torch.isfinite(p.grad).all()), name
        unused = name.startswith("embed_snr.unknown") if noise_known else name.startswith("embed_snr.layers")
        assert bool((p.grad != 0).any()) != unused, name


def test_it_can_learn_a_few_scenes_by_heart():
    module, scenes = backbone(), generate_scenes(replace(SYSTEM, snr_db=(10.0, 20.0)), 7, range(4))
    measurement, truth = Measurement.of(scenes), scenes.true_factor()
    optimiser = torch.optim.Adam(module.parameters(), 1e-2)
    for _ in range(150):
        optimiser.zero_grad()
        estimate = module(measurement)
        nmse = factor_nmse(estimate.factor, truth).mean()
        off = position_huber(estimate.positions, scenes.position, scenes.mask).mean()
        (nmse + 0.1 * off).backward()
        optimiser.step()
    assert float(nmse.detach()) < 0.1
    assert float(off.detach()) < 0.5


def test_the_same_seed_and_input_give_the_same_bits():
    m = measurement_of()
    a, b = backbone()(m), backbone()(m)
    assert torch.equal(a.factor, b.factor)
    assert torch.equal(a.positions, b.positions)
    module = backbone()
    assert torch.equal(module.eval()(m).factor, a.factor)


def test_it_is_saved_and_made_again_from_its_options_and_weights(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    module, m = backbone(), measurement_of()
    safetensors.save_file(module.state_dict(), tmp_path / "weights.safetensors")
    options = TransformerOptions(**json.loads(json.dumps(module.options())))
    assert options == SMALL
    again = backbone(options, seed=99)
    again.load_state_dict(safetensors.load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(again(m).factor, module(m).factor)


def test_weights_of_another_size_are_refused():
    other = backbone(replace(SMALL, width=20))
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict(backbone().state_dict())


def test_double_precision_weights_take_measurements_of_either_precision():
    module, m = backbone().double(), measurement_of()
    double = replace(
        m, y=m.y.to(torch.complex128), codes=m.codes.to(torch.complex128), channel=m.channel.to(torch.complex128)
    )
    assert module(m).factor.dtype == torch.complex128
    assert_same(module(double), module(m), atol=1e-6, rtol=1e-5)
    assert_same(backbone()(double), backbone()(m), atol=1e-5, rtol=1e-5)


def test_mixed_precision_gives_a_factor_of_full_precision_near_that_without():
    module, m = backbone(), measurement_of()
    with torch.autocast("cpu", torch.bfloat16):
        estimate = module(m)
    assert estimate.factor.dtype == torch.complex64
    # a dozen products follow each other, each rounded to 2^-8
    for a, b in ((estimate.factor, module(m).factor), (estimate.positions, module(m).positions)):
        assert float((a - b).detach().norm()) <= 12 * 2**-8 * float(b.detach().norm())


def test_sources_are_those_of_the_spectrum_of_the_factor():
    module = backbone(TransformerOptions(), SystemConfig().setup)
    truth = torch.tensor([[0.3, -0.1, 2.0], [-0.5, 0.2, 4.0]], dtype=torch.float64)
    a = torch.from_numpy(oracles.steering(oracles.rectangular(12, 12), 0.3, truth.numpy()))
    estimate = CovarianceEstimate(1e-3 * a.mT[None].to(torch.complex64))
    for options in ({}, {"grid": SearchGrid.training(), "snr_db": 20.0}):
        (found,) = module.sources(estimate, **options)
        result = match(found.position, truth)
        assert (len(found), result.hits) == (2, 2)
        assert float(result.distance_m.max()) < 0.05


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_antennas": 0}, "n_antennas must be an integer"),
        ({"width": 15}, "multiple of n_heads"),
        ({"max_sources": 2.5}, "max_sources must be an integer"),
        ({"n_columns": -1}, "n_columns must be an integer"),
    ],
)
def test_bad_options_are_named(change, words):
    with pytest.raises(ValueError, match=words):
        replace(SMALL, **change)


def test_measurements_of_another_system_are_refused():
    module = backbone()
    with pytest.raises(ShapeError, match=r"M = 5 antennas and N = 12.*\(2, 6, 12\)"):
        module(measurement_of(2, n_antennas=6))
    with pytest.raises(ShapeError, match=r"N = 12.*\(2, 5, 16\)"):
        module(measurement_of(2, array=SensorArray.rectangular(4, 4)))
    m = measurement_of(2)
    with pytest.raises(ShapeError, match="batch axis"):
        module(Measurement(m.y[0], m.codes[0], m.channel[0]))
    with pytest.raises(ShapeError, match="at least one snapshot"):
        module(Measurement(m.y[:, :0], m.codes[:, :0], m.channel))
