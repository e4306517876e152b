"""The figures of the report: charts of the figures, and spectra of single scenes."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from risfast.covariance import effective_covariance, ls_covariance
from risfast.evaluate.collected import Collected, Key, bound_errors
from risfast.evaluate.matching import Array
from risfast.evaluate.scenarios import MAP_SNR_DB, MAP_SOURCES
from risfast.evaluate.tables import Group
from risfast.geometry import SearchGrid
from risfast.localize import Localizer, pipeline
from risfast.models import Measurement
from risfast.ops import mvdr_spectrum
from risfast.report.charts import Axis, Chart, heatmap, number
from risfast.report.style import BOUND, series_of
from risfast.setup import Setup, uniform_axis
from risfast.simulate.scenes import SystemConfig, generate_scenes

__all__ = [
    "SpectrumScene",
    "error_chart",
    "map_charts",
    "map_lines",
    "spectrum_figure",
    "sweep_charts",
    "typical_scenes",
]

FIXED_SNR_DB = 10.0  # of the errors over the number of sources
_UNIT = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_SHIFT = 2.5  # between error bars at the same place, in units of the view box
_ERRORS_M = np.logspace(-2, 1, 121)
_FLOOR_DB = -25.0
_PIXELS = (241, 121)
_RING = '<circle class="true" cx="{x:.1f}" cy="{y:.1f}" r="8"/>'
_CROSS = '<path class="found" transform="translate({x:.1f} {y:.1f})" d="M-4.5 -4.5L4.5 4.5M4.5 -4.5L-4.5 4.5"/>'


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


def sweep_charts(groups: Sequence[Group], benchmark: str, lengths: Sequence[int], figure: str = "") -> str:
    """F1, or another figure, of every method over the variable of a benchmark, one chart for each L."""
    label, usual = _SWEEPS[benchmark]
    figure = figure or usual
    own = [g for g in groups if g.benchmark == benchmark and g.scene_set == "main"]
    if not own:  # the value is fixed
        return ""
    x = _sweep_axis(benchmark, label, own)
    title = {"f1": "F1", "recall": "recall"}[figure]
    charts = []
    for length in lengths:
        chart = Chart(f"L = {length}", x, Axis(title, 0, 1, _UNIT), width=460, height=290)
        rows = [g for g in own if g.snapshots == length]
        names = list(dict.fromkeys(g.label for g in rows))
        first = [g for g in rows if g.label == names[0]]
        chart.line([_centre(g) for g in first], [g.figures["implied_recall"].value for g in first], BOUND)
        for i, name in reversed(list(enumerate(names))):
            mine = [g for g in rows if g.label == name]
            shift = (i - (len(names) - 1) / 2) * _SHIFT
            chart.points([_centre(g) for g in mine], [g.figures[figure] for g in mine], series_of(name, i), shift)
        charts.append(chart.svg())
    return f'<div class="row">{"".join(charts)}</div>'


def _sweep_axis(benchmark: str, label: str, groups: Sequence[Group]) -> Axis:
    if benchmark == "B3":
        return Axis(label, 0.7, 5.3, MAP_SOURCES)
    edges = sorted({g.low for g in groups} | {g.high for g in groups})
    if benchmark == "B5":
        return Axis(label, 0, edges[-1], edges[1:], [number(v) for v in edges[1:]])
    return Axis(label, edges[0], edges[-1], edges)


def _centre(group: Group) -> float:
    return group.low if group.variable == "sources" else (group.low + group.high) / 2


def map_charts(groups: Sequence[Group], length: int) -> str:
    """F1 of the localizer, of greedy ML, and the recall that the bound implies, over SNR and number of sources."""
    rows = [g for g in groups if g.benchmark == "B9" and g.snapshots == length]
    names = list(dict.fromkeys(g.label for g in rows))
    columns, lines = [number(s) for s in MAP_SNR_DB], [str(k) for k in MAP_SOURCES]
    charts = []
    for name in names:
        values = _cells([g for g in rows if g.label == name], "f1")
        charts.append(heatmap(f"F1, {series_of(name).name}", values, columns, lines, ("SNR (dB)", "sources")))
    implied = _cells([g for g in rows if g.label == names[0]], "implied_recall")
    charts.append(heatmap("recall that the bound implies", implied, columns, lines, ("SNR (dB)", "sources")))
    return f'<div class="row triple">{"".join(charts)}</div>'


def _cells(groups: Sequence[Group], figure: str) -> list[list[float]]:
    values = {(int(g.low), g.second[0]): g.figures[figure].value for g in groups}
    return [[values.get((k, snr), math.nan) for snr in MAP_SNR_DB] for k in MAP_SOURCES]


def map_lines(groups: Sequence[Group], lengths: Sequence[int], errors: Collected | None = None) -> str:
    """Along the map: F1 of two sources over SNR, or median errors over the number of sources at one SNR."""
    charts = []
    for length in lengths:
        rows = [g for g in groups if g.benchmark == "B9" and g.snapshots == length]
        if errors is None:
            rows = [g for g in rows if int(g.low) == 2]
            x, y, figure = Axis("SNR (dB)", -6, 21, MAP_SNR_DB), Axis("F1, two sources", 0, 1, _UNIT), "f1"
        else:
            rows = [g for g in rows if g.second[0] == FIXED_SNR_DB]
            x, figure = Axis("sources in the scene", 0.7, 5.3, MAP_SOURCES), "median_xyz_pairs_m"
            y = Axis("median xyz error (m)", 0.01, 3, (0.01, 0.03, 0.1, 0.3, 1, 3), logarithmic=True)
        chart = Chart(f"L = {length}", x, y, height=270)
        names = list(dict.fromkeys(g.label for g in rows))
        first = [g for g in rows if g.label == names[0]]
        if errors is None:
            chart.line([g.second[0] for g in first], [g.figures["implied_recall"].value for g in first], BOUND)
        else:
            chart.line([g.low for g in first], [_bound_median(errors, int(g.low), length) for g in first], BOUND)
        for i, name in reversed(list(enumerate(names))):
            mine = [g for g in rows if g.label == name]
            at = [g.second[0] if errors is None else g.low for g in mine]
            chart.points(at, [g.figures[figure] for g in mine], series_of(name, i), (i - 0.5) * _SHIFT)
        charts.append(chart.svg())
    return f'<div class="row">{"".join(charts)}</div>'


def _bound_median(collected: Collected, k: int, length: int) -> float:
    """Median of Gaussian errors as large as the bound, in the cell of the map with k sources."""
    cell = MAP_SOURCES.index(k) * len(MAP_SNR_DB) + MAP_SNR_DB.index(FIXED_SNR_DB)
    return float(np.median(bound_errors(collected.truth["map", cell, length])))


def typical_scenes(collected: Collected, length: int, label: str) -> list[SpectrumScene]:
    """The best, the median and the worst scene by GOSPA; of several equal ones that with the most sources."""
    scores = collected.scores[Key("main", 0, length, label)]
    order = np.lexsort((-scores.n_true, np.round(scores.gospa.sum(1), 9)))
    places = {"best": 0, "median": len(order) // 2, "worst": len(order) - 1}
    return [SpectrumScene(title, length, int(order[place]), label) for title, place in places.items()]


def spectrum_figure(
    chosen: SpectrumScene,
    collected: Collected,
    seed: int,
    system: SystemConfig,
    setup: Setup,
    model: Localizer,
) -> str:
    """Capon map of a scene with its true and found sources, and what it shows in words."""
    key = Key("main", 0, chosen.snapshots, chosen.label)
    scenes = generate_scenes(replace(system, n_snapshots=chosen.snapshots), seed, [chosen.scene])
    if chosen.label.startswith("localizer"):
        device = next((p.device for p in model.backbone.parameters()), torch.device("cpu"))
        measurement = Measurement.of(scenes).to(device)
        with torch.no_grad():
            estimate = pipeline.estimate(model.parts, measurement)
            covariance = pipeline.effective(estimate, measurement, model.options).cpu()
    else:
        covariance = effective_covariance(ls_covariance(scenes.y, scenes.codes, scenes.channel))
    view = _view(setup)
    planes = model.options.grid(setup).range_m
    azimuth, elevation = (uniform_axis(*ends, count) for ends, count in zip(view, _PIXELS, strict=True))
    grid = SearchGrid(azimuth, elevation, planes)
    spectrum = mvdr_spectrum(
        covariance, setup.array, grid, loading=model.options.map.loading, wavefront=setup.wavefront
    )
    power = spectrum.power[0].double().numpy()
    level = 10 * np.log10(power / power.max())
    floor = max(_FLOOR_DB, float(np.floor(level.min())))
    true = scenes.position[0][scenes.mask[0]].double().numpy()
    found = collected.estimates[key][chosen.scene][:, :3]
    scores = collected.scores[key]
    here = scores.source_scene == chosen.scene
    return _spectrum_html(chosen, level, floor, true, found, view, float(scenes.snr_db[0]), scores.source_hit[here])


def _view(setup: Setup) -> list[tuple[float, float]]:
    """Ends of azimuth and elevation; a fixed coordinate is shown from -90 to 90 degrees."""
    intervals = (setup.region.azimuth_rad, setup.region.elevation_rad)
    return [(-math.pi / 2, math.pi / 2) if low == high else (low, high) for low, high in intervals]


def _spectrum_html(
    chosen: SpectrumScene,
    level: Array,
    floor: float,
    true: Array,
    found: Array,
    view: Sequence[tuple[float, float]],
    snr_db: float,
    hit: Array,
) -> str:
    width, height = 480.0, 240.0
    (left, right), (low, high) = view
    ends = [[number(math.degrees(end)) for end in pair] for pair in view]

    def place(row: Array) -> tuple[float, float]:
        return (row[0] - left) / (right - left) * width, (high - row[1]) / (high - low) * height

    marks = []
    for rows, shape, style, above in ((true, _RING, "", True), (found, _CROSS, ' class="of-found"', False)):
        for row in rows:
            x, y = place(row)
            side, anchor = (-11, "end") if x > 0.86 * width else (11, "start")
            # Above for what is true and below for what was found, unless that is outside.
            base = y - 8 if (above and y > 20) or y > height - 24 else y + 18
            marks.append(shape.format(x=x, y=y))
            label = "no range" if math.isnan(row[2]) else f"{row[2]:.{1 if row[2] >= 1 else 2}f} m"
            marks.append(f'<text{style} x="{x + side:.1f}" y="{base:.1f}" text-anchor="{anchor}">{label}</text>')
    words = (
        f"<b>{chosen.title.capitalize()}</b>: scene {chosen.scene}, L = {chosen.snapshots}, SNR {snr_db:.1f} dB, "
        f"{len(true)} true, {len(found)} found, {int(hit.sum())} hit"
    )
    alt = f"Capon map of scene {chosen.scene} with {len(true)} true and {len(found)} found sources"
    return (
        f'<div><div class="spectrum"><img alt="{alt}" src="data:image/png;base64,{_png(level, floor)}">'
        f'<svg viewBox="0 0 {width:g} {height:g}" aria-hidden="true">{"".join(marks)}</svg></div>'
        f'<div class="ends"><span>azimuth {ends[0][0]}° … {ends[0][1]}°</span><span>elevation {ends[1][0]}° … '
        f"{ends[1][1]}°</span><span>{number(floor)} … 0 dB</span></div><p>{words}</p></div>"
    )


def _png(level: Array, floor: float) -> str:
    """The map [G_az, G_el] as a picture, elevation upwards, base64."""
    from matplotlib import image  # noqa: PLC0415  (drawing is the only thing that needs it)

    buffer = io.BytesIO()
    image.imsave(
        buffer,
        level.T[::-1],
        vmin=floor,
        vmax=0.0,
        cmap="viridis",
        format="png",
        metadata={"Software": ""},  # no versions inside: the same data gives the same picture
    )
    return base64.b64encode(buffer.getvalue()).decode("ascii")
