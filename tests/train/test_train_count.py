"""The fit of the probability of each number of sources, and its command."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from risfast.localize import Localizer
from risfast.localize.count import load_counts
from risfast.models.pretrained import DEFAULT_MODEL
from risfast.train.count import Counted, fit_counts, fit_counts_from_arguments


def test_the_fit_finds_how_evidence_was_made() -> None:
    rng = np.random.default_rng(0)
    # Numbers drawn from known probabilities, and evidence that says three times what it knows and leaves a prior out.
    honest = 2 * rng.standard_normal((4000, 6))
    prior = np.array([0.0, 1.0, 0.0, -1.0, -np.inf, -np.inf])
    exact = np.exp(honest + prior)
    exact /= exact.sum(1, keepdims=True)
    number = (rng.random((4000, 1)) > exact.cumsum(1)).sum(1)
    evidence = torch.from_numpy(3 * honest)
    model = fit_counts(Counted(evidence, torch.from_numpy(number)), 3)
    assert len(model.offsets) == 5
    assert model.temperature == pytest.approx(1 / 3, rel=0.15)
    np.testing.assert_allclose(np.array(model.offsets[:4]) - model.offsets[0], prior[:4], atol=0.4)
    probability = model.probability(evidence).numpy()
    assert np.abs(probability - exact).mean() < 0.02
    assert probability[:, 4:].mean() < 0.02  # numbers that no scene had


def test_the_command_fits_writes_and_draws(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "model"
    shutil.copytree(DEFAULT_MODEL, folder)
    (folder / "count.json").unlink(missing_ok=True)
    picture = tmp_path / "count.png"
    fit_counts_from_arguments(
        ["--model", str(folder), "--scenes", "10", "--snapshots", "16", "--picture", str(picture)]
    )
    assert set(load_counts(folder)[0]) == set(load_counts(folder)[1]) == {"equal", "spread"}
    assert picture.stat().st_size > 1000
    assert "on other scenes" in capsys.readouterr().out
    assert Localizer.load(folder).parts.counts == load_counts(folder)[0]
