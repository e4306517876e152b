"""The comparison of backbones: its scores, its paired differences, and what it writes."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from risfast.geometry import SensorArray
from risfast.simulate.scenes import SystemConfig, generate_scenes
from risfast.sources import Sources

ROOT = Path(__file__).resolve().parents[2]
# Appended, so that an installed risfast is what the other tests see.
sys.path.append(str(ROOT))

from bench import backbones  # noqa: E402

SYSTEM = SystemConfig(array=SensorArray.rectangular(4, 3), n_antennas=4, n_snapshots=5, n_sources=(1, 2))
SCENES = generate_scenes(SYSTEM, 3, range(6))


class Knowing(torch.nn.Module):
    """Gives the truth, its factor by ``scale``; knows a scene by its measurement."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, measurement):
        which = [int((SCENES.y == y).all((1, 2)).nonzero()) for y in measurement.y]
        return SimpleNamespace(factor=SCENES.true_factor()[which] * self.scale, which=which)

    def sources(self, estimate):
        found = []
        for i in estimate.which:
            position = SCENES.position[i][SCENES.mask[i]].double()
            found.append(Sources.at(position, torch.ones_like(position[:, 0])))
        return found


def made(name: str, nmse: np.ndarray, hits: int) -> backbones.Scores:
    """Scores of as many scenes, with two sources each and ``hits`` found of them."""
    n = len(nmse)
    vectors = list(torch.randn(n, 4, 2, dtype=torch.complex64, generator=torch.Generator().manual_seed(0)))
    snr = np.linspace(-5, 20, n).tolist()
    return backbones.Scores(name, nmse.tolist(), [hits] * n, [2] * n, [2] * n, snr, vectors, 0.01, 0.02)


@pytest.mark.parametrize("batch", [4, 6])
def test_the_truth_has_no_error_and_finds_every_source(batch):
    scores = backbones.score("truth", Knowing(3.0), SCENES, batch, 2)  # the error is that of the normalised covariance
    assert np.allclose(scores.nmse, 0, atol=1e-5)
    assert scores.hits == scores.true == scores.estimated == SCENES.n_sources.tolist()
    assert scores.f1() == 1.0
    assert scores.seconds_batched > 0
    assert scores.seconds_alone > 0


def test_correlation_is_one_for_a_constant_and_zero_between_orthogonal_covariances():
    scores = made("constant", np.ones(3), 1)
    scores.vectors = [scores.vectors[0]] * 3
    assert scores.correlation() == pytest.approx(1.0)
    scores.vectors = [torch.eye(4, dtype=torch.complex64)[:, [i]] for i in range(3)]
    assert scores.correlation() == 0.0


def test_differences_are_paired_over_scenes():
    spread = np.random.default_rng(0).uniform(0, 1, 40)  # far wider than the difference
    row = backbones.row(made("a", spread + 0.01, 2), made("b", spread, 1))
    assert row["nmse_less_reference"] == pytest.approx(0.01)
    assert row["nmse_less_reference_interval"] == pytest.approx([0.01, 0.01])
    low, high = row["nmse_mean_interval"]
    assert low < spread.mean() + 0.01 < high
    assert high - low > 0.1
    assert row["f1_less_reference_interval"] == pytest.approx([0.5, 0.5])
    assert (row["precision"], row["recall"], row["ghosts_per_scene"], row["count_accuracy"]) == (1.0, 1.0, 0.0, 1.0)


def test_what_is_written_is_what_is_shown(tmp_path):
    scores = {name: made(name, np.full(10, error), 1) for name, error in (("x", 0.2), (backbones.FINE_NAME, 0.3))}
    rows = {name: backbones.row(s, scores[backbones.FINE_NAME]) for name, s in scores.items()}
    results = {"L = 5": rows}
    path = tmp_path / "results" / "backbones.json"
    backbones.save(results, argparse.Namespace(output=path, scenes=10, threads=1))
    content = json.loads(path.read_text())
    assert content["results"] == results
    assert content["reference"] in rows
    assert path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    shown = backbones.table(content["results"])
    assert "-0.100 [-0.100, -0.100]" in shown
    assert shown.count(backbones.FINE_NAME) == 1  # it has no difference to itself
