"""From a covariance (or a factor of one) to sources, without being told how many there are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from risfast.geometry import PlanarArray, SearchGrid
from risfast.ops import checks, local_maxima_3d, mvdr_spectrum, mvdr_spectrum_lowrank, nms_3d
from risfast.ops.kept import constant_on
from risfast.ops.refinement import denominator, refine_from, walk_from, widest_after_walk

__all__ = [
    "DetectionOptions",
    "FixedDetections",
    "Sources",
    "detect_fixed",
    "detect_sources",
    "detect_sources_lowrank",
]

_MAD_TO_SIGMA = 1.4826  # of a Gaussian
_RANGE_MARGIN = 1.1
_VOLUME_BYTES = 64 << 20  # volumes held at once
_VOLUME_BYTES_ON_GPU = 2 << 30


@dataclass(frozen=True)
class DetectionOptions:
    """How peaks become detections.

    Attributes
    ----------
    max_db : float
        A source is at most this far below the strongest refined peak, in dB, > 0.
    mad_z : float or None
        A source also stands above median + z * 1.4826 * MAD of the map in dB; None leaves this test out. It never
        loosens ``max_db``.
    prominence_db : float
        A source stands at least this far above the median of the map, in dB, so that a flat map holds none.
    max_sources : int or None
        Keep at most so many, the strongest.
    candidates : int
        Peaks of the coarse volume that are refined, the strongest ones.
    window : (int, int, int)
        Neighbourhood (azimuth, elevation, range planes) in which a candidate is the maximum, odd sizes.
    separation_rad, separation_m : float
        Two refined peaks closer than this in azimuth, elevation (radians) and range (metres) are one source.
    refine_points : (int, int, int)
        Fine grid around each candidate, after its walk between the range planes.

    Raises
    ------
    ValueError
        A value is out of its range.

    Notes
    -----
    The median absolute deviation, scaled to the standard deviation of a Gaussian: F. R. Hampel, "The influence curve
    and its role in robust estimation", J. Amer. Statist. Assoc. 69, 1974.
    """

    max_db: float = 12.0
    mad_z: float | None = 5.0
    prominence_db: float = 0.5
    max_sources: int | None = None
    candidates: int = 20
    window: tuple[int, int, int] = (7, 7, 3)
    separation_rad: float = math.radians(1.0)
    separation_m: float = 0.5
    refine_points: tuple[int, int, int] = (41, 41, 41)

    def __post_init__(self) -> None:
        """Refuse what cannot be met."""
        if not self.max_db > 0:
            raise ValueError(f"max_db must be positive (dB below the strongest peak), got {self.max_db!r}")
        if self.max_sources is not None and not (isinstance(self.max_sources, int) and self.max_sources >= 1):
            raise ValueError(f"max_sources must be at least 1 or None, got {self.max_sources!r}")
        if self.mad_z is not None and not math.isfinite(self.mad_z):
            raise ValueError(f"mad_z must be a finite number or None, got {self.mad_z!r}")
        if not 0 <= self.prominence_db < math.inf:
            raise ValueError(f"prominence_db must be finite and at least 0, got {self.prominence_db!r}")
        counts = {"candidates": (self.candidates,), "window": self.window, "refine_points": self.refine_points}
        for name, values in counts.items():
            if not all(isinstance(v, int) and v >= 1 for v in values):
                raise ValueError(f"{name} must be made of integers of at least 1, got {getattr(self, name)!r}")
        if len(self.window) != 3 or any(v % 2 == 0 for v in self.window) or len(self.refine_points) != 3:
            raise ValueError(
                f"window must be three odd sizes and refine_points three, got {self.window}, {self.refine_points}"
            )
        if not (self.separation_rad > 0 and self.separation_m > 0):
            raise ValueError("separation_rad and separation_m must be positive")


@dataclass(frozen=True, eq=False)
class Sources:
    """The sources found in one scene, strongest first.

    Attributes
    ----------
    azimuth, elevation : float64 tensors, shape (K,)
        Radians.
    range : float64 tensor, shape (K,)
        Metres.
    power : float64 tensor, shape (K,)
        Capon power, linear, unless the method that found them says otherwise.
    confidence : float64 tensor, shape (K,)
        1 - (median of the map) / power, in 0 .. 1: the part of the peak that the background does not explain.
    """

    azimuth: Tensor
    elevation: Tensor
    range: Tensor
    power: Tensor
    confidence: Tensor

    def __len__(self) -> int:
        """K."""
        return int(self.azimuth.numel())

    @property
    def position(self) -> Tensor:
        """(K, 3): azimuth, elevation, range."""
        return torch.stack([self.azimuth, self.elevation, self.range], -1)


def _bounds(grid: SearchGrid) -> tuple[Tensor, Tensor]:
    """Corners [3] of where sources may lie: the grid, and a tenth beyond its outermost range planes.

    The reference planes, 0.55 to 9.5 m, so cover its field of view of 0.5 to 10 m. Further out the range of a weak
    source runs away to any bound it is given.
    """
    az, el, r = grid.azimuth_rad, grid.elevation_rad, grid.range_m
    return torch.stack([az[0], el[0], r[0] / _RANGE_MARGIN]), torch.stack([az[-1], el[-1], r[-1] * _RANGE_MARGIN])


def _goes_round(grid: SearchGrid) -> bool:
    """Whether the azimuth axis closes on itself, so that its two ends are neighbours."""
    azimuth = grid.azimuth_rad
    if azimuth.numel() < 3:
        return False
    return float(azimuth[-1] - azimuth[0] + 1.5 * (azimuth[1:] - azimuth[:-1]).max()) > 2 * math.pi


def _grid_positions(grid: SearchGrid, index: Tensor) -> Tensor:
    """Positions [b, C, 3] of grid points ``index`` [b, C, 3]; padding (-1) gets the first point."""
    i = index.clamp_min(0)
    axes = (constant_on(axis, index.device) for axis in (grid.azimuth_rad, grid.elevation_rad, grid.range_m))
    return torch.stack([axis[i[..., n]] for n, axis in enumerate(axes)], -1)


def _threshold_db(volume: Tensor, strongest: Tensor, options: DetectionOptions) -> tuple[Tensor, Tensor]:
    """Threshold in dB [b], and the median of the map [b], linear."""
    level = volume.amax(-1).flatten(1).double().log10() * 10
    median = level.median(1).values
    threshold = torch.maximum(strongest - options.max_db, median + options.prominence_db)
    if options.mad_z is not None:
        mad = (level - median[:, None]).abs().median(1).values
        threshold = torch.maximum(threshold, median + options.mad_z * _MAD_TO_SIGMA * mad)
    return threshold, 10 ** (median / 10)


class FixedDetections(NamedTuple):
    """Detections of a batch in tensors whose shapes depend on the options alone, strongest first.

    Attributes
    ----------
    position : float64 tensor, shape (B, k, 3)
        Azimuth and elevation in radians, range in metres.
    power : float64 tensor, shape (B, k)
        Capon power, linear.
    confidence : float64 tensor, shape (B, k)
        As in :class:`Sources`.
    keep : bool tensor, shape (B, k)
        The slots that hold a source; what the others hold means nothing.
    number : int64 tensor, shape (B,)
        Sources of each scene.
    """

    position: Tensor
    power: Tensor
    confidence: Tensor
    keep: Tensor
    number: Tensor


def _detect(
    matrix: Tensor,
    volume: Tensor,
    array: PlanarArray,
    grid: SearchGrid,
    factored: bool,
    loading: float,
    wavefront: str,
    options: DetectionOptions,
) -> FixedDetections:
    """Detections of a few scenes from their volume [b, G_az, G_el, G_r]."""
    peaks = local_maxima_3d(volume, window=options.window, k=options.candidates)
    start = _grid_positions(grid, peaks.index)
    form = denominator(matrix, factored, loading)
    bounds = _bounds(grid)
    _, low, high = walk_from(form, array, start, *bounds, wavefront)
    widest = widest_after_walk(array, *bounds)
    refined = refine_from(form, array, low, high, wavefront, options.refine_points, widest)
    present = torch.arange(options.candidates, device=volume.device) < peaks.count[:, None]
    power = torch.where(present, refined.power, torch.zeros_like(refined.power))
    level = power.clamp_min(torch.finfo(torch.float64).tiny).log10() * 10
    threshold, background = _threshold_db(volume, level.amax(1), options)
    score = torch.where(present & (level >= threshold[:, None]), level, torch.full_like(level, -math.inf))
    separation = (options.separation_rad, options.separation_rad, options.separation_m)
    limit = options.candidates if options.max_sources is None else min(options.max_sources, options.candidates)
    kept = nms_3d(refined.position, score, separation=separation, k=limit, wrap_azimuth=_goes_round(grid))
    chosen = kept.index.clamp_min(0)
    strength = power.gather(1, chosen)
    return FixedDetections(
        refined.position.gather(1, chosen[..., None].expand(-1, -1, 3)),
        strength,
        (1 - background[:, None] / strength).clamp(0, 1),
        kept.index >= 0,
        kept.count,
    )


def detect_fixed(
    matrix: Tensor,
    array: PlanarArray,
    grid: SearchGrid,
    *,
    factored: bool,
    loading: float = 1e-2,
    wavefront: str = "spherical",
    method: str = "auto",
    options: DetectionOptions | None = None,
) -> FixedDetections:
    """Detection with outputs of a fixed size: :func:`detect_sources` before its lists are cut to length.

    On a GPU nothing in it waits for the host, so that it can be captured in a CUDA graph, after one call that makes
    plans and tables.

    Parameters
    ----------
    matrix : complex64 or complex128 tensor, shape (B, N, N) or (B, N, K)
        Covariance R, or with ``factored`` a factor F of R = F F^H.
    array, grid, loading, wavefront, method, options
        As for :func:`detect_sources`.
    factored : bool
        Whether ``matrix`` is a factor.

    Returns
    -------
    FixedDetections

    Raises
    ------
    ShapeError, TypeError, ValueError
        As :func:`risfast.ops.mvdr_spectrum`.
    """
    spectrum = mvdr_spectrum_lowrank if factored else mvdr_spectrum
    chosen = options or DetectionOptions()
    at_once = _VOLUME_BYTES if matrix.device.type == "cpu" else _VOLUME_BYTES_ON_GPU
    step = max(1, at_once // (8 * grid.size))
    parts: list[FixedDetections] = []
    # An empty batch makes one pass, so that its arguments are checked too.
    for start in range(0, max(matrix.shape[0], 1), step):
        part = matrix[start : start + step]
        volume = spectrum(part, array, grid, loading=loading, wavefront=wavefront, method=method, reduce="none")
        parts.append(_detect(part, volume, array, grid, factored, loading, wavefront, chosen))
    return parts[0] if len(parts) == 1 else FixedDetections(*(torch.cat(field) for field in zip(*parts, strict=True)))


def _as_lists(found: FixedDetections) -> list[Sources]:
    """Cut to length, which is the one time that the host waits for a GPU."""
    sources = []
    for scene, number in enumerate(found.number.tolist()):
        azimuth, elevation, r = found.position[scene, :number].unbind(-1)
        sources.append(Sources(azimuth, elevation, r, found.power[scene, :number], found.confidence[scene, :number]))
    return sources


def detect_sources(
    R: Tensor,
    array: PlanarArray,
    grid: SearchGrid | None = None,
    *,
    loading: float = 1e-2,
    wavefront: str = "spherical",
    method: str = "auto",
    options: DetectionOptions | None = None,
) -> list[Sources]:
    """Find the sources in a batch of covariances; their number is not needed.

    Parameters
    ----------
    R : complex64 or complex128 tensor, shape (B, N, N) or (N, N)
        Hermitian, positive semi-definite.
    array : PlanarArray
        N elements.
    grid : SearchGrid or None
        Coarse grid; :meth:`SearchGrid.reference` by default.
    loading, wavefront, method
        As for :func:`risfast.ops.mvdr_spectrum`.
    options : DetectionOptions or None
        Thresholds, refinement and caps.

    Returns
    -------
    list of Sources
        One a scene (a list of one for a single covariance).

    Raises
    ------
    ShapeError, TypeError, ValueError
        As :func:`risfast.ops.mvdr_spectrum`.

    Notes
    -----
    Capon power on the coarse grid; its 3D maxima; for all of them at once, a walk towards the source between the range
    planes, a fine grid around its end and Newton steps below that; then thresholds on the refined powers and
    suppression of peaks that met.

    What the array cannot tell apart comes back as several sources: a linear array needs a grid of one elevation, a
    planar one a grid of the half-space before it. A source outside the grid shows up at its edge, with side lobes.
    """
    checks.check_complex(R, "R")
    chosen = grid if grid is not None else SearchGrid.reference()
    matrix = R if R.ndim != 2 else R[None]
    how: dict[str, Any] = {"loading": loading, "wavefront": wavefront, "method": method, "options": options}
    return _as_lists(detect_fixed(matrix, array, chosen, factored=False, **how))


def detect_sources_lowrank(
    F: Tensor,
    array: PlanarArray,
    grid: SearchGrid | None = None,
    *,
    loading: float = 1e-2,
    wavefront: str = "spherical",
    method: str = "auto",
    options: DetectionOptions | None = None,
) -> list[Sources]:
    """Find the sources in a batch of low-rank covariances R = F F^H.

    Parameters
    ----------
    F : complex64 or complex128 tensor, shape (B, N, K) or (N, K)
        Factor of R = F F^H; K is the rank, not the number of sources.
    array, grid, loading, wavefront, method, options
        As for :func:`detect_sources`; ``loading`` > 0.

    Returns
    -------
    list of Sources
        One a scene.

    Raises
    ------
    ShapeError, TypeError, ValueError
        As :func:`risfast.ops.mvdr_spectrum_lowrank`.
    """
    checks.check_complex(F, "F")
    chosen = grid if grid is not None else SearchGrid.reference()
    matrix = F if F.ndim != 2 else F[None]
    how: dict[str, Any] = {"loading": loading, "wavefront": wavefront, "method": method, "options": options}
    return _as_lists(detect_fixed(matrix, array, chosen, factored=True, **how))
