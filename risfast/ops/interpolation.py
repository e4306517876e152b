"""Chebyshev interpolation of fields that the aperture band-limits in angle."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy.special import jv
from torch import Tensor

from risfast.geometry import cartesian_to_spherical
from risfast.ops.domain import Domain, antisymmetric

_CHECK_POINTS = 32  # random points at which a plan is checked when it is built
_BANDWIDTH_BINS = 256
_CHECK_PAIRS = 512  # random pairs of elements over which its error is averaged
_GROWTH = 1.2  # factor by which an axis that fails its check grows


def bessel_node_count(half_bandwidths: Tensor, tolerance: float, most: int) -> int:
    """Chebyshev nodes that interpolate a family of exponentials exp(j c x) on [-1, 1] to an rms error.

    half_bandwidths (P,)
    """
    # By Jacobi-Anger, exp(j c x) = sum_n eps_n j^n J_n(c) T_n(x); interpolation at n Chebyshev nodes aliases what lies
    # beyond, so its error is at most 4 sum_{m >= n} |J_m(c)| (L. N. Trefethen, "Approximation theory and approximation
    # practice", 2013, ch. 4).
    largest = float(half_bandwidths.abs().max())
    if largest == 0:
        return 1
    if largest >= most:
        return most
    # Bessel functions of every pair would take minutes on a large array: round c up to a few hundred values.
    c, multiplicity = (half_bandwidths.abs() * (_BANDWIDTH_BINS / largest)).ceil().unique(return_counts=True)
    c = c * (largest / _BANDWIDTH_BINS)
    upper = int(float(c.max()) + 12 * (float(c.max()) + 1) ** (1 / 3) + 40)
    orders = np.arange(upper)[:, None]
    tails = 4 * np.abs(jv(orders, c.numpy()[None, :]))[::-1].cumsum(0)[::-1]  # [n, c]: what n nodes leave out
    mean_square = (tails**2 * multiplicity.numpy()).sum(1) / half_bandwidths.numel()
    enough = np.nonzero(mean_square <= tolerance**2)[0]
    return min(max(int(enough[0]) if enough.size else upper, 1), most)


def chebyshev_nodes(low: float, high: float, count: int) -> Tensor:
    """Chebyshev nodes of the first kind on [low, high].

    -> (count,)
    """
    angle = math.pi * (torch.arange(count, dtype=torch.float64) * 2 + 1 - count) / (2 * count)
    return (high + low) / 2 + (high - low) / 2 * angle.sin()


def interpolation_matrix(nodes: Tensor, low: float, high: float, points: Tensor) -> Tensor:
    """Matrix from values at Chebyshev nodes of the first kind to values at points.

    nodes (n,), points (G,) -> (G, n)
    """
    # Barycentric formula of the second kind, with weights (-1)^k sin(theta_k): J.-P. Berrut, L. N. Trefethen,
    # "Barycentric Lagrange interpolation", SIAM Review 46, 2004, eq. 4.2.
    count = nodes.numel()
    if count == 1:
        return torch.ones(points.numel(), 1, dtype=torch.float64)
    theta = math.pi * (torch.arange(count, dtype=torch.float64) * 2 + 1) / (2 * count)
    weights = theta.sin() * (1 - 2 * (torch.arange(count) % 2).double())
    difference = points[:, None] - nodes[None, :]
    exact = difference.abs() <= 1e-15 * max(abs(low), abs(high), high - low)
    difference = torch.where(exact, torch.ones_like(difference), difference)
    terms = weights / difference
    matrix = terms / terms.sum(1, keepdim=True)
    return torch.where(exact.any(1, keepdim=True), exact.double(), matrix)


@dataclass(frozen=True, eq=False)
class AxisNodes:
    """Nodes along one axis."""

    nodes: Tensor  # (n,) In the unit of the axis
    matrix: Tensor | None  # (G, n) Interpolates from the nodes to the axis; None where the nodes are the axis itself

    @property
    def count(self) -> int:
        """Number of nodes."""
        return self.nodes.numel()


def _axis_nodes(axis: Tensor, count: int) -> AxisNodes:
    if count >= axis.numel():
        return AxisNodes(axis, None)
    low, high = float(axis[0]), float(axis[-1])
    if antisymmetric(axis):
        high = -low  # keep the antisymmetry exact
    nodes = chebyshev_nodes(low, high, count)
    return AxisNodes(nodes, interpolation_matrix(nodes, low, high, axis))


@dataclass(frozen=True, eq=False)
class BoxNodes:
    """Nodes over (azimuth, elevation), the same on every range plane."""

    azimuth: AxisNodes  # Along each axis
    elevation: AxisNodes  # Along each axis
    checked_error: float  # of a phase difference at random points, relative to its amplitude


def _half_bandwidths(domain: Domain) -> tuple[Tensor, Tensor]:
    """Phase, in radians, that each pair of elements turns through over half of each axis, as seen from afar."""
    # Azimuth moves a source parallel to the x-z plane, so only that part of a pair's separation counts; elevation turns
    # the vertical part fully and the rest by the sine of the elevation.
    p = domain.positions
    n = domain.n_elements
    index = torch.triu_indices(n, n, 0)
    separation = p[index[0]] - p[index[1]]
    flat = separation[:, [0, 2]].norm(dim=1)
    tilt = math.sin(min(float(domain.elevation.abs().max()), math.pi / 2))
    half_az = float(domain.azimuth[-1] - domain.azimuth[0]) / 2
    half_el = float(domain.elevation[-1] - domain.elevation[0]) / 2
    k = domain.wavenumber
    return k * half_az * flat, k * half_el * torch.hypot(separation[:, 1], tilt * flat)


def _hard_directions(domain: Domain) -> tuple[Tensor, Tensor]:
    """Grid indices (azimuth, elevation) nearest to the elements that come closest to a range plane."""
    # A phase bends hardest where the source passes close to an element.
    spherical = cartesian_to_spherical(domain.positions)
    inside = torch.ones(len(spherical), dtype=torch.bool)
    for axis, angle in ((domain.azimuth, spherical[:, 0]), (domain.elevation, spherical[:, 1])):
        inside &= (angle >= axis[0]) & (angle <= axis[-1])
    gap = (spherical[:, 2:] - domain.range).abs().amin(1).masked_fill(~inside, math.inf)
    close = spherical[gap.topk(min(4, len(gap)), largest=False).indices]

    def nearest(axis: Tensor, values: Tensor) -> Tensor:
        return (axis[:, None] - values).abs().argmin(0)

    return nearest(domain.azimuth, close[:, 0]), nearest(domain.elevation, close[:, 1])


def _measured_errors(domain: Domain, azimuth: AxisNodes, elevation: AxisNodes) -> tuple[float, float]:
    """Interpolation error along each axis at random and at hard points of the planes, rms over pairs."""
    generator = torch.Generator().manual_seed(0)  # a plan must be the same every time
    n = domain.n_elements
    first = torch.arange(n).repeat(-(-_CHECK_PAIRS // n))  # every element takes part
    second = torch.randint(n, (len(first),), generator=generator)
    hard = _hard_directions(domain)

    def pairs(az: Tensor, el: Tensor, r: Tensor) -> Tensor:
        a = domain.steering(az, el, r)
        return a[..., first].conj() * a[..., second]

    def worst(along: Tensor, interpolation: AxisNodes, other: Tensor, swap: bool) -> float:
        if interpolation.matrix is None:
            return 0.0
        pick = torch.cat([torch.randint(along.numel(), (_CHECK_POINTS,), generator=generator), hard[int(swap)]])
        cross = torch.cat([torch.randint(other.numel(), (3,), generator=generator), hard[1 - int(swap)]])
        cross = other[torch.cat([cross, torch.tensor([0, other.numel() - 1])])][:, None]
        error = 0.0
        for r in domain.range:

            def field(values: Tensor, r: Tensor = r) -> Tensor:
                return pairs(cross, values, r) if swap else pairs(values, cross, r)

            exact = field(along[pick])
            guess = interpolation.matrix[pick].to(exact.dtype) @ field(interpolation.nodes)
            error = max(error, float((guess - exact).abs().square().mean(-1).max().sqrt()))
        return error

    return (
        worst(domain.azimuth, azimuth, domain.elevation, swap=False),
        worst(domain.elevation, elevation, domain.azimuth, swap=True),
    )


@lru_cache(maxsize=64)
def box_nodes(domain: Domain, tolerance: float) -> BoxNodes:
    """Choose nodes by the a-priori rule, then check them at random points and grow an axis that fails."""
    c_az, c_el = _half_bandwidths(domain)
    count_az = bessel_node_count(c_az, tolerance, domain.azimuth.numel())
    count_el = bessel_node_count(c_el, tolerance, domain.elevation.numel())
    while True:
        azimuth, elevation = _axis_nodes(domain.azimuth, count_az), _axis_nodes(domain.elevation, count_el)
        error_az, error_el = _measured_errors(domain, azimuth, elevation)
        if max(error_az, error_el) <= tolerance:
            return BoxNodes(azimuth, elevation, max(error_az, error_el))
        # The rule is for exponentials of constant frequency; close to the array phases bend.
        count_az = math.ceil(count_az * _GROWTH) if error_az > tolerance else count_az
        count_el = math.ceil(count_el * _GROWTH) if error_el > tolerance else count_el
