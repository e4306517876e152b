"""``risfast hpo``, a study with one stage, and ``risfast hpo2``, one with two and a winner if the second can tell."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from tyro.conf import arg

from risfast.cli.options import Common, Flag, Flat, Opt, Whole
from risfast.cli.progress import ProgressBar
from risfast.cli.training import ConfigFile, ConfiguredCommand, given_before, on_machine
from risfast.tune.options import PRESETS, Hpo2Config, HpoConfig

if TYPE_CHECKING:  # Optuna is imported by what tunes, not by the help
    from risfast.tune.study import OpenStudy


@dataclass(frozen=True)
class HpoCommand(ConfiguredCommand):
    """Options of ``risfast hpo``."""

    HELP: ClassVar[str] = (
        "The same command goes on with a study; the same command elsewhere, with the same storage, takes part in it."
    )

    output: Path = Path("risfast-hpo")  # Folder of the study and its results.
    # Take part in a study, by its folder, or with --storage by its name; its options come from it.
    join: Opt[str] = None
    config: ConfigFile = None
    show_space: Flag = False  # Print what is tuned, and do nothing.
    report: Flag = False  # Write the results as they stand, and do nothing else.
    # Judge what a study of detection found, and the untuned options, on N other scenes of each L.
    check: Annotated[int, arg(metavar="N")] = 0
    device: Opt[str] = None  # Short for --base.machine.device.
    common: Annotated[Common, Flat] = field(default_factory=Common)
    settings: Annotated[HpoConfig, Flat, Whole] = field(default_factory=HpoConfig)

    def run(self, progress: ProgressBar) -> int:
        """Run a study, take part in one, or report one."""
        config = _on_device(self.settings, self.device)
        if self.show_space:
            progress.close()
            return _shown(config)
        _begin()
        if self.check and self.check < 2:
            raise ValueError(f"--check must be at least 2, got {self.check}")
        with self._open(config) as opened:
            if self.check:
                from risfast.tune.results import require_detection  # noqa: PLC0415

                require_detection(opened.config)
            if not self.report:
                _worked(opened, opened.folder, progress)
            _print_results(opened)
            if self.check:
                _print_check(opened, self.check)
        return 0

    def _open(self, config: HpoConfig) -> OpenStudy:
        """Open the study, or the one to join with the options that it was made with."""
        from risfast.tune.study import join_study, open_study  # noqa: PLC0415

        if self.join is None:
            return open_study(config, self.output)
        if "://" in config.storage:
            return join_study(config.storage, self.join, self.output, config)
        folder = Path(self.join)
        kind = "journal" if (folder / "study.journal").is_file() else "sqlite"
        return join_study(kind, config.name, folder, config)


@dataclass(frozen=True)
class Hpo2Command(ConfiguredCommand):
    """Options of ``risfast hpo2``."""

    HELP: ClassVar[str] = (
        "The same command goes on with both studies; the same command elsewhere, with the same folder or "
        "--study.storage, takes part in them. Ends with status 1 where the second stage cannot tell its trials apart."
    )

    output: Path = Path("risfast-hpo2")  # Folder of the studies and their results.
    preset: Annotated[Opt[str], arg(metavar="|".join(PRESETS))] = None  # A ready configuration to start from.
    config: ConfigFile = None
    show_space: Flag = False  # Print what is tuned, and do nothing.
    report: Flag = False  # Write the results as they stand, and do nothing else.
    device: Opt[str] = None  # Short for --study.base.machine.device.
    common: Annotated[Common, Flat] = field(default_factory=Common)
    settings: Annotated[Hpo2Config, Flat, Whole] = field(default_factory=Hpo2Config)

    @classmethod
    def defaults(cls, arguments: Sequence[str]) -> Self:
        """Those of ``--preset`` or of the file that ``--config`` names."""
        given = given_before(arguments)
        if given.preset is None:
            return super().defaults(arguments)
        if given.preset not in PRESETS:
            raise ValueError(f"--preset must be one of {', '.join(PRESETS)}; got {given.preset!r}")
        if given.config is not None:
            raise ValueError("give --preset or --config, not both")
        return cls(settings=PRESETS[given.preset]())

    def run(self, progress: ProgressBar) -> int:
        """0; 1 where there is no winner."""
        from risfast.tune.results import second_config, second_stage, top_trials  # noqa: PLC0415
        from risfast.tune.study import open_study  # noqa: PLC0415

        config = replace(self.settings, study=_on_device(self.settings.study, self.device))
        if self.show_space:
            progress.close()
            return _shown(config.study)
        _begin()
        with open_study(config.study, self.output) as first:
            if config.stages != "second" and not self.report:
                _worked(first, self.output, progress)
            if config.stages == "first":
                _print_results(first)
                return 0
            top_trials(first, config.top)  # before stage 2 is made
            with open_study(second_config(config), self.output) as second:
                if not self.report:
                    _worked(second, self.output, progress, lambda *how: second_stage(first, *how))
                return _final(config, self.output, first, second)


def _on_device(study: HpoConfig, device: str | None) -> HpoConfig:
    return replace(study, base=replace(study.base, machine=on_machine(study.base.machine, device)))


def _shown(study: HpoConfig) -> int:
    from risfast.tune.space import describe_space  # noqa: PLC0415

    print(describe_space(study))
    return 0


def _begin() -> None:
    """Refuse what cannot be a worker, and quiet Optuna."""
    try:
        import optuna  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise RuntimeError("tuning needs Optuna; pip install 'risfast[tune]'") from error
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "a worker is one process: start as many commands as there are devices, each with --device cuda:N, and not "
            "torchrun"
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def _worked(opened: OpenStudy, folder: Path, progress: ProgressBar, how: Callable[..., None] | None = None) -> None:
    """Do trials until the study has all of them: a line each, above the bar of the study's trials."""
    from risfast.train.distributed import machine_settings  # noqa: PLC0415
    from risfast.tune.objectives import DetectionObjective, TrainingObjective  # noqa: PLC0415
    from risfast.tune.study import work  # noqa: PLC0415

    config = opened.config

    def count() -> None:  # those that others do count when this worker ends one
        progress(f"trials of {config.name}", min(opened.jobs.state()[0], config.trials), config.trials, unit="trials")

    def tell(line: str) -> None:
        progress.say(line)
        count()

    with machine_settings(config.base.machine.threads, config.base.machine.deterministic):
        detects = config.what == "detection"
        objective: Any = DetectionObjective(config, folder / "cache") if detects else TrainingObjective(config)
        count()
        (how or work)(opened, objective, tell)
    progress.close()


def _print_results(opened: OpenStudy) -> None:
    """Write the results of a study and say what they are."""
    from risfast.tune.results import results_text, write_study  # noqa: PLC0415

    print(results_text(opened, write_study(opened, opened.folder / "results")))


def _print_check(opened: OpenStudy, scenes: int) -> None:
    from risfast.train.distributed import machine_settings  # noqa: PLC0415
    from risfast.tune.results import held_out, held_out_text  # noqa: PLC0415
    from risfast.tune.study import finished_trials  # noqa: PLC0415

    machine = opened.config.base.machine
    with machine_settings(machine.threads, machine.deterministic):
        found = held_out(opened.config, finished_trials(opened)[0].params, scenes, opened.folder / "cache")
    print(held_out_text(found))


def _final(config: Hpo2Config, folder: Path, first: OpenStudy, second: OpenStudy) -> int:
    from risfast.tune.pictures import draw_study  # noqa: PLC0415
    from risfast.tune.results import verdict, verdict_text, write_best  # noqa: PLC0415
    from risfast.tune.study import finished_trials  # noqa: PLC0415

    found = verdict(config, first, second)
    print(verdict_text(found))
    of_first = folder / "results" / "stage1"
    drawn = write_best(first, finished_trials(first)[0], of_first) | draw_study(first, of_first)
    files = {f"stage 1, {name}": path for name, path in drawn.items()}
    files |= {f"stage 2, {name}": path for name, path in draw_study(second, folder / "results").items()}
    if found.winner is not None:
        files = write_best(second, found.winner, folder / "results") | files
    for name, path in files.items():
        print(f"{name}: {path}")
    return 1 if found.flat else 0
