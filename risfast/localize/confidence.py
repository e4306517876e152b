"""How probable it is that a polished source is a hit: a calibrated probability, and the decision that follows from it.

The likelihood alone overrates what it found by searching: a peak of noise gains as much as a weak source does. What
tells them apart is weighed by a logistic regression on scenes with known sources: the gain in likelihood, what the
backbone's map of expected counts says about the same place, the posterior mass in range, the bounds of the
coordinates, and the power beside that of the scene's other sources. :mod:`risfast.train.confidence` fits it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from risfast.errors import FileFormatError
from risfast.io.guard import naming
from risfast.localize.polish import Polished
from risfast.models.atoms import RangeCells
from risfast.models.base import SourceMap
from risfast.models.decode import counts_near
from risfast.models.pretrained import CONFIDENCE_FILE
from risfast.setup import Setup

FEATURES = (
    "log gain",
    "gain / 20, at most 3",
    "range mass",
    "log counts within",
    "counts within, at most 1.2",
    "log counts toward",
    "log power over the scene's median",
    "log deviation of azimuth over the tolerance",
    "log deviation of elevation over the tolerance",
    "log deviation of range over the tolerance",
    "log range in wavelengths",
    "sources found",
    "alone",
    "log2 snapshots",
)
_LEAST_COUNT, _MOST_COUNT = 1e-3, 2.0
_LEAST_DEVIATION, _MOST_DEVIATION = 1e-4, 1e2  # tolerances


def hit_features(polished: Polished, found: SourceMap, cells: RangeCells, setup: Setup, snapshots: int) -> list[Tensor]:
    """What is known about each source that a polish ended with.

    -> (K, len(FEATURES)
    """
    most = max((len(s) for s in polished.sources), default=0)
    # A range that is not determined counts as the farthest, in a region without end as that of the farthest cell.
    farthest = setup.region.range_m[1]
    farthest = farthest if math.isfinite(farthest) else float(cells.centres[-1])
    limits = torch.tensor(setup.tolerance.limits, dtype=torch.float64)
    position = torch.zeros(len(polished.sources), most, 3, dtype=torch.float64)
    for i, sources in enumerate(polished.sources):
        position[i, : len(sources)] = sources.position.double().cpu().nan_to_num(nan=farthest, posinf=farthest)
    within, toward = (
        v.cpu() for v in counts_near(found, position.to(found.log_intensity.device), cells, setup.tolerance)
    )
    rows = []
    for i, sources in enumerate(polished.sources):
        k = len(sources)
        if not k:
            rows.append(torch.zeros(0, len(FEATURES), dtype=torch.float64))
            continue
        gain = polished.gain[i].clamp_min(1e-3)
        spread = polished.covariance[i].diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
        deviation = (spread / limits).nan_to_num(nan=0.0).clamp(_LEAST_DEVIATION, _MOST_DEVIATION).log()
        inside, around = (v[i, :k].clamp(_LEAST_COUNT, _MOST_COUNT) for v in (within, toward))
        same = torch.ones(k, dtype=torch.float64)
        columns = [
            gain.log(),
            gain.clamp_max(60) / 20,
            polished.range_mass[i].clamp(1e-3, 1 - 1e-4),
            inside.log(),
            within[i, :k].clamp(0, 1.2),
            around.log(),
            (sources.power / sources.power.median()).double().cpu().log(),
            *deviation.unbind(1),
            (position[i, :k, 2].cpu() / setup.array.wavelength_m).log(),
            k * same,
            (k == 1) * same,
            math.log2(snapshots) * same,
        ]
        rows.append(torch.stack(columns, 1))
    return rows


@dataclass(frozen=True)
class HitModel:
    """Logistic regression of whether a source is within the tolerance of a true one."""

    weights: tuple[float, ...]  # One for each of :data:`FEATURES`
    bias: float

    def __post_init__(self) -> None:
        """Check every value."""
        if len(self.weights) != len(FEATURES):
            raise ValueError(f"a hit model has {len(FEATURES)} weights, got {len(self.weights)}")
        if not all(map(math.isfinite, (*self.weights, self.bias))):
            raise ValueError("weights and bias of a hit model must be finite")

    def probability(self, features: Tensor) -> Tensor:
        """Probability of a hit.

        features (K, len(FEATURES) -> (K,)
        """
        return torch.sigmoid(features @ torch.tensor(self.weights, dtype=torch.float64) + self.bias)

    def decide(self, polished: Polished, features: Sequence[Tensor], least: float) -> Polished:
        """Keep the sources that are probable enough."""
        # What maximises the expected F1 of many scenes is to report all that is more probable than half of the F1 that
        # is reached so (Lipton, Elkan and Naryanaswamy, "Optimal thresholding of classifiers to maximize F1 measure",
        # ECML PKDD 2014).
        probability = [self.probability(rows) for rows in features]
        sources = [s.replace(confidence=p) for s, p in zip(polished.sources, probability, strict=True)]
        return polished._replace(sources=sources).select([p >= least for p in probability])

    def save(self, folder: Path, fitted: dict[str, Any]) -> None:
        """Write ``confidence.json`` into a model folder."""
        from risfast.models.files import write_confidence  # noqa: PLC0415 - safetensors only where files are

        content = {"features": list(FEATURES), "weights": list(self.weights), "bias": self.bias, "fitted": fitted}
        write_confidence(folder, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())

    @staticmethod
    def load(folder: Path) -> HitModel | None:
        """Read ``confidence.json`` of a model folder."""
        from risfast.models.files import read_confidence  # noqa: PLC0415

        content = read_confidence(folder)
        if content is None:
            return None
        path = folder / CONFIDENCE_FILE
        with naming(path, "a calibration of the confidence"):
            if content["features"] != list(FEATURES):
                raise FileFormatError(
                    f"{path} was fitted on other features; fit it again: "
                    f"`python -m risfast.train.confidence --model {folder}`"
                )
            return HitModel(tuple(float(w) for w in content["weights"]), float(content["bias"]))
