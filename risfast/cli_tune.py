"""The tuning commands of ``risfast-train``: studies with one stage and with two."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from risfast.cli_options import option_registry

if TYPE_CHECKING:  # Optuna is imported by the command that tunes
    from risfast.tune.options import Hpo2Config, HpoConfig
    from risfast.tune.study import OpenStudy
    from risfast.tune.worker import Objective

__all__ = ["hpo2_command", "hpo_command"]

_ABOUT = {
    "hpo": "tune the options of a training, or of the detection of a trained model",
    "hpo2": "tune a training in two stages: many short ones, then the best of them judged as production is",
}

T = TypeVar("T")

_PLACES = {
    "hpo": "--run FOLDER (default: risfast-hpo) holds the study and its results: the same command goes on with it.\n"
    "--join STUDY takes part in a study, by its folder, or with --storage by its name; its options come from it.\n"
    "--show-space prints what is tuned. --report writes the results as they stand. --check N judges what a study of\n"
    "detection found, and the untuned options, on N other scenes of each L. --device D is short for\n"
    "--base.machine.device. ",
    "hpo2": "--run FOLDER (default: risfast-hpo2) holds the studies and their results: the same command goes on with\n"
    "them, and the same command elsewhere, with the same folder or --study.storage, takes part in them.\n"
    "--preset quick|reference starts from a ready configuration. --show-space prints what is tuned. --report writes\n"
    "the results as they stand. --device D is short for --study.base.machine.device. ",
}


@dataclass(frozen=True)
class _Place:
    """What a command line holds besides the configuration."""

    run: Path
    config: Path | None
    join: str | None
    preset: str | None
    show_space: bool
    report: bool
    check: int
    device: str | None


def _place(command: str, rest: Sequence[str]) -> tuple[_Place, list[str]]:
    parser = argparse.ArgumentParser(prog=f"risfast-train {command}", add_help=False, allow_abbrev=False)
    parser.add_argument("--run", type=Path, default=Path(f"risfast-{command}"))
    parser.add_argument("--config", type=Path, default=None)
    parser.add_argument("--device", default=None)
    parser.add_argument("--show-space", action="store_true")
    parser.add_argument("--report", action="store_true")
    if command == "hpo":
        parser.add_argument("--join", default=None)
        parser.add_argument("--check", type=int, default=0)
    else:
        parser.add_argument("--preset", default=None)
    found, left = parser.parse_known_args(rest)
    values = {"join": None, "preset": None, "check": 0, **vars(found)}
    return _Place(**values), left


def _parse(kind: type[T], command: str, left: Sequence[str], default: T) -> T:
    import tyro  # noqa: PLC0415  (only the commands that are generated need it)

    description = (
        f"{_ABOUT[command].capitalize()}.\n\n{_PLACES[command]}--config FILE reads options from a TOML file; options "
        "given here win. --debug shows the traceback of an error."
    )
    return tyro.cli(
        kind,
        prog=f"risfast-train {command}",
        description=description,
        args=list(left),
        default=default,
        registry=option_registry(),
        config=(tyro.conf.FlagConversionOff,),
    )


def _from_file(kind: type[T], path: Path | None) -> T:
    from risfast.toml_file import read_toml  # noqa: PLC0415

    return kind() if path is None else read_toml(kind, path)


def _begin() -> None:
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


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def hpo_command(rest: Sequence[str]) -> int:
    """Run a study, take part in one, or report one.

    Parameters
    ----------
    rest : sequence of str
        The arguments behind ``hpo``.

    Returns
    -------
    int
        0.

    Raises
    ------
    ValueError, TypeError, OSError, RuntimeError
        What the command line shows in one line.
    """
    from risfast.tune.options import HpoConfig  # noqa: PLC0415
    from risfast.tune.space import describe_space  # noqa: PLC0415

    place, left = _place("hpo", rest)
    if place.device is not None:
        left += ["--base.machine.device", place.device]
    config = _parse(HpoConfig, "hpo", left, _from_file(HpoConfig, place.config))
    if place.show_space:
        print(describe_space(config))
        return 0
    _begin()
    if place.check and place.check < 2:
        raise ValueError(f"--check must be at least 2, got {place.check}")
    with _open(place, config) as opened:
        if place.check:
            _check_detection(opened)
        if not place.report:
            _work(opened, opened.folder)
        _print_results(opened)
        if place.check:
            _print_check(opened, place.check)
    return 0


def _open(place: _Place, config: HpoConfig) -> OpenStudy:
    """Open the study, or the one to join with the options that it was made with."""
    from risfast.tune.study import join_study, open_study  # noqa: PLC0415

    if place.join is None:
        return open_study(config, place.run)
    if "://" in config.storage:
        return join_study(config.storage, place.join, place.run, config)
    folder = Path(place.join)
    kind = "journal" if (folder / "study.journal").is_file() else "sqlite"
    return join_study(kind, config.name, folder, config)


def _objective(config: HpoConfig, folder: Path) -> Objective:
    from risfast.tune.cached import DetectionObjective  # noqa: PLC0415
    from risfast.tune.objectives import TrainingObjective  # noqa: PLC0415

    return DetectionObjective(config, folder / "cache") if config.what == "detection" else TrainingObjective(config)


def _work(opened: OpenStudy, folder: Path) -> None:
    from risfast.train.stage import machine_settings  # noqa: PLC0415
    from risfast.tune.worker import work  # noqa: PLC0415

    machine = opened.config.base.machine
    with machine_settings(machine.threads, machine.deterministic):
        work(opened, _objective(opened.config, folder), _tell)


def _print_results(opened: OpenStudy) -> None:
    from risfast.tune.results import results_text, write_results  # noqa: PLC0415

    print(results_text(opened, write_results(opened, opened.folder / "results")))


def _check_detection(opened: OpenStudy) -> None:
    from risfast.tune.held_out import require_detection  # noqa: PLC0415

    require_detection(opened.config)


def _print_check(opened: OpenStudy, scenes: int) -> None:
    from risfast.train.stage import machine_settings  # noqa: PLC0415
    from risfast.tune.held_out import held_out, held_out_text  # noqa: PLC0415
    from risfast.tune.stages import finished_trials  # noqa: PLC0415

    machine = opened.config.base.machine
    with machine_settings(machine.threads, machine.deterministic):
        found = held_out(opened.config, finished_trials(opened)[0].params, scenes, opened.folder / "cache")
    print(held_out_text(found))


def hpo2_command(rest: Sequence[str]) -> int:
    """Run a study in two stages, and crown a winner if the second stage can tell.

    Parameters
    ----------
    rest : sequence of str
        The arguments behind ``hpo2``.

    Returns
    -------
    int
        0; 1 where the second stage cannot tell its trials apart.

    Raises
    ------
    ValueError, TypeError, OSError, RuntimeError
        What the command line shows in one line.
    """
    from risfast.tune.options import Hpo2Config  # noqa: PLC0415
    from risfast.tune.presets import PRESETS  # noqa: PLC0415
    from risfast.tune.space import describe_space  # noqa: PLC0415

    place, left = _place("hpo2", rest)
    if place.preset is not None and place.preset not in PRESETS:
        raise ValueError(f"--preset must be one of {', '.join(PRESETS)}; got {place.preset!r}")
    if place.preset is not None and place.config is not None:
        raise ValueError("give --preset or --config, not both")
    if place.device is not None:
        left += ["--study.base.machine.device", place.device]
    default = PRESETS[place.preset]() if place.preset else _from_file(Hpo2Config, place.config)
    config = _parse(Hpo2Config, "hpo2", left, default)
    if place.show_space:
        print(describe_space(config.study))
        return 0
    _begin()
    return _both(config, place)


def _both(config: Hpo2Config, place: _Place) -> int:
    from risfast.tune.stages import second_config, top_trials  # noqa: PLC0415
    from risfast.tune.study import open_study  # noqa: PLC0415

    with open_study(config.study, place.run) as first:
        if config.stages != "second" and not place.report:
            _work(first, place.run)
        if config.stages == "first":
            _print_results(first)
            return 0
        top_trials(first, config.top)  # before stage 2 is made
        with open_study(second_config(config), place.run) as second:
            return _final(config, place, first, second)


def _final(config: Hpo2Config, place: _Place, first: OpenStudy, second: OpenStudy) -> int:
    from risfast.train.stage import machine_settings  # noqa: PLC0415
    from risfast.tune.pictures import draw_study  # noqa: PLC0415
    from risfast.tune.results import write_best  # noqa: PLC0415
    from risfast.tune.stages import finished_trials, second_stage, verdict, verdict_text  # noqa: PLC0415

    machine = config.study.base.machine
    if not place.report:
        with machine_settings(machine.threads, machine.deterministic):
            second_stage(first, second, _objective(second.config, place.run), _tell)
    found = verdict(config, first, second)
    print(verdict_text(found))
    of_first = place.run / "results" / "stage1"
    drawn = write_best(first, finished_trials(first)[0], of_first) | draw_study(first, of_first)
    files = {f"stage 1, {name}": path for name, path in drawn.items()}
    files |= {f"stage 2, {name}": path for name, path in draw_study(second, place.run / "results").items()}
    if found.winner is not None:
        files = write_best(second, found.winner, place.run / "results") | files
    for name, path in files.items():
        print(f"{name}: {path}")
    return 1 if found.flat else 0
