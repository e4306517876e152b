"""The answer does not hang on units, views, precisions and orders; what cannot be a measurement is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from risfast import Localizer, Region, SearchGrid, SensorArray, Setup
from risfast.errors import ShapeError
from risfast.simulate import SystemConfig, generate_scenes

SYSTEM = SystemConfig(SensorArray.rectangular(5, 4), n_antennas=6, n_snapshots=12, n_sources=(1, 2), snr_db=(10, 20))
SCALES = (1e-30, 1e-17, 1e-8, 3e4, 1e8, 1e17, 1e30)


@pytest.fixture(scope="module")
def surface():
    return Localizer.classical(SYSTEM.setup)


@pytest.fixture(scope="module")
def scenes():
    return generate_scenes(SYSTEM, 3, range(4))


@pytest.fixture(scope="module")
def plain(surface, scenes):
    return surface.analyse(scenes.y, scenes.codes, scenes.channel, noise_power=scenes.noise_power)


def double(*tensors):
    return tuple(tensor.to(torch.complex128) for tensor in tensors)


def assert_same(result, plain, power=1.0, rtol=1e-4):
    for one, other in zip(result.sources, plain.sources, strict=True):
        assert len(one) == len(other)
        torch.testing.assert_close(one.position, other.position, rtol=rtol, atol=rtol, equal_nan=True)
        torch.testing.assert_close(one.power.double() / power, other.power.double(), rtol=10 * rtol, atol=0)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("what", ["y", "codes", "channel", "all three"])
def test_the_unit_of_each_argument_changes_the_powers_alone(what, scale, surface, scenes, plain):
    of_y = scale if what in ("y", "all three") else 1.0
    of_codes = scale if what in ("codes", "all three") else 1.0
    of_channel = scale if what in ("channel", "all three") else 1.0
    y, codes, channel = double(scenes.y, scenes.codes, scenes.channel)
    result = surface.analyse(
        of_y * y, of_codes * codes, of_channel * channel, noise_power=scenes.noise_power.double() * of_y**2
    )
    base = surface.analyse(y, codes, channel, noise_power=scenes.noise_power.double())
    field = of_y / of_codes / of_channel
    assert_same(result, base, field**2)
    torch.testing.assert_close(result.noise_power.double() / of_y**2, base.noise_power.double(), rtol=1e-3, atol=0)
    torch.testing.assert_close(
        (result.factor / field).to(torch.complex64), base.factor.to(torch.complex64), rtol=1e-2, atol=1e-3
    )
    for one, other in zip(result.position_covariance, base.position_covariance, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_single_precision_snapshots_at_the_ends_of_its_range(scale, surface, scenes, plain):
    noise = scenes.noise_power.double() * scale**2
    result = surface.analyse(scenes.y * scale, scenes.codes, scenes.channel, noise_power=noise)
    assert_same(result, plain, scale**2, rtol=1e-3)


@pytest.mark.parametrize("scale", SCALES)
def test_the_unit_of_snapshots_of_the_elements_changes_the_powers_alone(scale):
    setup = Setup(SensorArray.rectangular(4, 4, 0.14, 0.3), sampling="direct", wavefront="planar")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 40, 16, dtype=torch.complex128, generator=generator)
    x = 0.1 * x + torch.randn(2, 40, 1, dtype=torch.complex128, generator=generator)
    localizer = Localizer.classical(setup)
    plain, scaled = localizer.analyse(x), localizer.analyse(scale * x)
    assert [len(s) for s in plain.sources] == [1, 1]
    assert_same(scaled, plain, scale**2)


def test_scenes_of_one_batch_may_have_different_units(surface, scenes, plain):
    scale = torch.tensor([1e-20, 1.0, 1e12, 1e-3]).double()
    y, codes, channel = double(scenes.y, scenes.codes, scenes.channel)
    result = surface.analyse(y * scale[:, None, None], codes, channel, noise_power=scenes.noise_power * scale**2)
    for one, other, unit in zip(result.sources, plain.sources, scale.tolist(), strict=True):
        torch.testing.assert_close(one.position, other.position, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(one.power.double() / unit**2, other.power.double(), rtol=1e-2, atol=0)


def test_order_phase_and_batch_of_snapshots_do_not_matter(surface, scenes, plain):
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    phase = torch.polar(torch.ones(4, 12, 1), torch.rand(4, 12, 1, generator=torch.Generator().manual_seed(2)) * 6)
    noise = scenes.noise_power
    assert_same(surface.analyse(scenes.y[:, order], scenes.codes[:, order], scenes.channel, noise_power=noise), plain)
    assert_same(surface.analyse(scenes.y * phase, scenes.codes, scenes.channel, noise_power=noise), plain)
    single = [
        surface.localize(scenes.y[i], scenes.codes[i], scenes.channel[i], noise_power=float(noise[i]))[0]
        for i in range(4)
    ]
    assert_same(plain._replace(sources=single), plain)


def test_views_are_what_they_show(surface, scenes, plain):
    def lazy(values):
        return values.conj().resolve_conj().conj()

    turned = scenes.y.mT.contiguous().mT
    noise = scenes.noise_power
    for arrays in (
        (lazy(scenes.y), lazy(scenes.codes), lazy(scenes.channel)),
        (turned, scenes.codes, scenes.channel),
        (scenes.y.numpy()[:, ::-1][:, ::-1], scenes.codes.numpy(), scenes.channel.numpy()),
    ):
        assert_same(surface.analyse(*arrays, noise_power=noise), plain, rtol=1e-6)


def test_autocast_and_another_default_precision_change_nothing(surface, scenes, plain):
    how = {"noise_power": scenes.noise_power}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(surface.analyse(scenes.y, scenes.codes, scenes.channel, **how), plain, rtol=1e-6)
    torch.set_default_dtype(torch.float64)
    try:
        made = Localizer.classical(SYSTEM.setup)
        assert_same(made.analyse(scenes.y, scenes.codes, scenes.channel, **how), plain, rtol=1e-6)
        assert {p.dtype for p in Localizer.from_pretrained().backbone.parameters()} == {torch.float32}
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_one_channel_or_code_for_a_batch_is_shared_and_other_numbers_are_refused(surface, scenes):
    channel = scenes.channel[:1]
    shared = surface.localize(scenes.y, scenes.codes, channel)
    each = surface.localize(scenes.y, scenes.codes, channel.expand(4, -1, -1).clone())
    for one, other in zip(shared, each, strict=True):
        assert torch.equal(one.position, other.position)
    with pytest.raises(ShapeError, match="batch dimensions must agree"):
        surface.localize(scenes.y, scenes.codes[:2], scenes.channel)


def test_measurements_without_antennas_or_snapshots_are_refused(surface, scenes):
    with pytest.raises(ValueError, match="no antenna: M must be at least 1"):
        surface.localize(scenes.y[..., :0], scenes.codes, scenes.channel[:, :0])
    with pytest.raises(ValueError, match="no snapshot: L must be at least 1"):
        surface.localize(scenes.y[:, :0], scenes.codes[:, :0], scenes.channel)
    assert surface.localize(scenes.y[:0], scenes.codes[:0], scenes.channel[:0]) == []


def test_codes_whose_snapshots_differ_too_much_in_modulus_are_refused(surface, scenes):
    codes = scenes.codes.clone()
    codes[2, 5] *= 5e3
    with pytest.raises(
        ValueError, match=r"codes\[2\]: the moduli of its snapshots differ by a factor of more than 1000"
    ):
        surface.localize(scenes.y, codes, scenes.channel)
    codes = scenes.codes.clone()
    codes[:, 3] = 0  # the surface is off: that snapshot is noise alone
    surface.localize(scenes.y, codes, scenes.channel)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SensorArray(torch.eye(3) + 0j, 0.3), TypeError, "positions_m must hold real numbers"),
        (lambda: SensorArray(np.eye(3) * 1j, 0.3), TypeError, "positions_m must hold real numbers"),
        (lambda: SensorArray.rectangular(2.5, 2), ValueError, "n_h must be a whole number, got 2.5"),
        (lambda: SensorArray.rectangular(2, True), ValueError, "n_v must be a whole number, got True"),
        (lambda: SensorArray.linear(3.0, 0.1, 0.3), ValueError, "must be a whole number, got 3.0"),
        (lambda: SensorArray.circular(2.5, 1.0, 0.3), ValueError, "n must be a whole number"),
        (lambda: SearchGrid.box(5.5, 3, (1.0,), 0.5, 0.5), ValueError, "n_azimuth must be a whole number"),
        (lambda: SearchGrid.box(5, 3, (1.0,), 60, 30), ValueError, "is it in degrees"),
        (lambda: Region((-60, 60), (-30, 30), (0.5, 10)), ValueError, "is it in degrees"),
    ],
    ids=["complex", "complex array", "half", "bool", "float", "ring", "box", "degrees", "region"],
)
def test_arrays_and_grids_of_the_wrong_kind_are_refused_by_name(make, error, message):
    with pytest.raises(error, match=message):
        make()
    assert SensorArray.rectangular(np.int64(2), torch.tensor(2)).n_elements == 4
    assert math.isfinite(SensorArray.linear(np.int32(3), 0.1, 0.3).aperture_m)
