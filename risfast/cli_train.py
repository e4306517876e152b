"""The training commands of ``risfast-train``; their options are generated from the configuration classes."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO, TypeVar

from risfast.cli_evaluate import evaluate_command
from risfast.cli_options import option_registry
from risfast.cli_tune import hpo2_command, hpo_command

if TYPE_CHECKING:  # training is imported by the command that trains, not by every start of risfast-train
    from risfast.train.runs import Progress, Report
    from risfast.train.stage import Outcome

__all__ = ["COMMANDS", "run_training_command"]

T = TypeVar("T")


class _Line:
    """One live line on stderr; in a log, a line every so often."""

    _BETWEEN_S = 20.0

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._live = stream, stream.isatty()
        self._last = -math.inf

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._last < (0.2 if self._live else self._BETWEEN_S) and progress.step != progress.steps:
            return
        self._last = now
        text = progress_line(progress)
        self._stream.write(f"\r\x1b[K{text}" if self._live else f"{text}\n")
        self._stream.flush()

    def close(self) -> None:
        if self._live:
            self._stream.write("\n")
            self._stream.flush()


def progress_line(progress: Progress) -> str:
    """Loss, NMSE, F1, scenes/s and the time left in one line; what is not known yet is a dash.

    Parameters
    ----------
    progress : Progress
        Of a training run.

    Returns
    -------
    str
        Without a line end.
    """
    known = {
        "loss": (progress.loss, "{:.4f}"),
        "NMSE": (progress.nmse, "{:.3f}"),
        "F1": (progress.f1, "{:.3f}"),
        "scenes/s": (progress.scenes_per_s, "{:.1f}"),
    }
    parts = [f"{name} {form.format(value) if math.isfinite(value) else '-'}" for name, (value, form) in known.items()]
    left = progress.seconds_left
    parts.append(f"{_duration(left)} left" if math.isfinite(left) else "- left")
    note = f"  [{progress.note}]" if progress.note else ""
    return f"{progress.step}/{progress.steps}  " + "  ".join(parts) + note


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def run_training_command(arguments: Sequence[str]) -> int:
    """Run one of :data:`COMMANDS`.

    Parameters
    ----------
    arguments : sequence of str
        The command line without the program's name; the first is the name of the command.

    Returns
    -------
    int
        As :func:`risfast.cli.main`.

    Raises
    ------
    SystemExit
        Options that cannot be parsed, or a request for help, as the parsers of the standard library have it.
    """
    command, *rest = arguments
    debug = "--debug" in rest
    rest = [item for item in rest if item != "--debug"]
    try:
        return _COMMANDS[command].run(rest)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        if debug:
            traceback.print_exc()
        else:
            print(f"risfast-train {command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


@dataclass(frozen=True)
class _Place:
    """What a command line holds besides the configuration."""

    run: Path
    config: Path | None


def _place(command: str, rest: Sequence[str]) -> tuple[_Place, list[str]]:
    """``--run`` and ``--config``, and the arguments that are left for the configuration."""
    parser = argparse.ArgumentParser(prog=f"risfast-train {command}", add_help=False, allow_abbrev=False)
    parser.add_argument("--run", type=Path, default=Path(f"risfast-{command}"))
    parser.add_argument("--config", type=Path, default=None)
    parser.add_argument("--minutes", default=None)
    found, left = parser.parse_known_args(rest)
    if found.minutes is not None:
        left += ["--machine.minutes", found.minutes]
    return _Place(found.run, found.config), left


def _parse(kind: type[T], command: str, rest: Sequence[str]) -> tuple[Path, T]:
    """The run folder and the configuration: an option for each field, over a TOML file, over the defaults."""
    import tyro  # noqa: PLC0415  (only the training commands need it)

    from risfast.toml_file import read_toml  # noqa: PLC0415

    place, left = _place(command, rest)
    default = kind() if place.config is None else read_toml(kind, place.config)
    description = (
        f"{COMMANDS[command].capitalize()}.\n\n"
        f"--run FOLDER (default: risfast-{command}) is where the run lives: the same command goes on with an "
        "interrupted run.\n--config FILE reads options from a TOML file such as the config.toml of another run; "
        "options given here win.\n--minutes N is short for --machine.minutes. --debug shows the traceback of an error."
    )
    chosen = tyro.cli(
        kind,
        prog=f"risfast-train {command}",
        description=description,
        args=left,
        default=default,
        registry=option_registry(),
        config=(tyro.conf.FlagConversionOff,),
    )
    return place.run, chosen


def _trained(
    command: str, kind: type[T], train: Callable[[T, Path, Report], Outcome | None], rest: Sequence[str]
) -> Outcome | None:
    """A run under its live line, and the table that it ends with; None in every process but the first."""
    folder, config = _parse(kind, command, rest)
    line = _Line(sys.stderr)
    try:
        outcome = train(config, folder, line)
    finally:
        line.close()
    if outcome is not None:
        print(outcome_text(outcome))
    return outcome


def _backbone(rest: Sequence[str]) -> int:
    from risfast.train.backbone import train_backbone  # noqa: PLC0415
    from risfast.train.config import RunConfig  # noqa: PLC0415

    _trained("backbone", RunConfig, train_backbone, rest)
    return 0


def _refiner(rest: Sequence[str]) -> int:
    from risfast.train.refiner import RefinerConfig, helps, train_refiner  # noqa: PLC0415

    outcome = _trained("refiner", RefinerConfig, train_refiner, rest)
    if outcome is not None:
        verdict = "helps" if helps(outcome.figures) else "does not help, and is marked so in its card"
        print(f"against the backbone's own sources and Capon on the same covariances it {verdict}")
    return 0


def _overfit(rest: Sequence[str]) -> int:
    from risfast.train.overfit import OverfitConfig, overfit  # noqa: PLC0415

    folder, config = _parse(OverfitConfig, "overfit", rest)
    began = time.monotonic()

    def report(step: int, steps: int, nmse: float) -> None:
        print(f"step {step}/{steps}  NMSE {nmse:.4f}  {_duration(time.monotonic() - began)}", file=sys.stderr)

    outcome = overfit(config, report, folder=folder)
    verdict = "below" if outcome.passed else "NOT below"
    print(
        f"{config.backbone.name}: NMSE {outcome.nmse_mean:.4f} mean, {outcome.nmse_median:.4f} median on "
        f"{config.scenes} learned scenes at step {outcome.step}, {verdict} the gate of {config.gate:g}"
    )
    return 0 if outcome.passed else 1


def _shards(rest: Sequence[str]) -> int:
    from risfast.data.shards import write_shards  # noqa: PLC0415
    from risfast.train.batches import shard_folder  # noqa: PLC0415
    from risfast.train.config import ShardsConfig  # noqa: PLC0415

    folder, config = _parse(ShardsConfig, "shards", rest)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if config.device == "cuda" and world > 1 else config.device
    written = []
    for (split, n), spec in config.sets().items():
        path = shard_folder(folder, split, n)
        counter = _Counter(sys.stderr, f"{split} L{n}") if rank == 0 else None
        try:
            write_shards(path, spec, device=device, report=counter, rank=rank, world=world)
        finally:
            if counter is not None:
                counter.close()
        written.append(f"{path}: {spec.count} scenes, {spec.size_bytes() / 1e6:.0f} MB")
    if rank == 0:
        print("\n".join(written))
    return 0


class _Counter:
    """Scenes done of a set, their rate and the time left, in one line on stderr."""

    def __init__(self, stream: TextIO, label: str) -> None:
        self._stream, self._live, self._label = stream, stream.isatty(), label
        self._began, self._first = time.monotonic(), -1

    def __call__(self, done: int, total: int) -> None:
        if self._first < 0:
            self._first = done  # what an earlier run made does not count for the rate
        spent = time.monotonic() - self._began
        rate = (done - self._first) / spent if spent > 0 and done > self._first else math.nan
        left = f"{rate:.0f} scenes/s, {_duration((total - done) / rate)} left" if rate > 0 else "starting"
        if self._live:
            self._stream.write(f"\r\x1b[K{self._label}: {done}/{total}, {left}")
        elif done in (0, total):
            self._stream.write(f"{self._label}: {done}/{total}, {left}\n")
        self._stream.flush()

    def close(self) -> None:
        if self._live:
            self._stream.write("\n")
            self._stream.flush()


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
    "Capon peak to side lobe (dB)": ("capon_peak_to_sidelobe_db", 1.0, "{:.1f}"),
}


def outcome_text(outcome: Outcome) -> str:
    """The table that a run ends with, and where its files are.

    Parameters
    ----------
    outcome : Outcome
        Of a training run.

    Returns
    -------
    str
        Notes, the figures of each set, and paths, one a line; angles in degrees.
    """
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


class _Command(NamedTuple):
    """A subcommand: what it does with the rest of the command line, and what the help text says of it."""

    run: Callable[[Sequence[str]], int]
    about: str


_COMMANDS = {
    "backbone": _Command(_backbone, "train a backbone, from measurements to covariance"),
    "overfit": _Command(
        _overfit, "check that a backbone can learn a few fixed scenes by heart; one that cannot is not worth training"
    ),
    "refiner": _Command(_refiner, "train a refiner on the maps of a trained backbone"),
    "shards": _Command(_shards, "make scenes once and keep them in files, for training, validation and test"),
    "evaluate": _Command(evaluate_command, "measure methods against the bound on fixed scenes; tables and a report"),
    "hpo": _Command(hpo_command, "tune the options of a training, or of the detection of a trained model"),
    "hpo2": _Command(hpo2_command, "tune a training in two stages: many short ones, then the best of them, longer"),
}
COMMANDS = {name: command.about for name, command in _COMMANDS.items()}
"""What the help text lists; a new command is one entry of the table above."""
