"""The measurement of false alarms: its noise, its table and the picture."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))

from bench import false_alarms


def test_noise_is_white_and_of_unit_power() -> None:
    noise = false_alarms.noise_covariances(np.random.default_rng(1), 400, 4, 20).numpy()
    np.testing.assert_allclose(noise.mean(0), np.eye(4), atol=0.05)
    assert np.linalg.matrix_rank(false_alarms.noise_covariances(np.random.default_rng(2), 1, 4, 2)[0].numpy()) == 2


def test_arrays_that_are_measured_again_replace_their_rows_and_leave_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(name: str, snapshots: int, scenes: int) -> false_alarms.Rate:
        return false_alarms.Rate(name, snapshots, scenes, scenes // 100, 0.01, 0.005, 0.02)

    monkeypatch.setattr(false_alarms, "measured", told)
    for scenes, names in ((100, ["ring of 8", "line of 8"]), (200, ["ring of 8"])):
        false_alarms.main(["--scenes", str(scenes), "--output", str(tmp_path), "--arrays", *names])
    rows = false_alarms.read_table(tmp_path / "false_alarms.csv")
    assert [(row.array, row.snapshots, row.scenes) for row in rows] == [
        *(("line of 8", snapshots, 100) for snapshots in (1, 4, 80)),
        *(("ring of 8", snapshots, 200) for snapshots in (1, 4, 80)),
    ]
    assert (tmp_path / "false_alarms.png").stat().st_size > 1000
