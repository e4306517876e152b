"""The three pictures of the demo."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from risfast.detect import Sources
from risfast.evaluate import Match, Tolerance, summarise
from risfast.geometry import PlanarArray, SearchGrid
from risfast.ops import mvdr_spectrum
from risfast.plots import RangeProfile, SpectrumPanel, error_figure, range_figure, save_figure, spectrum_figure

__all__ = ["Illustration", "draw_demo"]

_NEAREST_M, _FARTHEST_M = 0.45, 15.0  # the refinement of the outermost planes reaches about so far
_RANGE_POINTS = 300


@dataclass(frozen=True, eq=False)
class Illustration:
    """One scene and what each method made of it.

    Attributes
    ----------
    index : int
        Which scene.
    title : mapping of str to str
        The methods whose spectrum is drawn, and in words what each started from.
    true : real tensor, shape (K, 3)
        True positions, radians and metres.
    covariance : mapping of str to complex tensor, shape (N, N)
        By method.
    found : mapping of str to Sources
        By method.
    match : mapping of str to Match
        By method, of ``found`` with ``true``.
    """

    index: int
    title: Mapping[str, str]
    true: Tensor
    covariance: Mapping[str, Tensor]
    found: Mapping[str, Sources]
    match: Mapping[str, Match]


def draw_demo(
    folder: Path,
    array: PlanarArray,
    grid: SearchGrid,
    scene: Illustration,
    matches: Mapping[str, Sequence[Match]],
) -> dict[str, Path]:
    """Draw the spectrum and the range profiles of one scene, and the errors of all scenes.

    Parameters
    ----------
    folder : Path
        Receives spectrum.png, range.png and errors.png.
    array : PlanarArray
        The elements of the covariances.
    grid : SearchGrid
        The grid of the spectrum.
    scene : Illustration
        The scene.
    matches : mapping of str to sequence of Match
        By method, one match per scene.

    Returns
    -------
    dict of str to Path
        What each picture shows, and where it is.
    """
    panels = [
        SpectrumPanel(
            f"Capon spectrum from {scene.title[name]}",
            mvdr_spectrum(scene.covariance[name][None], array, grid).power[0],
            scene.found[name].position,
        )
        for name in scene.title
    ]
    ranges = torch.logspace(math.log10(_NEAREST_M), math.log10(_FARTHEST_M), _RANGE_POINTS, dtype=torch.float64)
    profiles = [_range_profile(source, array, ranges, scene) for source in range(len(scene.true))]
    errors = {_legend(name, of): np.concatenate([m.hit_distance_m() for m in of]) for name, of in matches.items()}
    figures = {
        "spectrum": (
            f"spectrum of scene {scene.index}, true and found sources",
            spectrum_figure(panels, grid.azimuth_rad, grid.elevation_rad, scene.true),
        ),
        "range": ("power over range toward each of its sources", range_figure(profiles, ranges)),
        "errors": ("position errors in all scenes, misses counted", error_figure(errors)),
    }
    pictures: dict[str, Path] = {}
    for stem, (description, figure) in figures.items():
        pictures[description] = folder / f"{stem}.png"
        save_figure(figure, pictures[description])
    return pictures


def _range_profile(source: int, array: PlanarArray, ranges: Tensor, scene: Illustration) -> RangeProfile:
    """Capon power toward one true source, and what each method found for it in that direction."""
    azimuth, elevation, true_m = scene.true[source].double().tolist()
    ray = SearchGrid(torch.tensor([azimuth]), torch.tensor([elevation]), ranges)
    power = {
        name: mvdr_spectrum(covariance[None], array, ray, reduce="none")[0, 0, 0]
        for name, covariance in scene.covariance.items()
    }
    gate = Tolerance()
    found_m = {
        name: [
            float(scene.found[name].range[estimate])
            for (estimate, true), error in zip(match.pairs, match.error, strict=True)
            if true == source and abs(error[0]) <= gate.azimuth_rad and abs(error[1]) <= gate.elevation_rad
        ]
        for name, match in scene.match.items()
    }
    title = f"azimuth {math.degrees(azimuth):.0f}°, elevation {math.degrees(elevation):.0f}°, range {true_m:.1f} m"
    return RangeProfile(title, power, found_m, true_m)


def _legend(name: str, matches: Sequence[Match]) -> str:
    summary = summarise(matches)
    return f"{name}: {summary.found} of {summary.sources} found, {summary.ghosts} ghosts"
