"""The overfit gate lets through what learns and stops what does not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from tiny_backbone import TINY, build

from risfast.train.config import BackboneOptions
from risfast.train.loop import TrainingError
from risfast.train.overfit import OverfitConfig, overfit

SMALL = OverfitConfig(
    scenes=6,
    snapshots=6,
    batch_size=3,
    steps=20,
    every=10,
    code_kinds=("random",),
    backbone=BackboneOptions("tiny", {"dropout": 0.0}),
    system=TINY.system,
)
# The default backbone in small: 5 x 3 x 2 atoms on a 4 x 3 surface.
UNROLLED = [
    *("--backbone.options", "steps=2", "width=8", "head_width=4", "axes.n_azimuth=9", "axes.n_elevation=5"),
    *("--system.n-h", "6", "--system.n-v", "4", "--system.n-antennas", "8"),
]


def silent(*_: object) -> None:
    pass


def test_the_outcome_is_the_best_measurement_and_says_whether_it_passes(tmp_path: Path) -> None:
    seen: list[tuple[int, int, float]] = []
    outcome = overfit(SMALL, lambda *a: seen.append(a), folder=tmp_path, build=build)
    assert [step for step, _ in outcome.curve] == [0, 10, 20]
    assert seen == [(step, 20, nmse) for step, nmse in outcome.curve]
    assert outcome.nmse_mean == min(nmse for _, nmse in outcome.curve)
    assert outcome.passed is (outcome.nmse_mean < 0.1)
    assert json.loads((tmp_path / "overfit.json").read_text())["nmse_mean"] == outcome.nmse_mean


def test_learning_by_heart_lowers_the_error() -> None:
    outcome = overfit(dataclasses.replace(SMALL, steps=60), silent, build=build)
    assert outcome.curve[-1][1] < 0.9 * outcome.curve[0][1]


def test_a_constant_does_not_pass() -> None:
    config = dataclasses.replace(SMALL, backbone=BackboneOptions("tiny", {"dropout": 0.0, "constant": True}))
    assert not overfit(config, silent, build=build).passed


def test_it_can_stop_at_the_gate() -> None:
    outcome = overfit(dataclasses.replace(SMALL, gate=10.0, stop_at_gate=True), silent, build=build)
    assert outcome.passed
    assert outcome.curve == [(0, outcome.nmse_mean)]


def test_a_training_that_goes_wrong_says_so() -> None:
    def broken(estimate, scenes):
        from risfast.losses import Terms

        return Terms(estimate.factor.abs().sum() * torch.nan, {})

    with pytest.raises(TrainingError, match="not finite"):
        overfit(SMALL, silent, build=build, objective=broken)


@pytest.mark.parametrize(("name", "value"), [("gate", 0.0), ("scenes", 0), ("steps", 0), ("every", 0)])
def test_values_that_make_no_gate_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(SMALL, **{name: value})
