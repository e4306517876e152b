"""From a configuration to a trained model in a folder, whatever is trained: what all trainings share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import torch

from risfast.io.toml_file import as_table
from risfast.models.base import CovarianceEstimate
from risfast.simulate.scenes import Scenes, SystemConfig
from risfast.sources import Sources
from risfast.train.batches import FlySource, SceneSource, ShardSource
from risfast.train.config import RunOptions
from risfast.train.distributed import World, open_world
from risfast.train.loop import Trainer, TrainingTask
from risfast.train.pictures import draw_curves, draw_localisation
from risfast.train.runs import Figures, Measured, RunFolder, RunReport, TrainingRun, validation_scenes, validation_sets
from risfast.train.validation import scene_slice

_PICTURED = 16  # test scenes of which those of the highest, the middle and the lowest SNR are drawn at the end


@dataclass(frozen=True)
class RunOutcome:
    """What a run ended with."""

    complete: bool  # False where the time limit ended it; the same command goes on
    step: int  # Steps taken, and of the whole run
    steps: int  # Steps taken, and of the whole run
    best_step: int  # Whose averaged weights are in the model folder
    figures: Figures  # On the test scenes, by set
    model: Path  # The model folder
    pictures: dict[str, Path]
    notes: list[str]  # Damage that was found and what was done about it


class Stage(TrainingTask, Protocol):
    """What one training has that others have not: a module with its loss, how it is judged, and what is kept of it."""

    def measure(self, scenes: Scenes) -> Measured:
        """How good the module is, as validation and the final test take it."""

    def locate(self, scenes: Scenes) -> tuple[CovarianceEstimate, list[Sources]]:
        """Estimate and sources of a few scenes."""

    def save(self, folder: Path, card: dict[str, Any], figures: Figures) -> None:
        """Write the model folder."""


@contextmanager
def machine_settings(threads: int, deterministic: bool) -> Iterator[None]:
    """Threads and determinism for the time of a run; both are as before afterwards."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        if threads:
            torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic or before[1])
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


def train_stage(
    config: RunOptions, folder: Path, report: RunReport, make: Callable[[World], Stage]
) -> RunOutcome | None:
    """Train what ``make`` makes, or go on with a run that was interrupted."""
    machine = config.machine
    with open_world(machine.device) as world, machine_settings(machine.threads, machine.deterministic):
        stage = make(world)
        source = _scene_source(config)
        run_folder = RunFolder(folder, config)
        if world.leads:
            run_folder.open()
        scaled = machine.amp == "fp16"
        trainer = Trainer(stage, source, config.data, config.optimiser, world, config.seed, scaled=scaled)
        run = TrainingRun(run_folder, trainer, stage.module, world, report, stage.measure)
        run.resume()
        complete = run.train()
        return _finish(run, stage, complete) if world.leads else None


def _scene_source(config: RunOptions) -> SceneSource:
    """Scenes made on the fly, or those of a folder of shards."""
    data = config.data

    def system(n_snapshots: int) -> SystemConfig:
        return config.system.system(n_snapshots, data.code_kinds)

    if data.source == "fly":
        return FlySource(system, data.seed)
    judged_on = (config.validation.seed, config.validation.test_seed)
    return ShardSource(Path(data.source), system, data.snapshots, judged_on)


def _finish(run: TrainingRun, stage: Stage, complete: bool) -> RunOutcome:
    """Test the best weights, and write the model, its card, the curves and the pictures."""
    best_step = run.use_best()
    config, folder = run.folder.config, run.folder.folder
    figures = _tested(run, stage)
    stage.save(folder / "model", _card(run, best_step, figures), figures)
    pictures = {"curves": folder / "curves.png", "localisation": folder / "localisation.png"}
    draw_curves(run.folder.metrics.read(), pictures["curves"])
    scenes = _pictured(config, run.world.device)
    run.module.eval()
    with torch.no_grad():
        estimate, sources = stage.locate(scenes)
    draw_localisation(scenes, estimate, sources, config.system.setup(), config.pipeline, pictures["localisation"])
    steps = config.optimiser.steps
    return RunOutcome(complete, run.trainer.step, steps, best_step, figures, folder / "model", pictures, run.notes)


def _pictured(config: RunOptions, device: torch.device) -> Scenes:
    """Test scenes to draw: picked by their SNR alone, the clearest first, before anything is found in them."""
    options = config.validation
    scenes = validation_scenes(config, options.snapshots[-1], options.test_seed, _PICTURED, device)
    order = scenes.snr_db.argsort(descending=True)
    return scene_slice(scenes, order[[0, _PICTURED // 2, -1]])


def _tested(run: TrainingRun, stage: Stage) -> Figures:
    """Figures on the test scenes of every L."""
    options = run.folder.config.validation
    if not options.test_scenes:
        return {}
    sets = validation_sets(run.folder.config, options.test_seed, options.test_scenes, run.world.device)
    return {name: stage.measure(scenes).figures for name, scenes in sets.items()}


def _card(run: TrainingRun, best_step: int, figures: Figures) -> dict[str, Any]:
    """What made the model, and how good it is."""
    config = run.folder.config
    options = config.validation
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "training": as_table(config),
        "trained": {
            "steps": run.trainer.step,
            "scenes": run.trainer.scenes,
            "best_step": best_step,
            "seconds": round(run.seconds, 1),
            "device": str(run.world.device),
            "processes": run.world.size,
            "skipped_steps": run.trainer.skipped,
        },
        "parameters": sum(p.numel() for p in run.module.parameters()),
        "test": {"scenes": options.test_scenes, "seed": options.test_seed, "sets": figures},
    }
