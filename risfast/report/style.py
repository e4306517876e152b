"""The look of the report, light and dark, and of its methods."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from risfast.evaluate.methods import METHOD_TITLES

DASH = "\u2013"

STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
COLOUR = dict(re.findall(r"--(\w+): (#\w{6})", STYLE.partition("@media")[0]))
"""The colours of the light page by name: charts are drawn in these, which then become variables of the style sheet."""


class Series(NamedTuple):
    """How a method looks."""

    name: str  # For the legend
    colour: str  # Of :data:`COLOUR`, by name
    line: str = "-"  # As matplotlib spells it: -, --, :
    marker: str = ""  # o, s, ^, D, or empty
    strong: bool = False  # Thicker, and with filled markers


BOUND = Series("Cramér-Rao bound", "bound", "--")
# Methods that always look the same; the others take the colours that are left.
_OWN: dict[str, tuple[Any, ...]] = {
    "localizer": ("c0", "-", "o", True),
    "localizer_raw": ("c1", "--", "^"),
    "greedy_ml": ("c2", "-", "s", True),
    "sbl": ("c3", "-", "D"),
    "ls_capon": ("c4", "-", "^"),
    "transformer_capon": ("c5", "--", "D"),
}


def title_of(method: str) -> str:
    """Name of a method in tables."""
    return METHOD_TITLES.get(method, method)


def series_of(method: str, place: int = 0) -> Series:
    """How a method is drawn."""
    look = _OWN.get(method, (f"c{3 + place % 4}", ":", "os^D"[place % 4]))
    return Series(title_of(method), *look)


def number(value: float) -> str:
    """A number in few letters."""
    return f"{value:g}".replace("-", "\u2212") if math.isfinite(value) else DASH
