"""Whether what a study of detection found holds on scenes that it was not chosen on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from risfast.evaluate.figures import FIGURES, Interval, bootstrap_difference, figures
from risfast.evaluate.metrics import Scores
from risfast.tune.cached import DetectionObjective
from risfast.tune.options import HpoConfig
from risfast.tune.study import slot_seed

__all__ = ["HeldOut", "held_out", "held_out_text", "require_detection"]

_SHOWN = ("f1", "precision", "recall", "rmse_xyz_pairs_m")


@dataclass(frozen=True)
class HeldOut:
    """Tuned and untuned detection on the same other scenes."""

    scenes: int  # Of all sets together
    tuned: dict[str, float]  # Figures of both; the keys of :data:`risfast.evaluate.figures.FIGURES`
    untuned: dict[str, float]  # Figures of both; the keys of :data:`risfast.evaluate.figures.FIGURES`
    # Tuned less untuned, with 95 % intervals over resampled scenes, the same ones for both
    difference: dict[str, Interval]


def require_detection(config: HpoConfig) -> None:
    """Refuse a study whose trials train."""
    if config.what != "detection":
        raise ValueError(
            "only a study of detection is checked on other scenes: train what the best configuration says and give "
            "its model to risfast evaluate"
        )


def held_out(config: HpoConfig, choice: Mapping[str, Any], scenes: int, folder: Path) -> HeldOut:
    """Judge a choice of detection options, and those without tuning, on scenes of another seed."""
    require_detection(config)
    # Any seed that follows from the study's and is not the study's own makes scenes that no trial has seen.
    score = replace(config.score, scenes=scenes, seed=slot_seed(config.score.seed, 0))
    objective = DetectionObjective(replace(config, score=score), folder)
    tuned, before = (Scores.joined(list(objective.scores(c).values())) for c in (choice, {}))
    return HeldOut(len(tuned), figures(tuned), figures(before), bootstrap_difference(tuned, before))


def held_out_text(found: HeldOut) -> str:
    """A table of both, and of their difference with its interval."""
    width = max(map(len, _SHOWN))
    lines = [f"on {found.scenes} other scenes", f"{'':{width}}  {'tuned':>8}  {'untuned':>8}  tuned - untuned [95 %]"]
    for name in (n for n in FIGURES if n in _SHOWN):
        apart = found.difference[name]
        lines.append(
            f"{name:{width}}  {found.tuned[name]:8.4f}  {found.untuned[name]:8.4f}  "
            f"{apart.value:+.4f} [{apart.low:+.4f}, {apart.high:+.4f}]"
        )
    return "\n".join(lines)
