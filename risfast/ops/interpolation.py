"""Interpolation of fields that the aperture band-limits in angle."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from risfast.geometry import cartesian_to_spherical
from risfast.ops.domain import Domain, antisymmetric

_CHECK_POINTS = 32  # random points at which a plan is checked when it is built
_BANDWIDTH_BINS = 256
_ROUNDING = 4e-16  # of a Bessel function
_CHECK_PLANES = 8
_CHECK_FORMS = 16  # random forms over which its error is averaged
_FEWEST = 0.55  # nodes that are tried first, as a fraction of those that polynomials of the angle would take
_GROWTH = 0.06  # part by which an axis that fails its check grows, for each decade of its error


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
    # J_n(c) are the Fourier coefficients of exp(j c sin x).
    waves = np.exp(1j * np.sin(np.arange(2 * upper) * (math.pi / upper))[:, None] * c.numpy())
    bessel = np.abs(np.fft.fft(waves, axis=0)[:upper].real) / (2 * upper)
    bessel[bessel < _ROUNDING] = 0
    tails = 4 * bessel[::-1].cumsum(0)[::-1]  # [n, c]: what n nodes leave out
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


@dataclass(frozen=True)
class NodeMap:
    """A change of variable between an interval and [-1, 1] in which nodes are Chebyshev's."""

    # Chebyshev nodes crowd at the ends and need pi / 2 times as many as evenly spaced ones would, which are unstable.
    # The map y -> asin(alpha y) / asin(alpha) undoes the crowding as far as the tolerance allows, with
    # alpha = sech(|ln tolerance| / count): D. Kosloff, H. Tal-Ezer, "A modified Chebyshev pseudospectral method with
    # an O(N^-1) time step restriction", J. Comput. Phys. 104, 1993.

    low: float
    high: float
    count: int
    tolerance: float  # relative error
    circle: bool = False  # Whether the interval is a period: nodes are then evenly spaced

    @property
    def alpha(self) -> float:
        """Parameter of the map: 0 leaves Chebyshev nodes, 1 makes evenly spaced ones."""
        return 1 / math.cosh(min(abs(math.log(self.tolerance)) / self.count, 10.0))

    @property
    def nodes(self) -> Tensor:
        """In ascending order.

        -> (count,)
        """
        mapped = (self.alpha * chebyshev_nodes(-1.0, 1.0, self.count)).asin() / math.asin(self.alpha)
        unit = self._even if self.circle else mapped
        return (self.high + self.low) / 2 + (self.high - self.low) / 2 * unit

    @property
    def _even(self) -> Tensor:
        return (torch.arange(self.count, dtype=torch.float64) * 2 + 1 - self.count) / self.count

    def interpolation(self, points: Tensor) -> Tensor:
        """Matrix from values at the nodes to values at points.

        points (G,) -> (G, count)
        """
        unit = (points * 2 - self.high - self.low) / (self.high - self.low)
        if not self.circle:
            mapped = (math.asin(self.alpha) * unit).sin() / self.alpha
            return interpolation_matrix(chebyshev_nodes(-1.0, 1.0, self.count), -1.0, 1.0, mapped)
        # Harmonics, as many as nodes, which are orthogonal on them.
        order = torch.arange(self.count, dtype=torch.float64)[:, None]

        def harmonics(x: Tensor) -> Tensor:
            phase = math.pi * ((order + 1) / 2).floor() * x
            return torch.where(order % 2 == 0, phase.cos(), phase.sin())

        at_nodes = harmonics(self._even)
        return harmonics(unit).mT @ (at_nodes / at_nodes.square().sum(1, keepdim=True))


@dataclass(frozen=True, eq=False)
class BoxNodes:
    """Nodes over (azimuth, elevation), the same on every range plane."""

    azimuth: AxisNodes  # Along each axis
    elevation: AxisNodes  # Along each axis
    checked_error: float  # at random points; see _Check


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


@dataclass(frozen=True, eq=False)
class _Axis:
    """One angular axis of a domain, and the other across it."""

    domain: Domain
    is_elevation: bool

    @property
    def values(self) -> Tensor:
        """Of the axis itself."""
        return self.domain.elevation if self.is_elevation else self.domain.azimuth

    @property
    def across(self) -> Tensor:
        """Values of the other axis."""
        return self.domain.azimuth if self.is_elevation else self.domain.elevation

    def direction(self, values: Tensor, across: Tensor) -> tuple[Tensor, Tensor]:
        """(azimuth, elevation) of points given along and across the axis."""
        return (across, values) if self.is_elevation else (values, across)

    def map(self, count: int, tolerance: float) -> NodeMap:
        """Where so many nodes lie."""
        low, high = float(self.values[0]), float(self.values[-1])
        if antisymmetric(self.values):
            high = -low  # keep the antisymmetry exact
        step = (high - low) / max(self.values.numel() - 1, 1)
        circle = not self.is_elevation and high - low >= 2 * math.pi - 1.01 * step  # open or closed
        return NodeMap(low, low + 2 * math.pi if circle else high, count, tolerance, circle)

    def hard(self) -> tuple[Tensor, Tensor]:
        """Grid indices, along and across the axis, nearest to the elements that come closest to a range plane."""
        # A phase bends hardest where the source passes close to an element.
        spherical = cartesian_to_spherical(self.domain.positions)
        inside = torch.ones(len(spherical), dtype=torch.bool)
        for axis, angle in ((self.domain.azimuth, spherical[:, 0]), (self.domain.elevation, spherical[:, 1])):
            inside &= (angle >= axis[0]) & (angle <= axis[-1])
        gap = (spherical[:, 2:] - self.domain.range).abs().amin(1).masked_fill(~inside, math.inf)
        close = spherical[gap.topk(min(4, len(gap)), largest=False).indices]

        def nearest(axis: Tensor, angle: Tensor) -> Tensor:
            return (axis[:, None] - angle).abs().argmin(0)

        along, across = int(self.is_elevation), 1 - int(self.is_elevation)
        return nearest(self.values, close[:, along]), nearest(self.across, close[:, across])


class _Check:
    """Interpolation error along an axis, at random and at hard points of a few planes."""

    # Of two kinds, and the larger counts: of random forms x^H a conj(y^H a) of unit power, which is the rms error of
    # the phase differences of all pairs; and of |s^H a|^2 / N^1.5 at the source s itself, where all pairs can err in
    # phase: this is what the peak of a Capon map sees.

    def __init__(self, axis: _Axis) -> None:
        domain, generator = axis.domain, torch.Generator().manual_seed(0)  # a plan must be the same every time
        self.axis, n = axis, domain.n_elements
        self.steered: dict[int, tuple[Tensor, Tensor]] = {}
        self.forms = torch.randn(2, n, _CHECK_FORMS, generator=generator, dtype=torch.complex128) / math.sqrt(n)
        hard, hard_across = axis.hard()
        middle = torch.tensor([axis.values.numel() // 2])
        self.pick = torch.cat([torch.randint(axis.values.numel(), (_CHECK_POINTS,), generator=generator), hard, middle])
        across = [torch.randint(axis.across.numel(), (3,), generator=generator), hard_across]
        ends = torch.tensor([0, axis.across.numel() // 2, axis.across.numel() - 1])
        self.across = axis.across[torch.cat([*across, ends])][:, None]
        gap = (domain.range - domain.positions.norm(dim=1)[:, None]).abs().amin(0)
        spread = torch.linspace(0, domain.range.numel() - 1, min(domain.range.numel(), _CHECK_PLANES)).round().long()
        self.planes = torch.cat([gap.argmin()[None], spread]).unique().tolist()

    def _steering(self, values: Tensor, plane: int) -> tuple[Tensor, Tensor]:
        """Steering vectors, and the random forms there."""
        a = self.axis.domain.steering(*self.axis.direction(values, self.across), self.axis.domain.range[plane])
        u, v = (a @ form.conj() for form in self.forms)
        return a, u.conj() * v

    def error(self, interpolation: AxisNodes, tolerance: float) -> float:
        """Beyond the tolerance it is that of the first plane that fails."""
        if interpolation.matrix is None:
            return 0.0
        matrix, n = interpolation.matrix[self.pick], self.axis.domain.n_elements
        error = 0.0
        for plane in self.planes:
            if plane not in self.steered:
                self.steered[plane] = self._steering(self.axis.values[self.pick], plane)
            (sources, exact), (a, forms) = self.steered[plane], self._steering(interpolation.nodes, plane)
            random = (matrix.to(exact.dtype) @ forms - exact).abs().square().mean(-1).max().sqrt()
            beams = (sources.conj() @ a.mT).abs().square()  # [across, pick, nodes]
            at_source = ((beams * matrix).sum(-1) - n**2).abs().max() / n**1.5
            error = max(error, float(random), float(at_source))
            if error > tolerance:
                self.planes.remove(plane)
                self.planes.insert(0, plane)  # the next attempt looks there first
                break
        return error


def _axis_nodes(axis: _Axis, half_bandwidths: Tensor, tolerance: float) -> tuple[AxisNodes, float]:
    """As few nodes as the check allows, and the error that it finds."""
    most = axis.values.numel()
    count = math.ceil(_FEWEST * bessel_node_count(half_bandwidths, tolerance, 2 * most))
    check = _Check(axis)
    while True:
        if axis.domain.mirror.flips[int(axis.is_elevation)] and count > 1:
            count += count % 2  # the middle node of an odd number is its own mirror image
        if count >= most:
            return AxisNodes(axis.values, None), 0.0
        mapped = axis.map(count, tolerance)
        found = AxisNodes(mapped.nodes, mapped.interpolation(axis.values))
        error = check.error(found, tolerance)
        if error <= tolerance:
            return found, error
        count = max(count + 1, int(count * (1 + _GROWTH * math.log10(error / tolerance))))


@lru_cache(maxsize=64)
def box_nodes(domain: Domain, tolerance: float) -> BoxNodes:
    """The fewest nodes that pass a check, from a number that is seldom enough upwards."""
    c_az, c_el = _half_bandwidths(domain)
    azimuth, error_az = _axis_nodes(_Axis(domain, is_elevation=False), c_az, tolerance)
    elevation, error_el = _axis_nodes(_Axis(domain, is_elevation=True), c_el, tolerance)
    return BoxNodes(azimuth, elevation, max(error_az, error_el))
