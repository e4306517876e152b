"""``risfast hpo2``: a study in two stages, and a winner if the second can tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from risfast.cli.options import Common, Flag, Flat, Opt, Whole
from risfast.cli.progress import Progress
from risfast.cli.training import ABOUT_CONFIG, from_file, given_before, on_machine
from risfast.cli.tuning import Told, begin, objective_of, print_results, worked
from risfast.tune.options import Hpo2Config
from risfast.tune.presets import PRESETS

if TYPE_CHECKING:
    from risfast.tune.study import OpenStudy

__all__ = ["Options", "defaults", "run"]

HELP = (
    "The same command goes on with both studies; the same command elsewhere, with the same folder or --study.storage, "
    "takes part in them. Ends with status 1 where the second stage cannot tell its trials apart."
)
RESUMES = "; the same command goes on"


@dataclass(frozen=True)
class Options:
    """Options of ``risfast hpo2``."""

    output: Path = Path("risfast-hpo2")
    """Folder of the studies and their results."""
    preset: Annotated[Opt[str], arg(metavar="|".join(PRESETS))] = None
    """A ready configuration to start from."""
    config: Annotated[Opt[Path], arg(help=ABOUT_CONFIG)] = None
    show_space: Flag = False
    """Print what is tuned, and do nothing."""
    report: Flag = False
    """Write the results as they stand, and do nothing else."""
    device: Opt[str] = None
    """Short for --study.base.machine.device."""
    common: Annotated[Common, Flat] = field(default_factory=Common)
    both: Annotated[Hpo2Config, Flat, Whole] = field(default_factory=Hpo2Config)


def defaults(arguments: Sequence[str]) -> Options:
    """Those of ``--preset`` or of the file that ``--config`` names."""
    given = given_before(arguments)
    if given.preset is None:
        return Options(both=from_file(Hpo2Config, arguments))
    if given.preset not in PRESETS:
        raise ValueError(f"--preset must be one of {', '.join(PRESETS)}; got {given.preset!r}")
    if given.config is not None:
        raise ValueError("give --preset or --config, not both")
    return Options(both=PRESETS[given.preset]())


def run(options: Options, progress: Progress) -> int:
    """0; 1 where there is no winner."""
    from risfast.tune.space import describe_space  # noqa: PLC0415
    from risfast.tune.stages import second_config, top_trials  # noqa: PLC0415
    from risfast.tune.study import open_study  # noqa: PLC0415

    study = options.both.study
    base = replace(study.base, machine=on_machine(study.base.machine, options.device))
    config = replace(options.both, study=replace(study, base=base))
    if options.show_space:
        print(describe_space(config.study))
        return 0
    begin()
    with open_study(config.study, options.output) as first:
        if config.stages != "second" and not options.report:
            worked(first, options.output, progress)
        if config.stages == "first":
            print_results(first)
            return 0
        top_trials(first, config.top)  # before stage 2 is made
        with open_study(second_config(config), options.output) as second:
            if not options.report:
                _second(first, second, options.output, progress)
            return _final(config, options.output, first, second)


def _second(first: OpenStudy, second: OpenStudy, folder: Path, progress: Progress) -> None:
    from risfast.train.stage import machine_settings  # noqa: PLC0415
    from risfast.tune.stages import second_stage  # noqa: PLC0415

    machine = second.config.base.machine
    with machine_settings(machine.threads, machine.deterministic):
        second_stage(first, second, objective_of(second.config, folder), Told(second, progress))
    progress.close()


def _final(config: Hpo2Config, folder: Path, first: OpenStudy, second: OpenStudy) -> int:
    from risfast.tune.pictures import draw_study  # noqa: PLC0415
    from risfast.tune.results import write_best  # noqa: PLC0415
    from risfast.tune.stages import finished_trials, verdict, verdict_text  # noqa: PLC0415

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
