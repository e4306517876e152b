"""What a backbone is trained for: its covariance, and the expected number of sources in each cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from risfast.data.scenes import Scenes
from risfast.losses import factor_nmse
from risfast.models.base import CovarianceEstimate
from risfast.models.cells import RangeCells
from risfast.set_losses import position_huber
from risfast.setup import Setup

__all__ = ["BackboneObjective", "ObjectiveOptions", "Terms"]


@dataclass(frozen=True)
class ObjectiveOptions:
    """Weights of the terms.

    Parameters
    ----------
    nmse : float
        Of the error of the trace-normalised covariance.
    intensity : float
        Of the Poisson negative log-likelihood of the true sources under the expected counts.
    offset : float
        Of the Huber loss of the direction offsets, in units of the spacing of atoms.
    position : float
        Of the permutation-invariant Huber loss of positions, for a backbone that predicts them.

    Raises
    ------
    ValueError
        A weight is negative.
    """

    nmse: float = 1.0
    intensity: float = 0.05
    offset: float = 0.1
    position: float = 0.1

    def __post_init__(self) -> None:
        """Check the signs."""
        for name in ("nmse", "intensity", "offset", "position"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)!r}")


class Terms(NamedTuple):
    """A loss and what it is made of.

    Attributes
    ----------
    total : real scalar tensor
        The weighted sum, for the gradient.
    parts : dict of str to real scalar tensor
        Each term before its weight.
    """

    total: Tensor
    parts: dict[str, Tensor]


class BackboneObjective:
    """The training loss of a backbone.

    Parameters
    ----------
    options : ObjectiveOptions, optional
        Weights of the terms.
    cells : RangeCells or None
        Of the backbone's head; without them only the covariance counts.
    """

    def __init__(self, options: ObjectiveOptions | None = None, cells: RangeCells | None = None) -> None:
        self.options, self.cells = options or ObjectiveOptions(), cells

    def __call__(self, estimate: CovarianceEstimate, scenes: Scenes) -> Terms:
        """Compare an estimate with the truth of the scenes; in float32."""
        parts = {"nmse": factor_nmse(estimate.factor, scenes.true_factor().to(estimate.factor.dtype)).mean()}
        total = self.options.nmse * parts["nmse"]
        if estimate.sources is not None and self.cells is not None:
            parts |= _count_terms(estimate.sources.log_intensity, estimate.sources.offset, scenes, self.cells)
            total = total + self.options.intensity * parts["intensity"] + self.options.offset * parts["offset"]
        positions = getattr(estimate, "positions", None)
        if positions is not None:
            where, scale = scenes.position.to(positions.dtype), _scale(scenes.config.setup)
            parts["position"] = position_huber(positions, where, scenes.mask, scale=scale).mean()
            total = total + self.options.position * parts["position"]
        return Terms(total, parts)


def _scale(setup: Setup) -> tuple[float, float, float]:
    """The tolerance of a hit, that in range at half the farthest one; a range that is not scored does not count."""
    azimuth, elevation, r = setup.tolerance.limits
    return azimuth, elevation, r / (setup.region.range_m[1] / 2)


def _count_terms(log_intensity: Tensor, offset: Tensor, scenes: Scenes, cells: RangeCells) -> dict[str, Tensor]:
    """Negative log-likelihood of a Poisson process (mean over scenes) and offset loss (mean over
    scenes of the mean over sources).

    -log p = sum_g exp(z_g) - sum_k z_(cell of k), up to a constant: smallest where exp(z) is the expected count.
    """
    target = cells.targets(scenes.position)
    z = log_intensity.float().flatten(1)
    here = scenes.mask.to(z.dtype)
    likelihood = z.exp().sum(1) - (z.gather(1, target.cell) * here).sum(1)
    n_cells = len(cells)
    atom = target.cell // n_cells * cells.axes.n_range + target.cell % n_cells // cells.per_atom
    at = offset.float().flatten(1, 3).gather(1, atom[..., None].expand(-1, -1, 2))
    error = nn.functional.smooth_l1_loss(at, target.offset.to(at.device), beta=0.1, reduction="none").sum(-1)
    per_scene = (error * here).sum(1) / here.sum(1).clamp_min(1)
    return {"intensity": likelihood.mean(), "offset": per_scene.mean()}
