"""The localizer: from raw arrays to sources, and what it refuses."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch

from risfast.covariance import ls_covariance
from risfast.data.scenes import Scenes, SystemConfig, generate_scenes
from risfast.detect import Sources, detect_sources
from risfast.errors import ShapeError
from risfast.evaluate import match
from risfast.geometry import PlanarArray, SearchGrid
from risfast.guarded import GuardedSources
from risfast.localize import Localizer, LocalizerOptions
from risfast.model_files import read_card, save_model
from risfast.models import Measurement, build_backbone
from risfast.models.refiner import RefinerOptions, SpectrumRefiner
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


def test_capon_candidates_are_those_of_the_blended_covariance():
    scenes = scenes_of()
    localizer = Localizer.classical(ARRAY, LocalizerOptions(read_out="capon", blend=0.4))
    measured = (scenes.y, scenes.codes, scenes.channel)
    result = localizer.analyse(*measured, polish=False)
    noise = localizer.backbone(Measurement(*measured)).noise_power
    fitted = (result.factor @ result.factor.mH).to(torch.complex128)
    sample = ls_covariance(*measured, noise_power=noise).to(torch.complex128)
    trace = lambda r: r.diagonal(dim1=-2, dim2=-1).real.sum(-1)[:, None, None]  # noqa: E731
    blended = 36 * (0.6 * fitted / trace(fitted) + 0.4 * sample / trace(sample))
    expected = detect_sources(blended, ARRAY, SearchGrid.reference(), options=localizer.options.detection)
    for found, one in zip(result.sources, expected, strict=True):
        torch.testing.assert_close(found.position.double(), one.position, rtol=1e-3, atol=1e-3)
    alone = Localizer.classical(ARRAY, LocalizerOptions(read_out="capon")).localize(*measured, polish=False)
    assert any(
        len(a) != len(b) or not torch.equal(a.power, b.power) for a, b in zip(alone, result.sources, strict=True)
    )


class Redrawn(NamedTuple):
    """Stands for a refiner: the truth as it found it in some scenes, refused in the others."""

    scenes: Scenes

    def sources(self, estimate):
        found = []
        for position, mask in zip(self.scenes.position, self.scenes.mask, strict=True):
            azimuth, elevation, r = position[mask].unbind(-1)
            found.append(Sources(azimuth, elevation, r, torch.ones_like(r), torch.ones_like(r)))
        return GuardedSources(found, ((), ("saturated",), ()))


def test_a_refiner_gives_the_candidates_and_what_its_guard_refused_is_told():
    scenes = scenes_of()
    fit = Localizer.classical(ARRAY).backbone
    localizer = Localizer(fit, ARRAY, LocalizerOptions(read_out="refined"), refiner=Redrawn(scenes))
    result = localizer.analyse(scenes.y, scenes.codes, scenes.channel, polish=False)
    assert hits_and_ghosts(result.sources, scenes) == (6, 0)
    assert result.refused == ((), ("saturated",), ())
    assert Localizer(fit, ARRAY, refiner=Redrawn(scenes)).analyse(scenes.y, scenes.codes, scenes.channel).refused == ()
    with pytest.raises(ValueError, match="needs a refiner"):
        Localizer(fit, ARRAY, LocalizerOptions(read_out="refined"))


@pytest.mark.parametrize("helps", [True, False])
def test_a_refiner_in_the_model_folder_is_loaded_where_it_helps(tmp_path, helps):
    small = {"steps": 2, "width": 4, "head_width": 4, "axes": {"n_azimuth": 9, "n_elevation": 7, "n_range": 4}}
    backbone = build_backbone("unrolled", ARRAY, small)
    save_model(tmp_path, "unrolled", backbone.state_dict(), ARRAY, small, {})
    refiner = SpectrumRefiner(RefinerOptions(1, (8, 16), (2,)))
    axes = {name: axis.tolist() for name, axis in vars(SearchGrid.box(31, 21, [0.6, 2.0], 0.8, 0.4)).items()}
    card = {
        "helps": helps,
        "reading": {"maps": ["capon"], "threshold": 0.25},
        "grid": axes,
        "backbone": {"sha256": read_card(tmp_path)["sha256"]},
    }
    save_model(tmp_path / "refiner", "refiner", refiner.state_dict(), ARRAY, refiner.options(), card)
    if helps:
        assert Localizer.load(tmp_path, LocalizerOptions(read_out="refined")).refiner is not None
    else:
        assert Localizer.load(tmp_path).refiner is None
        with pytest.raises(ValueError, match="none whose own test says that it helps"):
            Localizer.load(tmp_path, LocalizerOptions(read_out="refined"))


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
    with pytest.raises(ValueError, match="blend must lie"):
        LocalizerOptions(blend=1.5)
    with pytest.raises(ValueError, match="scenes_at_once"):
        LocalizerOptions(scenes_at_once=0)
    for wrong in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="least_count"):
            LocalizerOptions(least_count=wrong)


def test_fewer_expected_sources_make_more_candidates():
    scenes = generate_scenes(SystemConfig(n_sources=(3, 5), snr_db=(0.0, 5.0), n_snapshots=16), 12, range(6))
    counts = []
    for least in (0.1, 0.9):
        localizer = Localizer.from_pretrained(LocalizerOptions(least_count=least, least_confidence=0.0))
        localizer.options = replace(localizer.options, polish=PolishOptions(births=0, penalty=0.0))
        counts.append(sum(map(len, localizer.localize(scenes.y, scenes.codes, scenes.channel))))
    assert counts[0] > counts[1]
