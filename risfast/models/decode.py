"""From the expected number of sources in each cell to a list of sources.

A source is reported where the expected number within the tolerance of a point is largest. It then stands for one
source: that much is taken out there, and where the tolerance held less than one, the rest is taken from the same
direction at other ranges, for a source of uncertain range is still one source. How many there are follows from where
this stops. Two of one place are reported a deviation of its counts to either side of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from risfast.detect import Sources
from risfast.models.atoms import AtomAxes, RangeCells
from risfast.models.base import SourceMap
from risfast.ops import local_maxima_3d, nms_3d
from risfast.setup import Tolerance

_SCENES_AT_ONCE = 2
_SAME_PLACE, _LEAST_SPREAD = 1e-3, 0.1  # tolerances
_FAR_FIELD = 1e-300  # 1/range that is none: differences of infinite ranges are not numbers


@dataclass(frozen=True)
class MapDetection:
    """Options of :func:`sources_of_map`."""

    threshold: float = 0.3  # Least expected number of sources within the tolerance of a reported one
    max_sources: int = 10  # Most sources reported in a scene
    cells: int = 512  # Strongest cells of a scene that are looked at

    def __post_init__(self) -> None:
        """Check every value."""
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold must lie in (0, 1], got {self.threshold!r}")
        if self.max_sources < 1 or self.cells < 1:
            raise ValueError(f"max_sources and cells must be at least 1, got {self.max_sources} and {self.cells}")


def sources_of_map(
    found: SourceMap, power: Tensor, cells: RangeCells, tolerance: Tolerance, options: MapDetection | None = None
) -> list[Sources]:
    """Report the sources that a map of expected counts speaks for.

    power (B, G_az, G_el, G_r)
    """
    options = options or MapDetection()
    position, counts = _strongest(found, cells, options.cells)
    # Few at a time, the windows of the scenes stay in a processor's cache.
    at_once = max(len(counts), 1) if counts.is_cuda else _SCENES_AT_ONCE
    split = zip(position.split(at_once), counts.split(at_once), strict=True)
    circle = cells.axes.region.full_circle
    peaks = [_peaks(*part, tolerance, options, circle) for part in split]
    point, mass = (torch.cat(parts).cpu() for parts in zip(*peaks, strict=True))
    powers = power.detach().double().cpu()
    return [_reported(point[i], mass[i], powers[i], cells, tolerance, options) for i in range(len(point))]


def counts_near(
    found: SourceMap, position: Tensor, cells: RangeCells, tolerance: Tolerance, options: MapDetection | None = None
) -> tuple[Tensor, Tensor]:
    """Expected number of sources of a map around given points.

    position (B, K, 3) -> within (B, K), toward (B, K)
    """
    options = options or MapDetection()
    places, counts = _strongest(found, cells, options.cells)
    gap = (position.to(places)[:, :, None] - places[:, None]).abs()
    turn = _round(gap[..., 0]) if cells.axes.region.full_circle else gap[..., 0]
    near = (turn <= tolerance.azimuth_rad) & (gap[..., 1] <= tolerance.elevation_rad)
    inside = near & ~(gap[..., 2] > tolerance.range_m)  # both may be in the far field
    return tuple((m.double() @ counts[..., None])[..., 0] for m in (inside, near))  # type: ignore[return-value]


def _strongest(found: SourceMap, cells: RangeCells, count: int) -> tuple[Tensor, Tensor]:
    """Positions [B, J, 3] and expected counts [B, J] of the strongest cells of each scene, float64."""
    values = found.log_intensity.detach().flatten(1)
    strongest = values.topk(min(count, values.shape[1]), dim=1)
    return _positions(found, cells, strongest.indices), strongest.values.double().exp()


def _round(azimuth: Tensor) -> Tensor:
    """Differences of azimuth the shorter way round the circle, in -pi .. pi."""
    return torch.remainder(azimuth + math.pi, 2 * math.pi) - math.pi


def _peaks(
    position: Tensor, counts: Tensor, tolerance: Tolerance, options: MapDetection, circle: bool
) -> tuple[Tensor, Tensor]:
    """Where sources are reported [B, max_sources, 3], and the expected number in the tolerance there."""
    # Masses fall from one to the next; what comes after one below the threshold is left at zero.
    near, window = _windows(position, tolerance, circle)
    # 32 bits hold a sum of expected counts to 1e-6; the windows are read once for every source.
    weight = window.float()
    batch = torch.arange(len(counts), device=counts.device)
    points = position.new_zeros(len(counts), options.max_sources, 3)
    windows = batch.new_full((len(counts), options.max_sources), -1)
    masses = counts.new_zeros(len(counts), options.max_sources)
    left = counts
    for k in range(options.max_sources):
        best = (weight @ left.float()[..., None])[..., 0].argmax(1)
        inside, beside = window[batch, best], near[batch, best]
        here = left * inside
        total = here.sum(1)
        if not bool((total >= options.threshold).any()):
            break
        place = position
        if circle:  # all on one side of the seam
            azimuth, own = position[..., 0], position[batch, best, 0][:, None]
            place = torch.cat([(own + _round(azimuth - own))[..., None], position[..., 1:]], -1)
        # A cell in the far field has no share in what lies elsewhere.
        points[:, k] = torch.where(here[..., None] > 0, here[..., None] * place, 0.0).sum(1)
        points[:, k] /= total.clamp_min(1e-300)[:, None]
        if circle:
            points[:, k, 0] = _round(points[:, k, 0])
        masses[:, k], windows[:, k] = total, best
        # One source leaves: first what is inside, then from the same direction.
        taken = total.clamp_max(1)
        left = torch.where(inside, left * (1 - taken / total.clamp_min(1e-300))[:, None], left)
        rest = (left * (beside & ~inside)).sum(1)
        share = ((1 - taken) / rest.clamp_min(1e-300)).clamp_max(1)
        left = torch.where(beside & ~inside, left * (1 - share)[:, None], left)
    apart = (points[:, :, None] - points[:, None]).abs() / points.new_tensor(tolerance.limits)
    alike = (apart < _SAME_PLACE).all(3) & (masses >= options.threshold)[:, None]
    split: set[tuple[int, int]] = set()
    for scene, first, second in alike.triu(1).nonzero().tolist():
        if not split.isdisjoint({(scene, first), (scene, second)}):  # of three, one stays
            continue
        split |= {(scene, first), (scene, second)}
        inside, centre = window[scene, windows[scene, first]], points[scene, first].clone()
        half = _spread(position[scene, inside], counts[scene, inside], centre, tolerance)
        points[scene, first], points[scene, second] = centre + half, centre - half
        if circle:
            points[scene, :, 0] = _round(points[scene, :, 0])
    return points, masses


def _spread(position: Tensor, counts: Tensor, centre: Tensor, tolerance: Tolerance) -> Tensor:
    """How far from the centre, and which way, two sources of one place are: a deviation of its counts [3]."""
    # From one and the same start a climb would not leave the plane of symmetry but by rounding.
    limits = centre.new_tensor(tolerance.limits)
    off = position - centre
    off[:, 0] = _round(off[:, 0])
    off = (off / limits).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    moment = (off * counts[:, None]).mT @ off / counts.sum().clamp_min(1e-300)
    value, axis = torch.linalg.eigh(moment)
    longest = axis[:, 2] * axis[:, 2][axis[:, 2].abs().argmax()].sign()
    half = longest * value[2].clamp_min(0).sqrt().clamp_min(_LEAST_SPREAD) * limits.nan_to_num(posinf=0.0)
    half[2] = half[2].clamp(-centre[2] / 2, centre[2] / 2)  # ranges are positive
    return half


def _windows(position: Tensor, tolerance: Tolerance, circle: bool) -> tuple[Tensor, Tensor]:
    """Which positions [B, J, 3] are within the tolerance of each other [B, J, J]: in direction; in range as well."""
    within = []
    for i, (axis, half) in enumerate(zip(position.unbind(-1), tolerance.limits, strict=True)):
        gap = torch.sub(axis[:, :, None], axis[:, None])
        if i == 0 and circle:
            gap = _round(gap)
        within.append((gap.abs_() > half).logical_not_())  # two in the far field have no difference
    near = within[0].logical_and_(within[1])
    return near, near & within[2]


def _positions(found: SourceMap, cells: RangeCells, index: Tensor) -> Tensor:
    """(azimuth, elevation, range) [B, J, 3] of cells [B, J], moved by their offsets, float64."""
    axes = cells.axes
    n_el, n_r, n_cells = axes.n_elevation, axes.n_range, len(cells)
    atom = index // n_cells * n_r + index % n_cells // cells.per_atom
    offset = found.offset.detach().double().flatten(1, 3).gather(1, atom[..., None].expand(-1, -1, 2))
    of_azimuth, of_elevation = (s.to(index.device) for s in axes.coordinates)
    azimuth = of_azimuth[index // (n_el * n_cells)] + axes.spacing[0] * offset[..., 0]
    elevation = of_elevation[index // n_cells % n_el] + axes.spacing[1] * offset[..., 1]
    r = cells.centres[index % n_cells]
    return torch.stack([*axes.angles((azimuth, elevation)), r], -1)


def _reported(
    point: Tensor, mass: Tensor, power: Tensor, cells: RangeCells, tolerance: Tolerance, options: MapDetection
) -> Sources:
    keep = mass >= options.threshold
    point, mass = point[keep], mass[keep]
    order = mass.argsort(descending=True, stable=True)
    point, mass = point[order], mass[order]
    axes = cells.axes
    if axes.n_range == 1 and float(axes.inverse_range[0]) == 0:  # its cells stand far out, to be numbers
        point = torch.cat([point[:, :2], torch.full_like(point[:, 2:], math.inf)], 1)
    inside = torch.ones(len(point), *power.shape, dtype=torch.bool)
    for i, (axis, reach) in enumerate(zip(axes.angles(axes.coordinates), tolerance.limits[:2], strict=True)):
        gap = axis - point[:, i, None]
        if i == 0 and axes.region.full_circle:
            gap = _round(gap)
        close = gap.abs() <= max(reach, math.asin(min(axes.spacing[i], 1.0)) / 2)
        inside &= close[:, :, None, None] if i == 0 else close[:, None, :, None]
    inside &= ((axes.inverse_range - 1 / point[:, 2, None]).abs() <= abs(axes.spacing[2]))[:, None, None]
    return Sources.at(point, (inside * power).sum((1, 2, 3)), mass.clamp_max(1))


@dataclass(frozen=True)
class PowerDetection:
    """Options of :func:`sources_of_power`."""

    max_db: float = 10.0  # How far below the strongest a source may be
    max_sources: int = 10  # Most sources reported in a scene

    def __post_init__(self) -> None:
        """Check every value."""
        if not self.max_db > 0:
            raise ValueError(f"max_db must be positive, got {self.max_db!r}")
        if self.max_sources < 1:
            raise ValueError(f"max_sources must be at least 1, got {self.max_sources}")


def sources_of_power(
    power: Tensor, axes: AtomAxes, tolerance: Tolerance, options: PowerDetection | None = None
) -> list[Sources]:
    """Peaks of the powers of atoms: the read-out of a sparse covariance fit.

    power (B, G_az, G_el, G_r)
    """
    # A peak stands for the 3 x 3 x 3 atoms around it: its power is their sum, and its position their centroid in the
    # coordinates of the axes and 1/range.
    options = options or PowerDetection()
    power = power.detach().double()
    b = len(power)
    if b == 0:
        return []
    round_trip = axes.region.full_circle and axes.n_azimuth > 2
    coordinates = torch.meshgrid(*axes.coordinates, axes.inverse_range, indexing="ij")
    weighted = torch.stack([torch.ones_like(coordinates[0]), *coordinates]).to(power.device) * power[:, None]
    if round_trip:  # a peak across the seam is one peak
        turn = 2 * math.pi * torch.tensor([-1.0, 1.0], dtype=power.dtype, device=power.device)
        before, after = weighted[:, :, -1:].clone(), weighted[:, :, :1].clone()
        before[:, 1] += turn[0] * before[:, 0]
        after[:, 1] += turn[1] * after[:, 0]
        weighted = torch.cat([before, weighted, after], 2)
        power = torch.cat([power[:, -1:], power, power[:, :1]], 1)
    # An axis of one or two atoms is shorter than the window, with its padding.
    padded = torch.nn.functional.pad(weighted, (1, 1, 1, 1, 1, 1))
    sums = 27 * torch.nn.functional.avg_pool3d(padded, 3, stride=1)  # [B, 4, ...]
    peaks = local_maxima_3d(power.cpu(), window=(3, 3, 3), k=64)
    flat = (peaks.index[..., 0] * axes.n_elevation + peaks.index[..., 1]) * axes.n_range + peaks.index[..., 2]
    there = torch.arange(flat.shape[1]) < peaks.count[:, None]
    if round_trip:
        there &= (peaks.index[..., 0] > 0) & (peaks.index[..., 0] <= axes.n_azimuth)
    at = sums.cpu().flatten(2).gather(2, torch.where(there, flat, 0)[:, None].expand(-1, 4, -1))
    mass = torch.where(there, at[:, 0], 0.0)
    centre = at[:, 1:] / at[:, :1].clamp_min(1e-300)
    azimuth, elevation = axes.angles((centre[:, 0], centre[:, 1]))
    inverse = centre[:, 2].clamp_min(_FAR_FIELD)
    position = torch.stack([azimuth, elevation, 1 / inverse], -1)
    kept = nms_3d(
        position,
        torch.where(mass > 0, mass, -math.inf),
        separation=tolerance.limits,
        k=options.max_sources,
        on_sphere=True,
    )
    position[..., 2] = torch.where(centre[:, 2] > 0, position[..., 2], torch.inf)
    return [_peaks_of(position[i], mass[i], kept.index[i, : int(kept.count[i])], options) for i in range(b)]


def _peaks_of(position: Tensor, mass: Tensor, kept: Tensor, options: PowerDetection) -> Sources:
    kept = kept.long()
    kept = kept[(mass[kept] > 0) & (mass[kept] >= mass.max() * 10 ** (-options.max_db / 10))]
    found = Sources.at(position[kept], mass[kept])
    return found.replace(range=torch.where(2 * _FAR_FIELD * found.range < 1, found.range, torch.inf))
