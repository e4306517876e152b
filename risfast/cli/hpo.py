"""``risfast hpo``: a study with one stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from risfast.cli.options import Common, Flag, Flat, Opt, Whole
from risfast.cli.progress import Progress
from risfast.cli.training import ABOUT_CONFIG, from_file, on_machine
from risfast.cli.tuning import begin, print_results, worked
from risfast.tune.options import HpoConfig

if TYPE_CHECKING:
    from risfast.tune.study import OpenStudy

__all__ = ["Options", "defaults", "run"]

HELP = "The same command goes on with a study; the same command elsewhere, with the same storage, takes part in it."
RESUMES = "; the same command goes on"


@dataclass(frozen=True)
class Options:
    """Options of ``risfast hpo``."""

    output: Path = Path("risfast-hpo")
    """Folder of the study and its results."""
    join: Opt[str] = None
    """Take part in a study, by its folder, or with --storage by its name; its options come from it."""
    config: Annotated[Opt[Path], arg(help=ABOUT_CONFIG)] = None
    show_space: Flag = False
    """Print what is tuned, and do nothing."""
    report: Flag = False
    """Write the results as they stand, and do nothing else."""
    check: Annotated[int, arg(metavar="N")] = 0
    """Judge what a study of detection found, and the untuned options, on N other scenes of each L."""
    device: Opt[str] = None
    """Short for --base.machine.device."""
    common: Annotated[Common, Flat] = field(default_factory=Common)
    study: Annotated[HpoConfig, Flat, Whole] = field(default_factory=HpoConfig)


def defaults(arguments: Sequence[str]) -> Options:
    """Those of the file that ``--config`` names."""
    return Options(study=from_file(HpoConfig, arguments))


def run(options: Options, progress: Progress) -> int:
    """Run a study, take part in one, or report one."""
    from risfast.tune.space import describe_space  # noqa: PLC0415

    base = options.study.base
    config = replace(options.study, base=replace(base, machine=on_machine(base.machine, options.device)))
    if options.show_space:
        print(describe_space(config))
        return 0
    begin()
    if options.check and options.check < 2:
        raise ValueError(f"--check must be at least 2, got {options.check}")
    with _open(options, config) as opened:
        if options.check:
            from risfast.tune.held_out import require_detection  # noqa: PLC0415

            require_detection(opened.config)
        if not options.report:
            worked(opened, opened.folder, progress)
        print_results(opened)
        if options.check:
            _print_check(opened, options.check)
    return 0


def _open(options: Options, config: HpoConfig) -> OpenStudy:
    """Open the study, or the one to join with the options that it was made with."""
    from risfast.tune.study import join_study, open_study  # noqa: PLC0415

    if options.join is None:
        return open_study(config, options.output)
    if "://" in config.storage:
        return join_study(config.storage, options.join, options.output, config)
    folder = Path(options.join)
    kind = "journal" if (folder / "study.journal").is_file() else "sqlite"
    return join_study(kind, config.name, folder, config)


def _print_check(opened: OpenStudy, scenes: int) -> None:
    from risfast.train.stage import machine_settings  # noqa: PLC0415
    from risfast.tune.held_out import held_out, held_out_text  # noqa: PLC0415
    from risfast.tune.stages import finished_trials  # noqa: PLC0415

    machine = opened.config.base.machine
    with machine_settings(machine.threads, machine.deterministic):
        found = held_out(opened.config, finished_trials(opened)[0].params, scenes, opened.folder / "cache")
    print(held_out_text(found))
