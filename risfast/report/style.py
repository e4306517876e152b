"""The look of the report: one style sheet, light and dark, without any resource from elsewhere, and its methods."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from risfast.evaluate.methods import METHOD_TITLES

DASH = "\u2013"

STYLE = """
:root { color-scheme: light dark; --ground: #fbfbf9; --card: #ffffff; --ink: #1b1f24; --soft: #5c6570;
  --rule: #dfe2e6; --empty: #eceef0; --accent: #0b62a8; --good: #1b7a43; --bad: #b3402a; --bound: #7a828c;
  --c0: #0068b3; --c1: #4fa3d9; --c2: #d45500; --c3: #008f6b; --c4: #b8549a; --c5: #8a6d00; --c6: #5b5bd0; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14171b; --card: #1b1f25; --ink: #e6e9ed; --soft: #9aa4b0; --rule: #313841; --empty: #2a3038;
    --accent: #6cb6f5; --good: #5fce8d; --bad: #f08a72; --bound: #98a2ae;
    --c0: #5bb4ff; --c1: #a5d4f7; --c2: #ff9a52; --c3: #3fd0a8; --c4: #e79bcd; --c5: #e0c04a; --c6: #a9a9ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 "Source Sans 3", "Segoe UI", system-ui, -apple-system, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 40px 24px 80px; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 1.32rem; margin: 56px 0 6px; padding-top: 14px; border-top: 1px solid var(--rule); }
h3 { font-size: 1.02rem; margin: 26px 0 4px; }
p { max-width: 46em; margin: 8px 0; }
.lead { font-size: 1.08rem; color: var(--soft); }
nav { margin: 22px 0 0; font-size: .93rem; display: flex; flex-wrap: wrap; gap: 2px 18px; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
code { font: .9em/1.4 ui-monospace, "Cascadia Mono", "DejaVu Sans Mono", Menlo, monospace; }
figure { margin: 18px 0 8px; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 14px 16px; }
figcaption { max-width: 56em; color: var(--soft); font-size: .93rem; margin-top: 10px; }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(330px, 1fr)); gap: 10px 22px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; width: 100%; }
caption { position: absolute; clip-path: inset(50%); }
.under { max-width: 56em; color: var(--soft); font-size: .93rem; margin: 10px 0 0; }
th { font-weight: 600; text-align: right; vertical-align: bottom; padding: 6px 10px;
  border-bottom: 2px solid var(--rule); }
td { text-align: right; padding: 5px 9px; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 2px; white-space: normal; min-width: 9.5em; }
tbody tr:hover { background: color-mix(in srgb, var(--accent) 7%, transparent); }
tr.own td { font-weight: 600; }
td small { display: block; color: var(--soft); font-size: .8em; font-weight: 400; line-height: 1.25; }
.better { color: var(--good); } .worse { color: var(--bad); }
td.bound, th.bound { color: var(--bound); }
.chart { display: block; width: 100%; height: auto; overflow: visible; stroke-linejoin: round; }
.chart text { fill: var(--soft); font-family: inherit !important; font-variant-numeric: tabular-nums; }
.triple { grid-template-columns: repeat(auto-fit, minmax(270px, 1fr)); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 10px 0 0; padding: 0;
  font-size: .9rem; color: var(--soft); } .legend li { display: flex; align-items: center; gap: 7px; }
.spectrum { position: relative; aspect-ratio: 2 / 1; border-radius: 6px; overflow: hidden; background: #440154; }
.spectrum img { position: absolute; inset: 0; width: 100%; height: 100%; }
.spectrum svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.spectrum text { paint-order: stroke; stroke: #1c1030; stroke-width: 2.5px; }
.ends { display: flex; justify-content: space-between; color: var(--soft); font-size: .84rem; margin-top: 3px; }
details { margin: 12px 0; } summary { cursor: pointer; color: var(--accent); }
pre { overflow-x: auto; background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 12px;
  font: .82rem/1.45 ui-monospace, "Cascadia Mono", "DejaVu Sans Mono", Menlo, monospace; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 18px; margin: 14px 0; font-size: .95rem; }
dt { color: var(--soft); } dd { margin: 0; }
@media print { body { background: #fff; } .card { break-inside: avoid; } nav { display: none; } }
"""

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
_OWN = {
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
    return Series(title_of(method), *_OWN.get(method, (f"c{3 + place % 4}", ":", "os^D"[place % 4])))


def number(value: float) -> str:
    """A number in few letters."""
    return f"{value:g}".replace("-", "\u2212") if math.isfinite(value) else DASH
