"""Sources for people: a table, what to do about the edge of the region, and a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from risfast.geometry import Region
from risfast.sources import Sources

if TYPE_CHECKING:
    from torch import Tensor

    from risfast.geometry import SearchGrid

__all__ = ["draw", "edge_note", "source_table"]

_NOT_DETERMINED = "not determined"


def source_table(scenes: Sequence[Sources]) -> str:
    """A line a source: degrees, metres and dB; columns that say nothing of any source are left out."""
    all_found = Sources.stack(list(scenes))
    confident = bool(all_found.confidence.isfinite().any())
    prominent = bool(all_found.prominence_db.isfinite().any())
    head = "scene  source  azimuth deg  elevation deg         range m  power dB"
    head += "  confidence" if confident else ""
    head += "  prominence dB" if prominent else ""
    lines = [f"{head}  edge"]
    for scene, found in enumerate(scenes):
        for number, source in enumerate(found):
            cells = [
                f"{scene:>5}",
                f"{number:>6}",
                f"{math.degrees(source.azimuth):>11.2f}",
                f"{math.degrees(source.elevation):>13.2f}",
                f"{_range(source.range):>14}",
                f"{10 * math.log10(source.power) if source.power > 0 else -math.inf:>8.1f}",
            ]
            cells += [f"{source.confidence:>10.3f}"] if confident else []
            cells += [f"{source.prominence_db:>13.1f}"] if prominent else []
            lines.append("  ".join([*cells, f"{'yes' if source.at_edge else '-':>4}"]))
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
    from risfast.plots import SpectrumPanel, save_figure, spectrum_figure  # noqa: PLC0415 - matplotlib

    panel = SpectrumPanel(title, power, found.position)
    save_figure(spectrum_figure([panel], grid.azimuth_rad, grid.elevation_rad), path)
