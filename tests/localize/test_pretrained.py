"""The checkpoint that comes with the package meets what its card says, and finds sources."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from risfast.evaluate import match, summarise
from risfast.localize import Localizer
from risfast.losses import factor_nmse
from risfast.models import Measurement, build_backbone
from risfast.models.files import MODEL_WEIGHTS, load_model, read_card
from risfast.models.pretrained import DEFAULT_MODEL
from risfast.models.unrolled import UnrolledBackbone, UnrolledOptions
from risfast.simulate.scenes import SystemConfig, generate_scenes

SCENES = 48


@pytest.fixture(scope="module")
def model():
    return load_model(DEFAULT_MODEL, build_backbone)


def test_scenes(card, n_snapshots):
    kinds = tuple(card["training"]["data"]["code_kinds"])
    return generate_scenes(SystemConfig(n_snapshots=n_snapshots, code_kinds=kinds), card["test"]["seed"], range(SCENES))


test_scenes.__test__ = False


@pytest.mark.parametrize("n_snapshots", [16, 64])
def test_it_meets_its_card(model, n_snapshots):
    module, card = model
    scenes = test_scenes(card, n_snapshots)
    with torch.no_grad():
        estimate = module(Measurement.of(scenes))
    promised = card["test"]["sets"][f"L{n_snapshots}"]
    nmse = factor_nmse(estimate.factor, scenes.true_factor()).double().numpy()
    # The card's figure is a mean over more of the same scenes: four standard errors of a mean of so many.
    assert nmse.mean() <= promised["nmse_mean"] + 4 * nmse.std() / math.sqrt(SCENES)
    found = summarise(
        [match(s.position, scenes.position[i][scenes.mask[i]]) for i, s in enumerate(module.sources(estimate))]
    )
    spread = math.sqrt(promised["f1"] * (1 - promised["f1"]) / found.sources)
    assert found.f1 >= promised["f1"] - 4 * spread


@pytest.mark.parametrize("n_snapshots", [16, 64])
def test_it_beats_the_classical_fit_of_as_many_steps_scene_by_scene(model, n_snapshots):
    module, card = model
    scenes = test_scenes(card, n_snapshots)
    steps = module.settings.steps
    classical = UnrolledBackbone(module.setup, UnrolledOptions(steps=steps, corrections=False, columns=96)).eval()
    truth = scenes.true_factor()
    with torch.no_grad():
        learned, plain = (factor_nmse(m(Measurement.of(scenes)).factor, truth).double() for m in (module, classical))
    gain = (plain - learned).numpy()
    assert gain.mean() > 3 * gain.std() / math.sqrt(SCENES)


def test_it_is_small_and_says_how_it_was_made(model):
    module, card = model
    assert (DEFAULT_MODEL / MODEL_WEIGHTS).stat().st_size < 8_000_000
    assert card == read_card(DEFAULT_MODEL)
    assert card["trained"]["scenes"] >= 10_000
    assert card["parameters"] == sum(p.numel() for p in module.parameters())
    assert {"data", "optimiser", "system"} <= set(card["training"])


def test_five_lines_localise_a_scene():
    scenes = generate_scenes(SystemConfig(n_sources=(2, 2), snr_db=(15.0, 15.0), range_m=(0.6, 3.0)), 11, range(3))
    localizer = Localizer.from_pretrained()
    found = localizer.localize(scenes.y.numpy(), scenes.codes.numpy(), scenes.channel.numpy())
    results = [match(s.position, scenes.position[i]) for i, s in enumerate(found)]
    assert np.mean([r.hits for r in results]) >= 5 / 3
