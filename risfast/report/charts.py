"""The charts of the report as inline SVG that matplotlib draws in the colours of the page, light and dark."""

from __future__ import annotations

import base64
import html
import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from risfast.covariance import effective_covariance, ls_covariance
from risfast.evaluate.collected import Collected, Key, bound_errors
from risfast.evaluate.figures import Interval
from risfast.evaluate.matching import Array
from risfast.evaluate.methods import Methods
from risfast.evaluate.scenarios import MAP_SNR_DB, MAP_SOURCES
from risfast.evaluate.suite import SuiteConfig
from risfast.evaluate.tables import Group
from risfast.geometry import SearchGrid, uniform_axis
from risfast.localize import pipeline
from risfast.models import Measurement
from risfast.ops import mvdr_spectrum
from risfast.ops.wideband import band_spectrum
from risfast.report.plots import FOUND_COLOUR, MAP_COLOURS, TRUE_COLOUR, decibels, label_ranges
from risfast.report.style import BOUND, COLOUR, DASH, Series, number, series_of
from risfast.simulate.scenes import generate_scenes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIXED_SNR_DB = 10.0  # of the errors over the number of sources
_UNIT = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_SHIFT = 2.5  # between error bars at the same place, in points
_ERRORS_M = np.logspace(-2, 1, 121)
_FLOOR_DB = -25.0
_PIXELS = (241, 121)
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 12.0, 26.0, 42.0  # around the axes, in points
_VARIABLES = {colour: f"var(--{name})" for name, colour in COLOUR.items()}


def _new_axes(size: tuple[float, float], margins: tuple[float, float, float, float]) -> tuple[Figure, Axes]:
    """A bare figure of a size in points, which are the units of the view box, with axes between the margins."""
    from matplotlib.figure import Figure  # noqa: PLC0415  (drawing is the only thing that needs it)

    (width, height), (left, right, top, bottom) = size, margins
    figure = Figure(figsize=(width / 72, height / 72), facecolor="none")
    place = (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
    axes = figure.add_axes(place, facecolor="none")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, pad=6, labelsize=12)
    return figure, axes


def _name_axes(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold", color=COLOUR["ink"], pad=10)
    axes.set_xlabel(x, fontsize=12)
    axes.set_ylabel(y, fontsize=12)


def _svg(figure: Figure, label: str, hints: Sequence[str] = ()) -> str:
    """A figure as an element of the page: no names of its own but those of its markers, which show the hints."""
    from matplotlib import rc_context  # noqa: PLC0415

    buffer, texts = io.StringIO(), iter(hints)
    # The page puts its own font in place; the label gives each chart names of its own.
    settings: Any = {"svg.fonttype": "none", "font.sans-serif": ["DejaVu Sans"], "svg.hashsalt": label}
    with rc_context(settings):
        figure.savefig(buffer, format="svg")
    width, height = figure.get_size_inches() * 72
    opening = f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{html.escape(label)}">'
    drawn = re.sub(r"^.*?<svg[^>]*>", opening, buffer.getvalue(), count=1, flags=re.DOTALL)
    # What is drawn stays within the axes, so nothing is cut off.
    for left_out in (r"<metadata>.*?</metadata>", r"<style.*?</style>", r"<clipPath.*?</clipPath>", r"<!--.*?-->"):
        drawn = re.sub(left_out, "", drawn, flags=re.DOTALL)
    drawn = re.sub(r' clip-path="[^"]*"| id="(?!m[0-9a-f]{10})[^"]*"|(?<=>)\s+(?=<)', "", drawn)
    if hints:
        drawn = re.sub(
            r"<use ([^>]*)/>", lambda m: f"<use {m[1]}><title>{html.escape(next(texts))}</title></use>", drawn
        )
    return re.sub(r"#[0-9a-f]{6}\b", lambda m: _VARIABLES.get(m[0], m[0]), drawn).strip()


@dataclass(frozen=True)
class Axis:
    """One axis."""

    label: str
    low: float  # Its ends
    high: float  # Its ends
    ticks: Sequence[float]
    logarithmic: bool = False


class Chart:
    """A chart of lines and points; values beyond an axis stand at its end."""

    def __init__(self, title: str, x: Axis, y: Axis, height: float = 300.0) -> None:
        self.x, self.y, self.label = x, y, f"{title}: {y.label} over {x.label}"
        self.figure, self.axes = _new_axes((460.0, height), (_LEFT, _RIGHT, _TOP, _BOTTOM))
        self._hints: list[str] = []
        _name_axes(self.axes, title, x.label, y.label)
        for name, axis in (("x", x), ("y", y)):
            scale = {f"{name}scale": "log"} if axis.logarithmic else {}
            self.axes.set(**scale, **{f"{name}lim": (axis.low, axis.high)})
            getattr(self.axes, f"set_{name}ticks")(axis.ticks, [number(tick) for tick in axis.ticks])
        self.axes.minorticks_off()
        self.axes.grid(color=COLOUR["rule"], linewidth=1)
        self.axes.set_axisbelow(True)

    def line(self, x: Sequence[float], y: Sequence[float], series: Series) -> None:
        """A line through the points; where a value is not finite it is broken."""
        self._draw(x, y, series, linewidth=2.5 if series.strong else 2.0 if series is BOUND else 1.7)

    def _draw(self, x: Sequence[float], y: Sequence[float], series: Series, **style: Any) -> None:
        values = np.clip(y, self.y.low, self.y.high)
        self.axes.plot(x, values, color=COLOUR[series.colour], linestyle=series.line, **style)

    def points(self, x: Sequence[float], y: Sequence[Interval], series: Series, shift: float = 0.0) -> None:
        """A line with markers and error bars, moved to the side by so many points."""
        keep = [(a, v) for a, v in zip(x, y, strict=True) if math.isfinite(v.value)]
        colour, per_point = COLOUR[series.colour], (self.x.high - self.x.low) / (460.0 - _LEFT - _RIGHT)
        at = [a + shift * per_point for a, _ in keep]
        marker = {"marker": series.marker, "markersize": 6.8, "markeredgecolor": colour}
        filled = {"markerfacecolor": colour if series.strong else COLOUR["card"], "markeredgewidth": 1.4}
        self._draw(at, [v.value for _, v in keep], series, linewidth=2.5 if series.strong else 1.7, **marker, **filled)
        for place, (_, v) in zip(at, keep, strict=True):
            if math.isfinite(v.low) and math.isfinite(v.high):
                ends = np.clip(v[1:], self.y.low, self.y.high)
                self.axes.vlines(place, *ends, color=colour, linewidth=1.2, alpha=0.6)
        self._hints += [
            f"{series.name}: {v.value:.3g} [{v.low:.3g}, {v.high:.3g}] at {number(round(a, 3))}" for a, v in keep
        ]

    def svg(self) -> str:
        """The chart as an element."""
        return _svg(self.figure, self.label, self._hints)


def heatmap(
    title: str, values: Sequence[Sequence[float]], columns: Sequence[str], rows: Sequence[str], labels: tuple[str, str]
) -> str:
    """A table of colours, from 0 to 1, with the numbers in it."""
    from matplotlib import colormaps  # noqa: PLC0415

    data, colours = np.asarray(values, dtype=float), colormaps["viridis"]
    size = (50.0 + 50.0 * len(columns), 66.0 + 34.0 * len(rows))
    figure, axes = _new_axes(size, (44.0, 6.0, 26.0, 40.0))
    _name_axes(axes, title, *labels)
    axes.pcolormesh(np.ma.masked_invalid(data), vmin=0, vmax=1, cmap=colours, edgecolors=COLOUR["card"], linewidth=2)
    for (i, j), value in np.ndenumerate(data):
        bright = float(np.dot(colours(value)[:3], (0.299, 0.587, 0.114))) > 0.47
        colour, text = "#10141a" if bright else "#fdfdfd", f"{value:.2f}" if math.isfinite(value) else DASH
        axes.text(j + 0.5, i + 0.5, text, fontsize=12.5, ha="center", va="center", color=colour)
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns)
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
    axes.invert_yaxis()
    axes.set_facecolor(COLOUR["empty"])
    return _svg(figure, title)


_LINES = {"-": "─{}─", "--": "╌{}╌", ":": "┈{}┈"}
_MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "": "╌"}


def legend(series: Sequence[Series]) -> str:
    """A list with an entry for each series: its line, its marker, and its name."""
    entries = "".join(
        f'<li><b style="color:var(--{one.colour})">{_LINES[one.line].format(_MARKERS[one.marker])}</b>'
        f"{html.escape(one.name)}</li>"
        for one in series
    )
    return f'<ul class="legend">{entries}</ul>'


class SpectrumScene(NamedTuple):
    """One scene whose spectrum the report shows."""

    title: str
    snapshots: int
    scene: int
    label: str  # The run whose estimates are drawn


def error_chart(collected: Collected, length: int, labels: Sequence[str]) -> str:
    """Share of all true sources within a distance, for every method, and for errors as large as the bound."""
    x = Axis("position error (m)", 0.01, 10.0, (0.01, 0.03, 0.1, 0.3, 1, 3, 10), logarithmic=True)
    chart = Chart(f"L = {length}", x, Axis("share of all true sources", 0, 1, _UNIT))
    bound = np.sort(bound_errors(collected.truth["main", 0, length]).ravel())
    chart.line(_ERRORS_M.tolist(), _share(bound), BOUND)
    for i, label in reversed(list(enumerate(labels))):
        distance = collected.scores[Key("main", 0, length, label)].source_error[:, 3]
        chart.line(_ERRORS_M.tolist(), _share(np.sort(np.nan_to_num(distance, nan=np.inf))), series_of(label, i))
    return chart.svg()


def _share(distance: Array) -> list[float]:
    count = np.searchsorted(distance, _ERRORS_M, side="right")
    return (count / max(len(distance), 1)).tolist()


_SWEEPS = {
    "B3": ("sources in the scene", "f1"),
    "B4": ("SNR (dB)", "f1"),
    "B5": ("range (m)", "recall"),
    "B6": ("azimuth (deg)", "f1"),
}


def sweep_charts(groups: Sequence[Group], benchmark: str, lengths: Sequence[int]) -> str:
    """F1 or recall of every method over the variable of a benchmark, one chart for each L."""
    label, figure = _SWEEPS[benchmark]
    own = [g for g in groups if g.benchmark == benchmark and g.scene_set == "main"]
    if not own:  # the value is fixed
        return ""
    x, y = _sweep_axis(benchmark, label, own), Axis({"f1": "F1", "recall": "recall"}[figure], 0, 1, _UNIT)
    return _curves(own, lengths, (x, y), _centre, figure, _implied, height=290)


def _implied(group: Group) -> float:
    return group.figures["implied_recall"].value


def _curves(
    groups: Sequence[Group],
    lengths: Sequence[int],
    axes: tuple[Axis, Axis],
    at: Callable[[Group], float],
    figure: str,
    bound: Callable[[Group], float],
    height: float = 270,
) -> str:
    """A chart for each L with the figure of every method, and what the bound would give."""
    charts = []
    for length in lengths:
        chart, rows = Chart(f"L = {length}", *axes, height=height), _by_label(groups, length)
        first = next(iter(rows.values()))
        chart.line([at(g) for g in first], [bound(g) for g in first], BOUND)
        for i, (name, mine) in reversed(list(enumerate(rows.items()))):
            shift = (i - (len(rows) - 1) / 2) * _SHIFT
            chart.points([at(g) for g in mine], [g.figures[figure] for g in mine], series_of(name, i), shift)
        charts.append(chart.svg())
    return f'<div class="row">{"".join(charts)}</div>'


def _by_label(groups: Sequence[Group], length: int) -> dict[str, list[Group]]:
    """Groups of one L by the label of their run."""
    own: dict[str, list[Group]] = {}
    for group in groups:
        if group.snapshots == length:
            own.setdefault(group.label, []).append(group)
    return own


def _sweep_axis(benchmark: str, label: str, groups: Sequence[Group]) -> Axis:
    if benchmark == "B3":
        return Axis(label, 0.7, 5.3, MAP_SOURCES)
    edges = sorted({g.low for g in groups} | {g.high for g in groups})
    if benchmark == "B5":
        return Axis(label, 0, edges[-1], edges[1:])
    return Axis(label, edges[0], edges[-1], edges)


def _centre(group: Group) -> float:
    return group.low if group.variable == "sources" else (group.low + group.high) / 2


def map_charts(groups: Sequence[Group], length: int) -> str:
    """F1 of the localizer, of greedy ML, and the recall at the bound, over SNR and number of sources."""
    rows = _by_label(groups, length)
    shown = [(f"F1, {series_of(name).name}", _cells(own, "f1")) for name, own in rows.items()]
    shown.append(("recall at the bound", _cells(next(iter(rows.values())), "implied_recall")))
    columns, lines = [number(s) for s in MAP_SNR_DB], [str(k) for k in MAP_SOURCES]
    charts = [heatmap(title, values, columns, lines, ("SNR (dB)", "sources")) for title, values in shown]
    return f'<div class="row triple">{"".join(charts)}</div>'


def _cells(groups: Sequence[Group], figure: str) -> list[list[float]]:
    values = {(int(g.low), g.second[0]): g.figures[figure].value for g in groups}
    return [[values.get((k, snr), math.nan) for snr in MAP_SNR_DB] for k in MAP_SOURCES]


def map_by_snr(groups: Sequence[Group], lengths: Sequence[int]) -> str:
    """Along the map: F1 of two sources over SNR."""
    axes = Axis("SNR (dB)", -6, 21, MAP_SNR_DB), Axis("F1, two sources", 0, 1, _UNIT)
    return _curves([g for g in groups if int(g.low) == 2], lengths, axes, lambda g: g.second[0], "f1", _implied)


def map_errors(groups: Sequence[Group], lengths: Sequence[int], collected: Collected) -> str:
    """Along the map: median errors over the number of sources at one SNR."""

    def bound(group: Group) -> float:
        """Median of Gaussian errors as large as the bound, in the cell of the map with so many sources."""
        cell = MAP_SOURCES.index(int(group.low)) * len(MAP_SNR_DB) + MAP_SNR_DB.index(FIXED_SNR_DB)
        return float(np.median(bound_errors(collected.truth["map", cell, group.snapshots])))

    y = Axis("median xyz error (m)", 0.01, 3, (0.01, 0.03, 0.1, 0.3, 1, 3), logarithmic=True)
    axes = Axis("sources in the scene", 0.7, 5.3, MAP_SOURCES), y
    rows = [g for g in groups if g.second[0] == FIXED_SNR_DB]
    return _curves(rows, lengths, axes, lambda g: g.low, "median_xyz_pairs_m", bound)


def typical_scenes(collected: Collected, length: int, label: str) -> list[SpectrumScene]:
    """The best, the median and the worst scene by GOSPA; of several equal ones that with the most sources."""
    scores = collected.scores[Key("main", 0, length, label)]
    order = np.lexsort((-scores.n_true, np.round(scores.gospa.sum(1), 9)))
    places = {"best": 0, "median": len(order) // 2, "worst": len(order) - 1}
    return [SpectrumScene(title, length, int(order[place]), label) for title, place in places.items()]


def spectrum_view(chosen: SpectrumScene, collected: Collected, config: SuiteConfig, methods: Methods) -> str:
    """Capon map of a scene with its true and found sources, and what it shows in words."""
    key = Key("main", 0, chosen.snapshots, chosen.label)
    system = replace(config.nominal(methods), n_snapshots=chosen.snapshots)
    scenes, setup, model = generate_scenes(system, config.seed, [chosen.scene]), methods.setup, methods.localizer
    if setup.n_bands > 1:
        covariance = Measurement.of(scenes).covariance.unflatten(0, (-1, setup.n_bands))
    elif chosen.label.startswith("localizer"):
        device = next((p.device for p in model.backbone.parameters()), torch.device("cpu"))
        measurement = Measurement.of(scenes).to(device)
        with torch.no_grad():
            estimate = pipeline.estimate(model.parts, measurement)
            covariance = pipeline.effective(estimate, measurement, model.options).cpu()
    else:
        covariance = effective_covariance(ls_covariance(scenes.y, scenes.codes, scenes.channel))
    # A fixed coordinate is shown from -90 to 90 degrees.
    intervals = (setup.region.azimuth_rad, setup.region.elevation_rad)
    view = [(-math.pi / 2, math.pi / 2) if low == high else (low, high) for low, high in intervals]
    azimuth, elevation = (uniform_axis(*ends, count) for ends, count in zip(view, _PIXELS, strict=True))
    grid, loading = SearchGrid(azimuth, elevation, model.options.grid(setup).range_m), model.options.map.loading
    if setup.n_bands > 1:
        power = band_spectrum(covariance, setup.replace(gains=None), grid, loading=loading).power
    else:
        power = mvdr_spectrum(covariance, setup.array, grid, loading=loading, wavefront=setup.wavefront).power
    level = decibels(power[0])
    floor = max(_FLOOR_DB, float(np.floor(level.min())))
    true = scenes.position[0][scenes.mask[0]].double().numpy()
    found = collected.estimates[key][chosen.scene][:, :3]
    scores = collected.scores[key]
    hits = int(scores.source_hit[scores.source_scene == chosen.scene].sum())
    ends = [f"{number(math.degrees(low))}° … {number(math.degrees(high))}°" for low, high in view]
    alt = f"Capon map of scene {chosen.scene} with {len(true)} true and {len(found)} found sources"
    words = (
        f"<b>{chosen.title.capitalize()}</b>: scene {chosen.scene}, L = {chosen.snapshots}, SNR "
        f"{float(scenes.snr_db[0]):.1f} dB, {len(true)} true, {len(found)} found, {hits} hit"
    )
    return (
        f'<div><div class="spectrum"><img alt="{alt}" src="data:image/png;base64,{_png(level, floor)}">'
        f"{_marks(chosen, true, found, np.degrees(view))}</div>"
        f'<div class="ends"><span>azimuth {ends[0]}</span><span>elevation {ends[1]}</span>'
        f"<span>{number(floor)} … 0 dB</span></div><p>{words}</p></div>"
    )


def _marks(chosen: SpectrumScene, true: Array, found: Array, view_deg: Array) -> str:
    """Rings at the true sources and crosses at the found ones, each with its range, to lie on the map."""
    figure, axes = _new_axes((480.0, 240.0), (0.0, 0.0, 0.0, 0.0))
    axes.set(xlim=view_deg[0], ylim=view_deg[1], xticks=[], yticks=[])
    for rows, marker, size, colour in ((true, "o", 16, TRUE_COLOUR), (found, "x", 9, FOUND_COLOUR)):
        axes.plot(*np.degrees(rows[:, :2].T), marker, color=colour, markersize=size, markeredgewidth=2, mfc="none")
        for row in rows:
            # Above for what is true and below for what was found, unless that is outside.
            up = (math.degrees(row[1]) - view_deg[1, 0]) / np.ptp(view_deg[1])
            height = 8 if (marker == "o" and up < 0.92) or up < 0.1 else -18
            label_ranges(axes, row[None], colour, height, undetermined="no range", fontsize=13, path_effects=[])
    return _svg(figure, f"{chosen.title}: true and found sources of scene {chosen.scene}, L = {chosen.snapshots}")


def _png(level: Array, floor: float) -> str:
    """The map [G_az, G_el] as a picture, elevation upwards, base64."""
    from matplotlib import image  # noqa: PLC0415  (drawing is the only thing that needs it)

    buffer = io.BytesIO()
    # No versions inside: the same data gives the same picture.
    how: Any = {"cmap": MAP_COLOURS, "format": "png", "metadata": {"Software": ""}}
    image.imsave(buffer, level.T[::-1], vmin=floor, vmax=0.0, **how)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
