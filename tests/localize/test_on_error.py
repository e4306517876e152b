"""A batch with bad scenes: named, or left out with the others as they would be without them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from risfast import Localizer, SensorArray, Setup
from risfast.simulate import SystemConfig, generate_scenes

SYSTEM = SystemConfig(SensorArray.rectangular(5, 4), n_antennas=6, n_snapshots=12, n_sources=(1, 2), snr_db=(15, 20))


@pytest.fixture(scope="module")
def surface():
    return Localizer.classical(SYSTEM.setup)


@pytest.fixture(scope="module")
def scenes():
    return generate_scenes(SYSTEM, 3, range(4))


def spoiled(scenes):
    y, codes = scenes.y.clone(), scenes.codes.clone()
    y[1, 3, 2] = torch.nan
    codes[3, 0, 0] = complex("inf")
    return y, codes


def same(a, b):
    assert len(a) == len(b)
    assert torch.allclose(a.position, b.position, rtol=1e-6)


def test_an_error_names_the_scene(surface, scenes):
    y, codes = spoiled(scenes)
    with pytest.raises(ValueError, match=r"y\[1\] holds values that are not finite"):
        surface.localize(y, scenes.codes, scenes.channel)
    with pytest.raises(ValueError, match=r"codes\[3\] holds values that are not finite"):
        surface.localize(scenes.y, codes, scenes.channel)
    y = scenes.y.clone()
    y[2] = 0
    with pytest.raises(ValueError, match=r"y\[2\] is zero throughout"):
        surface.localize(y, scenes.codes, scenes.channel)


def test_bad_scenes_are_skipped_and_the_others_have_their_answers(surface, scenes):
    y, codes = spoiled(scenes)
    known = torch.tensor([1, 1, 2, 1])
    how = {"n_sources": known, "noise_power": scenes.noise_power.tolist()}
    result = surface.analyse(y, codes, scenes.channel, **how, on_error="skip")
    assert result.notes[:2] == (
        "scene 1 is skipped: y holds values that are not finite",
        "scene 3 is skipped: codes holds values that are not finite",
    )
    good = [0, 2]
    alone = surface.analyse(
        scenes.y[good],
        scenes.codes[good],
        scenes.channel[good],
        n_sources=known[good],
        noise_power=scenes.noise_power[good],
    )
    for place, scene in enumerate(good):
        same(result.sources[scene], alone.sources[place])
        assert torch.equal(result.factor[scene], alone.factor[place])
        assert torch.equal(result.position_covariance[scene], alone.position_covariance[place])
    for scene in (1, 3):
        assert len(result.sources[scene]) == 0
        assert bool(result.noise_power[scene].isnan())
        assert float(result.factor[scene].abs().max()) == 0
    with pytest.warns(UserWarning, match="scene 1 is skipped: y holds.*; scene 3 is skipped"):
        found = surface.localize(y, codes, scenes.channel, **how, on_error="skip")
    for one, other in zip(found, result.sources, strict=True):
        same(one, other)


def test_arrays_that_are_sampled_directly_skip_too():
    setup = Setup(SensorArray.linear(8, 0.15, 0.3), sampling="direct", wavefront="planar")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 20, 8, dtype=torch.complex128, generator=generator)
    x[0] = 0
    localizer = Localizer.classical(setup)
    result = localizer.analyse(x.numpy(), on_error="skip")
    assert result.notes[0] == "scene 0 is skipped: y is zero throughout"
    for one, other in zip(result.sources[1:], localizer.localize(x[1:]), strict=True):
        same(one, other)


def test_a_whole_batch_gives_the_usual_answer_and_a_bad_one_an_error(surface, scenes):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = surface.localize(scenes.y, scenes.codes, scenes.channel, on_error="skip")
    for one, other in zip(found, surface.localize(scenes.y, scenes.codes, scenes.channel), strict=True):
        same(one, other)
    with pytest.raises(ValueError, match=r"no scene can be localised: scene 0: y is zero throughout; scene 1"):
        surface.localize(0 * scenes.y, scenes.codes, scenes.channel, on_error="skip")
    with pytest.raises(ValueError, match="on_error must be raise or skip, got 'ignore'"):
        surface.localize(scenes.y, scenes.codes, scenes.channel, on_error="ignore")
    with pytest.raises(ValueError, match=r"batch|scenes"):  # what is wrong with all of it is told as ever
        surface.localize(scenes.y, scenes.codes[:2], scenes.channel, on_error="skip")


def test_a_silent_band_powers_by_band_and_notes_have_their_scenes():
    array = SensorArray.circular(8, 0.12, 0.15)
    setup = Setup(array, sampling="direct", wavelengths_m=(0.15, 0.12))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 2, 40, 8)) + 1j * rng.standard_normal((3, 2, 40, 8))
    x += 3 * (rng.standard_normal((3, 2, 40, 1)) + 1j * rng.standard_normal((3, 2, 40, 1)))
    x[1, 0] = 0.0
    localizer = Localizer.classical(setup)
    noise = torch.full((3, 2), 2.0)
    result = localizer.analyse(x[:, :, ::-1], on_error="skip", noise_power=noise)
    assert result.notes[0] == "scene 1 is skipped: y is zero throughout in a band"
    alone = localizer.analyse(x[[0, 2], :, ::-1], noise_power=noise[:2])
    torch.testing.assert_close(result.sources[2].position, alone.sources[1].position)
    # Powers of channels are no powers of scenes, whatever their number.
    one = Localizer.classical(Setup(array, sampling="direct"))
    y = x[:, 1].copy()
    y[0, 0, 0] = np.nan
    y[2, :, 4] = 0.0
    told = one.analyse(y, on_error="skip")
    assert any(note.startswith("scene 2: channel 4 is left out") for note in told.notes), told.notes
    assert one.analyse(y[:, :, ::-1][:, :, ::-1], on_error="skip", noise_covariance=[1.0] * 8).notes
    with pytest.raises(TypeError, match="y must be complex64 or complex128"):
        one.analyse(y.real, on_error="skip")
