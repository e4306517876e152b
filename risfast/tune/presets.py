"""Two-stage studies that are ready to run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from risfast.train.config import (
    BackboneOptions,
    DataOptions,
    MachineOptions,
    OptimiserOptions,
    RunConfig,
    SystemOptions,
    ValidationOptions,
)
from risfast.tune.options import Hpo2Config, HpoConfig, PrunerOptions, SamplerOptions, ScoreOptions

__all__ = ["PRESETS"]


def quick() -> Hpo2Config:
    """A 6 x 6 surface and half a minute a training: both stages in minutes on one core."""
    system = SystemOptions(n_h=6, n_v=6, n_antennas=8, n_sources=(1, 3), range_m=(0.5, 4.0))
    region = system.setup().region
    axes: dict[str, Any] = {"n_azimuth": 15, "n_elevation": 9, "n_range": 6}
    axes |= {item.name: list(getattr(region, item.name)) for item in fields(region)}
    base = RunConfig(
        system=system,
        data=DataOptions(snapshots=(16,), weights=(1.0,)),
        backbone=BackboneOptions(options={"axes": axes}),
        optimiser=OptimiserOptions(steps=100, batch_size=16, warmup=10),
        validation=ValidationOptions(every=25, snapshots=(16,), scenes=64, capon_scenes=4, test_scenes=64),
        machine=MachineOptions(checkpoint_every=100, log_every=25),
    )
    study = HpoConfig(
        trials=16,
        base=base,
        sampler=SamplerOptions(startup=6),
        pruner=PrunerOptions(startup=4),
        score=ScoreOptions(scenes=256, xyz_norm_m=2.0),
        beat_s=5.0,
    )
    return Hpo2Config(top=4, budget=3.0, study=study)


def reference() -> Hpo2Config:
    """The reference system: what a GPU, or many, should be given."""
    base = RunConfig(optimiser=OptimiserOptions(steps=2000, batch_size=64, warmup=100))
    return Hpo2Config(top=8, budget=8.0, study=HpoConfig(trials=100, base=base, score=ScoreOptions(scenes=256)))


PRESETS: dict[str, Callable[[], Hpo2Config]] = {"quick": quick, "reference": reference}
"""By the name that ``risfast hpo2 --preset`` takes."""
