"""The page of ``risfast show``: one scene after the other of a file of results, to be looked at in a browser."""

from __future__ import annotations

import html
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from risfast.io.durable import finite_json
from risfast.io.export import source_rows
from risfast.io.results import Results, SceneDetails
from risfast.report.plots import range_text
from risfast.report.style import STYLE
from risfast.report.views import region_rings
from risfast.setup import Setup
from risfast.sources import Sources

_FOLDER = Path(__file__).parent
_LEVEL_FLOOR_DB = -40.0  # of a map, at the lowest
_BEYOND = 3.0  # times the farthest source: where the drawn region of an uncertain range ends

_FIGURES = (
    ("map", "Map", "", "Power over azimuth and elevation, and the sources with their ranges."),
    (
        "space",
        "Scene",
        "scene",
        "Turn it with a finger, the mouse or the arrow keys; the wheel makes it larger. Grey: the elements of the "
        "array. Rings: regions that hold the position with 95 % probability.",
    ),
    (
        "profiles",
        "Range profiles",
        "",
        "Power over range in the direction of each source; dashed: the range that was found for it.",
    ),
)


def result_page(results: Results, title: str) -> str:
    """One self-contained page of HTML: table, map, turnable scene and range profiles of every scene."""
    details = [*results.details, *([SceneDetails()] * (len(results.scenes) - len(results.details)))]
    scenes = [_scene(sources, more) for sources, more in zip(results.scenes, details, strict=True)]
    elements = None if results.setup is None else results.setup.array.positions_m.tolist()
    data = json.dumps(finite_json({"elements_m": elements, "scenes": scenes}), allow_nan=False)
    tables = "".join(
        f'<div data-scene="{index}"{"" if index == 0 else " hidden"}>{_table(sources, more)}</div>'
        for index, (sources, more) in enumerate(zip(results.scenes, details, strict=True))
    )
    figures = "".join(_figure(*entry) for entry in _FIGURES)
    named = html.escape(title)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{named}</title><link rel="icon" href="data:,"><style>\n{STYLE}{_text("show.css")}</style></head>'
        f'<body><main class="show"><header><h1>{named}</h1>{_lead(results)}{_choice(len(results.scenes))}</header>'
        f'<div class="views"><figure class="card wide"><h2>Sources</h2>{tables}</figure>{figures}</div></main>'
        # "</" would end the element that holds the data.
        f'<script type="application/json" id="data">{data.replace("</", "<" + chr(92) + "/")}</script>'
        f"<script>\n{_text('show.js')}</script></body></html>\n"
    )


def _text(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _lead(results: Results) -> str:
    setup = results.setup
    if setup is None:
        return "<p>The file says nothing of the array.</p>"
    return f"<p>{html.escape(_setup_text(setup))}</p>"


def _setup_text(setup: Setup) -> str:
    region, degrees = setup.region, [math.degrees(v) for v in (*setup.region.azimuth_rad, *setup.region.elevation_rad)]
    far = "the far field" if math.isinf(region.range_m[1]) else f"{region.range_m[1]:.3g} m"
    bands = f" in {setup.n_bands} bands" if setup.n_bands > 1 else ""
    text = (
        f"{setup.array.n_elements} elements, wavelength {setup.array.wavelength_m:.3g} m{bands}; searched: azimuth "
        f"{degrees[0]:.0f} to {degrees[1]:.0f}°, elevation {degrees[2]:.0f} to {degrees[3]:.0f}°, range "
        f"{region.range_m[0]:.2g} m to {far}."
    )
    return text.replace(" -", " \u2212")


def _choice(scenes: int) -> str:
    """A list to choose a scene from, where there are several."""
    if scenes < 2:
        return ""
    entries = "".join(f'<option value="{scene}">{scene}</option>' for scene in range(scenes))
    return f'<p><label>Scene <select id="scene-choice">{entries}</select></label></p>'


def _figure(name: str, title: str, kind: str, caption: str) -> str:
    wide = " wide" if name == "profiles" else ""
    focus = ' tabindex="0"' if kind == "scene" else ""
    return (
        f'<figure class="card{wide}" id="{name}"><h2>{title}</h2>'
        f'<canvas id="{name}-canvas" class="{kind}" role="img" aria-label="{title}"{focus}></canvas>'
        f'<div class="ends" id="{name}-ends"></div><figcaption>{caption}</figcaption></figure>'
    )


def _scene(sources: Sources, details: SceneDetails) -> dict[str, Any]:
    """What the script draws of a scene."""
    ranges = sources.range[sources.range.isfinite()]
    farthest_m = _BEYOND * float(ranges.max()) if len(ranges) else math.inf
    rows = []
    for index, row in enumerate(source_rows([sources])):
        xyz = [row[f"{axis}_m"] for axis in "xyz"]
        placed = all(map(math.isfinite, xyz))
        own = None if details.position_covariance is None else details.position_covariance[index]
        sure = placed and own is not None and bool(own.isfinite().all())
        rows.append(
            {
                "number": index + 1,
                "azimuth_deg": row["azimuth_deg"],
                "elevation_deg": row["elevation_deg"],
                "range_m": row["range_m"],
                "range": range_text(row["range_m"], "no range"),
                "xyz_m": xyz if placed else None,
                "rings_m": _rounded(region_rings(sources.position[index], own, farthest_m)) if sure else None,  # type: ignore[arg-type]
            }
        )
    scene: dict[str, Any] = {"sources": rows, "map": None, "profiles": None}
    if details.map_db is not None and details.azimuth_deg is not None and details.elevation_deg is not None:
        floor = min(max(_LEVEL_FLOOR_DB, math.floor(float(details.map_db.quantile(0.01)))), -1)
        axes = {"azimuth_deg": _rounded(details.azimuth_deg), "elevation_deg": _rounded(details.elevation_deg)}
        scene["map"] = {**axes, "level_db": _rounded(details.map_db, 1), "floor_db": floor}
    if details.profile_db is not None and details.range_m is not None:
        floor = min(math.floor(float(details.profile_db.min())), -1)
        levels = {"level_db": _rounded(details.profile_db, 1), "floor_db": max(floor, _LEVEL_FLOOR_DB)}
        scene["profiles"] = {"range_m": _rounded(details.range_m, 5), **levels}
    return scene


def _rounded(values: Tensor | np.ndarray[Any, Any], digits: int = 4) -> Any:
    return np.round(np.asarray(values, dtype=float), digits).tolist()


def _table(sources: Sources, details: SceneDetails) -> str:
    """The sources of a scene; columns that say nothing of any of them are left out."""
    rows = source_rows([sources])
    if not rows:
        return "<p>No sources were found in this scene.</p>"
    deviations = None if details.position_covariance is None else details.position_covariance.diagonal(0, -2, -1).sqrt()
    columns: dict[str, list[str]] = {"": [f'<i data-source="{i}"></i>{i + 1}' for i in range(len(rows))]}
    for place, (name, key, digits) in enumerate(
        (("azimuth (°)", "azimuth_deg", 2), ("elevation (°)", "elevation_deg", 2), ("range (m)", "range_m", 3))
    ):
        cells = [_cell(row[key], digits, missing="not determined") for row in rows]
        if deviations is not None:
            scale = 180 / math.pi if place < 2 else 1.0
            cells = [
                f"{cell} ± {_deviation(scale * float(own), digits)}" if math.isfinite(float(own)) and own > 0 else cell
                for cell, own in zip(cells, deviations[:, place], strict=True)
            ]
        columns[name] = cells
    for axis in "xyz":
        columns[f"{axis} (m)"] = [_cell(row[f"{axis}_m"], 3) for row in rows]
    columns["power (dB)"] = [_cell(row["power_db"], 1) for row in rows]
    for name, key, digits in (("confidence", "confidence", 2), ("prominence (dB)", "prominence_db", 1)):
        if any(math.isfinite(row[key]) for row in rows):
            columns[name] = [_cell(row[key], digits) for row in rows]
    if any(row["at_edge"] for row in rows):
        columns["at the edge"] = ["yes" if row["at_edge"] else "" for row in rows]
    head = "".join(f"<th>{name}</th>" for name in columns)
    lines = [
        "".join(f'<td data-name="{name}">{cell}</td>' for name, cell in zip(columns, row, strict=True))
        for row in zip(*columns.values(), strict=True)
    ]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return (
        '<div class="scroll"><table><caption>Sources</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _deviation(value: float, digits: int) -> str:
    """With as many digits as the value beside it, or more where those would all be zeros."""
    return f"{value:.{digits}f}" if value >= 0.5 * 10**-digits else f"{value:.1g}"


def _cell(value: float, digits: int, missing: str = "\u2013") -> str:
    return f"{value:.{digits}f}".replace("-", "\u2212") if math.isfinite(value) else missing
