"""What a training run is told: frozen dataclasses, nested in one per command.

The command line is generated from these classes and ``config.toml`` in the run folder holds them, so angles are in
degrees here, and a value that means "none" is 0 or empty (TOML has no null).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from risfast.localize.pipeline import PipelineOptions
from risfast.localize.refiner import RefinedOptions
from risfast.losses import ObjectiveOptions
from risfast.models.pretrained import DEFAULT_MODEL
from risfast.models.refiner import RefinerOptions
from risfast.simulate.codes import CODE_KINDS
from risfast.simulate.shards import ShardSpec
from risfast.simulate.system_file import SystemOptions


def require(condition: bool, message: str) -> None:
    """Refuse a configuration."""
    if not condition:
        raise ValueError(message)


def require_least(config: Any, where: str = "", **least: int) -> None:
    """Refuse values that lie below their least, by the names of their fields."""
    for name, bound in least.items():
        value = getattr(config, name)
        require(value >= bound, f"{where}{name} must be at least {bound}, got {value!r}")


@dataclass(frozen=True)
class DataOptions:
    """Which scenes a run learns from."""

    source: str = "fly"  # "fly" makes every scene when it is needed; anything else is a folder of shards.
    snapshots: tuple[int, ...] = (16, 32, 64)  # Values of L; each batch takes one of them.
    weights: tuple[float, ...] = (0.6, 0.2, 0.2)  # Share of the batches with each L.
    code_kinds: tuple[str, ...] = CODE_KINDS  # Codebooks; each scene takes one of them.
    noise_known: float = 0.5  # Share of the batches in which the backbone is given the noise power.
    seed: int = 0  # Seed of the training scenes.
    pool: int = 0  # Learn from the first so many scenes again and again; 0 never shows a scene twice.

    def __post_init__(self) -> None:
        """Check every value."""
        require(len(self.snapshots) > 0, "data.snapshots must name at least one L")
        require(all(n >= 1 for n in self.snapshots), f"data.snapshots must be at least 1, got {self.snapshots}")
        require(
            len(self.weights) == len(self.snapshots) and all(w >= 0 for w in self.weights) and sum(self.weights) > 0,
            f"data.weights must hold one share >= 0 for each of the {len(self.snapshots)} snapshots, "
            f"got {self.weights}",
        )
        require(0 <= self.noise_known <= 1, f"data.noise_known must lie in [0, 1], got {self.noise_known!r}")
        require(0 <= self.seed < 2**64, f"data.seed must lie in [0, 2^64), got {self.seed}")
        require_least(self, "data.", pool=0)


@dataclass(frozen=True)
class BackboneOptions:
    """Which backbone, and what it is built with."""

    name: str = "unrolled"  # Name of the backbone.
    # Its options; those not named keep the backbone's own defaults.
    options: dict[str, Any] = field(default_factory=dict)
    # Model folder of an earlier run whose weights to start from; empty starts from the backbone's own.
    weights: str = ""


@dataclass(frozen=True)
class OptimiserOptions:
    """AdamW, its schedule and what is averaged."""

    # The learning rate rises linearly over ``warmup`` steps and falls as a cosine to ``min_lr`` at the last step.

    steps: int = 600  # Optimiser steps of the whole run.
    batch_size: int = 16  # Scenes a step, over all processes and accumulated parts together.
    lr: float = 2e-3  # Highest learning rate.
    min_lr: float = 2e-5  # Learning rate at the last step.
    warmup: int = 50  # Steps of linear warm-up.
    betas: tuple[float, float] = (0.9, 0.999)  # Decay of AdamW's moments.
    # Decoupled weight decay of matrices and kernels; vectors and scalars (biases, exponents) have none.
    weight_decay: float = 1e-2
    clip_norm: float = 1.0  # Largest norm of the gradient; 0 does not clip.
    accumulation: int = 1  # Parts in which each process works through its share of a batch.
    averaging: Literal["ema", "swa", "none"] = "ema"  # Which average of the weights is validated and kept.
    ema_decay: float = 0.999  # Decay of the exponential average; the first steps forget faster.
    swa_start: float = 0.75  # Part of the run after which the equal-weight average starts.
    # Train only the parameters whose names begin with one of these, such as head; none given trains all.
    moves: tuple[str, ...] = ()
    max_skipped: int = 10  # Steps in a row with a gradient that is not finite (or is zero) before the run ends.
    # The run ends when the smoothed loss rises above its start by so many times the start's magnitude.
    divergence: float = 3.0

    def __post_init__(self) -> None:
        """Check every value."""
        least = {"steps": 1, "batch_size": 1, "accumulation": 1, "max_skipped": 1, "weight_decay": 0, "clip_norm": 0}
        require_least(self, "optimiser.", **least)
        require(
            math.isfinite(self.lr) and 0 <= self.min_lr <= self.lr and self.lr > 0,
            f"optimiser needs 0 <= min_lr <= lr and lr > 0, got lr = {self.lr!r} and min_lr = {self.min_lr!r}",
        )
        require(0 <= self.warmup <= self.steps, f"optimiser.warmup must lie in [0, steps], got {self.warmup}")
        require(all(0 <= b < 1 for b in self.betas), f"optimiser.betas must lie in [0, 1), got {self.betas}")
        require(0 <= self.ema_decay < 1, f"optimiser.ema_decay must lie in [0, 1), got {self.ema_decay!r}")
        require(0 <= self.swa_start < 1, f"optimiser.swa_start must lie in [0, 1), got {self.swa_start!r}")
        require(self.divergence > 0, f"optimiser.divergence must be positive, got {self.divergence!r}")
        require(
            self.batch_size % self.accumulation == 0,
            f"optimiser.batch_size = {self.batch_size} cannot be divided by accumulation = {self.accumulation}",
        )


@dataclass(frozen=True)
class ValidationOptions:
    """What is measured during the run and at its end, on scenes that are never trained on."""

    every: int = 100  # Steps between two validations.
    snapshots: tuple[int, ...] = (16, 64)  # Values of L to validate at, each on its own set.
    scenes: int = 64  # Scenes of each set.
    # Scenes of each set whose covariance, and whose true one, also go through Capon detection; 0 for none.
    capon_scenes: int = 8
    test_scenes: int = 128  # Scenes of each set in the table at the end of the run, of a seed of their own.
    seed: int = 0x76616C  # Seed of the validation scenes.
    test_seed: int = 0x74657374  # Seed of the test scenes.
    batch_size: int = 16  # Scenes estimated at once.
    stop_constant: bool = True  # Whether the run ends when its predictions do not depend on the scene.
    metric: Literal["nmse", "f1"] = "nmse"  # What makes a checkpoint the best one.
    patience: int = 0  # Validations in a row without a new best after which the run ends; 0 never ends it.

    @staticmethod
    def renewed(table: Mapping[str, Any]) -> dict[str, Any]:
        """A table of an earlier version, whose grid of Capon detection is ``pipeline.map`` now."""
        return {name: value for name, value in table.items() if name != "capon_grid"}

    def __post_init__(self) -> None:
        """Check every value."""
        least = {"every": 1, "scenes": 1, "batch_size": 1, "capon_scenes": 0, "test_scenes": 0, "patience": 0}
        require_least(self, "validation.", **least)
        require(len(self.snapshots) > 0, "validation.snapshots must name at least one L")
        require(self.scenes >= 2, "validation.scenes must be at least 2: one scene cannot show a constant prediction")


@dataclass(frozen=True)
class MachineOptions:
    """Where and how a run computes; none of this changes what it learns, up to rounding."""

    device: str = "cpu"  # cpu, cuda or cuda:N; under torchrun "cuda" takes the GPU of the process's rank.
    amp: Literal["off", "bf16", "fp16"] = "off"  # Mixed precision of the backbone on cuda; losses stay in float32.
    threads: int = 0  # CPU threads; 0 leaves them as they are.
    deterministic: bool = False  # Refuse operations whose result may differ from run to run.
    minutes: float = 0.0  # Stop, resumably, after so many minutes; 0 runs to the last step.
    log_every: int = 10  # Steps between two lines of metrics.
    checkpoint_every: int = 50  # Steps between two checkpoints.
    keep: int = 3  # Checkpoints that are kept, besides the best one.
    tensorboard: bool = False  # Also write TensorBoard events (needs the tensorboard package).

    def __post_init__(self) -> None:
        """Check every value."""
        require_least(self, "machine.", log_every=1, checkpoint_every=1, keep=1, threads=0, minutes=0)
        require(
            self.amp == "off" or self.device.startswith("cuda"),
            f"machine.amp = {self.amp!r} needs machine.device cuda, got {self.device!r}",
        )


@dataclass(frozen=True)
class RunConfig:
    """A training of a backbone."""

    seed: int = 0  # Seed of the initial weights.
    system: SystemOptions = field(default_factory=SystemOptions)  # The system that the scenes come from.
    data: DataOptions = field(default_factory=DataOptions)  # The scenes of the training.
    backbone: BackboneOptions = field(default_factory=BackboneOptions)  # The network that is trained.
    objective: ObjectiveOptions = field(default_factory=ObjectiveOptions)  # The loss.
    optimiser: OptimiserOptions = field(default_factory=OptimiserOptions)  # How the weights are updated.
    validation: ValidationOptions = field(default_factory=ValidationOptions)  # How the training is judged.
    # From an estimate to sources, in validation, and kept with the model.
    pipeline: PipelineOptions = field(default_factory=PipelineOptions)
    machine: MachineOptions = field(default_factory=MachineOptions)  # Device, threads, checkpoints.

    def __post_init__(self) -> None:
        """Check what concerns several parts."""
        _check_seeds(self)
        self.system.setup()  # its own checks, before any work
        self.system.system(self.data.snapshots[0], self.data.code_kinds)
        require(
            self.pipeline.candidates.source != "refined",
            "pipeline.candidates.source is 'refined', and a backbone in training has no refiner yet; take 'own' or "
            "'capon'",
        )


@dataclass(frozen=True)
class HeatmapOptions:
    """Targets and loss: focal loss against a Gaussian blob around each source."""

    sigma_deg: float = 2.0  # Width of a blob, in azimuth and elevation.
    alpha: float = 0.25  # Weight of what is a source.
    gamma: float = 2.0  # How little cells count that are nearly right.

    def __post_init__(self) -> None:
        """Check the width; the loss checks the rest."""
        require(self.sigma_deg > 0, f"heatmap.sigma_deg must be positive, got {self.sigma_deg!r}")


@dataclass(frozen=True)
class RefinerConfig:
    """A training of a refiner behind a frozen backbone."""

    backbone: str = ""  # Model folder of the backbone; empty is the one that comes with the package.
    seed: int = 0  # Seed of the initial weights.
    # Size of the network; its number of maps follows from those that it is shown.
    network: RefinerOptions = field(default_factory=RefinerOptions)
    reading: RefinedOptions = field(default_factory=RefinedOptions)  # How maps are made and read.
    heatmap: HeatmapOptions = field(default_factory=HeatmapOptions)  # The loss.
    system: SystemOptions = field(default_factory=SystemOptions)  # The system that the scenes come from.
    data: DataOptions = field(default_factory=DataOptions)  # The scenes of the training.
    # How the weights are updated; they are not averaged in this stage.
    optimiser: OptimiserOptions = field(default_factory=lambda: OptimiserOptions(lr=1e-3, averaging="none"))
    # How the training is judged; Capon detection is measured once, on all scenes.
    validation: ValidationOptions = field(default_factory=lambda: ValidationOptions(metric="f1"))
    # From an estimate to sources, where the refiner has no part or is not believed.
    pipeline: PipelineOptions = field(default_factory=PipelineOptions)
    # Grid points in one beam width of the maps that the refiner is shown and draws: 61 in azimuth at home.
    points_per_beam: float = 5.2
    machine: MachineOptions = field(default_factory=MachineOptions)  # Device, threads, checkpoints.

    @property
    def map_options(self) -> PipelineOptions:
        """Options of the pipeline whose grid is that of the refiner's maps."""
        return replace(self.pipeline, map=replace(self.pipeline.map, points_per_beam=self.points_per_beam))

    def backbone_folder(self) -> Path:
        """Where the backbone is."""
        return Path(self.backbone) if self.backbone else DEFAULT_MODEL

    def __post_init__(self) -> None:
        """Check what concerns several parts."""
        _check_seeds(self)
        maps = len(self.reading.maps)
        require(self.network.n_maps in (1, maps), f"network.n_maps must be {maps}, the maps of reading.maps")
        beam = self.points_per_beam
        require(0 < beam < math.inf, f"points_per_beam must be positive, got {beam!r}")
        require(
            self.validation.metric == "f1", "validation.metric must be f1: a refiner does not change the covariance"
        )


RunOptions = RunConfig | RefinerConfig
"""What every configuration of a run holds: seed, system, data, optimiser, validation, pipeline and machine."""


def _check_seeds(config: RunOptions) -> None:
    seeds = (config.data.seed, config.validation.seed, config.validation.test_seed)
    require(
        len(set(seeds)) == 3,
        f"data.seed, validation.seed and validation.test_seed must differ, got {seeds}: a run must not be judged on "
        "scenes that it learned from",
    )


@dataclass(frozen=True)
class ShardsConfig:
    """Sets of scenes to keep in files: one for each split and each L."""

    snapshots: tuple[int, ...] = (16, 32, 64)  # Values of L.
    train: int = 8192  # Scenes to train on, for each L.
    val: int = 512  # Scenes to validate on, for each L.
    test: int = 512  # Scenes to test on, for each L.
    train_seed: int = DataOptions.seed  # Seed of the training scenes; the three defaults are those of a run.
    val_seed: int = ValidationOptions.seed  # Seed of the validation scenes.
    test_seed: int = ValidationOptions.test_seed  # Seed of the test scenes.
    shard_size: int = 4096  # Scenes of one shard.
    sample_covariance: bool = False  # Also keep the least-squares sample covariance of each scene.
    code_kinds: tuple[str, ...] = CODE_KINDS  # Codebooks; each scene takes one of them.
    device: str = "cpu"  # Where the scenes are made: cpu or cuda.
    system: SystemOptions = field(default_factory=SystemOptions)  # The system that the scenes come from.

    def __post_init__(self) -> None:
        """Check every value."""
        counts = (self.train, self.val, self.test)
        require(min(counts) >= 0 and sum(counts) > 0, f"train, val and test make no scenes: got {counts}")
        require(len(self.snapshots) > 0, "snapshots must name at least one L")
        seeds = (self.train_seed, self.val_seed, self.test_seed)
        require(len(set(seeds)) == 3, f"train_seed, val_seed and test_seed must differ, got {seeds}")
        self.system.system(self.snapshots[0], self.code_kinds)

    def sets(self) -> dict[tuple[str, int], ShardSpec]:
        """What to make, by split and L; splits without scenes are left out."""
        splits = {"train": self.train_seed, "val": self.val_seed, "test": self.test_seed}
        systems = {n: self.system.system(n, self.code_kinds) for n in self.snapshots}
        return {
            (split, n): ShardSpec(system, seed, getattr(self, split), self.shard_size, self.sample_covariance)
            for split, seed in splits.items()
            if getattr(self, split)
            for n, system in systems.items()
        }
