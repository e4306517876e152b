"""Maxima by scipy, refinement and detection as plain loops, the boxes they search, and the truth they are held to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from bench import peers
from bench.accuracy import Errors, exact_values
from bench.peers import Call, Problem
from risfast.detect import DetectionOptions, Sources
from risfast.geometry import SearchGrid, SensorArray
from risfast.ops import local_maxima_3d, mvdr_spectrum, mvdr_spectrum_lowrank, nms_3d
from risfast.ops.refinement import Refined, walk_peaks

CANDIDATES = 20
FINE_POINTS = (41, 41, 41)
WIDE_ANGLE_RAD = float(np.radians(3.0))
# Of 3D maxima and suppression: the window, how many maxima, how many are kept, and how far apart.
WINDOW, PEAKS, KEPT = (7, 7, 3), 64, 20
SEPARATION = (float(np.radians(5.0)), float(np.radians(5.0)), 1.0)
HIT = torch.tensor([np.radians(5.0), np.radians(5.0), 1.0], dtype=torch.float64)


def suppress(grid_points: Tensor, index: Tensor, value: Tensor) -> Tensor:
    """Grid indices [20, 3] that suppression leaves of maxima at ``index`` [K, 3]."""
    kept = nms_3d(grid_points[tuple(index.T)], value, separation=SEPARATION, k=KEPT)
    return index[kept.index[: int(kept.count)]]


def maxima_by_scipy(volume: np.ndarray) -> tuple[Tensor, Tensor]:
    """Index [K, 3] and value [K] of the highest points that are the maximum of their window."""
    flat = np.flatnonzero(ndimage.maximum_filter(volume, size=WINDOW, mode="nearest") == volume)
    value = volume.reshape(-1)[flat]
    order = np.argsort(-value, kind="stable")[:PEAKS]
    index = np.stack(np.unravel_index(flat[order], volume.shape), -1)
    return torch.from_numpy(index), torch.from_numpy(value[order])


def maxima_by_skimage(volume: np.ndarray) -> tuple[Tensor, Tensor]:
    """The same by scikit-image's peak_local_max."""
    from skimage.feature import peak_local_max

    index = peak_local_max(volume, footprint=np.ones(WINDOW), exclude_border=False, num_peaks=PEAKS)
    return torch.from_numpy(index), torch.from_numpy(volume[tuple(index.T)])


@dataclass(frozen=True, eq=False)
class Boxes:
    """Corners [B, C, 3] in azimuth, elevation, range; the fine grid is uniform in azimuth, elevation and 1/range."""

    low: Tensor
    high: Tensor

    def axes(self, scene: int, candidate: int) -> tuple[Tensor, Tensor, Tensor]:
        """The fine grid of one box, float64."""
        low, high = self.low[scene, candidate], self.high[scene, candidate]
        azimuth, elevation = (
            torch.linspace(float(low[i]), float(high[i]), FINE_POINTS[i], dtype=torch.float64) for i in (0, 1)
        )
        inverse = torch.linspace(1 / float(low[2]), 1 / float(high[2]), FINE_POINTS[2], dtype=torch.float64)
        return azimuth, elevation, (1 / inverse).flip(0)


def _candidates(problem: Problem) -> Tensor:
    """The 20 highest maxima of the coarse volume, as positions [B, 20, 3]."""
    array, grid = geometry_of(problem)
    spectrum = mvdr_spectrum_lowrank if problem.operation == "mvdr_lowrank" else mvdr_spectrum
    volume = spectrum(problem.matrix, array, grid, loading=problem.loading, wavefront=problem.wavefront, reduce="none")
    index = local_maxima_3d(volume, k=CANDIDATES).index.clamp_min(0)
    axes = (grid.azimuth_rad, grid.elevation_rad, grid.range_m)
    return torch.stack([axis[index[..., i]] for i, axis in enumerate(axes)], -1)


def geometry_of(problem: Problem) -> tuple[SensorArray, SearchGrid]:
    """Array and grid of a problem as risfast takes them."""
    array = SensorArray(problem.positions_m, problem.wavelength_m)
    return array, SearchGrid(problem.azimuth_rad, problem.elevation_rad, problem.range_m)


def detection_boxes(problem: Problem) -> Boxes:
    """The boxes that detection itself refines in: around where each candidate's walk ended."""
    array, grid = geometry_of(problem)
    bounds = [(a[0], a[-1]) for a in (grid.azimuth_rad, grid.elevation_rad, grid.range_m)]
    _, low, high = walk_peaks(
        problem.matrix,
        array,
        _candidates(problem),
        torch.stack([b[0] for b in bounds]),
        torch.stack([b[1] for b in bounds]),
        factored=problem.operation == "mvdr_lowrank",
        loading=problem.loading,
        wavefront=problem.wavefront,
    )
    return Boxes(low, high)


def wide_boxes(problem: Problem, position: Tensor | None = None) -> Boxes:
    """3 degrees to each side of each position [B, C, 3], and from the range plane below to the one above."""
    position, r = _candidates(problem) if position is None else position, problem.range_m
    plane = (position[..., 2:] - r).abs().argmin(-1)
    low = torch.cat([position[..., :2] - WIDE_ANGLE_RAD, r[(plane - 1).clamp_min(0)][..., None]], -1)
    high = torch.cat([position[..., :2] + WIDE_ANGLE_RAD, r[(plane + 1).clamp_max(len(r) - 1)][..., None]], -1)
    return Boxes(low, high)


def refine_by_loop(problem: Problem, boxes: Boxes, evaluate: Callable[[Problem], Call]) -> Call:
    """One box after another: every point of its fine grid by ``evaluate`` (a peer), then the best one.

    The covariance is inverted once a scene, not once a box.
    """

    def one_scene(scene: int) -> tuple[Tensor, Tensor]:
        part = replace(problem, matrix=problem.matrix[scene : scene + 1])
        form = peers.form_of(part)
        operation = "analysis" if form.kind == "hermitian" else "analysis_factored"
        position, power = torch.empty(boxes.low.shape[1], 3, dtype=torch.float64), torch.empty(boxes.low.shape[1])
        for c in range(boxes.low.shape[1]):
            azimuth, elevation, r = boxes.axes(scene, c)
            box = replace(
                part,
                operation=operation,
                matrix=form.matrix.to(torch.complex64),
                azimuth_rad=azimuth,
                elevation_rad=elevation,
                range_m=r,
            )
            values = form.finish(evaluate(box)().reshape(1, -1))[0]
            power[c], best = values.max(0)
            position[c] = box.points[best]
        return position, power

    def refine() -> Refined:
        found = [one_scene(scene) for scene in range(problem.batch)]
        return Refined(torch.stack([p for p, _ in found]), torch.stack([v for _, v in found]).double())

    return refine


def highest_on_fine_grids(problem: Problem, boxes: Boxes, scenes: int) -> Tensor:
    """Largest power on the fine grid of every box of the first scenes, float64 [scenes, C]."""
    highest = torch.empty(scenes, boxes.low.shape[1], dtype=torch.float64)
    for scene in range(scenes):
        for c in range(boxes.low.shape[1]):
            points = torch.stack(torch.meshgrid(*boxes.axes(scene, c), indexing="ij"), -1).reshape(-1, 3)
            values = [exact_values(problem, scene, part) for part in points.split(peers.CHUNK)]
            highest[scene, c] = torch.cat(values).max()
    return highest


def power_error_db(problem: Problem, scene: int, position: Tensor, power: Tensor) -> float:
    """How wrong the powers [C] are that a contestant names at the positions [C, 3] that it names, in dB."""
    if len(position) == 0:
        return 0.0
    error = 10 * (power / exact_values(problem, scene, position)).log10()
    return float(error.abs().nan_to_num(torch.inf).max())


def refinement_errors(problem: Problem, found: Refined, highest: Tensor) -> Errors:
    """Errors of refined peaks: of the power named at each position (``peaks_db``, all scenes), and how far that stays
    below the highest power of the fine grid (``random_db``, the scenes that ``highest`` [scenes, C] covers).
    """
    named = max(power_error_db(problem, b, found.position[b], found.power[b]) for b in range(problem.batch))
    below = (10 * (highest / found.power[: len(highest)]).log10()).nan_to_num(torch.inf).max()
    return Errors(named, float(below.clamp_min(0)))


def detect_by_plain_parts(problem: Problem, options: DetectionOptions | None = None) -> Callable[[], list[Sources]]:
    """Detection from plain parts: materialised volume, scipy's maximum_filter, a loop over wide boxes, suppression."""
    options = options or DetectionOptions()
    whole_volume = peers.materialised_volume(problem)

    def detect() -> list[Sources]:
        volume = whole_volume()
        found = []
        for scene in range(problem.batch):
            values = volume[scene].numpy()
            flat = np.flatnonzero(ndimage.maximum_filter(values, size=options.window, mode="nearest") == values)
            top = flat[np.argsort(-values.reshape(-1)[flat], kind="stable")[: options.candidates]]
            part = replace(problem, matrix=problem.matrix[scene : scene + 1])
            refined = refine_by_loop(part, wide_boxes(part, part.points[top][None]), peers.dense_eager)()
            found.append(_threshold(refined, geometry_of(problem)[0], options))
        return found

    return detect


def _threshold(refined: Refined, array: SensorArray, options: DetectionOptions) -> Sources:
    """The strongest refined peaks, without those that met; the confidence is left at 1."""
    level = 10 * refined.power[0].log10()
    score = torch.where(level >= level.max() - options.max_db, level, -torch.inf)
    kept = nms_3d(
        refined.position,
        score[None],
        separation=options.separation(array),
        k=options.candidates,
    )
    chosen = kept.index[0, : int(kept.count[0])]
    azimuth, elevation, r = refined.position[0, chosen].unbind(-1)
    return Sources(azimuth, elevation, r, refined.power[0, chosen], torch.ones_like(r))


def f1_of(found: Sequence[Tensor], truth: Tensor) -> float:
    """F1 of positions [K, 3] against true ones [B, K, 3]; a hit is a Hungarian match within 5 deg, 5 deg and 1 m."""
    hits = 0
    for position, actual in zip(found, truth, strict=True):
        offset = ((position[:, None] - actual).abs() / HIT).amax(-1)  # [found, K]
        rows, columns = linear_sum_assignment(offset.clamp_max(1e3).numpy())
        hits += int((offset[rows, columns] <= 1).sum())
    return 2 * hits / (sum(len(position) for position in found) + truth.shape[0] * truth.shape[1])
