"""``risfast backbone``, ``refiner``, ``overfit`` and ``shards``: what trains, and what comes before it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import tyro
from tyro.conf import arg

from risfast.cli.options import Command, Common, Flag, Flat, Opt, Whole, refuse_existing
from risfast.cli.progress import ProgressBar
from risfast.io.toml_file import read_toml
from risfast.train.config import MachineOptions, RefinerConfig, RunConfig, ShardsConfig
from risfast.train.overfit import OverfitConfig, overfit

if TYPE_CHECKING:
    from risfast.train.runs import RunOutcome, RunProgress

OfRun = Annotated[Path, arg(help="Folder of the run; the same command goes on with an interrupted one.")]
ConfigFile = Annotated[
    Opt[Path], arg(help="TOML file with options, such as the config.toml of another run; options given here win.")
]


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


@dataclass(frozen=True)
class ConfiguredCommand(Command):
    """A command whose field ``settings`` is a configuration that ``--config`` reads from a file."""

    RESUMES: ClassVar[str] = "; the same command goes on"

    @classmethod
    def defaults(cls, arguments: Sequence[str]) -> Self:
        """Those of the file that ``--config`` names."""
        path = given_before(arguments).config
        kind: Any = {item.name: item.default_factory for item in fields(cls)}["settings"]
        return cls(**{"settings": kind() if path is None else read_toml(kind, path)})


def on_machine(machine: MachineOptions, device: str | None, minutes: float | None = None) -> MachineOptions:
    """The machine with what its short options say."""
    given: dict[str, Any] = {"device": device, "minutes": minutes}
    return replace(machine, **{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class BackboneCommand(ConfiguredCommand):
    """Options of ``risfast backbone``."""

    RESUMES: ClassVar[str] = "; the same command goes on from the last checkpoint"

    output: OfRun = Path("risfast-backbone")
    config: ConfigFile = None
    minutes: Opt[float] = None  # Short for --machine.minutes.
    device: Opt[str] = None  # Short for --machine.device.
    common: Annotated[Common, Flat] = field(default_factory=Common)
    settings: Annotated[RunConfig, Flat, Whole] = field(default_factory=RunConfig)

    def run(self, progress: ProgressBar) -> int:
        """Train, or go on with it; the table that it ends with comes from the first process."""
        machine = on_machine(self.settings.machine, self.device, self.minutes)

        def report(now: RunProgress) -> None:
            progress("training", now.step, now.steps, unit="steps", note=progress_note(now))

        outcome = self._train(replace(self.settings, machine=machine), report)
        progress.close()
        if outcome is not None:
            print(_outcome_text(outcome))
            self._judge(outcome)
        return 0

    def _train(self, settings: Any, report: Any) -> RunOutcome | None:
        from risfast.train.backbone import train_backbone  # noqa: PLC0415 - help does not need it

        return train_backbone(settings, self.output, report)

    def _judge(self, outcome: RunOutcome) -> None:
        """What else there is to say."""


@dataclass(frozen=True)
class RefinerCommand(BackboneCommand):
    """Options of ``risfast refiner``."""

    output: OfRun = Path("risfast-refiner")
    settings: Annotated[RefinerConfig, Flat, Whole] = field(default_factory=RefinerConfig)  # type: ignore[assignment]

    def _train(self, settings: Any, report: Any) -> RunOutcome | None:
        from risfast.train.refiner import train_refiner  # noqa: PLC0415

        return train_refiner(settings, self.output, report)

    def _judge(self, outcome: RunOutcome) -> None:
        from risfast.train.refiner import helps  # noqa: PLC0415

        verdict = "helps" if helps(outcome.figures) else "does not help, and is marked so in its card"
        print(f"against the backbone's own sources and Capon on the same covariances it {verdict}")


@dataclass(frozen=True)
class OverfitCommand(ConfiguredCommand):
    """Options of ``risfast overfit``."""

    HELP: ClassVar[str] = "One that cannot is not worth training. Ends with status 1 if the gate is not passed."
    RESUMES: ClassVar[str] = ""

    output: Path = Path("risfast-overfit")  # Folder for overfit.json.
    overwrite: Flag = False  # Replace the overfit.json that is there.
    config: ConfigFile = None
    common: Annotated[Common, Flat] = field(default_factory=Common)
    settings: Annotated[OverfitConfig, Flat, Whole] = field(default_factory=OverfitConfig)

    def run(self, progress: ProgressBar) -> int:
        """1 if the backbone does not pass."""
        config = self.settings
        refuse_existing([self.output / "overfit.json"], "--output", overwrite=self.overwrite)

        def report(step: int, steps: int, nmse: float) -> None:
            progress("learning by heart", step, steps, unit="steps", note=f"NMSE {nmse:.4f}")

        outcome = overfit(config, report, folder=self.output)
        progress.close()
        verdict = "below" if outcome.passed else "NOT below"
        print(
            f"{config.backbone.name}: NMSE {outcome.nmse_mean:.4f} mean, {outcome.nmse_median:.4f} median on "
            f"{config.scenes} learned scenes at step {outcome.step}, {verdict} the gate of {config.gate:g}"
        )
        return 0 if outcome.passed else 1


@dataclass(frozen=True)
class ShardsCommand(ConfiguredCommand):
    """Options of ``risfast shards``."""

    HELP: ClassVar[str] = "Under torchrun every process makes its share."

    output: Path = Path("risfast-shards")  # Folder of the scenes; the same command goes on with an interrupted run.
    config: ConfigFile = None
    common: Annotated[Common, Flat] = field(default_factory=Common)
    settings: Annotated[ShardsConfig, Flat, Whole] = field(default_factory=ShardsConfig)

    def run(self, progress: ProgressBar) -> int:
        """Make what is missing, and say what is there."""
        from risfast.simulate.shards import write_shards  # noqa: PLC0415
        from risfast.train.batches import shard_folder  # noqa: PLC0415

        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        device = self.settings.device
        if device == "cuda" and world > 1:
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        written = []
        for (split, n), spec in self.settings.sets().items():
            path = shard_folder(self.output, split, n)

            def report(done: int, total: int, label: str = f"{split} L{n}") -> None:
                progress(label, done, total, unit="scenes")

            write_shards(path, spec, device=device, report=report if rank == 0 else None, rank=rank, world=world)
            written.append(f"{path}: {spec.count} scenes, {spec.size_bytes() / 1e6:.0f} MB")
        progress.close()
        if rank == 0:
            print("\n".join(written))
        return 0


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


_ROWS = {  # figure, and digits behind the point
    "NMSE mean": ("nmse_mean", 3),
    "NMSE median": ("nmse_median", 3),
    "NMSE of a constant": ("nmse_of_mean", 3),
    "correlation between scenes": ("correlation", 3),
    "F1": ("f1", 3),
    "precision": ("precision", 3),
    "recall": ("recall", 3),
    "ghosts a scene": ("ghosts_per_scene", 2),
    "azimuth RMSE of hits (deg)": ("rmse_azimuth_rad", 2),
    "elevation RMSE of hits (deg)": ("rmse_elevation_rad", 2),
    "range RMSE of hits (m)": ("rmse_range_m", 3),
    "F1 of the backbone's own": ("own_f1", 3),
    "recall of the backbone's own": ("own_recall", 3),
    "ghosts of the backbone's own": ("own_ghosts_per_scene", 2),
    "Capon F1": ("capon_f1", 3),
    "Capon F1 on the true covariance": ("true_capon_f1", 3),
    "Capon peak to side lobe (dB)": ("capon_peak_to_sidelobe_db", 1),
}


def _outcome_text(outcome: RunOutcome) -> str:
    """The table that a run ends with, and where its files are; angles in degrees."""
    from risfast.report.tables import Sheet  # noqa: PLC0415

    lines = list(outcome.notes)
    if outcome.complete:
        lines.append(f"{outcome.step} steps; the best weights are those of step {outcome.best_step}. On unseen scenes:")
    else:
        lines.append(
            f"stopped by the time limit at step {outcome.step} of {outcome.steps}; the same command goes on. "
            f"The best weights so far (step {outcome.best_step}) on unseen scenes:"
        )
    rows = []
    for label, (key, digits) in _ROWS.items():
        values = [figures.get(key, math.nan) for figures in outcome.figures.values()]
        if any(key in figures for figures in outcome.figures.values()):
            shown = map(math.degrees, values) if key.endswith("_rad") else values
            rows.append([label, *(f"{v:.{digits}f}" if math.isfinite(v) else "-" for v in shown)])
    lines += [Sheet(["", *outcome.figures], rows).text(), f"model: {outcome.model}"]
    lines += [f"{name}: {path}" for name, path in outcome.pictures.items()]
    return "\n".join(lines)
