"""A backbone of a few hundred parameters on a small system: what the tests of the trainer train."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from risfast.localize.pipeline import MapOptions, PipelineOptions
from risfast.models.base import CovarianceEstimate, Measurement
from risfast.setup import Setup
from risfast.simulate.system_file import SystemOptions
from risfast.sources import Sources
from risfast.steering import steering_vectors
from risfast.train.config import DataOptions, MachineOptions, OptimiserOptions, RunConfig, ValidationOptions


class TinyBackbone(nn.Module):
    """Matched filter over 5 x 3 x 2 atoms, corrected by two layers with dropout between them."""

    def __init__(self, setup: Setup, width: int = 8, dropout: float = 0.1, constant: bool = False) -> None:
        super().__init__()
        self.settings = {"width": width, "dropout": dropout, "constant": constant}
        axes = torch.meshgrid(
            torch.linspace(-0.8, 0.8, 5).double(),
            torch.linspace(-0.4, 0.4, 3).double(),
            torch.tensor([1.0, 4.0]).double(),
            indexing="ij",
        )
        self.place = torch.stack([axis.flatten() for axis in axes], -1)
        self.register_buffer("steering", steering_vectors(setup.array, *self.place.unbind(-1)), persistent=False)
        count = len(self.place)
        self.hidden = nn.Linear(count, width)
        self.drop = nn.Dropout(dropout)
        self.out = nn.Linear(width, count)

    def forward(self, measurement: Measurement) -> CovarianceEstimate:
        back = (measurement.channel.mH[:, None] @ measurement.y[..., None])[..., 0] * measurement.codes.conj()
        power = (back @ self.steering.mH).abs().square().sum(1)  # [B, G]
        seen = (power / power.mean(1, keepdim=True) + 1e-6).log()
        if self.settings["constant"]:
            seen = torch.zeros_like(seen)
        level = seen + self.out(self.drop(nn.functional.silu(self.hidden(seen))))
        amplitude = nn.functional.softplus(level)
        return CovarianceEstimate(amplitude[:, None, :] * self.steering.mT, amplitude.square())

    def options(self) -> dict[str, Any]:
        return dict(self.settings)

    def sources(self, estimate: CovarianceEstimate, share: float = 0.5) -> list[Sources]:
        assert estimate.power is not None
        return [self._strong(power.detach().cpu(), share) for power in estimate.power]

    def _strong(self, power: Tensor, share: float) -> Sources:
        kept = power >= share * power.max()
        azimuth, elevation, r = self.place[kept].unbind(-1)
        return Sources(azimuth, elevation, r, power[kept].double(), torch.ones(int(kept.sum())).double())


def build(name: str, setup: Setup, options: dict[str, Any] | None = None) -> nn.Module:
    """As ``risfast.models.build_backbone``, for ``tiny`` alone."""
    if name != "tiny":
        raise ValueError(f"backbone must be tiny, got {name!r}")
    return TinyBackbone(setup, **(options or {}))


TINY = RunConfig(
    system=SystemOptions(n_h=4, n_v=3, n_antennas=4, n_sources=(1, 2)),
    data=DataOptions(snapshots=(6, 9), weights=(0.7, 0.3), code_kinds=("random",), noise_known=0.5),
    backbone=dataclasses.replace(RunConfig().backbone, name="tiny"),
    optimiser=OptimiserOptions(steps=12, batch_size=8, warmup=3, lr=1e-2, min_lr=1e-4),
    validation=ValidationOptions(every=4, snapshots=(6,), scenes=6, capon_scenes=2, test_scenes=6, batch_size=4),
    pipeline=PipelineOptions(map=MapOptions(points_per_beam=6.0)),
    machine=MachineOptions(log_every=3, checkpoint_every=2, threads=1),
)
"""Twelve steps on a 4 x 3 surface."""


def tiny(**parts: dict[str, Any]) -> RunConfig:
    """:data:`TINY` with some fields of its parts replaced: ``tiny(optimiser={"steps": 4})``."""
    changed = {name: dataclasses.replace(getattr(TINY, name), **values) for name, values in parts.items()}
    return dataclasses.replace(TINY, **changed)
