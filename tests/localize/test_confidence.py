"""The probability of a hit: features from their formulas, the fit, the decision, the file."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from risfast.errors import FileFormatError
from risfast.evaluate import match
from risfast.geometry import Region, SensorArray
from risfast.io.options_file import write_options
from risfast.localize import DecisionOptions, Localizer, PipelineOptions, pipeline
from risfast.localize.confidence import CONFIDENCE_FILE, FEATURES, HitModel, hit_features
from risfast.localize.localizer import OPTIONS_FILE
from risfast.localize.pipeline import MapOptions, Parts
from risfast.localize.polish import PolishOptions, polish_sources
from risfast.models import Measurement
from risfast.models.pretrained import DEFAULT_MODEL
from risfast.setup import Setup
from risfast.simulate.codes import CODE_KINDS
from risfast.simulate.scenes import SystemConfig, generate_scenes
from risfast.train import confidence
from risfast.train.confidence import Subject, all_labelled, draw, fit, labelled, reliability, training_system

SEED = 31_337  # of no training and no fit


@pytest.fixture(scope="module")
def pretrained():
    return Localizer.from_pretrained()


@pytest.fixture(scope="module")
def polished(pretrained):
    scenes = generate_scenes(SystemConfig(n_snapshots=16, code_kinds=("dft", "random")), SEED, range(24))
    measurement = Measurement.of(scenes, noise_known=False)
    with torch.no_grad():
        estimate = pretrained.backbone(measurement)
        found = pretrained.backbone.sources(estimate)
        result = polish_sources(
            measurement, found, pretrained.backbone.atoms, PolishOptions(), noise_power=estimate.noise_power
        )
    return scenes, estimate, result


def test_features_are_what_their_names_say(pretrained, polished):
    _, estimate, result = polished
    rows = hit_features(result, estimate.sources, pretrained.backbone.range_cells, pretrained.setup, 16)
    assert [r.shape for r in rows] == [(len(s), len(FEATURES)) for s in result.sources]
    i = max(range(len(rows)), key=lambda i: len(rows[i]))
    row, sources = dict(zip(FEATURES, rows[i].T, strict=True)), result.sources[i]
    torch.testing.assert_close(row["log gain"], result.gain[i].clamp_min(1e-3).log())
    torch.testing.assert_close(row["log range in wavelengths"], (sources.range / 0.3).log())
    for k, name in enumerate(("azimuth", "elevation", "range")):
        limit = (math.radians(5), math.radians(5), 1.0)[k]
        deviation = (result.covariance[i][:, k, k].clamp_min(0).sqrt() / limit).clamp(1e-4, 1e2)
        torch.testing.assert_close(row[f"log deviation of {name} over the tolerance"], deviation.log())
    power = sources.power.numpy()
    np.testing.assert_allclose(
        row["log power over the scene's median"], np.log(power / sorted(power)[(len(power) - 1) // 2])
    )
    assert (row["sources found"] == len(sources)).all()
    assert (row["log2 snapshots"] == 4).all()


def test_counts_are_sums_over_the_cells_around(pretrained, polished):
    _, estimate, result = polished
    cells = pretrained.backbone.range_cells
    rows = hit_features(result, estimate.sources, cells, pretrained.setup, 16)
    i = max(range(len(rows)), key=lambda i: len(rows[i]))
    counts = np.exp(estimate.sources.log_intensity[i].double().numpy())  # [G_az, G_el, cells]
    offset = estimate.sources.offset[i].double().numpy()  # [G_az, G_el, G_r, 2]
    axes = cells.axes
    sines = [s.double().numpy() for s in axes.coordinates]
    for k in range(len(rows[i])):
        az, el, r = result.sources[i].position[k].tolist()
        within = 0.0
        for c, centre in enumerate(cells.centres.tolist()):
            moved = offset[:, :, c // cells.per_atom]
            azimuth = np.arcsin(np.clip(sines[0][:, None] + axes.spacing[0] * moved[..., 0], -1, 1))
            elevation = np.arcsin(np.clip(sines[1][None] + axes.spacing[1] * moved[..., 1], -1, 1))
            near = (abs(azimuth - az) <= math.radians(5)) & (abs(elevation - el) <= math.radians(5))
            within += (counts[:, :, c] * near).sum() * (abs(centre - r) <= 1)
        # The weakest cells are left out of it.
        assert float(rows[i][k, FEATURES.index("counts within, at most 1.2")]) == pytest.approx(
            min(within, 1.2), abs=0.03
        )


def test_the_fit_finds_the_weights_that_made_the_data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40_000, len(FEATURES), dtype=torch.float64, generator=generator) * 2 + 0.5
    true = torch.linspace(-1, 1, len(FEATURES), dtype=torch.float64)
    p = torch.sigmoid(x @ true - 0.3)
    hit = (torch.rand(len(p), dtype=torch.float64, generator=generator) < p).double()
    model = fit(x, hit)
    assert float((torch.tensor(model.weights) - true).abs().max()) < 0.1
    assert float((model.probability(x) - p).square().mean().sqrt()) < 0.02
    rows = reliability(model.probability(x), hit)
    assert ((rows[:, 0] - rows[:, 1]).abs() < 4 * rows[:, 2] + 0.01).all()
    with pytest.raises(ValueError, match="more scenes"):
        fit(x, torch.ones_like(hit))


def test_what_is_kept_is_probable_enough_and_says_so(pretrained, polished):
    _, estimate, result = polished
    features = hit_features(result, estimate.sources, pretrained.backbone.range_cells, pretrained.setup, 16)
    decided = pretrained.calibration.decide(result, features, 0.5)
    for before, after, rows in zip(result.sources, decided.sources, features, strict=True):
        p = pretrained.calibration.probability(rows)
        torch.testing.assert_close(after.confidence, p[p >= 0.5])
        torch.testing.assert_close(after.position, before.position[p >= 0.5])
    assert [len(c) for c in decided.covariance] == [len(s) for s in decided.sources]


def test_the_shipped_probabilities_are_better_than_the_share_of_hits(pretrained, polished):
    scenes, estimate, result = polished
    features = hit_features(result, estimate.sources, pretrained.backbone.range_cells, pretrained.setup, 16)
    p = torch.cat([pretrained.calibration.probability(rows) for rows in features])
    hit = []
    for i, sources in enumerate(result.sources):
        pairs = match(sources.position, scenes.position[i][scenes.mask[i]])
        hit += [k in pairs.pairs[pairs.hit, 0] for k in range(len(sources))]
    hit = torch.tensor(hit, dtype=torch.float64)
    assert float((p - hit).square().mean()) < 0.8 * float((hit - hit.mean()).square().mean())


def test_a_localizer_reports_what_is_probable_unless_told_otherwise(pretrained, polished):
    scenes, _, _ = polished
    some = (scenes.y[:8], scenes.codes[:8], scenes.channel[:8])
    usual = pretrained.localize(*some)
    assert all(float(s.confidence.min()) >= PipelineOptions().decision.least_confidence for s in usual if len(s))
    strict = Localizer.from_pretrained(PipelineOptions(decision=DecisionOptions(least_confidence=0.8))).localize(*some)
    assert sum(map(len, strict)) < sum(map(len, usual))
    with pytest.raises(ValueError, match="least_confidence"):
        DecisionOptions(least_confidence=1.0)


def test_the_file_comes_back_and_damage_is_named(tmp_path):
    model = HitModel(tuple(float(i) for i in range(len(FEATURES))), -1.5)
    model.save(tmp_path, {"seed": 1})
    assert HitModel.load(tmp_path) == model
    assert HitModel.load(tmp_path / "nothing") is None
    path = tmp_path / CONFIDENCE_FILE
    content = json.loads(path.read_text())
    for damage in ("{", json.dumps(content | {"features": ["other"]}), json.dumps(content | {"weights": [1.0]})):
        path.write_text(damage)
        with pytest.raises(FileFormatError, match=CONFIDENCE_FILE):
            HitModel.load(tmp_path)


def test_the_reliability_diagram_is_drawn(tmp_path):
    rows = reliability(torch.linspace(0, 1, 50, dtype=torch.float64), (torch.arange(50) > 20).double(), bins=5)
    draw(tmp_path / "x.png", {"L = 16": rows})
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def subject():
    return Subject.load(DEFAULT_MODEL)


def test_what_is_labelled_is_what_the_path_ends_with(subject):
    found = labelled(subject, 16, range(6), seed=SEED)
    scenes = generate_scenes(dataclasses.replace(subject.system, n_snapshots=16), SEED, range(6))
    bare = dataclasses.replace(subject.options, decision=DecisionOptions(least_confidence=0.0))
    result = pipeline.run(Parts(subject.parts.backbone, subject.parts.setup), pipeline.measure(scenes), bare)
    count = [len(s) for s in result.sources]
    assert found.features[:, FEATURES.index("sources found")].tolist() == [n for n in count for _ in range(n)]
    ranges = torch.cat([s.range for s in result.sources])
    torch.testing.assert_close(found.features[:, FEATURES.index("log range in wavelengths")], (ranges / 0.3).log())
    hits = [match(s.position, scenes.position[i][scenes.mask[i]]).hits for i, s in enumerate(result.sources)]
    assert int(found.hit.sum()) == sum(hits)


def test_options_that_are_stored_with_a_model_are_those_it_is_fitted_with(tmp_path):
    folder = Path(shutil.copytree(DEFAULT_MODEL, tmp_path / "model"))
    # A calibration of other features, which the localizer refuses, is what is to be replaced.
    (folder / CONFIDENCE_FILE).write_text(json.dumps({"features": ["other"], "weights": [1.0], "bias": 0.0}))
    options = PipelineOptions(map=MapOptions(blend=0.3), scenes_at_once=2)
    write_options(folder / OPTIONS_FILE, options)
    found = Subject.load(folder)
    assert found.options == options
    assert found.parts.calibration is None
    with pytest.raises(FileFormatError, match=r"risfast\.train\.confidence"):
        Localizer.load(folder)


def test_several_processes_find_what_one_finds(subject):
    small = dataclasses.replace(subject, options=dataclasses.replace(subject.options, scenes_at_once=2))
    one, two = (all_labelled(subject, [4], 4, workers)[4] for subject, workers in ((small, 1), (small, 2)))
    assert torch.equal(one.hit, two.hit)
    torch.testing.assert_close(one.features, two.features, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="from its folder"):
        all_labelled(dataclasses.replace(subject, folder=None), [4], 4, 2)


def test_the_scenes_are_those_of_the_model_s_own_system(subject):
    assert dataclasses.replace(subject.system, n_snapshots=64) == SystemConfig(
        code_kinds=("dft", "random", "hadamard", "mixed")
    )
    region = Region((-0.2, 0.7), (-0.1, 0.3), (0.2, 2.0))
    setup = Setup(SensorArray.rectangular(5, 3, 0.02, 0.04), region, "fresnel")
    told = {"training": {"system": {"array": "gone.toml", "n_sources": [1, 2], "n_antennas": 7}}}
    system = training_system(setup, told)
    assert system.setup == setup
    assert (system.n_sources, system.n_antennas, system.code_kinds) == ((1, 2), 7, CODE_KINDS)
    assert training_system(setup, {}).setup == setup


def test_the_command_fits_and_draws(tmp_path, capsys, monkeypatch):
    folder = Path(shutil.copytree(DEFAULT_MODEL, tmp_path / "model"))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(300, len(FEATURES), dtype=torch.float64, generator=generator)
    made = confidence.Labelled(x, (x[:, 0] + torch.randn(300, dtype=torch.float64, generator=generator) > 0).double())
    monkeypatch.setattr(confidence, "all_labelled", lambda subject, snapshots, *_: dict.fromkeys(snapshots, made))
    before = HitModel.load(folder)
    confidence.fit_from_arguments(["--model", str(folder), "--picture", str(tmp_path / "p.png"), "--scenes", "3"])
    assert HitModel.load(folder) == fit(torch.cat([x, x]), torch.cat([made.hit, made.hit])) != before
    fitted = json.loads((folder / CONFIDENCE_FILE).read_text())["fitted"]
    assert fitted["codes"] == ["dft", "random", "hadamard", "mixed"]
    assert (tmp_path / "p.png").is_file()
    assert "Brier" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        confidence.fit_from_arguments(["--model", str(folder), "--workers", "0"])
    assert "must be at least 1" in capsys.readouterr().err
