"""The pictures of the demo."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from risfast.evaluate import Match
from risfast.evaluate.matching import Array
from risfast.evaluate.metrics import Scores
from risfast.geometry import SearchGrid
from risfast.ops import mvdr_spectrum
from risfast.report.plots import (
    COLOURS,
    RangeProfile,
    SpectrumPanel,
    decibels,
    error_figure,
    new_figure,
    range_figure,
    range_ticks,
    save_figure,
    spectrum_figure,
)
from risfast.report.views import shown_ranges
from risfast.setup import Setup
from risfast.sources import Sources

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

StageReport = Callable[[str, int, int], None]

LOCALIZER = "risfast Localizer"
TRUE, LS, ALS = "Capon, true covariance", "Capon, least squares", "Capon, alternating fit"
_RANGE_POINTS = 300
_MAP_AZIMUTHS, _MAP_ELEVATIONS, _MAP_RANGES = 181, 61, 48  # at most, of the map over azimuth and range
_FLOOR_DB, _LEVELS = -25.0, 11
_ZOOM_DEG = 3.0
_ELLIPSE_PROBABILITY = 0.95
_FOUND_COLOUR = COLOURS[1]
# Of the range profiles, by the name in their legend, which has room for three short ones.
_PROFILED = {"Localizer": LOCALIZER, "true covariance": TRUE, "least squares": LS}


class Answer(NamedTuple):
    """What a method made of B scenes."""

    sources: list[Sources]
    covariance: Tensor  # (B, N, N) The effective covariance that its spectrum is drawn from
    # (K, 3, 3) Of each source's (azimuth, elevation, range) in radians and metres, where the method says how sure it is
    position_covariance: list[Tensor] | None = None


@dataclass(frozen=True, eq=False)
class Illustration:
    """One scene and what each method made of it."""

    index: int  # Which scene
    # The methods whose spectrum is drawn, and in words what each started from; the localizer among them
    title: Mapping[str, str]
    true: Tensor  # (K, 3) True positions, radians and metres
    answer: Mapping[str, Answer]  # By method, of this scene alone
    match: Mapping[str, Match]  # By method, of what was found with ``true``


def draw_demo(
    folder: Path,
    setup: Setup,
    grid: SearchGrid,
    scene: Illustration,
    scores: Mapping[str, Scores],
    bound_error_m: Array,
    report: StageReport,
) -> dict[str, Path]:
    """Draw what the localizer found in one scene, the spectra of Capon, the range profiles, and all errors."""
    ranges = shown_ranges(setup, _RANGE_POINTS)

    def spectra() -> Figure:
        panels = [
            SpectrumPanel(
                f"Capon spectrum from {title}",
                _spectrum(scene.answer[name].covariance, setup, grid),
                scene.answer[name].sources[0].position,
            )
            for name, title in scene.title.items()
            if name != LOCALIZER
        ]
        return spectrum_figure(panels, grid.azimuth_rad, grid.elevation_rad, scene.true)

    def profiles() -> Figure:
        drawn = [_range_profile(source, setup, ranges, scene) for source in range(len(scene.true))]
        return range_figure(drawn, ranges)

    def errors() -> Figure:
        error_m = {
            _legend(name, of): np.where(of.source_hit, of.source_error[:, 3], np.inf) for name, of in scores.items()
        }
        error_m["errors as large as the Cramér-Rao bound, hits or not"] = bound_error_m.ravel()
        return error_figure(error_m)

    figures = {
        f"what the localizer found in scene {scene.index}, and the truth": (
            "spectrum",
            lambda: localizer_figure(scene, setup, grid),
        ),
        f"Capon spectra of scene {scene.index}, true and found sources": ("capon", spectra),
        "power over range toward each of its sources": ("range", profiles),
        "position errors in all scenes, misses counted": ("errors", errors),
    }
    for drawn, (stem, figure) in enumerate(figures.values()):
        report("drawing", drawn, len(figures))
        save_figure(figure(), folder / f"{stem}.png")
    report("drawing", len(figures), len(figures))
    return {description: folder / f"{stem}.png" for description, (stem, _) in figures.items()}


def _spectrum(covariance: Tensor, setup: Setup, grid: SearchGrid) -> Tensor:
    """Capon power [G_az, G_el], the maximum over range."""
    return mvdr_spectrum(covariance, setup.array, grid, wavefront=setup.wavefront).power[0]


def _volume(covariance: Tensor, setup: Setup, grid: SearchGrid) -> Tensor:
    """Capon power [G_az, G_el, G_r]."""
    return mvdr_spectrum(covariance, setup.array, grid, wavefront=setup.wavefront, reduce="none")[0]


def _range_profile(source: int, setup: Setup, ranges: Tensor, scene: Illustration) -> RangeProfile:
    """Capon power toward one true source, and what each method found for it in that direction."""
    azimuth, elevation, true_m = scene.true[source].double().tolist()
    ray = SearchGrid(torch.tensor([azimuth]), torch.tensor([elevation]), ranges)
    power = {name: _volume(scene.answer[key].covariance, setup, ray)[0, 0] for name, key in _PROFILED.items()}
    gate = setup.tolerance
    found_m = {
        name: [
            float(scene.answer[key].sources[0].range[estimate])
            for (estimate, true), error in zip(scene.match[key].pairs, scene.match[key].error, strict=True)
            if true == source and abs(error[0]) <= gate.azimuth_rad and abs(error[1]) <= gate.elevation_rad
        ]
        for name, key in _PROFILED.items()
    }
    title = f"azimuth {math.degrees(azimuth):.0f}°, elevation {math.degrees(elevation):.0f}°, range {true_m:.1f} m"
    return RangeProfile(title, power, found_m, true_m)


def _legend(name: str, scores: Scores) -> str:
    found, ghosts = scores.source_hit.sum(), (~scores.estimate_hit).sum()
    return f"{name}: {found} of {len(scores.source_hit)} found, {ghosts} false alarms"


def confidence_ellipse(
    centre: Tensor, covariance: Tensor, probability: float = _ELLIPSE_PROBABILITY, points: int = 181
) -> Array:
    """Border of the region that holds a Gaussian pair of coordinates with a given probability.

    centre (2,), covariance (2, 2) -> (points, 2)
    """
    value, vector = np.linalg.eigh(covariance.double().numpy())
    root = vector * np.sqrt(np.maximum(value, 0.0) * -2 * math.log1p(-probability))
    angle = np.linspace(0, 2 * math.pi, points)
    return np.asarray(centre.double().numpy() + np.stack([np.cos(angle), np.sin(angle)], -1) @ root.T)


def localizer_figure(scene: Illustration, setup: Setup, grid: SearchGrid) -> Figure:
    """The sources that the localizer found in one scene, with how sure it is, over the spectrum of its covariance."""
    # Maps over azimuth and elevation and over azimuth and range, and the neighbourhood of every true source.
    covariance = scene.answer[LOCALIZER].covariance
    seen = decibels(_spectrum(covariance, setup, grid))
    coarse, over_range = _range_map(covariance, setup, grid)
    figure = new_figure(8.6, 8.8)
    columns = max(len(scene.true), 1)
    rows = figure.add_gridspec(3, columns, height_ratios=(3.2, 1.9, 3.2))
    above = figure.add_subplot(rows[0, :])
    below = figure.add_subplot(rows[2, :], sharex=above)
    azimuth, elevation = grid.azimuth_rad.rad2deg().cpu().numpy(), grid.elevation_rad.rad2deg().cpu().numpy()
    image = _shade(above, azimuth, elevation, seen)
    _shade(below, coarse.azimuth_rad.rad2deg().cpu().numpy(), coarse.range_m.cpu().numpy(), over_range)
    _mark_sources(above, scene, 1)
    _mark_sources(below, scene, 2)
    _name_axes(above, below, scene, coarse.range_m)
    for source in range(len(scene.true)):
        axes = figure.add_subplot(rows[1, source])
        _shade(axes, azimuth, elevation, seen)
        _mark_sources(axes, scene, 1, named=False)
        _zoom(axes, scene, source)
    figure.colorbar(image, ax=[above, below], label="Capon power re maximum (dB)", pad=0.015, aspect=45)
    handles, labels = above.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    return figure


def _range_map(covariance: Tensor, setup: Setup, grid: SearchGrid) -> tuple[SearchGrid, Array]:
    """The maximum over elevation, in dB [G_az, G_r], and the grid that it was looked for on."""
    coarse = SearchGrid(
        _thinned(grid.azimuth_rad, _MAP_AZIMUTHS),
        _thinned(grid.elevation_rad, _MAP_ELEVATIONS),
        shown_ranges(setup, _MAP_RANGES),
    )
    return coarse, decibels(_volume(covariance, setup, coarse).amax(1))


def _thinned(axis: Tensor, most: int) -> Tensor:
    return axis[:: math.ceil(len(axis) / most)]


def _shade(axes: Axes, across: Array, up: Array, level: Array) -> Any:
    levels = np.linspace(_FLOOR_DB, 0, _LEVELS)
    image = axes.contourf(across, up, np.maximum(level.T, _FLOOR_DB), levels, cmap="Blues")
    axes.set(xlim=(across[0], across[-1]), ylim=(up[0], up[-1]))
    return image


def _mark_sources(axes: Axes, scene: Illustration, coordinate: int, *, named: bool = True) -> None:
    """True and found sources and the ellipses, azimuth across and elevation (1) or range (2) up."""
    answer, pair = scene.answer[LOCALIZER], torch.tensor([0, coordinate])
    found = answer.sources[0].position.cpu()

    def drawn(position: Array) -> Array:
        """Degrees, or degrees and metres."""
        values = position.astype(np.float64)  # a copy
        values[:, : 3 - coordinate] = np.degrees(values[:, : 3 - coordinate])
        return values

    true_at, found_at = drawn(scene.true[:, pair].numpy()), drawn(found[:, pair].numpy())
    axes.plot(*true_at.T, "o", label="true source", color="black", mfc="none", ms=10, mew=1.5, zorder=3)
    axes.plot(*found_at.T, "x", color=_FOUND_COLOUR, markersize=6, markeredgewidth=1.8, label="found")
    if answer.position_covariance is not None:
        for index, covariance in enumerate(answer.position_covariance[0].cpu()):
            centre, spread = found[index, pair], covariance[pair][:, pair]
            if not bool(centre.isfinite().all() and spread.isfinite().all()):  # a range that is not determined
                continue
            border = drawn(confidence_ellipse(centre, spread))
            label = f"{100 * _ELLIPSE_PROBABILITY:.0f} % region of the position" if index == 0 else None
            axes.plot(*border.T, color=_FOUND_COLOUR, linewidth=1.4, label=label)
    if named:
        for source, point in enumerate(true_at):
            axes.annotate(
                _letter(source), point, xytext=(8, 4), textcoords="offset points", fontsize=11, fontweight="bold"
            )
        for index in _ghosts(scene):
            text = f"false alarm, {float(answer.sources[0].confidence[index]):.2f}"
            axes.annotate(text, found_at[index], xytext=(7, -10), textcoords="offset points", fontsize=9)


def _ghosts(scene: Illustration) -> list[int]:
    """Indices of what was found and hits nothing."""
    match = scene.match[LOCALIZER]
    return sorted(set(range(match.n_estimated)) - {int(estimate) for estimate in match.pairs[match.hit, 0]})


def _letter(source: int) -> str:
    return chr(ord("A") + source)


def _name_axes(above: Axes, below: Axes, scene: Illustration, ranges: Tensor) -> None:
    match = scene.match[LOCALIZER]
    outcome = f"{match.hits} of {match.n_true} sources found, {match.ghosts} false alarms"
    above.set_title(f"{scene.title[LOCALIZER]}: {outcome}", fontsize=11, loc="left")
    above.set_ylabel("elevation (deg)")
    below.set(xlabel="azimuth (deg)", ylabel="range (m)", yscale="log")
    range_ticks(below.yaxis, float(ranges[0]), float(ranges[-1]))


def _zoom(axes: Axes, scene: Illustration, source: int) -> None:
    """The neighbourhood of one true source, and what was found for it in numbers."""
    from matplotlib.ticker import MultipleLocator  # noqa: PLC0415

    across, up = scene.true[source, :2].double().rad2deg().tolist()
    axes.set(xlim=(across - _ZOOM_DEG, across + _ZOOM_DEG), ylim=(up - _ZOOM_DEG, up + _ZOOM_DEG), aspect="equal")
    axes.set_facecolor("#dddddd")  # outside the field of view
    axes.tick_params(labelsize=8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MultipleLocator(2))
    axes.set_xlabel("azimuth (deg)", fontsize=8)
    if source == 0:
        axes.set_ylabel("elevation (deg)", fontsize=8)
    title = f"$\\bf{{{_letter(source)}}}$  true {float(scene.true[source, 2]):.2f} m"
    axes.set_title("\n".join([title, *_found_for(scene, source)]), fontsize=9)


def _found_for(scene: Illustration, source: int) -> list[str]:
    """Two lines: range with its standard deviation, and confidence; or that it was missed."""
    answer, match = scene.answer[LOCALIZER], scene.match[LOCALIZER]
    hits = [int(estimate) for estimate, true in match.pairs[match.hit] if true == source]
    if not hits or answer.position_covariance is None:
        return ["missed", ""]
    found, deviation_m = answer.sources[0], float(answer.position_covariance[0][hits[0], 2, 2]) ** 0.5
    r = float(found.range[hits[0]])
    return [
        f"found {r:.2f} ± {deviation_m:.2f} m" if math.isfinite(r) else "found, range not determined",
        f"confidence {float(found.confidence[hits[0]]):.2f}",
    ]
