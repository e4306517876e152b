"""``risfast-train backbone``: from a configuration to a trained model in a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from risfast.data.scenes import Scenes, SystemConfig
from risfast.detect import Sources
from risfast.model_files import Build, load_model, load_weights, save_model
from risfast.models import build_backbone
from risfast.models.base import CovarianceEstimate, Measurement
from risfast.models.cells import RangeCells
from risfast.objective import BackboneObjective, ObjectiveOptions
from risfast.train.batches import FlySource, SceneSource, ShardSource
from risfast.train.config import RunConfig
from risfast.train.distributed import World, open_world
from risfast.train.loop import BackboneTask, Objective, Trainer
from risfast.train.pictures import draw_curves, draw_localisation
from risfast.train.run_folder import RunFolder, RunOptions, search_grid, validation_scenes
from risfast.train.runs import Figures, Measured, Report, Run
from risfast.train.toml_file import as_table
from risfast.train.validation import is_constant, validate

__all__ = [
    "Outcome",
    "backbone_objective",
    "machine_settings",
    "scene_source",
    "train_backbone",
    "write_outcome",
]

_PICTURES = 3  # scenes drawn at the end


@dataclass(frozen=True)
class Outcome:
    """What a run ended with.

    Attributes
    ----------
    complete : bool
        False where the time limit ended it; the same command goes on.
    step, steps : int
        Steps taken, and of the whole run.
    best_step : int
        Whose averaged weights are in the model folder.
    figures : dict
        On the test scenes, by set.
    model : Path
        The model folder.
    pictures : dict of str to Path
    notes : list of str
        Damage that was found and what was done about it.
    """

    complete: bool
    step: int
    steps: int
    best_step: int
    figures: Figures
    model: Path
    pictures: dict[str, Path]
    notes: list[str]


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


def scene_source(config: RunOptions) -> SceneSource:
    """Scenes made on the fly, or those of a folder of shards."""
    data = config.data

    def system(n_snapshots: int) -> SystemConfig:
        return config.system.system(n_snapshots, data.code_kinds)

    if data.source == "fly":
        return FlySource(system, data.seed)
    judged_on = (config.validation.seed, config.validation.test_seed)
    return ShardSource(Path(data.source), system, data.snapshots, judged_on)


def train_backbone(
    config: RunConfig, folder: Path, report: Report, *, build: Build | None = None, objective: Objective | None = None
) -> Outcome | None:
    """Train a backbone, or go on with a run that was interrupted.

    Parameters
    ----------
    config : RunConfig
    folder : Path
        The run folder; new, empty, or of this very run.
    report : callable of Progress
        Told where the run stands after each step.
    build : callable, optional
        Makes the module; :func:`risfast.models.build_backbone` by default.
    objective : callable, optional
        The loss; :class:`risfast.objective.BackboneObjective` of the configuration by default.

    Returns
    -------
    Outcome or None
        None in every process but the first.

    Raises
    ------
    TrainingError
        The run has gone wrong. The last good checkpoint is intact.
    ValueError, OSError
        The folder holds something else or cannot be written; an option does not fit.
    """
    with (
        open_world(config.machine.device) as world,
        machine_settings(config.machine.threads, config.machine.deterministic),
    ):
        run_folder = RunFolder(folder, config)
        if world.leads:
            run_folder.open()
        module = _make_module(config, build, world)
        task = BackboneTask(module, objective or backbone_objective(config.objective, module), config.machine.amp)
        trainer = Trainer(
            task,
            scene_source(config),
            config.data,
            config.optimiser,
            world,
            config.seed,
            scaled=config.machine.amp == "fp16",
        )
        run = Run(run_folder, trainer, module, world, report, lambda scenes: _measure(module, config, scenes))
        run.resume()
        complete = run.train()
        return _finish(run, config, complete) if world.leads else None


def backbone_objective(options: ObjectiveOptions, module: nn.Module) -> Objective:
    """The configured loss; the terms of the source map need the cells of the backbone's head, where it has one."""
    cells = getattr(module, "range_cells", None)
    return BackboneObjective(options, cells if isinstance(cells, RangeCells) else None)


def _make_module(config: RunConfig, build: Build | None, world: World) -> nn.Module:
    """The untrained backbone (the same in every process), or one with the weights of an earlier run."""
    make: Build = build or build_backbone
    array = config.system.planar_array()
    torch.manual_seed(config.seed)
    module = make(config.backbone.name, array, dict(config.backbone.options)).to(world.device)
    if config.backbone.weights:
        origin = Path(config.backbone.weights)
        earlier, _ = load_model(origin, make, world.device, array)
        load_weights(module, earlier.state_dict(), str(origin))
    return module


def _measure(module: nn.Module, config: RunConfig, scenes: Scenes) -> Measured:
    """Covariance, own sources and Capon, as validation and the final test take them."""
    options = config.validation
    figures, scores = validate(
        module,
        scenes,
        batch_size=options.batch_size,
        capon_scenes=options.capon_scenes,
        capon_grid=search_grid(config, options.capon_grid),
    )
    return Measured(figures, is_constant(scores))


def _finish(run: Run, config: RunConfig, complete: bool) -> Outcome:
    """Test the best weights, and write the model, its card, the curves and the pictures."""
    best_step = run.use_best()
    options = config.validation
    figures: Figures = {}
    if options.test_scenes:
        for n in options.snapshots:
            scenes = validation_scenes(config, n, options.test_seed, options.test_scenes, run.world.device)
            figures[f"L{n}"] = run.measure(scenes).figures

    def found(scenes: Scenes) -> tuple[CovarianceEstimate, list[Sources]]:
        estimate = run.module(Measurement.of(scenes))
        return estimate, run.module.sources(estimate)  # type: ignore[operator]  # nn.Module hides it

    def save(folder: Path, card: dict[str, Any]) -> None:
        made: dict[str, Any] = run.module.options()  # type: ignore[operator]  # nn.Module hides it
        array = config.system.planar_array()
        save_model(folder, config.backbone.name, run.module.state_dict(), array, made, card)

    return write_outcome(run, complete, best_step, figures, found, save)


def write_outcome(
    run: Run,
    complete: bool,
    best_step: int,
    figures: Figures,
    found: Callable[[Scenes], tuple[CovarianceEstimate, list[Sources]]],
    save: Callable[[Path, dict[str, Any]], None],
) -> Outcome:
    """Write the model folder with its card, the curves, and pictures of what is found in a few test scenes.

    Parameters
    ----------
    run : Run
    complete, best_step, figures
        As in :class:`Outcome`.
    found : callable of Scenes
        Estimate and sources of a few scenes.
    save : callable of (folder, card)
        Writes the model; it may add to the card.
    """
    config, folder = run.folder.config, run.folder.folder
    options = config.validation
    card = {
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
    save(folder / "model", card)
    pictures = {"curves": folder / "curves.png", "localisation": folder / "localisation.png"}
    draw_curves(run.folder.metrics.read(), pictures["curves"])
    scenes = validation_scenes(config, options.snapshots[-1], options.test_seed, _PICTURES, run.world.device)
    run.module.eval()
    with torch.no_grad():
        estimate, sources = found(scenes)
    draw_localisation(scenes, estimate, sources, search_grid(config, "reference"), pictures["localisation"])
    steps = config.optimiser.steps
    return Outcome(complete, run.trainer.step, steps, best_step, figures, folder / "model", pictures, run.notes)
