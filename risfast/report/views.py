"""Looks at one scene: its map, its range profiles, its sources and its array, as figures and for ``risfast show``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from risfast.geometry import SearchGrid, SensorArray, spherical_to_cartesian
from risfast.io.guard import Array
from risfast.io.results import SceneDetails
from risfast.ops import mvdr_spectrum
from risfast.report.plots import (
    COLOURS,
    FOUND_COLOUR,
    SpectrumPanel,
    decibels,
    direction_figure,
    label_ranges,
    new_figure,
)
from risfast.setup import Setup
from risfast.sources import Sources

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAP_POINTS = (181, 91)  # at most, of a map in a file of results
_PROFILE_POINTS = 80
_RING_POINTS = 48
_CHI_SQUARE_95 = 7.815  # of three degrees of freedom: the 95 % region of a position


def scene_details(
    power: Tensor,
    grid: SearchGrid,
    covariance: Tensor,
    setup: Setup,
    sources: Sources,
    position_covariance: Tensor | None = None,
) -> SceneDetails:
    """The map and the range profiles of a scene, thinned so that a file of them stays small.

    power (G_az, G_el) on ``grid``, covariance (1, N, N) or (1, F, N, N) of ``setup``
    """
    level = torch.from_numpy(decibels(power))
    steps = [math.ceil(count / most) for count, most in zip(level.shape, _MAP_POINTS, strict=True)]
    ranges = shown_ranges(setup, _PROFILE_POINTS)
    profiles = [
        torch.from_numpy(decibels(ray_power(covariance, setup, azimuth, elevation, ranges)))
        for azimuth, elevation in sources.position[:, :2].tolist()
    ]
    return SceneDetails(
        position_covariance,
        grid.azimuth_rad[:: steps[0]].rad2deg().double(),
        grid.elevation_rad[:: steps[1]].rad2deg().double(),
        level[:: steps[0], :: steps[1]],
        ranges,
        torch.stack(profiles) if profiles else None,
    )


def shown_ranges(setup: Setup, count: int) -> Tensor:
    """Ranges [count] from a little before to a little beyond the region, in equal ratios."""
    near, far = setup.region.range_m
    if math.isinf(far):
        far = max(setup.array.fraunhofer_distance_m, 2 * near)
    return torch.logspace(math.log10(0.9 * near), math.log10(1.5 * far), count, dtype=torch.float64)


def ray_power(covariance: Tensor, setup: Setup, azimuth_rad: float, elevation_rad: float, range_m: Tensor) -> Tensor:
    """Capon power over range in one direction, (G_r,); of several bands the geometric mean."""
    bands = setup.without_gains(covariance.reshape(-1, *covariance.shape[-2:]))
    ray = SearchGrid(torch.tensor([azimuth_rad]), torch.tensor([elevation_rad]), range_m)
    total = torch.zeros(len(range_m), dtype=torch.float64)
    for matrix, wavelength in zip(bands, setup.wavelengths_m, strict=True):
        array = SensorArray(setup.array.positions_m, wavelength)
        volume = mvdr_spectrum(matrix, array, ray, wavefront=setup.wavefront, reduce="none")
        total += volume.flatten().double().cpu().log()
    return (total / len(bands)).exp()


def region_rings(position: Tensor, covariance: Tensor, farthest_m: float) -> Array:
    """Three great circles of the 95 % region of a position, (3, points, 3): x, y and z in metres.

    The region is an ellipsoid in (azimuth, elevation, range) and is bent as these are; a range ends at ``farthest_m``.
    """
    value, vector = np.linalg.eigh(covariance.double().numpy())
    root = vector * np.sqrt(np.maximum(value, 0.0) * _CHI_SQUARE_95)
    angle = np.linspace(0.0, 2 * math.pi, _RING_POINTS + 1)
    circle = np.zeros((3, len(angle), 3))
    for ring, (first, second) in enumerate(((0, 1), (0, 2), (1, 2))):
        circle[ring, :, first], circle[ring, :, second] = np.cos(angle), np.sin(angle)
    border = torch.from_numpy(position.double().numpy() + circle @ root.T)
    border[..., 2].clamp_(0.0, farthest_m)
    return np.asarray(spherical_to_cartesian(border).numpy())


def sources_figure(sources: Sources, setup: Setup | None = None) -> Figure:
    """The sources over azimuth and elevation, and from above, with the array where the setup says it."""
    figure = new_figure(10.0, 4.2)
    directions, above = figure.subplots(1, 2)
    found = sources.position.cpu()
    degrees = found[:, :2].rad2deg().numpy()
    directions.plot(*degrees.T, "x", color=FOUND_COLOUR, markersize=8, markeredgewidth=2)
    directions.set(xlabel="azimuth (deg)", ylabel="elevation (deg)", title="directions, with ranges")
    if setup is not None:
        directions.set(
            xlim=[math.degrees(v) for v in setup.region.azimuth_rad] if _is_interval(setup, 0) else None,
            ylim=[math.degrees(v) for v in setup.region.elevation_rad] if _is_interval(setup, 1) else None,
        )
    else:
        directions.margins(0.25)
    bottom, top = directions.get_ylim()
    for position, (_, elevation) in zip(found, degrees, strict=True):
        height = -14 if elevation > top - 0.1 * (top - bottom) else 6  # below, where there is no room above
        label_ranges(directions, position[None], FOUND_COLOUR, height, undetermined="range not determined")
    directions.grid(color="#dddddd", linewidth=0.6)
    xyz = sources.xyz_m.cpu()
    placed = xyz[xyz.isfinite().all(1)].numpy()
    above.plot(placed[:, 0], placed[:, 2], "x", color=FOUND_COLOUR, markersize=8, markeredgewidth=2, label="sources")
    missing = len(sources) - len(placed)
    _name_plan(above, "seen from above" + (f", {missing} without a range" if missing else ""))
    if setup is not None:
        _draw_elements(above, setup)
    above.legend(frameon=False, loc="best")
    return figure


def _is_interval(setup: Setup, coordinate: int) -> bool:
    """Whether the region is more than one value of the azimuth (0) or the elevation (1)."""
    low, high = (setup.region.azimuth_rad, setup.region.elevation_rad)[coordinate]
    return high > low


def setup_figure(setup: Setup) -> Figure:
    """The elements as a source sees them, and the region that is searched from above."""
    figure = new_figure(10.0, 4.6)
    front, above = figure.subplots(1, 2)
    positions = setup.array.positions_m.cpu().numpy()
    front.plot(positions[:, 0], positions[:, 1], ".", color=COLOURS[0])
    across, up = np.ptp(positions[:, 0]), np.ptp(positions[:, 1])
    front.set(xlabel="x (m)", ylabel="y (m)", title=f"{len(positions)} elements, x to the right, y up")
    front.set_aspect("equal", adjustable="datalim")
    front.margins(0.15 if max(across, up) > 0 else 0.5)
    front.grid(color="#dddddd", linewidth=0.6)
    near, far = setup.region.range_m
    shown = far if math.isfinite(far) else max(setup.array.fraunhofer_distance_m, 4 * near)
    angle = np.linspace(*setup.region.azimuth_rad, 181)
    outer, inner = (radius * np.stack([np.sin(angle), np.cos(angle)]) for radius in (shown, near))
    border = np.concatenate([outer, inner[:, ::-1]], 1)
    above.fill(*border, color="#cfe0ee", zorder=0, label="region searched")
    _draw_elements(above, setup)
    beyond = "" if math.isfinite(far) else ", and beyond to the far field"
    _name_plan(above, f"region from above, {near:.3g} to {shown:.3g} m{beyond}")
    above.legend(frameon=False, loc="best")
    return figure


def _draw_elements(axes: Axes, setup: Setup) -> None:
    positions = setup.array.positions_m.cpu().numpy()
    axes.plot(positions[:, 0], positions[:, 2], ".", color=COLOURS[0], label="elements")


def _name_plan(axes: Axes, title: str) -> None:
    axes.set(xlabel="x (m)", ylabel="z (m)", title=title)
    axes.set_aspect("equal", adjustable="datalim")
    axes.grid(color="#dddddd", linewidth=0.6)


def spectrum_picture(power: Tensor, grid: SearchGrid, sources: Sources | None, scene: int) -> Figure:
    """The map of one scene of a batch (B, G_az, G_el), with the sources found in it."""
    if not 0 <= scene < len(power):
        raise ValueError(f"scene must be from 0 to {len(power) - 1}, got {scene}")
    found = torch.zeros(0, 3, dtype=torch.float64) if sources is None else sources.position
    panel = SpectrumPanel(f"scene {scene}" if len(power) > 1 else "", power[scene], found)
    return direction_figure(panel, grid.azimuth_rad, grid.elevation_rad)
