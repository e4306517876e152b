"""What a study is told: frozen dataclasses, from which the command line is generated and which the storage keeps.

With presets of two-stage studies that are ready to run, and what can be wrong with a study.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from risfast.simulate.system_file import SystemOptions
from risfast.train.config import (
    BackboneOptions,
    DataOptions,
    MachineOptions,
    OptimiserOptions,
    RunConfig,
    ValidationOptions,
    require,
    require_least,
)

OBJECTIVES = ("surrogate", "mvdr_final")


class StudyError(RuntimeError):
    """A study cannot be opened or go on; the message says why and what to do."""


class TrialRejectedError(RuntimeError):
    """A trial that went wrong by its own options (a loss that diverged, memory that ran out); the study goes on."""


@dataclass(frozen=True)
class SamplerOptions:
    """The tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011)."""

    startup: int = 10  # Random trials before it begins.
    candidates: int = 24  # Candidates of which the best expected improvement is tried.
    multivariate: bool = True  # Whether parameters are drawn jointly.
    # Whether running trials count as bad ones, so that workers keep out of each other's way.
    constant_liar: bool = True

    def __post_init__(self) -> None:
        """Check every value."""
        require_least(self, "sampler.", startup=1, candidates=1)


@dataclass(frozen=True)
class PrunerOptions:
    """When a trial that falls behind is given up, at a validation."""

    # Worse than the median of the others at the same step; by Hyperband's brackets; or never.
    kind: Literal["median", "hyperband", "none"] = "median"
    startup: int = 5  # Finished trials before the median counts.
    warmup: int = 0  # Steps in which no trial is given up.
    reduction: int = 3  # Hyperband keeps one of so many at each rung.

    def __post_init__(self) -> None:
        """Check every value."""
        require_least(self, "pruner.", startup=1, warmup=0, reduction=2)


@dataclass(frozen=True)
class ScoreOptions:
    """How a trial is judged."""

    # ``mvdr_final`` is rmse / ``xyz_norm_m`` + ``f1_weight`` (1 - F1), with the root mean square distance of all pairs;
    # ``surrogate`` is the NMSE of the covariance + ``f1_weight`` (1 - F1) at the best validation.

    scenes: int = 64  # Scenes of each L that the localizer is judged on, the same in every trial.
    seed: int = 0x74756E65  # Seed of the scenes.
    xyz_norm_m: float = 10.0  # Distance that weighs as much as an F1 of 0 with a weight of 1.
    f1_weight: float = 1.0  # Weight of 1 - F1.

    def __post_init__(self) -> None:
        """Check every value."""
        require_least(self, "score.", scenes=2)
        norm, weight = self.xyz_norm_m, self.f1_weight
        require(0 < norm < math.inf, f"score.xyz_norm_m must be positive and finite, got {norm!r}")
        require(0 <= weight < math.inf, f"score.f1_weight must be finite and at least 0, got {weight!r}")


@dataclass(frozen=True)
class HpoConfig:
    """A study."""

    name: str = "risfast"  # Of the study in its storage.
    # Tune a training, or the detection of a trained model on covariances that are estimated once.
    what: Literal["training", "detection"] = "training"
    # What is minimised; detection is always judged by mvdr_final.
    objective: Literal["surrogate", "mvdr_final"] = "surrogate"
    trials: int = 50  # Trials of the whole study, over all its workers; may grow later.
    seed: int = 0  # Trial i draws its parameters and its initial weights from this and i.
    # Names or groups of names that are tuned (optimiser, optimiser.lr); empty tunes the whole space.
    parameters: tuple[str, ...] = ()
    # sqlite (a local disk), journal (a shared folder), or the URL of a PostgreSQL or MySQL database.
    storage: str = "sqlite"
    model: str = ""  # Model folder whose detection is tuned; empty is the one that comes with the package.
    beat_s: float = 15.0  # Seconds between two signs of life of a worker; a trial is taken over after four without one.
    attempts: int = 5  # How often a trial is begun before it is given up as one that kills its workers.
    sampler: SamplerOptions = field(default_factory=SamplerOptions)  # How parameters are chosen.
    pruner: PrunerOptions = field(default_factory=PrunerOptions)  # When a trial is given up.
    score: ScoreOptions = field(default_factory=ScoreOptions)  # How a trial is judged.
    # The training that trials change, and in its pipeline the options that the way to sources starts from: where
    # candidates come from, and whether they are polished, say what of it is tuned. Of a study of detection its system
    # and its values of L are those of the scenes, and a pipeline at its defaults is that of the model.
    base: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        """Check every value."""
        require(bool(self.name), "name must not be empty")
        known = ", ".join(OBJECTIVES)
        require(self.objective in OBJECTIVES, f"objective must be one of {known}; got {self.objective!r}")
        require(self.what in ("training", "detection"), f"what must be training or detection, got {self.what!r}")
        require_least(self, trials=1, attempts=1)
        require(0 <= self.seed < 2**32, f"seed must lie in [0, 2^32), got {self.seed}")
        require(0 < self.beat_s < math.inf, f"beat_s must be positive, got {self.beat_s!r}")
        seeds = (self.base.data.seed, self.base.validation.seed, self.base.validation.test_seed)
        require(
            self.score.seed not in seeds,
            f"score.seed must differ from data.seed, validation.seed and validation.test_seed, got {self.score.seed}: "
            "a trial must not be judged on scenes that it learned from",
        )


@dataclass(frozen=True)
class Hpo2Config:
    """Two stages: many short trainings by ``surrogate``, then the best of them again, longer, by ``mvdr_final``."""

    top: int = 5  # Trials of stage 1 that stage 2 takes, unchanged.
    budget: float = 4.0  # Steps of stage 2 over those of stage 1.
    stages: Literal["both", "first", "second"] = "both"  # Which stages this command runs.
    resamples: int = 2000  # Resamples of the scenes that say what stage 2 can tell apart.
    # Stage 1; stage 2 has the same storage and the name with .final behind it.
    study: HpoConfig = field(default_factory=HpoConfig)

    def __post_init__(self) -> None:
        """Check every value."""
        require(self.top >= 3, f"top must be at least 3, got {self.top}: fewer cannot be ranked")
        require(1 <= self.budget < math.inf, f"budget must be at least 1, got {self.budget!r}")
        require_least(self, resamples=100)
        require(
            self.study.what == "training" and self.study.objective == "surrogate",
            "stage 1 is a study of training by surrogate: leave study.what and study.objective as they are",
        )
        trials = self.study.trials
        require(self.top <= trials, f"top must be at most study.trials = {trials}, got {self.top}")


def _quick() -> Hpo2Config:
    """A 6 x 6 surface and half a minute a training: both stages in minutes on one core."""
    system = SystemOptions(n_h=6, n_v=6, n_antennas=8, n_sources=(1, 3), range_m=(0.5, 4.0))
    ends = {name: list(pair) for name, pair in system.setup().region.intervals.items()}
    axes = {"n_azimuth": 15, "n_elevation": 9, "n_range": 6, **ends}
    base = RunConfig(
        system=system,
        data=DataOptions(snapshots=(16,), weights=(1.0,)),
        backbone=BackboneOptions(options={"axes": axes}),
        optimiser=OptimiserOptions(steps=100, batch_size=16, warmup=10),
        validation=ValidationOptions(every=25, snapshots=(16,), scenes=64, capon_scenes=4, test_scenes=64),
        machine=MachineOptions(checkpoint_every=100, log_every=25),
    )
    sampler, pruner, score = SamplerOptions(startup=6), PrunerOptions(startup=4), ScoreOptions(256, xyz_norm_m=2.0)
    study = HpoConfig(trials=16, base=base, sampler=sampler, pruner=pruner, score=score, beat_s=5.0)
    return Hpo2Config(top=4, budget=3.0, study=study)


def _reference() -> Hpo2Config:
    """The reference system: what a GPU, or many, should be given."""
    base = RunConfig(optimiser=OptimiserOptions(steps=2000, batch_size=64, warmup=100))
    return Hpo2Config(top=8, budget=8.0, study=HpoConfig(trials=100, base=base, score=ScoreOptions(scenes=256)))


PRESETS: dict[str, Callable[[], Hpo2Config]] = {"quick": _quick, "reference": _reference}
"""By the name that ``risfast hpo2 --preset`` takes."""
