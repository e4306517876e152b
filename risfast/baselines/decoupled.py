"""MUSIC for a planar surface with direction and range apart.

On a lattice that is its own mirror image, the elements at p and -p of a Fresnel wavefront differ in phase by
2 k u.p whatever the range, for the curvature is even. So the anti-diagonal of the covariance,

    g(p) = R(p, -p) = sum_k p_k exp(j 2 k u_k . p),

is one snapshot of a far-field array with twice the spacing. Averaging over shifted parts of it restores the rank that
one snapshot lacks; MUSIC gives the directions, and a sweep of the full spectrum along each of them gives its range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from risfast.baselines.base import reported
from risfast.baselines.music import OrderOptions, RangeSweep, SubspaceBaseline, leading
from risfast.geometry import Lattice
from risfast.setup import Setup
from risfast.sources import Sources

DIRECTIONS = ("joint", "separate")

_ZOOMS, _ZOOM_POINTS = 8, 5  # each zoom halves the cell: 2^-8 of the spacing of the phases
_SPARE_PEAKS = 4  # directions beyond the number of sources: two sources may share one through an alias


@dataclass(frozen=True)
class DecoupledMusicOptions(OrderOptions):
    """Options of :class:`DecoupledMusic`."""

    n_phases: int = 128  # Points of the direction spectrum along each axis of the lattice, >= 8
    n_ranges: int = 200  # Points of the sweep over the ranges of the setup, uniform in 1/range, >= 3
    share: float = 2 / 3  # Side of the smoothed part, relative to that of the lattice
    # Whether both phase steps of a direction are searched together, over ``n_phases`` squared points, or each along its
    # own side of the lattice, over ``n_phases`` each, and then paired
    directions: str = "joint"

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        if self.n_phases < 8 or self.n_ranges < 3:
            raise ValueError(
                f"n_phases must be at least 8 and n_ranges at least 3, got {self.n_phases}, {self.n_ranges}"
            )
        if not 0 < self.share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {self.share!r}")
        if self.directions not in DIRECTIONS:
            raise ValueError(f"directions must be one of {', '.join(DIRECTIONS)}; got {self.directions!r}")


class _Candidate(NamedTuple):
    """A direction at its best range; ``null`` is that of the full spectrum, in 0 .. 1."""

    null: float
    azimuth: float
    elevation: float
    range_m: float
    peak: int


class DecoupledMusic(SubspaceBaseline):
    """Decoupled MUSIC on the least-squares covariance."""

    # After P. Ramezani, A. Kosasih, E. Björnson, "An efficient modified MUSIC algorithm for RIS-assisted near-field
    # localization", 2024; parts of the lattice are averaged as in T.-J. Shan, M. Wax, T. Kailath, "On spatial smoothing
    # for direction-of-arrival estimation of coherent signals", IEEE Trans. ASSP 33, 1985. With more than a quarter of a
    # wavelength between elements the doubled spacing has aliases: each direction that they leave within the region is
    # swept, and the one with the deepest null is taken. The directions inherit the error of the Fresnel wavefront: on
    # the reference surface 0.2 degrees rms beyond 4 m, and 1.2 degrees over 0.5 to 10 m.

    Options: ClassVar[type[DecoupledMusicOptions]] = DecoupledMusicOptions

    def __init__(self, setup: Setup, options: DecoupledMusicOptions | None = None) -> None:
        super().__init__(setup, options)
        array = setup.array
        lattice = array.lattice
        if lattice is None or min(lattice.n_h, lattice.n_v) < 2:
            raise ValueError(f"array must be a uniform planar lattice of at least 2 x 2 elements, got {array!r}")
        self._lattice: Lattice = lattice
        self._sweep = RangeSweep(setup, self.options.n_ranges)

    @property
    def _spacings(self) -> tuple[float, float]:
        return self._lattice.spacing_h_m, self._lattice.spacing_v_m

    @property
    def _part(self) -> tuple[int, int]:
        """Sides of the smoothed part of the lattice."""
        sides = (self._lattice.n_h, self._lattice.n_v)
        h, v = (max(2, math.ceil(self.options.share * n)) for n in sides)
        return h, v

    @property
    def most_sources(self) -> int:
        """Sources that the smoothed parts can tell apart: as many as there are, and fewer than their elements."""
        h, v = self._part
        return min((self._lattice.n_h - h + 1) * (self._lattice.n_v - v + 1), h * v - 1)

    def of_covariance(self, covariance: Tensor, count: int) -> list[Sources]:
        """Exactly ``count`` sources of each of a batch of covariances.

        covariance (B, N, N)
        """
        if not 1 <= count <= self.most_sources:
            raise ValueError(f"n_sources must lie in 1 .. {self.most_sources} for this lattice, got {count}")
        order = torch.tensor(self._lattice.order, device=covariance.device)
        power = covariance.diagonal(dim1=1, dim2=2).real.mean(1).double()
        found = []
        for b, matrix in enumerate(covariance.to(torch.complex128)):
            g = matrix[order, order.flip(0)].reshape(self._lattice.n_h, self._lattice.n_v)
            subspace = self._smoothed_subspace(g, count)
            if self.options.directions == "joint":
                phases = self._peaks(subspace, count + _SPARE_PEAKS)
            else:
                phases = self._pairs(g, subspace, count + _SPARE_PEAKS)
            found.append(self._ranged(matrix, phases, count, float(power[b])))
        return reported(found, self.setup)

    def _smoothed_subspace(self, g: Tensor, count: int) -> Tensor:
        """Leading eigenvectors (count, h, v) of the average over parts of g."""
        h, v = self._part
        parts = g.unfold(0, h, 1).unfold(1, v, 1).reshape(-1, h * v)
        vectors = torch.linalg.svd(parts.mT, full_matrices=False).U[:, :count]
        return vectors.mT.reshape(count, h, v)

    def _peaks(self, subspace: Tensor, count: int) -> Tensor:
        """Phase steps (count, 2) along the lattice with the deepest nulls, in -pi .. pi; maxima first."""
        n = self.options.n_phases
        level = torch.fft.fft2(subspace, s=(n, n)).abs().square().sum(0)  # |U^H a|^2 at phases 2 pi i / n
        around = torch.stack([level.roll((i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)])
        peak = level > around.amax(0)
        score = torch.where(peak, level + level.max(), level)  # maxima before all others
        score = torch.where(self._in_view().to(score.device), score, -math.inf)
        best = _apart(score, count, n // (2 * self._part[0]), n // (2 * self._part[1]))
        return _climbed(subspace, best, n, peak[best[:, 0], best[:, 1]])

    def _pairs(self, g: Tensor, subspace: Tensor, count: int) -> Tensor:
        """Phase steps (count, 2) from one spectrum along each side: the pairs with the deepest nulls."""
        h, v = self._part
        along_h = _line_peaks(g.unfold(0, h, 1).reshape(-1, h), len(subspace), count, self.options.n_phases)
        along_v = _line_peaks(g.mT.unfold(0, v, 1).reshape(-1, v), len(subspace), count, self.options.n_phases)
        pairs = torch.cartesian_prod(along_h, along_v)
        seen = torch.tensor([len(self._aliases(pair)) > 0 for pair in pairs.cpu()], device=pairs.device)
        pairs = pairs[seen]
        return pairs[_level(subspace, pairs[:, None])[:, 0].argsort(descending=True)[:count]]

    def _cosines(self, phase: Tensor, spacing: float) -> Tensor:
        """Direction cosines (..., T) along one side of the lattice that have the given phase steps (...)."""
        period = self.setup.array.wavelength_m / (2 * spacing)
        reach = math.ceil(1 / period) + 1
        turns = torch.arange(-reach, reach + 1, dtype=torch.float64)
        return period * (phase[..., None] / (2 * math.pi) + turns)

    @property
    def _sines(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Ends of sin(azimuth) and sin(elevation) of the region, as far as it lies in front of the lattice."""
        region = self.setup.region
        intervals = (
            (max(low, -math.pi / 2), min(high, math.pi / 2)) for low, high in (region.azimuth_rad, region.elevation_rad)
        )
        azimuth, elevation = ((math.sin(low), math.sin(high)) for low, high in intervals)
        return azimuth, elevation

    def _in_view(self) -> Tensor:
        """Which points (n, n) of the direction spectrum have an alias in the region, or beside it."""
        n = self.options.n_phases
        phase = torch.arange(n, dtype=torch.float64) * (2 * math.pi / n)
        x = self._cosines(phase, self._spacings[0])[:, None, :, None]
        y = self._cosines(phase, self._spacings[1])[None, :, None, :]
        (left, right), (low, high) = self._sines
        across = (1 - y.square()).clamp_min(0).sqrt()
        seen = (y >= low) & (y <= high) & (x >= left * across) & (x <= right * across)
        inside = seen.flatten(2).any(2)
        # The maximum of a source at the edge may lie one point beyond it.
        return torch.stack([inside.roll((i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)]).any(0)

    def _aliases(self, phase: Tensor) -> Tensor:
        """(azimuth, elevation) (J, 2) in the region that have a pair of phase steps."""
        # A source at the edge may come out beyond it: by one point, and by the two that a maximum climbs at most.
        margin = 3 * max(self.setup.array.wavelength_m / (2 * s) for s in self._spacings) / self.options.n_phases
        x = self._cosines(phase[0], self._spacings[0])
        y = self._cosines(phase[1], self._spacings[1])
        (left, right), (low, high) = self._sines
        x, y = torch.cartesian_prod(x, y[(y >= low - margin) & (y <= high + margin)].clamp(low, high)).unbind(-1)
        elevation = y.asin()
        across = elevation.cos()
        sine = x / across.clamp_min(1e-12)
        inside = (x >= left * across - margin) & (x <= right * across + margin)
        return torch.stack([sine.clamp(left, right).asin(), elevation], -1)[inside]

    def _ranged(self, covariance: Tensor, phases: Tensor, count: int, power: float) -> Sources:
        """The directions with their ranges: the best alias of each, deepest nulls first."""
        subspace = leading(covariance[None], count)[0].mH  # [count, N]
        candidates = []
        for i, phase in enumerate(phases.cpu()):
            for azimuth, elevation in self._aliases(phase).tolist():
                null, r = self._sweep.deepest(subspace, azimuth, elevation)
                candidates.append(_Candidate(null, azimuth, elevation, r, i))
        best = {c.peak: c for c in sorted(candidates, reverse=True)}  # the deepest of each peak comes last
        first = sorted(best.values())[:count]
        rest = sorted(set(candidates) - set(first))
        chosen = sorted([*first, *rest[: count - len(first)]])
        if len(chosen) < count:
            raise ValueError(f"only {len(chosen)} directions lie in the region, n_sources is {count}")
        rows = torch.tensor([[c.azimuth, c.elevation, c.range_m] for c in chosen], dtype=torch.float64)
        return Sources.at(rows, torch.full_like(rows[:, 0], power / count))


@dataclass(frozen=True)
class SeparableMusicOptions(DecoupledMusicOptions):
    """Those of :class:`DecoupledMusic` with the two angles apart as well."""

    directions: str = "separate"  # As :class:`DecoupledMusicOptions` has it, with the other default


class SeparableMusic(DecoupledMusic):
    """Decoupled MUSIC with the two angles apart as well."""

    Options = SeparableMusicOptions


def _line_peaks(parts: Tensor, order: int, count: int, n: int) -> Tensor:
    """Phase steps (J,), J <= count, with the deepest nulls of the average over parts (P, h) of lines."""
    h = parts.shape[1]
    subspace = torch.linalg.svd(parts.mT, full_matrices=False).U[:, : min(order, h - 1)].mT  # [k, h]
    level = torch.fft.fft(subspace, n=n).abs().square().sum(0)
    score = torch.where((level > level.roll(1)) & (level > level.roll(-1)), level + level.max(), level)
    best = _apart(score[:, None], min(count, h), n // (2 * h), 0)
    return _climbed(subspace[..., None], best, n, torch.ones_like(best[:, 0], dtype=torch.bool))[:, 0]


def _apart(score: Tensor, count: int, reach_h: int, reach_v: int) -> Tensor:
    """Indices (J, 2) of the ``count`` highest points of a periodic map, none within reach of a higher one."""
    score = score.clone()
    chosen: list[tuple[int, int]] = []
    n_h, n_v = score.shape
    h, v = torch.arange(n_h, device=score.device), torch.arange(n_v, device=score.device)
    while len(chosen) < count and float(score.max()) > -math.inf:
        i, j = divmod(int(score.argmax()), n_v)
        chosen.append((i, j))
        near_h = torch.minimum((h - i) % n_h, (i - h) % n_h) <= reach_h
        near_v = torch.minimum((v - j) % n_v, (j - v) % n_v) <= reach_v
        score[near_h[:, None] & near_v] = -math.inf
    return torch.tensor(chosen, device=score.device)


def _climbed(subspace: Tensor, best: Tensor, n: int, peak: Tensor) -> Tensor:
    """Phase steps (J, 2), in -pi .. pi, of points of an n x n spectrum; peaks (J,) climb to the maxima beside them."""
    phase, step = best.double() * (2 * math.pi / n), 2 * math.pi / n
    offset = torch.linspace(-1, 1, _ZOOM_POINTS, dtype=torch.float64, device=phase.device)
    stencil = torch.cartesian_prod(offset, offset)
    found = phase[peak]
    index = torch.arange(len(found), device=phase.device)
    for _ in range(_ZOOMS):
        tried = found[:, None] + step * stencil
        found = tried[index, _level(subspace, tried).argmax(1)]
        step /= 2
    phase[peak] = found
    return torch.remainder(phase + math.pi, 2 * math.pi) - math.pi


def _level(subspace: Tensor, phase: Tensor) -> Tensor:
    """|U^H a|^2 (J, S) at phase steps (J, S, 2)."""
    _, h, v = subspace.shape
    along_h = torch.arange(h, dtype=torch.float64, device=phase.device) * phase[..., :1]
    along_v = torch.arange(v, dtype=torch.float64, device=phase.device) * phase[..., 1:]
    a_h, a_v = (torch.polar(torch.ones_like(x), x) for x in (along_h, along_v))
    return torch.einsum("khv,jsh,jsv->kjs", subspace.conj(), a_h, a_v).abs().square().sum(0)
