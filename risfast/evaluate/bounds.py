"""The stochastic Cramér-Rao bound of every source, and the recall that it implies for a tolerance.

    y_l ~ CN(0, Phi_l A P A^H Phi_l^H + sigma^2 I),      Phi_l = H diag(c_l) known, and different in each snapshot

Positions, powers and the noise are all unknown. The bound is that of unbiased estimators: one that knows in which box
the sources are can do better where the bound is as wide as the box.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from risfast.errors import ShapeError
from risfast.evaluate.matching import Tolerance
from risfast.localize.bands import BandLikelihood
from risfast.localize.likelihood import Likelihood, SourceState, coordinate_covariance
from risfast.models.base import Measurement
from risfast.setup import Setup

if TYPE_CHECKING:
    from risfast.simulate.scenes import Scenes

_SCENES_AT_ONCE = 16  # 150 MB of sensing operators and derivatives on the reference system
# Of the integral over a box: Gauss-Legendre nodes of a panel, and where a Gaussian has ended, in standard deviations.
_NODES = 12
_TAIL, _BULK = 9.0, 2.5
_ALL = 6.1  # standard deviations beyond which there is 1e-9 of a coordinate: all of a Gaussian but 3e-9
_BEND_WIDTHS = 5.0  # of the standard deviation that smooths a bend
_LEAST_WIDTH = 1e-7  # standard deviation in half-widths of the box: what keeps exact zeros regular
_SOURCES_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class SourceBound:
    """Bound of the sources of B scenes; NaN where there is no source.

    Attributes
    ----------
    covariance : float64 tensor, shape (B, K, 3, 3)
        Of (azimuth, elevation, range) in radians and metres. A coordinate of which the measurements say nothing has
        an infinite variance and covariances of zero.
    position_m : float64 tensor, shape (B, K)
        Root mean square distance from the true position, in metres.
    bias : float64 tensor, shape (B, K, 3), or None
        Mean of the error; None is zero.
    """

    covariance: Tensor
    position_m: Tensor
    bias: Tensor | None = None

    @property
    def deviation(self) -> Tensor:
        """Standard deviations (B, K, 3) of azimuth, elevation (radians) and range (metres)."""
        return self.covariance.diagonal(dim1=-2, dim2=-1).sqrt()

    def implied_recall(self, tolerance: Tolerance | None = None) -> Tensor:
        """Chance that an error of this covariance and mean is a hit; see :func:`implied_recall`.

        Parameters
        ----------
        tolerance : Tolerance, optional
            That of the setup; by default 5 degrees, 5 degrees and 1 m.

        Returns
        -------
        float64 tensor, shape (B, K)
            NaN where there is no source.
        """
        return implied_recall(self.covariance, tolerance, self.bias)


def true_state(scenes: Scenes) -> SourceState:
    """The truth of simulated scenes, as the likelihood takes it.

    With impairments it is the truth of the nominal system; what coherent sources have in common is left out.

    Parameters
    ----------
    scenes : Scenes
        B scenes.

    Returns
    -------
    SourceState
        Positions as (azimuth, elevation, 1/range), powers, sigma^2 and the mask, float64; range 1 m and power 1 where
        there is no source.
    """
    position = scenes.position.double().clone()
    position[..., 2] = 1 / torch.where(scenes.mask, position[..., 2], 1.0)
    power = torch.where(scenes.mask, scenes.power.double(), 1.0)
    if scenes.noise_power.ndim == 2:  # the same in all bands
        power = power[:, None].expand(-1, scenes.noise_power.shape[1], -1)
    return SourceState(position, power, scenes.noise_power.double(), scenes.mask)


def scene_bound(scenes: Scenes) -> SourceBound:
    """Bound of simulated scenes on their nominal system.

    Parameters
    ----------
    scenes : Scenes
        B scenes; B may be 0.

    Returns
    -------
    SourceBound

    Notes
    -----
    For scenes with impairments or coherent sources it is the bound of the nominal model with independent sources, a
    reference and not a limit.
    """
    b, k = scenes.mask.shape
    covariance = torch.full((b, k, 3, 3), torch.nan, dtype=torch.float64, device=scenes.y.device)
    result = SourceBound(covariance, covariance[..., 0, 0].clone())
    every, measurement, state = torch.arange(b, device=scenes.y.device), Measurement.of(scenes), true_state(scenes)
    for part in every.split(_SCENES_AT_ONCE) if b and k else ():
        likelihood = _exact_likelihood(measurement[part], scenes.config.setup)
        bound = cramer_rao_bound(likelihood, state.take(part))
        result.covariance[part], result.position_m[part] = bound.covariance, bound.position_m
    return result


def _exact_likelihood(measurement: Measurement, setup: Setup) -> Likelihood | BandLikelihood:
    """Double precision throughout; of several bands the information adds up."""
    if setup.n_bands > 1:
        return BandLikelihood(measurement, setup)
    return Likelihood(measurement, setup.array, setup.wavefront)


def cramer_rao_bound(likelihood: Likelihood | BandLikelihood, state: SourceState) -> SourceBound:
    """Bound of every source of B scenes, with all other sources, the powers and the noise unknown.

    Parameters
    ----------
    likelihood : Likelihood or BandLikelihood
        Sensing operators, array and wavefront; the snapshots themselves do not matter.
    state : SourceState
        The true sources and noise, K of them with a mask.

    Returns
    -------
    SourceBound

    Notes
    -----
    Inverse of the Slepian-Bangs information F_ij = sum_l tr(R_l^-1 dR_l/di R_l^-1 dR_l/dj). Where F is singular the
    pseudo-inverse bounds the coordinates that the measurements determine, and the others are unbounded (Stoica and
    Marzetta, "Parameter estimation problems with singular information matrices", IEEE Trans. SP 49, 2001).
    """
    covariance = coordinate_covariance(likelihood.derivatives(state).information, state.mask.shape[1])
    r = 1 / state.position[..., 2]
    covariance = of_range(covariance, r)
    there = state.mask[..., None, None]
    position = position_variance(covariance, state.position[..., 1], r).sqrt()
    return SourceBound(torch.where(there, covariance, torch.nan), torch.where(state.mask, position, torch.nan))


def of_range(covariance: Tensor, r: Tensor) -> Tensor:
    """Covariances of (azimuth, elevation, range) from those of (azimuth, elevation, 1/range)."""
    # d range = -range^2 d(1/range): the sign turns the covariances with the angles.
    slope = torch.stack([torch.ones_like(r), torch.ones_like(r), -r.square()], -1)
    return covariance * slope[..., None] * slope[..., None, :]


def position_variance(covariance: Tensor, elevation: Tensor, r: Tensor) -> Tensor:
    """Trace of the covariance of (x, y, z): the coordinates move a point in orthogonal directions."""
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    metric = torch.stack([(r * elevation.cos()).square(), r.square(), torch.ones_like(r)], -1)
    return (variance * metric).sum(-1)


def implied_recall(covariance: Tensor, tolerance: Tolerance | None = None, bias: Tensor | None = None) -> Tensor:
    """Chance that a Gaussian error with the given covariance and mean is within the tolerance.

    Parameters
    ----------
    covariance : float64 tensor, shape (..., 3, 3)
        Of (azimuth, elevation, range) in radians and metres, positive semi-definite.
    tolerance : Tolerance, optional
        Half-widths of the box; by default 5 degrees, 5 degrees and 1 m. Where that of range is infinite, the chance is
        that of the two angles.
    bias : float64 tensor, shape (..., 3), optional
        Mean of the error, in the same units; by default zero.

    Returns
    -------
    float64 tensor, shape (...)
        0 where a variance is infinite or else a bias is, NaN where the covariance is or else the bias is.

    Raises
    ------
    ShapeError, ValueError
        Not (..., 3, 3) and (..., 3), a tolerance of zero, or a covariance that is not positive semi-definite.

    Notes
    -----
    Deterministic. The box is integrated by conditioning (Genz, "Numerical computation of multivariate normal
    probabilities", J. Comput. Graph. Stat. 1, 1992): the innermost coordinate in closed form, the other two by
    Gauss-Legendre panels that end where the conditional means cross the faces of the box. Absolute error below 1e-8,
    however correlated the errors are and wherever their mean is.
    """
    if covariance.ndim < 2 or tuple(covariance.shape[-2:]) != (3, 3):
        raise ShapeError(f"covariance must have shape (..., 3, 3), got {tuple(covariance.shape)}")
    if bias is not None and bias.shape != covariance.shape[:-1]:
        raise ShapeError(
            f"bias must have shape (..., 3) = {tuple(covariance.shape[:-1])} as covariance says, "
            f"got {tuple(bias.shape)}"
        )
    gate = tolerance or Tolerance()
    half = torch.tensor([gate.azimuth_rad, gate.elevation_rad, gate.range_m], dtype=torch.float64)
    if not bool((half > 0).all()):
        raise ValueError(f"tolerance must be positive in every coordinate, got {gate}")
    flat = covariance.detach().double().cpu().reshape(-1, 3, 3)
    mean = torch.zeros_like(flat[..., 0]) if bias is None else bias.detach().double().cpu().reshape(-1, 3)
    free = half.isinf()  # a coordinate that is not scored counts as known
    half = half.masked_fill(free, 1.0)
    flat = flat.masked_fill(free[:, None] | free, 0.0) / (half[:, None] * half)
    mean = mean.masked_fill(free, 0.0) / half
    known = ~flat.isnan().flatten(1).any(1)
    bounded = known & flat.isfinite().flatten(1).all(1)
    known &= ~bounded | ~mean.isnan().any(1)  # where a variance is infinite, the mean does not matter
    bounded &= mean.isfinite().all(1)
    result = torch.where(known, 0.0, torch.nan).double()
    reach = _ALL * flat.diagonal(dim1=1, dim2=2).sqrt()
    within, beyond = (mean.abs() + reach <= 1).all(1), (mean.abs() - reach >= 1).any(1)
    result[bounded & within] = 1.0
    index = (bounded & ~within & ~beyond).nonzero()[:, 0]
    for part in index.split(_SOURCES_AT_ONCE):
        result[part] = _box_probability(flat[part], mean[part])
    return result.reshape(covariance.shape[:-2]).to(covariance.device)


def _box_probability(covariance: Tensor, mean: Tensor) -> Tensor:
    """P(|x_i| <= 1 for all i) [J] of x ~ N(mean [J, 3], covariance [J, 3, 3])."""
    lower, order = _ordered_factor(covariance)
    s1, s2, s3 = lower.diagonal(dim1=1, dim2=2).unbind(1)
    slope2, slope3 = lower[:, 1, 0] / s1, lower[:, 2, 0] / s1  # of the means of x2 and x3 as x1 varies
    across = lower[:, 2, 1] / s2  # of the mean of x3 as x2 varies
    along = slope3 - across * slope2  # of the mean of x3 as x1 varies and x2 stays
    # From here on x is counted from its mean, and the box lies around -mean.
    centre = -mean.gather(1, order)
    (low1, low2, low3), (high1, high2, high3) = (centre - 1).unbind(1), (centre + 1).unbind(1)
    # The inner integral bends where a mean, or an edge of the box, meets a face.
    upper = [high2 / slope2, high3 / slope3, (high3 - across * high2) / along, (high3 - across * low2) / along]
    under = [low2 / slope2, low3 / slope3, (low3 - across * low2) / along, (low3 - across * high2) / along]
    width = torch.stack([s2 / slope2, torch.hypot(s3, lower[:, 2, 1]) / slope3, s3 / along, s3 / along], 1).abs()
    tail, bulk = _TAIL * s1, (_BULK * s1)[:, None]
    if not bool(mean.any()):  # by symmetry x1 >= 0 is half of it, and bends below zero fall on those above
        cuts = _around(torch.stack(upper, 1).abs(), width)
        x1, w1 = _panels(torch.zeros_like(s1), tail.clamp_max(1.0), cuts, bulk)  # [J, n]
        w1 = 2 * w1
    else:
        cuts = _around(torch.stack([*upper, *under], 1), width.repeat(1, 2))
        ends = torch.maximum(torch.minimum(low1, tail), -tail), torch.maximum(torch.minimum(high1, tail), -tail)
        x1, w1 = _panels(*ends, cuts, torch.cat([-bulk, 0 * bulk, bulk], 1))
    mean2, s2 = slope2[:, None] * x1, s2[:, None]
    rest = along[:, None] * x1
    bend = torch.stack([high3[:, None] - rest, low3[:, None] - rest], -1) / across[:, None, None]
    width = (s3 / across).abs()[:, None, None].expand_as(bend)
    low, high = (torch.clamp(mean2 + way * _TAIL * s2, low2[:, None], high2[:, None]) for way in (-1, 1))
    bulk = torch.stack([mean2 - _BULK * s2, mean2 + _BULK * s2], -1)
    x2, w2 = _panels(low, high, _around(bend, width), bulk)  # [J, n, m]
    mean3 = rest[..., None] + across[:, None, None] * x2
    s3 = s3[:, None, None]
    above, below = (torch.special.ndtr((end[:, None, None] - mean3) / s3) for end in (high3, low3))
    density2 = _normal_density((x2 - mean2[..., None]) / s2[..., None]) / s2[..., None]
    middle = (w2 * density2 * (above - below)).sum(-1)
    outer = w1 * _normal_density(x1 / s1[:, None]) / s1[:, None]
    return (outer * middle).sum(1).clamp(0, 1)


def _ordered_factor(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky factors [J, 3, 3] in the order [J, 3] that leaves the least sharp steps to the numerical integrals."""
    # The coordinate with the widest conditional distribution goes last, of the others the wider one second.
    size = covariance.diagonal(dim1=1, dim2=2).sum(1)
    floor = _LEAST_WIDTH**2 + 1e-13 * size
    regular = covariance + floor[:, None, None] * torch.eye(3, dtype=torch.float64)
    found = torch.linalg.cholesky_ex(regular)
    if bool((found.info > 0).any()):
        raise ValueError("covariance must be positive semi-definite")
    conditional = 1 / torch.cholesky_inverse(found.L).diagonal(dim1=1, dim2=2)
    last = conditional.argmax(1)
    variance = regular.diagonal(dim1=1, dim2=2).scatter(1, last[:, None], torch.inf)
    order = variance.argsort(1)
    regular = regular.gather(1, order[:, :, None].expand(-1, -1, 3)).gather(2, order[:, None].expand(-1, 3, -1))
    return torch.linalg.cholesky(regular), order


def _around(bend: Tensor, width: Tensor) -> Tensor:
    """Cuts [..., 3 J] at the bends [..., J] and where they have ended."""
    return torch.cat([bend - _BEND_WIDTHS * width, bend, bend + _BEND_WIDTHS * width], -1)


def _panels(low: Tensor, high: Tensor, bends: Tensor, bulk: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights of integrals from low to high [...], cut at the bends [..., I] and at the bulk [..., J]."""
    cuts = torch.cat([bends, bulk], -1).nan_to_num(nan=0.0)
    inside = torch.maximum(torch.minimum(cuts, high[..., None]), low[..., None])
    edges = torch.cat([low[..., None], inside.sort(-1).values, high[..., None]], -1)
    node, weight = (torch.as_tensor(v) for v in np.polynomial.legendre.leggauss(_NODES))
    half = edges.diff(dim=-1)[..., None] / 2
    middle = (edges[..., 1:] + edges[..., :-1])[..., None] / 2
    return (middle + half * node).flatten(-2), (half * weight).flatten(-2)


def _normal_density(z: Tensor) -> Tensor:
    return (-z.square() / 2).exp() / math.sqrt(2 * math.pi)
