"""Pictures of spectra, range profiles and errors.

Every function returns a matplotlib `Figure` of its own: no global state, no window, nothing to close. matplotlib is
imported on the first call, so importing this module costs nothing. Colours are those of Okabe and Ito, which people
with colour-blindness can tell apart; line styles and marker shapes repeat what the colours say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from risfast.errors import ShapeError
from risfast.io.guard import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

PICTURE_SUFFIXES = (".png", ".pdf", ".svg")

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000")
_STYLES = ("-", "--", "-.", ":", "-")
_MARKERS = ("o", "s", "^", "D", "v")
MAP_COLOURS = "Blues"  # light where there is little power, so that markers in red and black are read on all of it
FOUND_COLOUR, TRUE_COLOUR = COLOURS[1], COLOURS[4]
_RANGE_TICKS_M = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 50, 100, 200, 500)
_LABEL_ROOM, _LABEL_PITCH = 0.08, 19  # of a label: share of the height of a map, and points from one to the next
_FLOOR_DB = -40.0  # what lies further below the strongest direction is drawn as this


class SpectrumPanel(NamedTuple):
    """One map of a spectrum figure."""

    title: str  # Stands above the map
    power: Tensor  # (G_az, G_el) Linear power; drawn in dB relative to its own maximum
    found: Tensor  # (Ke, 3) Positions that were found from it: azimuth, elevation, range in radians and metres


class RangeProfile(NamedTuple):
    """Power over range in one direction."""

    title: str  # Names the direction
    power: Mapping[str, Tensor]  # (G_r,) Linear power by method; drawn in dB relative to each one's maximum
    found_m: Mapping[str, Sequence[float]]  # Ranges in metres that each method found in this direction
    true_m: float  # The true range in metres


def new_figure(width: float, height: float) -> Figure:
    """A figure of a size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  (see the module's docstring)
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def decibels(power: Tensor) -> Array:
    """10 log10(power / max), not below the floor; all floor where there is no power."""
    values = power.detach().double().cpu().numpy()
    peak = values.max(initial=0.0)
    if peak <= 0:
        return np.full(values.shape, _FLOOR_DB)
    return 10 * np.log10(np.maximum(values / peak, 10 ** (_FLOOR_DB / 10)))


def range_ticks(axis: Any, low: float, high: float) -> None:
    """Plain numbers of metres on a logarithmic axis."""
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter  # noqa: PLC0415

    axis.set_major_locator(FixedLocator([tick for tick in _RANGE_TICKS_M if low <= tick <= high]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _mark(axes: Axes, position: Tensor, **style: Any) -> None:
    """Markers with a light rim, so that they stand out on light and on dark ground."""
    from matplotlib.patheffects import withStroke  # noqa: PLC0415

    angles = position.detach().cpu().double().rad2deg()
    rim = [withStroke(linewidth=style["linewidths"] + 1.6, foreground="white")]
    axes.scatter(angles[:, 0].numpy(), angles[:, 1].numpy(), zorder=3, path_effects=rim, **style)


def spectrum_figure(
    panels: Sequence[SpectrumPanel], azimuth_rad: Tensor, elevation_rad: Tensor, true: Tensor | None = None
) -> Figure:
    """Maps of power over azimuth and elevation with the true and the found sources, all on one scale of colours.

    azimuth_rad, elevation_rad (G_az,) and (G_el,), true (Kt, 3)
    """
    expected = (azimuth_rad.numel(), elevation_rad.numel())
    if not panels:
        raise ShapeError("panels must hold at least one map, got none")
    for panel in panels:
        if tuple(panel.power.shape) != expected:
            raise ShapeError(f"power of {panel.title!r} must have shape {expected}, got {tuple(panel.power.shape)}")
    figure = new_figure(8.0, 0.5 + 3.1 * len(panels))
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    levels = [decibels(panel.power) for panel in panels]
    floor = min(_floor_db(level) for level in levels)
    for axes, panel, level in zip(grid, panels, levels, strict=True):
        image = _draw_map(axes, panel.title, level, floor, azimuth_rad, elevation_rad)
        if true is not None:
            rings = {"facecolors": "none", "edgecolors": TRUE_COLOUR, "label": "true"}
            _mark(axes, true, marker="o", s=150, linewidths=1.6, **rings)
            label_ranges(axes, true.detach().cpu().double(), TRUE_COLOUR, 6)
        label_ranges(axes, panel.found.detach().cpu().double(), FOUND_COLOUR, -13)
        if len(panel.found):
            _mark(axes, panel.found, marker="x", s=45, linewidths=1.8, color=FOUND_COLOUR, label="found")
    figure.colorbar(image, ax=list(grid), label="power re maximum (dB)", pad=0.015)
    grid[-1].set_xlabel("azimuth (deg)")
    named = {label: handle for axes in grid for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="outside upper right", ncols=2, frameon=False, borderpad=0.1)
    return figure


def direction_figure(panel: SpectrumPanel, azimuth_rad: Tensor, elevation_rad: Tensor) -> Figure:
    """The picture that suits the directions of a map: bearings round a full circle, a curve along one angle, or a map.

    azimuth_rad, elevation_rad (G_az,) and (G_el,)
    """
    n_azimuth, n_elevation = azimuth_rad.numel(), elevation_rad.numel()
    if tuple(panel.power.shape) != (n_azimuth, n_elevation):
        raise ShapeError(f"power must have shape {(n_azimuth, n_elevation)}, got {tuple(panel.power.shape)}")
    step = float(azimuth_rad[-1] - azimuth_rad[0]) / max(n_azimuth - 1, 1)
    if n_azimuth > 2 and n_azimuth * step > 2 * math.pi - step / 2:
        return _bearing_figure(panel, azimuth_rad, elevation_rad)
    if min(n_azimuth, n_elevation) == 1 < max(n_azimuth, n_elevation):
        return _curve_figure(panel, azimuth_rad, elevation_rad)
    return spectrum_figure([panel], azimuth_rad, elevation_rad)


def _bearing_figure(panel: SpectrumPanel, azimuth_rad: Tensor, elevation_rad: Tensor) -> Figure:
    """Power over azimuth as on a compass, the most of all elevations; where there are several, with the map beside."""
    several = elevation_rad.numel() > 1
    figure = new_figure(11.0 if several else 5.6, 5.6)
    places = figure.add_gridspec(1, 2, width_ratios=(1.0, 1.25)) if several else figure.add_gridspec(1, 1)
    axes: Any = figure.add_subplot(places[0], projection="polar")
    axes.set_theta_zero_location("N")
    axes.set_theta_direction(-1)
    strongest = panel.power.amax(1)
    level, azimuth = decibels(strongest), azimuth_rad.cpu().double().numpy()
    floor = min(float(np.floor(level.min() / 5) * 5), -5.0)
    axes.plot(np.append(azimuth, azimuth[0] + 2 * math.pi), np.append(level, level[0]), linewidth=1.6, color=COLOURS[0])
    axes.set_ylim(floor, -0.4 * floor)  # room for the labels outside of the curve
    axes.set_rlabel_position(112.5)
    axes.set_yticks(np.linspace(floor, 0, 3))
    axes.set_yticklabels([f"{value:g} dB" for value in np.linspace(floor, 0, 3)], fontsize=8, color="#555555")
    axes.set_thetagrids(
        range(0, 360, 30), [f"{angle if angle <= 180 else angle - 360}°" for angle in range(0, 360, 30)]
    )
    for bearing, _, r in panel.found.detach().cpu().double().tolist():
        axes.plot([bearing, bearing], [floor, 0], color=FOUND_COLOUR, linewidth=1.4, linestyle="--")
        text = f"{math.degrees(bearing):.1f}°" + ("" if math.isnan(r) else f", {range_text(r)}")
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.0}
        axes.annotate(text, (bearing, -0.2 * floor), ha="center", va="center", fontsize=9, color=FOUND_COLOUR, bbox=box)
    axes.set_title(panel.title, fontsize=10, loc="left", pad=18)
    axes.set_xlabel("azimuth, 0° along z; power re maximum")
    if several:
        beside = figure.add_subplot(places[1])
        level = decibels(panel.power)
        image = _draw_map(beside, "", level, _floor_db(level), azimuth_rad, elevation_rad)
        figure.colorbar(image, ax=beside, label="power re maximum (dB)", pad=0.015)
        label_ranges(beside, panel.found.detach().cpu().double(), FOUND_COLOUR, -13)
        _mark(beside, panel.found, marker="x", s=45, linewidths=1.8, color=FOUND_COLOUR)
        beside.set_xlabel("azimuth (deg)")
    return figure


def _curve_figure(panel: SpectrumPanel, azimuth_rad: Tensor, elevation_rad: Tensor) -> Figure:
    """Power along the one angle that there is, and the sources."""
    name, axis, column = ("azimuth", azimuth_rad, 0) if azimuth_rad.numel() > 1 else ("elevation", elevation_rad, 1)
    angle, level = axis.rad2deg().cpu().double().numpy(), decibels(panel.power.flatten())
    figure = new_figure(8.0, 3.6)
    axes = figure.subplots()
    axes.plot(angle, level, linewidth=1.6, color=COLOURS[0])
    floor = min(float(np.floor(level.min())), -1.0)
    axes.set(xlim=(float(angle[0]), float(angle[-1])), ylim=(floor, -0.2 * floor))
    found = panel.found.detach().cpu().double()
    places = found.rad2deg()[:, column].numpy()
    axes.plot(places, np.interp(places, angle, level), "x", color=FOUND_COLOUR, ms=8, mew=2, label="found")
    for place, r in zip(places.tolist(), found[:, 2].tolist(), strict=True):
        text = f"{place:.1f}°" + ("" if math.isnan(r) else f"\n{range_text(r)}")
        axes.annotate(text, (place, -0.02 * floor), ha="center", va="bottom", fontsize=9, color=FOUND_COLOUR)
    axes.set_xlabel(f"{name} (deg)")
    axes.set_ylabel("power re maximum (dB)")
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.grid(color="#dddddd", linewidth=0.6)
    return figure


def _floor_db(level: Array) -> float:
    """The lowest level of a scale, which a hundredth of the map may be below: a flat map gets a short scale."""
    return min(float(np.floor(np.quantile(level, 0.01))), -1.0)


def _draw_map(axes: Axes, title: str, level: Array, floor: float, azimuth_rad: Tensor, elevation_rad: Tensor) -> Any:
    """One map of levels [G_az, G_el] in dB, from ``floor`` to 0."""
    azimuth, elevation = azimuth_rad.rad2deg().cpu().numpy(), elevation_rad.rad2deg().cpu().numpy()
    edges = _edges(azimuth), _edges(elevation)
    image = axes.pcolormesh(*edges, level.T, vmin=floor, vmax=0, cmap=MAP_COLOURS, rasterized=True)
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_ylabel("elevation (deg)")
    if azimuth.size > 1:
        axes.set_xlim(float(azimuth[0]), float(azimuth[-1]))
    if elevation.size > 1:
        axes.set_ylim(float(elevation[0]), float(elevation[-1]))
    return image


def _edges(centres: Array) -> Array:
    """Borders of the cells around these centres; a single cell is one unit wide."""
    if centres.size == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


def label_ranges(
    axes: Axes, position: Any, colour: str, height: int, *, undetermined: str = "", fontsize: float = 9, **style: Any
) -> None:
    """The range beside each marker, in the colour of the marker."""
    from matplotlib.patheffects import withStroke  # noqa: PLC0415

    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    style = {"path_effects": [withStroke(linewidth=2.4, foreground="white")], **style}
    for azimuth, elevation, r in position.tolist():
        # no room for text on the usual side
        at_edge = math.degrees(azimuth) > right - 0.08 * fontsize / 9 * (right - left)
        # At the lower or upper edge both labels of a source, one above and one below, move to the side with room.
        up = (math.degrees(elevation) - bottom) / (top - bottom)
        moved = height
        if up < (_LABEL_ROOM if height < 0 else 1.5 * _LABEL_ROOM):
            moved += _LABEL_PITCH
        elif up > 1 - (_LABEL_ROOM if height > 0 else 1.5 * _LABEL_ROOM):
            moved -= _LABEL_PITCH
        axes.annotate(
            range_text(r, undetermined),
            (math.degrees(azimuth), math.degrees(elevation)),
            xytext=(-9 if at_edge else 9, moved),
            textcoords="offset points",
            ha="right" if at_edge else "left",
            color=colour,
            fontsize=fontsize,
            **style,
        )


def range_text(r: float, undetermined: str = "") -> str:
    """A range as a label."""
    if math.isnan(r):
        return undetermined
    return "far field" if math.isinf(r) else f"{r:.1f} m" if r >= 1 else f"{r:.2g} m"


def _look(index: int) -> dict[str, Any]:
    """Colour and line of a curve."""
    return {"color": COLOURS[index % 5], "linestyle": _STYLES[index % 5]}


def range_figure(profiles: Sequence[RangeProfile], range_m: Tensor) -> Figure:
    """Power over range in the direction of each source.

    range_m (G_r,)
    """
    if not profiles:
        raise ShapeError("profiles must hold at least one profile, got none")
    columns = 2 if len(profiles) in (2, 4) else min(len(profiles), 3)
    rows = math.ceil(len(profiles) / columns)
    figure = new_figure((6.5, 8.5, 10.8)[columns - 1], 2.6 * rows + 0.9)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    r = range_m.detach().cpu().numpy()
    for axes, profile in zip(grid, profiles, strict=False):
        _draw_profile(axes, profile, r)
    for unused in grid[len(profiles) :]:
        unused.set_visible(False)
    for axes in grid[::columns]:
        axes.set_ylabel("power re maximum (dB)")
    figure.legend(
        handles=_profile_legend(profiles), loc="outside upper center", ncols=4 if columns == 3 else 2, frameon=False
    )
    return figure


def _profile_legend(profiles: Sequence[RangeProfile]) -> list[Line2D]:
    """One entry a method, with its line and the symbol of the ranges that it found."""
    from matplotlib.lines import Line2D  # noqa: PLC0415

    names = list(dict.fromkeys(name for profile in profiles for name in profile.power))
    entries = [
        Line2D([], [], **_look(index), marker=_MARKERS[index % 5], mfc="none", label=f"{name} (symbol: found)")
        for index, name in enumerate(names)
    ]
    return [*entries, Line2D([], [], color="#666666", linestyle=":", label="true range")]


def _draw_profile(axes: Axes, profile: RangeProfile, r: Array) -> None:
    axes.axvline(profile.true_m, color="#666666", linewidth=1.2, linestyle=":", label="true range")
    for index, (name, power) in enumerate(profile.power.items()):
        if tuple(power.shape) != r.shape:
            raise ShapeError(f"power of {name!r} must have shape {r.shape}, got {tuple(power.shape)}")
        level, look = decibels(power), _look(index)
        axes.plot(r, level, linewidth=1.6, label=name, **look)
        found = np.asarray(profile.found_m.get(name, ()), dtype=np.float64)
        on_curve = np.interp(found, r, level) if found.size else found
        # The underscore keeps it out of the legend, whose lines carry the symbol.
        style = {"color": look["color"], "ms": 9, "mfc": "none", "mew": 1.6, "label": f"_found by {name}"}
        axes.plot(found, on_curve, _MARKERS[index % 5], **style)
    axes.set(xscale="log", xlim=(r[0], r[-1]), ylim=(_FLOOR_DB - 1.5, 2.5), xlabel="range (m)")
    range_ticks(axes.xaxis, r[0], r[-1])
    axes.set_title(profile.title, fontsize=9, loc="left")
    axes.grid(color="#dddddd", linewidth=0.6)


def error_figure(errors: Mapping[str, Any]) -> Figure:
    """Share of all true sources that were found with at most a given position error.

    errors (K,)
    """
    from matplotlib.ticker import PercentFormatter, StrMethodFormatter  # noqa: PLC0415

    figure = new_figure(7.0, 4.4)
    axes = figure.subplots()
    low, high = 1e-4, 10.0
    for index, (name, values) in enumerate(errors.items()):
        distance = np.sort(np.asarray(values, dtype=np.float64))
        share = np.arange(1, distance.size + 1) / max(distance.size, 1)
        drawn = distance <= high
        reached = float(share[drawn][-1]) if drawn.any() else 0.0
        x = np.concatenate([[low], np.maximum(distance[drawn], low), [high]])
        y = np.concatenate([[0.0], share[drawn], [reached]])
        axes.step(x, y, where="post", linewidth=2, label=name, **_look(index))
    axes.set(xscale="log", xlim=(low, high), ylim=(0, 1.02))
    axes.set(xlabel="position error (m)", ylabel="share of true sources within it")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(color="#dddddd", linewidth=0.6)
    figure.legend(loc="outside upper left", frameon=False, labelspacing=0.3)
    return figure


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure; the ending of the name says in which format. The same data gives the same file."""
    path = Path(path)
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise ValueError(f"path must end in {', '.join(PICTURE_SUFFIXES)}, got {str(path)!r}")
    # No dates and versions inside: the same data gives the same file.
    metadata = {"Software": None} if path.suffix.lower() == ".png" else None
    figure.savefig(path, dpi=120, metadata=metadata)
