"""Sources for people: a table, what to do about the edge of the region, and a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from risfast.geometry import Region
from risfast.io import source_rows
from risfast.sources import Sources

if TYPE_CHECKING:
    from torch import Tensor

    from risfast.geometry import SearchGrid

__all__ = ["draw", "edge_note", "source_table"]

_NOT_DETERMINED = "not determined"


def source_table(scenes: Sequence[Sources]) -> str:
    """A line a source: degrees, metres and dB; columns that say nothing of any source are left out."""
    rows = source_rows(scenes)
    columns = {
        "scene": "{:>5}",
        "source": "{:>6}",
        "azimuth deg": "{:>11.2f}",
        "elevation deg": "{:>13.2f}",
        "range m": "{:>14}",
        "power dB": "{:>8.1f}",
    }
    known = {name for name in ("confidence", "prominence_db") if any(math.isfinite(row[name]) for row in rows)}
    columns |= {"confidence": "{:>10.3f}"} if "confidence" in known else {}
    columns |= {"prominence dB": "{:>13.1f}"} if "prominence_db" in known else {}
    columns["edge"] = "{:>4}"
    shown = {"range m": lambda row: _range(row["range_m"]), "edge": lambda row: "yes" if row["at_edge"] else "-"}
    keys = {name: name.replace(" ", "_").lower() for name in columns}
    widths = {name: len(form.format(0)) for name, form in columns.items()}
    lines = ["  ".join(name.rjust(widths[name]) for name in columns)]
    for row in rows:
        values = {name: shown[name](row) if name in shown else row[keys[name]] for name in columns}
        lines.append("  ".join(form.format(values[name]) for name, form in columns.items()))
    silent = [str(index) for index, found in enumerate(scenes) if len(found) == 0]
    if silent:
        lines.append(f"no sources in scene {', '.join(silent)}")
    return "\n".join(lines)


def _range(metres: float) -> str:
    if math.isnan(metres):
        return _NOT_DETERMINED
    return "far field" if math.isinf(metres) else f"{metres:.3f}"


def edge_note(scenes: Sequence[Sources], region: Region) -> str | None:
    """How many sources lie on the edge of the region, on which, and what to do; None where none does."""
    found = Sources.stack(list(scenes))
    edge = found[found.at_edge]
    if not len(edge):
        return None
    where: list[str] = []
    for name, limits, values in (
        ("azimuth", region.azimuth_rad, edge.azimuth),
        ("elevation", region.elevation_rad, edge.elevation),
        ("range", region.range_m, edge.range),
    ):
        for limit in limits:
            near = (1 / values - 1 / limit).abs() * limit if name == "range" else (values - limit).abs()
            if math.isfinite(limit) and limits[0] < limits[1] and bool((near < 1e-3).any()):
                where.append(f"{name} {limit:.2f} m" if name == "range" else f"{name} {math.degrees(limit):.1f} deg")
    on = f" ({', '.join(where)})" if where else ""
    verb = "lies" if len(edge) == 1 else "lie"
    return f"{len(edge)} of {len(found)} sources {verb} on the edge of the region{on}: widen it with --region"


def draw(path: Path, title: str, power: Tensor, grid: SearchGrid, found: Sources) -> None:
    """The direction map [G_az, G_el] with the sources that were found, in a picture."""
    from risfast.report.plots import SpectrumPanel, save_figure, spectrum_figure  # noqa: PLC0415 - matplotlib

    panel = SpectrumPanel(title, power, found.position)
    save_figure(spectrum_figure([panel], grid.azimuth_rad, grid.elevation_rad), path)
