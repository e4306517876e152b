"""The gate before any training: a backbone that cannot learn 64 scenes by heart will not learn the rest."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from risfast.io.durable import replace_file
from risfast.io.toml_file import as_table
from risfast.losses import ObjectiveOptions
from risfast.models.base import Measurement
from risfast.models.files import Build
from risfast.simulate.scenes import Scenes, generate_scenes
from risfast.simulate.system_file import SystemOptions
from risfast.train.backbone import backbone_objective, made_backbone
from risfast.train.config import BackboneOptions, DataOptions, OptimiserOptions, require, require_least
from risfast.train.distributed import machine_settings, open_world
from risfast.train.loop import BackboneTask, Objective, Trainer
from risfast.train.validation import scene_slice, score_covariances


@dataclass(frozen=True)
class OverfitConfig:
    """The overfit gate: a few fixed scenes of high SNR, until a backbone reproduces their covariances."""

    gate: float = 0.1  # Mean NMSE of the covariance that the backbone must get below.
    scenes: int = 64  # Fixed scenes.
    snapshots: int = 16  # Snapshots L of a scene.
    snr_db: tuple[float, float] = (10.0, 20.0)  # SNR of the scenes in dB.
    code_kinds: tuple[str, ...] = ("dft", "random")  # Codebooks; each scene takes one of them.
    steps: int = 200  # Optimiser steps.
    batch_size: int = 16  # Scenes a step.
    lr: float = 3e-3  # Highest learning rate.
    every: int = 20  # Steps between two measurements.
    # End as soon as the gate is passed; otherwise the steps show how far below it the backbone gets.
    stop_at_gate: bool = False
    seed: int = 0  # Seed of the scenes and of the initial weights.
    threads: int = 0  # CPU threads; 0 leaves them as they are.
    device: str = "cpu"  # cpu or cuda.
    backbone: BackboneOptions = field(default_factory=BackboneOptions)  # What is tried.
    objective: ObjectiveOptions = field(default_factory=ObjectiveOptions)  # The loss.
    system: SystemOptions = field(default_factory=SystemOptions)  # The system; its SNR is not used.

    def __post_init__(self) -> None:
        """Check every value."""
        require(self.gate > 0, f"gate must be positive, got {self.gate!r}")
        require_least(self, scenes=1, steps=1, batch_size=1, every=1)


@dataclass(frozen=True)
class OverfitOutcome:
    """How well the scenes were learned."""

    passed: bool  # Whether the lowest mean NMSE lies below the gate
    nmse_mean: float  # At the best measurement
    nmse_median: float  # At the best measurement
    step: int  # Of that measurement
    curve: list[tuple[int, float]]  # Steps and mean NMSE of every measurement, the untrained one first
    seconds: float


@dataclass(frozen=True)
class _Fixed:
    """The same scenes for ever."""

    kept: Scenes

    def scenes(self, n_snapshots: int, indices: Tensor, device: torch.device) -> Scenes:
        """The scenes ``indices``, all of one L."""
        return scene_slice(self.kept, indices.to(self.kept.y.device)).to(device)


def overfit(
    config: OverfitConfig,
    report: Callable[[int, int, float], None],
    *,
    folder: Path | None = None,
    build: Build | None = None,
    objective: Objective | None = None,
) -> OverfitOutcome:
    """Train a backbone on a few fixed scenes and measure how well it reproduces them."""
    began, seed, count, kinds = time.monotonic(), config.seed, config.scenes, config.code_kinds
    data = DataOptions(
        snapshots=(config.snapshots,), weights=(1.0,), code_kinds=kinds, noise_known=1.0, seed=seed, pool=count
    )
    optimiser = OptimiserOptions(
        steps=config.steps,
        batch_size=config.batch_size,
        lr=config.lr,
        min_lr=config.lr / 100,
        warmup=min(20, config.steps),
        weight_decay=0.0,  # the point is to learn by heart
        averaging="none",
    )
    with open_world(config.device) as world, machine_settings(config.threads, deterministic=False):
        setup = config.system.setup()
        system = replace(config.system, snr_db=config.snr_db).system(config.snapshots, kinds)
        scenes = generate_scenes(system, seed, range(count), world.device)
        torch.manual_seed(seed)
        module = made_backbone(config.backbone, setup, build).to(world.device)
        task = BackboneTask(module, objective or backbone_objective(config.objective, module))
        trainer = Trainer(task, _Fixed(scenes), data, optimiser, world, seed)
        measured = _learn(trainer, scenes, config, report)
    step, mean, median = min(measured, key=lambda m: m[1])
    curve, seconds = [(s, m) for s, m, _ in measured], time.monotonic() - began
    outcome = OverfitOutcome(mean < config.gate, mean, median, step, curve, seconds)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        content = {"config": as_table(config), **vars(outcome)}
        replace_file(folder / "overfit.json", (json.dumps(content, indent=1) + "\n").encode())
    return outcome


def _learn(
    trainer: Trainer, scenes: Scenes, config: OverfitConfig, report: Callable[[int, int, float], None]
) -> list[tuple[int, float, float]]:
    """(step, mean NMSE, median NMSE) of every measurement."""
    measured = []
    for step in range(config.steps + 1):
        if step:
            trainer.advance()
        if step % config.every == 0 or step == config.steps:
            mean, median = _error(trainer.task.module, scenes, config.batch_size)
            measured.append((step, mean, median))
            report(step, config.steps, mean)
            if config.stop_at_gate and mean < config.gate:
                break
    return measured


@torch.no_grad()
def _error(module: nn.Module, scenes: Scenes, batch_size: int) -> tuple[float, float]:
    """Mean and median NMSE on the scenes that are learned; the noise power is known."""
    module.eval()
    measurement = Measurement.of(scenes, noise_known=True)
    parts = [slice(a, a + batch_size) for a in range(0, len(scenes), batch_size)]
    true = scenes.true_factor()
    scores = score_covariances([module(measurement[part]).factor for part in parts], [true[part] for part in parts])
    return scores.nmse_mean, scores.nmse_median
