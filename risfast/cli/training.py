"""What the commands that train share: where a run lives, its bar, and the table that it ends with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import tyro

from risfast.cli.progress import Progress
from risfast.io.toml_file import read_toml

if TYPE_CHECKING:
    from risfast.train.config import MachineOptions
    from risfast.train.runs import Progress as RunProgress
    from risfast.train.runs import Report
    from risfast.train.stage import Outcome

__all__ = ["ABOUT_CONFIG", "ABOUT_RUN", "from_file", "given_before", "on_machine", "outcome_text", "trained"]

T = TypeVar("T")

ABOUT_RUN = "Folder of the run; the same command goes on with an interrupted one."
ABOUT_CONFIG = "TOML file with options, such as the config.toml of another run; options given here win."


@dataclass(frozen=True)
class _File:
    """The options that are read before all others."""

    config: Path | None = None
    preset: str | None = None


def given_before(arguments: Sequence[str]) -> _File:
    """``--config`` and ``--preset``, which say what the other options' defaults are."""
    words = [word for word in arguments if word not in ("-h", "--help")]
    found, _ = tyro.cli(_File, args=words, return_unknown_args=True, add_help=False)
    return found


def from_file(kind: type[T], arguments: Sequence[str]) -> T:
    """The configuration that ``--config`` names, or the defaults."""
    path = given_before(arguments).config
    return kind() if path is None else read_toml(kind, path)


def on_machine(machine: MachineOptions, device: str | None, minutes: float | None = None) -> MachineOptions:
    """The machine with what its short options say."""
    given: dict[str, Any] = {"device": device, "minutes": minutes}
    return replace(machine, **{name: value for name, value in given.items() if value is not None})


def trained(
    train: Callable[[T, Path, Report], Outcome | None], config: T, folder: Path, progress: Progress
) -> Outcome | None:
    """A run under its bar, and the table that it ends with; None in every process but the first."""

    def report(now: RunProgress) -> None:
        progress("training", now.step, now.steps, unit="steps", note=progress_note(now))

    outcome = train(config, folder, report)
    progress.close()
    if outcome is not None:
        print(outcome_text(outcome))
    return outcome


def progress_note(now: RunProgress) -> str:
    """Loss, NMSE, F1, scenes/s and what the run does besides; what is not known yet is left out."""
    known = {
        "loss": (now.loss, "{:.4f}"),
        "NMSE": (now.nmse, "{:.3f}"),
        "F1": (now.f1, "{:.3f}"),
        "scenes/s": (now.scenes_per_s, "{:.1f}"),
    }
    parts = [f"{name} {form.format(value)}" for name, (value, form) in known.items() if math.isfinite(value)]
    return "  ".join([*parts, *([now.note] if now.note else [])])


_ROWS = {
    "NMSE mean": ("nmse_mean", 1.0, "{:.3f}"),
    "NMSE median": ("nmse_median", 1.0, "{:.3f}"),
    "NMSE of a constant": ("nmse_of_mean", 1.0, "{:.3f}"),
    "correlation between scenes": ("correlation", 1.0, "{:.3f}"),
    "F1": ("f1", 1.0, "{:.3f}"),
    "precision": ("precision", 1.0, "{:.3f}"),
    "recall": ("recall", 1.0, "{:.3f}"),
    "ghosts a scene": ("ghosts_per_scene", 1.0, "{:.2f}"),
    "azimuth RMSE of hits (deg)": ("rmse_azimuth_rad", 180 / math.pi, "{:.2f}"),
    "elevation RMSE of hits (deg)": ("rmse_elevation_rad", 180 / math.pi, "{:.2f}"),
    "range RMSE of hits (m)": ("rmse_range_m", 1.0, "{:.3f}"),
    "F1 of the backbone's own": ("own_f1", 1.0, "{:.3f}"),
    "recall of the backbone's own": ("own_recall", 1.0, "{:.3f}"),
    "ghosts of the backbone's own": ("own_ghosts_per_scene", 1.0, "{:.2f}"),
    "Capon F1": ("capon_f1", 1.0, "{:.3f}"),
    "Capon F1 on the true covariance": ("true_capon_f1", 1.0, "{:.3f}"),
    "Capon peak to side lobe (dB)": ("capon_peak_to_sidelobe_db", 1.0, "{:.1f}"),
}


def outcome_text(outcome: Outcome) -> str:
    """The table that a run ends with, and where its files are; angles in degrees."""
    lines = list(outcome.notes)
    if outcome.complete:
        lines.append(f"{outcome.step} steps; the best weights are those of step {outcome.best_step}. On unseen scenes:")
    else:
        lines.append(
            f"stopped by the time limit at step {outcome.step} of {outcome.steps}; the same command goes on. "
            f"The best weights so far (step {outcome.best_step}) on unseen scenes:"
        )
    sets = outcome.figures
    lines.append(f"{'':32}" + "".join(f"{name:>10}" for name in sets))
    for label, (key, factor, form) in _ROWS.items():
        values = [figures.get(key) for figures in sets.values()]
        if any(value is not None for value in values):
            cells = ["-" if v is None or not math.isfinite(v) else form.format(v * factor) for v in values]
            lines.append(f"{label:32}" + "".join(f"{cell:>10}" for cell in cells))
    lines.append(f"model: {outcome.model}")
    lines += [f"{name}: {path}" for name, path in outcome.pictures.items()]
    return "\n".join(lines)
