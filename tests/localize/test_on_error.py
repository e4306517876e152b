"""A batch with bad scenes: named, or left out with the others as they would be without them."""

from __future__ import annotations

import warnings

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
