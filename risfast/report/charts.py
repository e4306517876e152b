"""Charts as inline SVG that takes its colours from the page, so that it is legible on light and on dark ground."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["DASH", "Axis", "Chart", "Series", "heatmap", "legend", "number"]

DASH = "\u2013"
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 12.0, 26.0, 42.0


class Series(NamedTuple):
    """How a method looks."""

    name: str  # For the legend
    style: str  # CSS class with its colour, width and dashes
    marker: str = ""  # circle, square, triangle, diamond, or empty


@dataclass(frozen=True)
class Axis:
    """One axis."""

    label: str
    low: float  # Its ends
    high: float  # Its ends
    ticks: Sequence[float]
    names: Sequence[str] = ()  # Texts of the ticks
    logarithmic: bool = False

    def share(self, value: float) -> float:
        """Position in 0 .. 1, cut off at the ends."""
        low, high = self.low, self.high
        if self.logarithmic:
            value, low, high = math.log(max(value, 1e-300)), math.log(low), math.log(high)
        return min(max((value - low) / (high - low), 0.0), 1.0)

    def texts(self) -> Sequence[str]:
        """Of the ticks."""
        return self.names or [number(tick) for tick in self.ticks]


def number(value: float) -> str:
    """A number in few letters."""
    if not math.isfinite(value):
        return DASH
    return f"{value:g}".replace("-", "\u2212")


@dataclass
class Chart:
    """A chart of lines and points."""

    title: str
    x: Axis
    y: Axis
    width: float = 460.0  # In units of the view box
    height: float = 300.0  # In units of the view box
    _parts: list[str] = field(default_factory=list)

    def _px(self, value: float) -> float:
        return _LEFT + self.x.share(value) * (self.width - _LEFT - _RIGHT)

    def _py(self, value: float) -> float:
        return self.height - _BOTTOM - self.y.share(value) * (self.height - _TOP - _BOTTOM)

    def line(self, x: Sequence[float], y: Sequence[float], series: Series, *, steps: bool = False) -> None:
        """A line through the points; where a value is not finite it is broken."""
        path, pen = [], False
        previous = 0.0
        for a, b in zip(x, y, strict=True):
            if not (math.isfinite(a) and math.isfinite(b)):
                pen = False
                continue
            px, py = self._px(a), self._py(b)
            if pen and steps:
                path.append(f"L{px:.1f} {previous:.1f}")
            path.append(f"{'L' if pen else 'M'}{px:.1f} {py:.1f}")
            pen, previous = True, py
        self._parts.append(f'<path class="line {series.style}" d="{" ".join(path)}"/>')

    def points(
        self, x: Sequence[float], y: Sequence[tuple[float, float, float]], series: Series, shift: float = 0.0
    ) -> None:
        """A line with markers and error bars."""
        keep = [(a, v) for a, v in zip(x, y, strict=True) if math.isfinite(v[0])]
        moved = [(self._px(a) + shift, v) for a, v in keep]
        path = " ".join(f"{'L' if i else 'M'}{px:.1f} {self._py(v[0]):.1f}" for i, (px, v) in enumerate(moved))
        self._parts.append(f'<path class="line {series.style}" d="{path}"/>')
        for (a, value), (px, _) in zip(keep, moved, strict=True):
            py = self._py(value[0])
            if math.isfinite(value[1]) and math.isfinite(value[2]):
                bar = f"M{px:.1f} {self._py(value[1]):.1f}V{self._py(value[2]):.1f}"
                self._parts.append(f'<path class="bar {series.style}" d="{bar}"/>')
            text = f"{series.name}: {value[0]:.3g} [{value[1]:.3g}, {value[2]:.3g}] at {number(round(a, 3))}"
            self._parts.append(_marker(px, py, series, html.escape(text)))

    def vertical(self, x: float, text: str) -> None:
        """A thin line with a word beside it."""
        px = self._px(x)
        self._parts.append(f'<path class="rule" d="M{px:.1f} {_TOP}V{self.height - _BOTTOM}"/>')
        self._parts.append(f'<text class="note" x="{px - 4:.1f}" y="{_TOP + 11}" text-anchor="end">{text}</text>')

    def svg(self) -> str:
        """The chart as an element."""
        bottom, right = self.height - _BOTTOM, self.width - _RIGHT
        parts = [f'<text class="title" x="{_LEFT}" y="15">{html.escape(self.title)}</text>']
        for tick, text in zip(self.y.ticks, self.y.texts(), strict=True):
            py = self._py(tick)
            parts.append(f'<path class="grid" d="M{_LEFT} {py:.1f}H{right}"/>')
            parts.append(f'<text class="tick" x="{_LEFT - 7}" y="{py + 4:.1f}" text-anchor="end">{text}</text>')
        for tick, text in zip(self.x.ticks, self.x.texts(), strict=True):
            px = self._px(tick)
            parts.append(f'<path class="grid" d="M{px:.1f} {_TOP}V{bottom}"/>')
            parts.append(f'<text class="tick" x="{px:.1f}" y="{bottom + 16}" text-anchor="middle">{text}</text>')
        middle = (_LEFT + right) / 2
        parts.append(
            f'<text class="label" x="{middle:.1f}" y="{self.height - 6}" text-anchor="middle">{self.x.label}</text>'
        )
        parts.append(
            f'<text class="label" x="13" y="{(_TOP + bottom) / 2:.1f}" text-anchor="middle" '
            f'transform="rotate(-90 13 {(_TOP + bottom) / 2:.1f})">{self.y.label}</text>'
        )
        return (
            f'<svg class="chart" viewBox="0 0 {self.width:g} {self.height:g}" role="img" '
            f'aria-label="{html.escape(self.title)}">{"".join(parts)}{"".join(self._parts)}</svg>'
        )


def _marker(x: float, y: float, series: Series, text: str = "") -> str:
    shapes: dict[str, Callable[[], str]] = {
        "circle": lambda: f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.4"',
        "square": lambda: f'<rect x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6"',
        "triangle": lambda: f'<path d="M{x:.1f} {y - 4:.1f}l3.8 6.6h-7.6z"',
        "diamond": lambda: f'<path d="M{x:.1f} {y - 4.4:.1f}l4.4 4.4l-4.4 4.4l-4.4 -4.4z"',
    }
    shape = shapes.get(series.marker, shapes["circle"])()
    style = "mark" if series.marker else "mark quiet"
    return f'{shape} class="{style} {series.style}"><title>{text}</title>{_closing(shape)}'


def _closing(shape: str) -> str:
    return f"</{shape[1:].split(maxsplit=1)[0]}>"


def legend(series: Sequence[Series]) -> str:
    """A list with an entry for each series: its line, its marker, and its name."""
    entries = []
    for one in series:
        mark = _marker(17, 6, one) if one.marker else ""
        entries.append(
            f'<li><svg viewBox="0 0 34 12" width="34" height="12" aria-hidden="true">'
            f'<path class="line {one.style}" d="M1 6H33"/>{mark}</svg>{html.escape(one.name)}</li>'
        )
    return f'<ul class="legend">{"".join(entries)}</ul>'


# Ends and middle of the scale of a heat map: dark blue is bad, pale is good, in both themes.
_SCALE = ((68, 28, 84), (49, 104, 142), (53, 183, 121), (253, 231, 37))


def _colour(share: float) -> tuple[str, str]:
    """Fill and text colour of a share in 0 .. 1."""
    at = min(max(share, 0.0), 1.0) * (len(_SCALE) - 1)
    low = min(int(at), len(_SCALE) - 2)
    mixed = [round(a + (b - a) * (at - low)) for a, b in zip(_SCALE[low], _SCALE[low + 1], strict=True)]
    bright = 0.299 * mixed[0] + 0.587 * mixed[1] + 0.114 * mixed[2]
    return f"rgb({mixed[0]},{mixed[1]},{mixed[2]})", "#10141a" if bright > 120 else "#ffffff"


def heatmap(
    title: str,
    values: Sequence[Sequence[float]],
    columns: Sequence[str],
    rows: Sequence[str],
    labels: tuple[str, str],
    *,
    low: float = 0.0,
    high: float = 1.0,
    form: str = "{:.2f}",
) -> str:
    """A table of colours with the numbers in it."""
    cell_w, cell_h, left, top = 50.0, 34.0, 44.0, 26.0
    width, height = left + cell_w * len(columns) + 6, top + cell_h * len(rows) + 40
    parts = [f'<text class="title" x="{left}" y="15">{html.escape(title)}</text>']
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            x, y = left + j * cell_w, top + i * cell_h
            known = math.isfinite(value)
            fill, text = _colour((value - low) / (high - low)) if known else ("var(--empty)", "var(--soft)")
            shown = form.format(value) if known else DASH
            parts.append(
                f'<rect x="{x + 1:g}" y="{y + 1:g}" width="{cell_w - 2:g}" height="{cell_h - 2:g}" rx="3" '
                f'style="fill:{fill}"/><text class="cell" x="{x + cell_w / 2:g}" y="{y + cell_h / 2 + 4:g}" '
                f'text-anchor="middle" style="fill:{text}">{shown}</text>'
            )
    for j, name in enumerate(columns):
        x, y = left + (j + 0.5) * cell_w, top + cell_h * len(rows) + 15
        parts.append(f'<text class="tick" x="{x:g}" y="{y:g}" text-anchor="middle">{name}</text>')
    for i, name in enumerate(rows):
        y = top + (i + 0.5) * cell_h + 4
        parts.append(f'<text class="tick" x="{left - 8}" y="{y:g}" text-anchor="end">{name}</text>')
    middle_x, middle_y = left + cell_w * len(columns) / 2, top + cell_h * len(rows) / 2
    parts.append(
        f'<text class="label" x="{middle_x:g}" y="{height - 6:g}" text-anchor="middle">{labels[0]}</text>'
        f'<text class="label" x="12" y="{middle_y:g}" text-anchor="middle" '
        f'transform="rotate(-90 12 {middle_y:g})">{labels[1]}</text>'
    )
    return (
        f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{html.escape(title)}">'
        f"{''.join(parts)}</svg>"
    )
