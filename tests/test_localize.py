"""The localizer: from raw arrays to sources, and what it refuses."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from risfast.data.scenes import SystemConfig, generate_scenes
from risfast.errors import ShapeError
from risfast.evaluate import match
from risfast.geometry import PlanarArray
from risfast.localize import Localizer, LocalizerOptions
from risfast.models import build_backbone
from risfast.polish import PolishOptions

ARRAY = PlanarArray.rectangular(6, 6)


@pytest.fixture(scope="module")
def localizer():
    return Localizer.classical(ARRAY)


def scenes_of(count=3, n_snapshots=16):
    config = SystemConfig(
        array=ARRAY,
        n_antennas=8,
        n_snapshots=n_snapshots,
        n_sources=(2, 2),
        snr_db=(15.0, 15.0),
        range_m=(0.6, 2.0),
        min_separation_rad=math.radians(25),
        code_kinds=("random",),
    )
    return generate_scenes(config, 5, range(count))


def hits_and_ghosts(found, scenes):
    results = [match(s.position, scenes.position[i][scenes.mask[i]]) for i, s in enumerate(found)]
    return sum(r.hits for r in results), sum(r.ghosts for r in results)


def test_the_classical_localizer_finds_strong_sources(localizer):
    scenes = scenes_of()
    found = localizer.localize(scenes.y, scenes.codes, scenes.channel)
    assert hits_and_ghosts(found, scenes) == (6, 0)


def test_numpy_one_scene_and_a_batch_agree(localizer):
    scenes = scenes_of()
    batch = localizer.localize(scenes.y, scenes.codes, scenes.channel)
    arrays = [t[1].numpy().astype(np.complex128) for t in (scenes.y, scenes.codes, scenes.channel)]
    [one] = localizer.localize(*arrays)
    torch.testing.assert_close(one.position, batch[1].position, rtol=1e-3, atol=1e-3)


def test_scenes_at_once_do_not_matter():
    scenes = scenes_of()
    whole = Localizer.classical(ARRAY).localize(scenes.y, scenes.codes, scenes.channel)
    options = LocalizerOptions(scenes_at_once=2)
    parts = Localizer.classical(ARRAY, options).localize(scenes.y, scenes.codes, scenes.channel)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a.position, b.position, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("polish", [True, False])
def test_the_analysis_holds_covariances_noise_and_times(localizer, polish):
    scenes = scenes_of()
    result = localizer.analyse(scenes.y, scenes.codes, scenes.channel, polish=polish)
    assert result.factor.shape[:2] == (3, 36)
    assert set(result.seconds) == {"backbone", "detection"} | ({"polish"} if polish else set())
    if not polish:
        assert result.position_covariance is None
        return
    for sources, covariance in zip(result.sources, result.position_covariance, strict=True):
        assert covariance.shape == (len(sources), 3, 3)
        assert (torch.linalg.eigvalsh(covariance) > 0).all()
    ratio = result.noise_power / scenes.noise_power
    assert ((ratio > 0.6) & (ratio < 1.6)).all()


def test_capon_peaks_can_be_the_candidates():
    scenes = scenes_of()
    options = LocalizerOptions(read_out="capon", polish=PolishOptions(births=0))
    found = Localizer.classical(ARRAY, options).localize(scenes.y, scenes.codes, scenes.channel)
    hits, _ = hits_and_ghosts(found, scenes)
    assert hits >= 5


def test_a_learned_backbone_runs_without_training():
    small = {"steps": 2, "width": 4, "head_width": 4, "axes": {"n_azimuth": 9, "n_elevation": 7, "n_range": 4}}
    scenes = scenes_of()
    localizer = Localizer(build_backbone("unrolled", ARRAY, small), ARRAY)
    assert len(localizer.localize(scenes.y, scenes.codes, scenes.channel)) == 3


def test_an_empty_batch_is_an_empty_list(localizer):
    scenes = scenes_of()
    assert localizer.localize(scenes.y[:0], scenes.codes[:0], scenes.channel[:0]) == []


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"y": lambda y: y.mT}, ShapeError, "y"),
        ({"codes": lambda c: c.mT}, ShapeError, "codes"),
        ({"channel": lambda h: h.mT}, ShapeError, "channel"),
        ({"y": lambda y: y[0]}, ValueError, "2 dimensions"),
        ({"y": lambda y: y.real}, TypeError, "y must be complex"),
        ({"y": lambda y: y * float("nan")}, ValueError, "y holds values that are not finite"),
        ({"y": lambda y: y * 0}, ValueError, r"y\[0\] is zero"),
        ({"y": lambda y: y[:, :0], "codes": lambda c: c[:, :0]}, ValueError, "no snapshot"),
    ],
)
def test_wrong_measurements_are_refused(localizer, change, error, message):
    scenes = scenes_of(2)
    given = {"y": scenes.y, "codes": scenes.codes, "channel": scenes.channel}
    for name, mutate in change.items():
        given[name] = mutate(given[name])
    with pytest.raises(error, match=message):
        localizer.localize(**given)


@pytest.mark.parametrize("noise", [-3.0, 0.0, float("nan")])
def test_a_noise_power_in_db_is_refused_where_it_is_plain(localizer, noise):
    scenes = scenes_of(2)
    with pytest.raises(ValueError, match="not in dB"):
        localizer.localize(scenes.y, scenes.codes, scenes.channel, noise_power=noise)


def test_a_noise_power_above_what_is_received_is_warned_of(localizer):
    scenes = scenes_of(2)
    level = 20 * float(scenes.y.abs().square().mean())
    with pytest.warns(UserWarning, match="is it in dB"):
        localizer.localize(scenes.y, scenes.codes, scenes.channel, noise_power=level)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        localizer.localize(scenes.y, scenes.codes, scenes.channel, noise_power=scenes.noise_power.numpy())


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="read_out must be one of"):
        LocalizerOptions(read_out="music")
    with pytest.raises(ValueError, match="scenes_at_once"):
        LocalizerOptions(scenes_at_once=0)
