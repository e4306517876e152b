"""``risfast backbone``: stage 1, from measurements to covariance."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from risfast.io.options_file import write_options
from risfast.localize import pipeline
from risfast.localize.localizer import OPTIONS_FILE
from risfast.localize.pipeline import Parts, PipelineOptions
from risfast.losses import BackboneObjective, ObjectiveOptions
from risfast.models import build_backbone
from risfast.models.atoms import AtomAxes, AtomGrid, RangeCells
from risfast.models.base import CovarianceEstimate
from risfast.models.files import Build, load_model, load_weights, save_model
from risfast.setup import Setup
from risfast.simulate.scenes import Scenes
from risfast.simulate.system_file import reaches_beyond
from risfast.sources import Sources
from risfast.train.config import BackboneOptions, RunConfig, RunOptions
from risfast.train.distributed import World
from risfast.train.loop import BackboneTask, Objective
from risfast.train.runs import Figures, Measured, RunOutcome, RunReport, train_stage
from risfast.train.validation import is_constant, validate


@dataclass(kw_only=True)
class BackboneStage(BackboneTask):
    """A backbone in training, validation and at the end of its run; see :class:`risfast.train.runs.Stage`."""

    config: RunConfig  # Of the run; the rest as in :class:`risfast.train.loop.BackboneTask`

    @cached_property
    def parts(self) -> Parts:
        """The module, on the path from a measurement to sources."""
        return Parts(self.module, self.config.system.setup())

    def measure(self, scenes: Scenes) -> Measured:
        """Covariance, own sources and Capon."""
        options = self.config.validation
        figures, scores = validate(
            self.parts, scenes, self.config.pipeline, batch_size=options.batch_size, capon_scenes=options.capon_scenes
        )
        return Measured(figures, is_constant(scores))

    def locate(self, scenes: Scenes) -> tuple[CovarianceEstimate, list[Sources]]:
        """The backbone's estimate and its own sources."""
        options = replace(self.config.pipeline, polished=False)
        measurement = pipeline.measure(scenes, options)
        found = pipeline.estimate(self.parts, measurement)
        return found, pipeline.candidates(self.parts, measurement, found, options)[0]

    def save(self, folder: Path, card: dict[str, Any], figures: Figures) -> None:
        """Write the model folder."""
        made: dict[str, Any] = self.module.options()  # type: ignore[operator]  # nn.Module hides it
        keep_options(folder, self.config)
        save_model(folder, self.config.backbone.name, self.module.state_dict(), self.parts.setup, made, card)


def keep_options(folder: Path, config: RunOptions) -> None:
    """Leave the options of the pipeline in a model folder, where they are not the defaults."""
    path = folder / OPTIONS_FILE
    if config.pipeline == PipelineOptions():
        path.unlink(missing_ok=True)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_options(path, config.pipeline)


def train_backbone(
    config: RunConfig,
    folder: Path,
    report: RunReport,
    *,
    build: Build | None = None,
    objective: Objective | None = None,
) -> RunOutcome | None:
    """Train a backbone, or go on with a run that was interrupted."""

    def make(world: World) -> BackboneStage:
        module = _make_module(config, build, world)
        loss = objective or backbone_objective(config.objective, module)
        return BackboneStage(module, loss, config.machine.amp, config=config)

    return train_stage(config, folder, report, make)


def backbone_objective(options: ObjectiveOptions, module: nn.Module) -> Objective:
    """The configured loss."""
    cells = getattr(module, "range_cells", None)
    return BackboneObjective(options, cells if isinstance(cells, RangeCells) else None)


def made_backbone(options: BackboneOptions, setup: Setup, build: Build | None = None) -> nn.Module:
    """The untrained backbone of a setup."""
    chosen = dict(options.options)
    if isinstance(chosen.get("axes"), dict):
        chosen["axes"] = {**asdict(AtomAxes.of(setup)), **chosen["axes"]}
    module = (build or build_backbone)(options.name, setup, chosen)
    atoms = getattr(module, "atoms", None)
    if isinstance(atoms, AtomGrid) and reaches_beyond(atoms.axes.region, setup.region):
        raise ValueError(
            f"the axes in --backbone.options cover {atoms.axes.region}, and the sources of the system come from "
            f"{setup.region}; leave the ends of the axes out, and they follow it"
        )
    return module


def _make_module(config: RunConfig, build: Build | None, world: World) -> nn.Module:
    """The untrained backbone (the same in every process), or one with the weights of an earlier run."""
    setup = config.system.setup()
    torch.manual_seed(config.seed)
    module = made_backbone(config.backbone, setup, build).to(world.device)
    made: dict[str, Any] = module.options()  # type: ignore[operator]  # nn.Module hides it
    most, room = config.system.n_sources[1], made.get("max_sources", math.inf)
    if most > room:
        raise ValueError(
            f"system.n_sources goes up to {most}, and the backbone has room for the positions of {room}; give it "
            f"--backbone.options max_sources={most}, or lower system.n_sources"
        )
    if config.backbone.weights:
        origin = Path(config.backbone.weights)
        earlier, card = load_model(origin, build or build_backbone, world.device)
        if Setup.from_json(card["setup"]).array != setup.array:
            raise ValueError(f"{origin} was trained for another array than that of the system")
        load_weights(module, earlier.state_dict(), str(origin))
    return module
