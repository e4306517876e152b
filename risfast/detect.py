"""From a covariance (or a factor of one) to sources, without being told how many there are."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from risfast.geometry import Folds, Region, SearchGrid, SensorArray
from risfast.ops import QuadraticForm, checks, local_maxima_3d, nms_3d
from risfast.ops.devices import constant_on
from risfast.ops.refinement import on_slopes, refine_from, walk_from, walk_spacing, widest_after_walk
from risfast.setup import PLANE_PHASE_RAD, Setup, Tolerance
from risfast.sources import Sources
from risfast.steering import steering_vectors

_MAD_TO_SIGMA = 1.4826  # of a Gaussian
_VOLUME_BYTES = 64 << 20  # volumes held at once
_VOLUME_BYTES_ON_GPU = 2 << 30
# Of the test against noise.
_SCENES, _BATCH, _SEED = 200, 25, 20120301  # of simulated noise: its number of directions is known to 10 %
_DIRECTIONS_PER_ELEMENT = 16  # a first value, on whose logarithm alone the measured one depends
_POINTS_PER_BEAM = 12.0  # of the grid on which peaks of noise are measured
_PLANES = 8  # of that grid, for each range plane of a map
_MOST_POINTS = 1 << 18  # of its map, which has every so many-th of its angles
_POINTS_BETWEEN = 1 << 13  # that are looked at where the map is highest
_LEAST_LEFT = 1e-6  # of a steering vector's squared norm: less is a direction that is already accounted for


@dataclass(frozen=True)
class DetectionOptions:
    """How peaks become detections.

    Attributes
    ----------
    max_db : float
        A source is at most this far below the strongest refined peak, in dB, > 0.
    mad_z : float or None
        A source also stands above median + z * 1.4826 * MAD of the map in dB; None leaves this test out. It never
        loosens ``max_db``. Where the number of snapshots is told, their test takes its place.
    prominence_db : float
        A source stands at least this far above the median of the map, in dB, so that a flat map holds none; not where
        the number of snapshots is told.
    max_sources : int or None
        Keep at most so many, the strongest.
    candidates : int
        Peaks of the coarse volume that are refined, the strongest ones.
    window : (int, int, int)
        Neighbourhood (azimuth, elevation, range planes) in which a candidate is the maximum, odd sizes. Across planes
        a source is lost where the slope of a neighbour's peak is higher on the next one.
    separation_rad : float
        Two refined peaks closer than this in azimuth and elevation, in radians, and than ``separation_m`` in range,
        are one source.
    separation_m : float or None
        The same in range, in metres; None is half the tolerance of the setup.
    refine_points : (int, int, int)
        Points of a grid in a box around the end of a candidate's Newton search, which then goes on from the deepest
        valleys of the grid; one point ends the search where it is.
    range_margin : float
        How far beyond the outermost planes of a grid a source may lie, as a factor >= 1, where no setup says it.

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
    window: tuple[int, int, int] = (7, 7, 1)
    separation_rad: float = math.radians(1.0)
    separation_m: float | None = None
    refine_points: tuple[int, int, int] = (1, 1, 1)
    range_margin: float = 1.1

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
        if not (self.separation_rad > 0 and (self.separation_m is None or self.separation_m > 0)):
            raise ValueError("separation_rad and separation_m must be positive")
        if not 1 <= self.range_margin < math.inf:
            raise ValueError(f"range_margin must be a factor of at least 1, got {self.range_margin!r}")

    def separation(self, setup: Setup | SensorArray) -> tuple[float, float, float]:
        """How close two peaks of a setup may be and still count as two.

        Parameters
        ----------
        setup : Setup or SensorArray

        Returns
        -------
        tuple of 3 float
            In azimuth, elevation (radians) and range (metres).
        """
        if self.separation_m is not None:
            return self.separation_rad, self.separation_rad, self.separation_m
        own = setup.tolerance if isinstance(setup, Setup) else Tolerance.of(setup.wavelength_m)
        return self.separation_rad, self.separation_rad, own.range_m / 2


def _goes_round(grid: SearchGrid) -> bool:
    """Whether the azimuth axis closes on itself, so that its two ends are neighbours."""
    azimuth = grid.azimuth_rad
    if azimuth.numel() < 3:
        return False
    return float(azimuth[-1] - azimuth[0] + 1.5 * (azimuth[1:] - azimuth[:-1]).max()) > 2 * math.pi


def _pole_rows(grid: SearchGrid) -> dict[int, int]:
    """Elevation indices, 0 and -1, of the rows that are one point, a pole, and those of the rows beside them."""
    elevation = grid.elevation_rad
    if elevation.numel() < 2:
        return {}
    # A circle of less than a step about a pole, too.
    gaps = {0: elevation[0] + math.pi / 2, -1: math.pi / 2 - elevation[-1]}
    steps = {0: elevation[1] - elevation[0], -1: elevation[-1] - elevation[-2]}
    return {row: beside for row, beside in ((0, 1), (-1, -2)) if float(gaps[row]) < 0.75 * float(steps[row])}


def _bounds(grid: SearchGrid, setup: Setup | None, options: DetectionOptions) -> tuple[Tensor, Tensor]:
    """Corners [3] of where sources may lie: the region, or the grid and a little beyond its outermost range planes."""
    az, el, r = grid.azimuth_rad, grid.elevation_rad, grid.range_m
    if setup is None:
        near, far = r[0] / options.range_margin, r[-1] * options.range_margin
        # The last circle of points about a pole stands for what it encloses.
        poles = _pole_rows(grid)
        lowest, highest = (el[row].sign() * math.pi / 2 if row in poles else el[row] for row in (0, -1))
        return torch.stack([az[0], lowest, near]), torch.stack([az[-1], highest, far])
    region = setup.region
    corners = (region.azimuth_rad, region.elevation_rad, region.range_m)
    low, high = (torch.tensor([axis[i] for axis in corners], dtype=torch.float64) for i in (0, 1))
    if setup.wavefront == "planar":  # of waves without curvature a peak has no range to be refined or told apart by
        low[2] = high[2]
    return low, high


def _coarse_peaks(volume: Tensor, grid: SearchGrid, options: DetectionOptions) -> tuple[Tensor, Tensor]:
    """Grid indices [b, C, 3] of the highest maxima on the sphere, -1 where there are fewer, and how many there are [b].

    volume (b, G_az, G_el, G_r)
    """
    azimuth, round_trip, poles = grid.azimuth_rad, _goes_round(grid), _pole_rows(grid)
    if round_trip and float(azimuth[-1] - azimuth[0]) > 2 * math.pi - 1e-9:
        volume = volume[:, :-1]  # the last repeats the first
    volume = volume.detach()
    if poles:
        volume = volume.clone()
    turned = {}
    half = options.window[2] // 2
    for pole, beside in poles.items():
        # One point, with every azimuth of the row beside it for a neighbour: as high at every azimuth, so that of the
        # plateau one maximum is left, or nowhere where a neighbour is higher.
        row = volume[:, :, pole].amax(1)  # [b, G_r]
        neighbours = volume[:, :, beside].amax(1)
        # A search starts along the azimuth that is highest there, or beside the pole where all azimuths are one.
        upright = abs(float(grid.elevation_rad[pole])) > math.pi / 2 - 1e-9
        turned[pole] = volume[:, :, beside if upright else pole].argmax(1)
        around = torch.nn.functional.max_pool1d(neighbours[:, None], 2 * half + 1, 1, half)[:, 0]
        volume[:, :, pole] = torch.where(row < around, torch.full_like(row, -math.inf), row)[:, None]
    found = local_maxima_3d(volume, window=options.window, k=options.candidates, full_circle=round_trip)
    index = found.index
    for pole, azimuths in turned.items():
        towards = azimuths.gather(1, index[..., 2].clamp_min(0))
        there = index[..., 1:2] == pole % len(grid.elevation_rad)
        index = torch.where(there, torch.stack([towards, index[..., 1], index[..., 2]], -1), index)
    return index, found.count


def _grid_positions(grid: SearchGrid, index: Tensor) -> Tensor:
    """Positions [b, C, 3] of grid points ``index`` [b, C, 3]; padding (-1) gets the first point."""
    i = index.clamp_min(0)
    axes = (constant_on(axis, index.device) for axis in (grid.azimuth_rad, grid.elevation_rad, grid.range_m))
    return torch.stack([axis[i[..., n]] for n, axis in enumerate(axes)], -1)


class RefinedPeaks(NamedTuple):
    """All refined peaks of the maps of B scenes, before any threshold, and what thresholds compare them with."""

    position: Tensor  # (B, C, 3) Azimuth and elevation in radians, range in metres
    power: Tensor  # (B, C) Capon power, linear; 0 in padding
    median_db: Tensor  # (B,) Median of the map in dB, and the median absolute deviation from it
    mad_db: Tensor  # (B,) Median of the map in dB, and the median absolute deviation from it


class FixedDetections(NamedTuple):
    """Detections of a batch in tensors whose shapes depend on the options alone, strongest first.

    Attributes
    ----------
    position : float64 tensor, shape (B, k, 3)
        Azimuth and elevation in radians, range in metres.
    power : float64 tensor, shape (B, k)
        Capon power, linear.
    prominence_db : float64 tensor, shape (B, k)
        Power over the median of the map.
    keep : bool tensor, shape (B, k)
        The slots that hold a source; what the others hold means nothing.
    number : int64 tensor, shape (B,)
        Sources of each scene.
    """

    position: Tensor
    power: Tensor
    prominence_db: Tensor
    keep: Tensor
    number: Tensor


def _peaks(
    form: QuadraticForm,
    volume: Tensor,
    array: SensorArray,
    grid: SearchGrid,
    corners: tuple[Tensor, Tensor],
    wavefront: str,
    options: DetectionOptions,
    folds: Folds | None,
) -> RefinedPeaks:
    """Peaks of a few scenes from their volume [b, G_az, G_el, G_r]."""
    index, count = _coarse_peaks(volume, grid, options)
    start = _grid_positions(grid, index)
    if folds is not None:
        start = folds.inside(start)
    circle = float(corners[0][0]) if _goes_round(grid) else None
    centred = math.prod(options.refine_points) == 1
    _, low, high = walk_from(form, array, start, *corners, wavefront, circle, centred)
    widest = widest_after_walk(array, *corners)
    refined = refine_from(form, array, low, high, wavefront, options.refine_points, widest, circle)
    present = torch.arange(options.candidates, device=volume.device) < count[:, None]
    refined = refined._replace(power=torch.where(present, refined.power, torch.zeros_like(refined.power)))
    slope = on_slopes(form, array, refined, *corners, wavefront, circle)
    return RefinedPeaks(refined.position, refined.power.masked_fill(slope, 0.0), *background_db(volume))


def _median(values: Tensor) -> Tensor:
    """The lower median of each scene, (B,)."""
    if values.device.type != "cpu":
        return values.median(1).values
    # Torch takes several times as long on the CPU.
    middle = (values.shape[1] - 1) // 2
    return torch.from_numpy(np.partition(values.numpy(), middle, axis=1)[:, middle])


def background_db(volume: Tensor) -> tuple[Tensor, Tensor]:
    """Median of a map in dB, and the median absolute deviation from it, (B,) each.

    volume (B, G_az, G_el, G_r)
    """
    level = volume.amax(-1).flatten(1).double().log10() * 10
    median = _median(level)
    return median, _median((level - median[:, None]).abs())


def refined_peaks(
    matrix: Tensor,
    setup: Setup | SensorArray,
    grid: SearchGrid | None = None,
    *,
    factored: bool,
    loading: float = 1e-2,
    wavefront: str | None = None,
    method: str = "auto",
    options: DetectionOptions | None = None,
) -> RefinedPeaks:
    """The first half of detection, and nearly all of its cost; thresholds and separations play no part."""
    # Arguments and errors are those of :func:`detect_fixed`; of the options ``candidates``, ``window``,
    # ``refine_points`` and ``range_margin`` are read.
    form_of = QuadraticForm.capon_lowrank if factored else QuadraticForm.capon
    chosen = options or DetectionOptions()
    setup, grid = _with_grid(setup, grid, wavefront)
    array, asked = (setup.array, setup) if isinstance(setup, Setup) else (setup, None)
    if asked is not None and wavefront not in (None, asked.wavefront):
        raise ValueError(f"wavefront is {wavefront!r}, and that of the setup is {asked.wavefront!r}: give one of them")
    wavefront = asked.wavefront if asked is not None else wavefront or "spherical"
    checks.check_array(array)
    checks.check_matrix(matrix, "F" if factored else "R", array.n_elements, square=not factored)
    corners = _bounds(grid, asked, chosen)
    folds = None if asked is None else Folds.of(array, asked.region)
    at_once = _VOLUME_BYTES if matrix.device.type == "cpu" else _VOLUME_BYTES_ON_GPU
    step = max(1, at_once // (8 * grid.size))
    parts: list[RefinedPeaks] = []
    # An empty batch makes one pass, so that its arguments are checked too.
    for start in range(0, max(matrix.shape[0], 1), step):
        form = form_of(matrix[start : start + step], loading)
        volume = form.spectrum(array, grid, wavefront=wavefront, method=method, reduce="none")
        parts.append(_peaks(form, volume, array, grid, corners, wavefront, chosen, folds))
    return parts[0] if len(parts) == 1 else RefinedPeaks(*(torch.cat(field) for field in zip(*parts, strict=True)))


def _with_grid(
    setup: Setup | SensorArray, grid: SearchGrid | None, wavefront: str | None
) -> tuple[Setup | SensorArray, SearchGrid]:
    """The grid that is given, or that of the setup; a bare array without a grid gets the setup of its own region."""
    if isinstance(setup, Setup) and setup.n_bands > 1:
        raise ValueError(
            f"the setup is of {setup.n_bands} bands, and a covariance is of one: take Localizer.classical(setup) for "
            "sources, risfast.ops.band_spectrum for a map"
        )
    if grid is not None:
        return setup, grid
    if not isinstance(setup, Setup):
        setup = Setup(setup, wavefront=wavefront or "spherical")  # type: ignore[arg-type]  # it is checked there
    return setup, setup.search_grid()


def choose_peaks(peaks: RefinedPeaks, setup: Setup | SensorArray, options: DetectionOptions) -> FixedDetections:
    """The second half of detection: thresholds on refined powers, and suppression of peaks that met."""
    level = peaks.power.clamp_min(torch.finfo(torch.float64).tiny).log10() * 10
    threshold = torch.maximum(level.amax(1) - options.max_db, peaks.median_db + options.prominence_db)
    if options.mad_z is not None:
        threshold = torch.maximum(threshold, peaks.median_db + options.mad_z * _MAD_TO_SIGMA * peaks.mad_db)
    score = torch.where((peaks.power > 0) & (level >= threshold[:, None]), level, torch.full_like(level, -math.inf))
    room = level.shape[1]
    limit = room if options.max_sources is None else min(options.max_sources, room)
    separation = options.separation(setup)
    # Ranges without curvature are one: two ends of a search in the far field are one source.
    array = setup.array if isinstance(setup, Setup) else setup
    farthest = 1 / float(walk_spacing(array.positions_m, array.wavenumber)[2]) or math.inf
    place = torch.cat([peaks.position[..., :2], peaks.position[..., 2:].clamp_max(farthest)], -1)
    kept = nms_3d(place, score, separation=separation, k=limit, on_sphere=True)
    chosen = kept.index.clamp_min(0)
    strength = peaks.power.gather(1, chosen)
    background = 10 ** (peaks.median_db / 10)
    return FixedDetections(
        peaks.position.gather(1, chosen[..., None].expand(-1, -1, 3)),
        strength,
        10 * (strength.clamp_min(torch.finfo(torch.float64).tiny) / background[:, None]).log10(),
        kept.index >= 0,
        kept.count,
    )


def detect_fixed(
    matrix: Tensor,
    setup: Setup | SensorArray,
    grid: SearchGrid | None = None,
    *,
    factored: bool,
    snapshots: int | None = None,
    false_alarm: float = 1e-2,
    loading: float = 1e-2,
    wavefront: str | None = None,
    method: str = "auto",
    options: DetectionOptions | None = None,
    report: Callable[[int, int], None] | None = None,
) -> FixedDetections:
    """Detection with outputs of a fixed size: :func:`detect_sources` before its lists are cut to length.

    On a GPU nothing in it waits for the host, so that it can be captured in a CUDA graph, after one call that makes
    plans and tables.

    Parameters
    ----------
    matrix : complex64 or complex128 tensor, shape (B, N, N) or (B, N, K)
        Covariance R, or with ``factored`` a factor F of R = F F^H.
    setup, grid, snapshots, false_alarm, loading, wavefront, method, options, report
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
    if snapshots is not None and (isinstance(snapshots, bool) or not isinstance(snapshots, int) or snapshots < 1):
        raise ValueError(f"snapshots must be a whole number of at least 1, got {snapshots!r}")
    if not 0 < false_alarm < 1:
        raise ValueError(f"false_alarm must be a probability between 0 and 1, got {false_alarm!r}")
    chosen = options or DetectionOptions()
    setup, grid = _with_grid(setup, grid, wavefront)
    if isinstance(setup, Setup):
        matrix, setup = setup.without_gains(matrix, factored=factored), setup.replace(gains=None)
    how: dict[str, Any] = {"loading": loading, "wavefront": wavefront, "method": method, "options": chosen}
    peaks = refined_peaks(matrix, setup, grid, factored=factored, **how)
    if snapshots is not None:
        told = _Told(report)
        limits = _noise_limits(setup, grid, snapshots, false_alarm, float(loading), wavefront, method, chosen, told)
        covariance = matrix @ matrix.mH if factored else matrix
        vectors = _candidate_vectors(peaks, setup, wavefront)
        real = significant(covariance, vectors, limits, float(loading), peaks.power)
        peaks = peaks._replace(power=torch.where(real, peaks.power, 0.0))
        chosen = replace(chosen, mad_z=None, prominence_db=0.0)
    return choose_peaks(peaks, setup, chosen)


def _candidate_vectors(peaks: RefinedPeaks, setup: Setup | SensorArray, wavefront: str | None) -> Tensor:
    """Steering vectors [B, N, C] of refined peaks, zero in padding."""
    array, waves = (setup.array, setup.wavefront) if isinstance(setup, Setup) else (setup, wavefront or "spherical")
    vectors = steering_vectors(array, *peaks.position.unbind(-1), wavefront=waves, dtype=torch.complex128)  # type: ignore[arg-type]
    return torch.where((peaks.power > 0)[..., None], vectors, 0.0).mT


@dataclass(frozen=True)
class _Told:
    """Who is told of the progress; what is kept of a call does not depend on it."""

    report: Callable[[int, int], None] | None = field(default=None, compare=False)


@lru_cache(maxsize=64)
def _noise_limits(
    setup: Setup | SensorArray,
    grid: SearchGrid,
    snapshots: int,
    false_alarm: float,
    loading: float,
    wavefront: str | None,
    method: str,
    options: DetectionOptions,
    told: _Told,
) -> list[float]:
    """What :func:`significant` takes, from noise that is searched in the same way."""
    how: dict[str, Any] = {"loading": loading, "wavefront": wavefront, "method": method, "options": options}
    if isinstance(setup, Setup):
        searched = setup
    else:
        low, high = (corner.tolist() for corner in _bounds(grid, None, options))
        searched = Setup(setup, Region(*zip(low, high, strict=True)), wavefront or "spherical")  # type: ignore[arg-type]
    if searched.array.n_elements < 2:  # all of the power is in every beam
        return []

    def candidates(covariance: Tensor) -> Tensor:
        return _candidate_vectors(refined_peaks(covariance, setup, grid, factored=False, **how), setup, wavefront)

    directions = independent_directions(searched, candidates, snapshots, false_alarm, loading, told.report)
    return share_limits(searched.array.n_elements, snapshots, directions, false_alarm, options.candidates)


def as_lists(found: FixedDetections, setup: Setup | SensorArray) -> list[Sources]:
    """Cut to length, which is the one time that the host waits for a GPU."""
    sources = []
    for scene, number in enumerate(found.number.tolist()):
        position, power = found.position[scene, :number], found.power[scene, :number]
        listed = Sources.at(position, power).replace(prominence_db=found.prominence_db[scene, :number])
        if isinstance(setup, Setup):
            where = position if setup.wavefront != "planar" else position * position.new_tensor([1.0, 1.0, math.nan])
            listed = listed.replace(at_edge=setup.region.at_edge(where).to(position.device))
        sources.append(listed)
    return sources


def _held(found: FixedDetections, setup: Setup | SensorArray) -> list[Sources]:
    """The answer: those in the box of the region, where it has one."""
    sources = as_lists(found, setup)
    if not isinstance(setup, Setup) or setup.region.box is None:
        return sources
    return [each[setup.region.holds(each.position)] for each in sources]


def detect_sources(
    R: Tensor,
    setup: Setup | SensorArray,
    grid: SearchGrid | None = None,
    *,
    snapshots: int | None = None,
    false_alarm: float = 1e-2,
    loading: float = 1e-2,
    wavefront: str | None = None,
    method: str = "auto",
    options: DetectionOptions | None = None,
    report: Callable[[int, int], None] | None = None,
) -> list[Sources]:
    """Find the sources in a batch of covariances; their number is not needed.

    Parameters
    ----------
    R : complex64 or complex128 tensor, shape (B, N, N) or (N, N)
        Hermitian, positive semi-definite.
    setup : Setup or SensorArray
        Of N elements. A setup says where sources are looked for and what waves are like; its gains are divided out.
    grid : SearchGrid or None
        Coarse grid; by default over the region of the setup, which for a bare array is all that it can tell apart
        (:meth:`risfast.Setup.search_grid`).
    snapshots : int or None
        How many independent snapshots the covariance is the mean of. Told that, peaks are tested against white noise
        (see the notes) in place of the median of the map.
    false_alarm : float
        Probability, with ``snapshots``, that a scene of noise alone has a source, in (0, 1).
    loading, method
        As for :func:`risfast.ops.mvdr_spectrum`.
    wavefront : {"spherical", "fresnel", "planar"} or None
        Of a bare array; spherical by default.
    options : DetectionOptions or None
        Thresholds, refinement and caps.
    report : callable or None
        Told how many of how many scenes of noise are simulated, by the first call with this array, grid, L and loading.

    Returns
    -------
    list of Sources
        One a scene (a list of one for a single covariance), with the ``prominence_db`` of each peak; its
        ``confidence`` is not known and NaN.

    Raises
    ------
    ShapeError, TypeError, ValueError
        As :func:`risfast.ops.mvdr_spectrum`; or ``snapshots`` is no whole number, ``false_alarm`` no probability.

    Notes
    -----
    Capon power on the coarse grid; its 3D maxima; for all of them at once, a walk towards the source between the range
    planes and Newton steps in float64 around its end; then thresholds on the refined powers and suppression of peaks
    that met.

    What the array cannot tell apart comes back as several sources: a linear array needs a grid of one elevation, a
    planar one a grid of the half-space before it. A source outside the grid shows up at its edge, with side lobes.

    The median of a map serves surfaces of many elements; the broad lobes of a small array are tested with
    ``snapshots``. A refined peak may be a source if white noise has such a share of the power in a beam, somewhere in
    its map, with the probability ``false_alarm`` or less. The highest of these is one; its steering vector is projected
    out, and the others are judged by what is left, so that side lobes of sources are none. The share in one
    beam is that of L. L. Scharf and B. Friedlander, "Matched subspace detectors", IEEE Trans. Signal Processing 42(8),
    1994, and has a Beta distribution; how many independent directions a map has is measured once for each array, grid,
    L and loading, on 200 scenes of noise (the time of as many detections).
    """
    R = checks.complex_tensor(R, "R")
    matrix = R if R.ndim != 2 else R[None]
    setup, grid = _with_grid(setup, grid, wavefront)
    how: dict[str, Any] = {"loading": loading, "wavefront": wavefront, "method": method, "options": options}
    asked: dict[str, Any] = {"snapshots": snapshots, "false_alarm": false_alarm, "report": report}
    return _held(detect_fixed(matrix, setup, grid, factored=False, **asked, **how), setup)


def detect_sources_lowrank(
    F: Tensor,
    setup: Setup | SensorArray,
    grid: SearchGrid | None = None,
    *,
    snapshots: int | None = None,
    false_alarm: float = 1e-2,
    loading: float = 1e-2,
    wavefront: str | None = None,
    method: str = "auto",
    options: DetectionOptions | None = None,
    report: Callable[[int, int], None] | None = None,
) -> list[Sources]:
    """Find the sources in a batch of low-rank covariances R = F F^H.

    Parameters
    ----------
    F : complex64 or complex128 tensor, shape (B, N, K) or (N, K)
        Factor of R = F F^H; K is the rank, not the number of sources.
    setup, grid, snapshots, false_alarm, loading, wavefront, method, options, report
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
    F = checks.complex_tensor(F, "F")
    matrix = F if F.ndim != 2 else F[None]
    setup, grid = _with_grid(setup, grid, wavefront)
    how: dict[str, Any] = {"loading": loading, "wavefront": wavefront, "method": method, "options": options}
    asked: dict[str, Any] = {"snapshots": snapshots, "false_alarm": false_alarm, "report": report}
    return _held(detect_fixed(matrix, setup, grid, factored=True, **asked, **how), setup)


# --- Which peaks are sources and which are noise or side lobes, at a rate of false alarms ---


def share_limits(
    n_elements: int, snapshots: int, directions: float, false_alarm: float, most_sources: int
) -> list[float]:
    """Least share of the power in one beam that noise reaches in a scene with this probability, by sources before it.

    The share of L snapshots of white noise in one of m dimensions has the distribution Beta(L, L (m - 1)).
    """
    from scipy.special import betainccinv  # noqa: PLC0415  (half of the time that importing risfast.ops would take)

    one = 1 - (1 - false_alarm) ** (1 / directions)
    dimensions = n_elements - np.arange(min(most_sources, n_elements - 1))
    return [float(limit) for limit in betainccinv(snapshots, snapshots * (dimensions - 1), one)]


def _shares(covariance: Tensor, vectors: Tensor, trace: Tensor) -> Tensor:
    """a^H R a / (a^H a trace) of steering vectors, 0 of those without norm.

    covariance (B, N, N), vectors (B, N, C), trace (B,) -> (B, C)
    """
    norm = torch.view_as_real(vectors).square().sum((1, 3))
    power = (vectors.conj() * (covariance @ vectors)).sum(1).real
    there = norm > _LEAST_LEFT * vectors.shape[1]
    tiny = torch.finfo(norm.dtype).tiny
    return torch.where(there, power / (norm * trace[:, None]).clamp_min(tiny), torch.zeros_like(norm))


def significant(
    covariance: Tensor, vectors: Tensor, limits: list[float], loading: float, height: Tensor | None = None
) -> Tensor:
    """Which candidates are sources: again and again the highest with more of the power than noise has, projected out.

    covariance (B, N, N), vectors (B, N, C) with columns of zeros for padding, height (B, C) by default the share of the
    power -> bool (B, C)
    """
    # Between two sources, and beside them at the end of a line, a beam holds parts of both and more than each alone;
    # the map is lower there.
    residual = covariance.to(torch.complex128)
    n = residual.shape[-1]
    total = residual.diagonal(dim1=1, dim2=2).real.sum(1)
    number = torch.arange(vectors.shape[2], device=vectors.device)
    found = torch.zeros(len(vectors), len(number), dtype=torch.bool, device=vectors.device)
    running = total > 0
    for sources, limit in enumerate(limits):
        # What the loading of the map hides is no source: peaks are as near to their sources as it lets them be.
        remaining = residual.diagonal(dim1=1, dim2=2).real.sum(1)
        noise = (remaining + loading * total * (1 - sources / n)) / (1 + loading)
        share = _shares(residual, vectors, noise)
        order = torch.where(share > limit, share if height is None else height, -math.inf)
        highest, best = order.max(1)
        running = running & (highest > -math.inf)
        found = found | (running[:, None] & (number == best[:, None]))
        direction = vectors.gather(2, best[:, None, None].expand(-1, n, 1))
        unit = torch.where(running[:, None, None], torch.nn.functional.normalize(direction, dim=1), 0.0)
        vectors = vectors - unit @ (unit.mH @ vectors)
        residual = residual - unit @ (unit.mH @ residual)
        residual = residual - (residual @ unit) @ unit.mH
    return found


def _noise(random: np.random.Generator, scenes: int, n: int, snapshots: int) -> Tensor:
    """Factors (scenes, N, K) of covariances of white noise, of many snapshots by Bartlett's decomposition."""
    shape = (scenes, n, min(n, snapshots))
    factor = (random.standard_normal(shape) + 1j * random.standard_normal(shape)) / np.sqrt(2)
    if snapshots > n:
        each = np.arange(n)
        factor = np.tril(factor, -1)
        factor[:, each, each] = np.sqrt(random.standard_gamma(snapshots - each, (scenes, n)))
    return torch.from_numpy(factor)


def _peak_grid(setup: Setup) -> tuple[SearchGrid, int]:
    """A grid on which no peak of the noise lies between points or planes, and every how many-th angle makes a map."""
    angles = setup.search_grid(_POINTS_PER_BEAM, sys.maxsize)
    fine = SearchGrid(angles.azimuth_rad, angles.elevation_rad, setup.range_planes(PLANE_PHASE_RAD / _PLANES))
    step = 1
    while _every(fine, step).size > _MOST_POINTS and step < max(fine.shape[:2]):
        step += 1
    return fine, step


def _every(grid: SearchGrid, step: int) -> SearchGrid:
    """The middle one of each so many of its angles."""
    middle = [(torch.arange(0, n, step) + step // 2).clamp_max(n - 1) for n in grid.shape[:2]]
    return SearchGrid(grid.azimuth_rad[middle[0]], grid.elevation_rad[middle[1]], grid.range_m)


def _passing_points(
    setup: Setup, fine: SearchGrid, step: int, factor: Tensor, share: Tensor, planted: list[int], limit: float
) -> int:
    """How many points of a fine grid have more of the power of one scene than the limit.

    factor (N, K), share (G_az, G_el, G_r) of every so many-th angle, planted is a point that has
    """
    order = share.clone()
    order[planted[0] // step, planted[1] // step, planted[2]] = math.inf  # whatever the map says there
    cells = max(_POINTS_BETWEEN // step**2, 1)
    index = order.flatten().topk(min(cells, order.numel())).indices
    i, j, k = torch.unravel_index(index, share.shape)
    rest = (order > limit).sum() - (order.flatten()[index] > limit).sum()  # all of their cells count
    within = torch.arange(step)
    azimuth, elevation = torch.broadcast_tensors(
        i[:, None, None] * step + within[:, None], j[:, None, None] * step + within
    )
    there = (azimuth < fine.shape[0]) & (elevation < fine.shape[1])
    points = azimuth[there], elevation[there], k[:, None, None].expand_as(there)[there]
    position = [axis[at] for axis, at in zip((fine.azimuth_rad, fine.elevation_rad, fine.range_m), points, strict=True)]
    vectors = steering_vectors(setup.array, *position, wavefront=setup.wavefront, dtype=torch.complex128)
    power, norm = (torch.view_as_real(each).square().sum((1, 2)) for each in (vectors.conj() @ factor, vectors))
    total = torch.view_as_real(factor).square().sum()
    return int((power > limit * norm * total).sum()) + int(rest) * step**2


def independent_directions(
    setup: Setup,
    candidates: Callable[[Tensor], Tensor],
    snapshots: int,
    false_alarm: float,
    loading: float,
    report: Callable[[int, int], None] | None = None,
) -> float:
    """So many independent directions would make as many false alarms of noise as the candidates of this map.

    candidates (B, N, N) -> (B, N, C)
    """
    # Importance sampling: a random point of the grid is made to pass the limit by scaling the noise in its beam, and a
    # scene counts as one over how many points pass with it. R. J. Adler, J. H. Blanchet, J. Liu, "Efficient Monte
    # Carlo for high excursions of Gaussian random fields", Annals of Applied Probability 22(3), 2012.
    from scipy.special import betainccinv  # noqa: PLC0415  (as above)

    array, n, (grid, step) = setup.array, setup.array.n_elements, _peak_grid(setup)
    mapped = _every(grid, step)
    random = np.random.default_rng(_SEED)
    most = 1 - (1 - false_alarm) ** (1 / (_DIRECTIONS_PER_ELEMENT * n))
    beta = (snapshots, snapshots * (n - 1))
    limit = float(betainccinv(*beta, most))
    count = 0.0
    for done in range(0, _SCENES, _BATCH):
        if report is not None:
            report(done, _SCENES)
        axes = (grid.azimuth_rad, grid.elevation_rad, grid.range_m)
        where = [torch.from_numpy(random.integers(len(axis), size=_BATCH)) for axis in axes]
        point = [axis[at] for axis, at in zip(axes, where, strict=True)]
        beam = steering_vectors(array, *point, wavefront=setup.wavefront, dtype=torch.complex128)[..., None] / n**0.5
        noise = _noise(random, _BATCH, n, snapshots)
        part = beam @ (beam.mH @ noise)
        inside, outside = (torch.view_as_real(each).square().sum((1, 2, 3)) for each in (part, noise - part))
        wanted = torch.from_numpy(betainccinv(*beta, most * random.uniform(size=_BATCH)))
        gain = (wanted / (1 - wanted) * outside / inside).sqrt()
        factor = noise - part + gain[:, None, None] * part
        planted = factor @ factor.mH
        power = QuadraticForm.bartlett(planted).spectrum(array, mapped, wavefront=setup.wavefront, reduce="none")
        share = power / planted.diagonal(dim1=1, dim2=2).real.mean(1)[:, None, None, None]
        if step == 1:
            passing = (share > limit).flatten(1).sum(1)
        else:
            each = zip(factor, share, torch.stack(where, 1).tolist(), strict=True)
            passing = torch.tensor([_passing_points(setup, grid, step, *one, limit) for one in each])
        passed = significant(planted, candidates(planted), [limit], loading).any(1)
        count += float((passed / passing.clamp_min(1)).sum())
    if report is not None:
        report(_SCENES, _SCENES)
    return max(count * grid.size / _SCENES, 1.0)
