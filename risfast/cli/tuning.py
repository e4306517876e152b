"""What ``risfast hpo`` and ``risfast hpo2`` share: Optuna, a worker under a bar, and results."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from risfast.cli.progress import Progress
from risfast.tune.options import HpoConfig

if TYPE_CHECKING:  # Optuna is imported by what tunes, not by the help
    from risfast.tune.study import OpenStudy
    from risfast.tune.worker import Objective

__all__ = ["Told", "begin", "objective_of", "print_results", "worked"]


def begin() -> None:
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


def objective_of(config: HpoConfig, folder: Path) -> Objective:
    """What the trials of a study do."""
    from risfast.tune.cached import DetectionObjective  # noqa: PLC0415
    from risfast.tune.objectives import TrainingObjective  # noqa: PLC0415

    return DetectionObjective(config, folder / "cache") if config.what == "detection" else TrainingObjective(config)


class Told:
    """One line a trial, above the bar of the study's trials; those that others do count when this worker ends one."""

    def __init__(self, opened: OpenStudy, progress: Progress) -> None:
        self._opened, self._progress = opened, progress
        self._count()

    def __call__(self, line: str) -> None:
        """A trial has ended."""
        self._progress.say(line)
        self._count()

    def _count(self) -> None:
        from optuna.trial import TrialState  # noqa: PLC0415

        from risfast.tune.jobs import slot_trials  # noqa: PLC0415

        config = self._opened.config
        trials = slot_trials(self._opened.study.get_trials(deepcopy=False)).values()
        done = sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)
        self._progress(f"trials of {config.name}", min(done, config.trials), config.trials, unit="trials")


def worked(opened: OpenStudy, folder: Path, progress: Progress) -> None:
    """Do trials until the study has all of them."""
    from risfast.train.stage import machine_settings  # noqa: PLC0415
    from risfast.tune.worker import work  # noqa: PLC0415

    machine = opened.config.base.machine
    with machine_settings(machine.threads, machine.deterministic):
        work(opened, objective_of(opened.config, folder), Told(opened, progress))
    progress.close()


def print_results(opened: OpenStudy) -> None:
    """Write the results of a study and say what they are."""
    from risfast.tune.results import results_text, write_results  # noqa: PLC0415

    print(results_text(opened, write_results(opened, opened.folder / "results")))
