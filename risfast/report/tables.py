"""The tables of the report, as HTML and as LaTeX."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

from risfast.evaluate.figures import Interval
from risfast.evaluate.scenarios import SceneSet
from risfast.evaluate.tables import REFERENCE, Group, Row, Table
from risfast.report.charts import DASH, number
from risfast.report.html_table import difference_html, html_table, value_html
from risfast.report.latex import latex_table, latex_value
from risfast.report.style import title_of

__all__ = [
    "Column",
    "ablation_html",
    "difference_html",
    "headline_html",
    "headline_latex",
    "methods_html",
    "methods_latex",
    "oracle_html",
    "robustness_html",
    "robustness_latex",
    "timing_html",
    "value_html",
]

_LESS_IS_BETTER = {"ghosts", "median", "over_bound", "time"}
_FORMS = {"ghosts": "{:.2f}", "over_bound": "{:.2f}", "time": "{:.0f}"}


class Column(NamedTuple):
    """A figure as a column of a table of methods."""

    title: str  # Head of the column
    figure: str  # Name among :data:`risfast.evaluate.tables.KEPT`
    form: str = "{:.3f}"  # Of its numbers, for ``str.format``


COLUMNS = (
    Column("F1", "f1"),
    Column("precision", "precision"),
    Column("recall", "recall"),
    Column("recall / implied", "recall_over_implied"),
    Column("ghosts", "ghosts_per_scene", "{:.2f}"),
    Column("count right", "count_accuracy"),
    Column("median xyz, pairs (m)", "median_xyz_pairs_m"),
    Column("rms of hits / bound", "error_over_bound", "{:.2f}"),
    Column("GOSPA (m)", "gospa_m", "{:.2f}"),
)
_LEFT_OUT = ("precision", "recall_over_implied", "gospa_m")  # where what a method was told needs the room
_KNOWLEDGE = {"blind": "nothing", "noise": "noise power", "count": "K", "count_noise": "K and noise power"}


def _interval(row: Row, prefix: str) -> Interval:
    return Interval(row[prefix], row[f"{prefix}_low"], row[f"{prefix}_high"])


def headline_html(rows: Table, length: int) -> str:
    """One row for each headline figure: the bound, every method, and the first method's difference from greedy ML."""
    own = [row for row in rows if row["snapshots"] == length]
    methods = list(dict.fromkeys(row["method"] for row in own))
    compared = methods[0] != REFERENCE and REFERENCE in methods
    heads = ["", "bound", *(html.escape(title_of(m)) for m in methods)]
    if compared:
        heads.insert(3, f"{html.escape(title_of(methods[0]))} \u2212 greedy ML")
    lines = []
    for name in dict.fromkeys(row["name"] for row in own):
        cells = {row["method"]: row for row in own if row["name"] == name}
        first = cells[methods[0]]
        form = _FORMS.get(name, "{:.3f}")
        bound = DASH if not math.isfinite(first["bound"]) else form.format(first["bound"])
        line = [html.escape(first["title"]), bound, *(value_html(_interval(cells[m], "value"), form) for m in methods)]
        if compared:
            apart = _interval(first, "minus_greedy_ml")
            signed = form.replace(":", ":+")
            line.insert(3, difference_html(apart, signed, less_is_better=name in _LESS_IS_BETTER))
        lines.append(("", line))
    caption = (
        f"L = {length}. Small print: 95 % bootstrap intervals over scenes. The difference is paired, scene by scene, "
        "and coloured where its interval excludes zero. The column of the bound holds the recall that it implies for "
        "the tolerance (beside F1 and recall), or what Gaussian errors as large as the bound would give."
    )
    return html_table(heads, lines, caption)


def headline_latex(rows: Table, length: int) -> str:
    """The headline figures for a paper."""
    own = [row for row in rows if row["snapshots"] == length]
    methods = list(dict.fromkeys(row["method"] for row in own))
    lines = []
    for name in dict.fromkeys(row["name"] for row in own):
        cells = {row["method"]: row for row in own if row["name"] == name}
        form = _FORMS.get(name, "{:.3f}")
        bound = Interval(cells[methods[0]]["bound"], math.nan, math.nan)
        values = [latex_value(_interval(cells[m], "value"), form) for m in methods]
        lines.append([cells[methods[0]]["title"], latex_value(bound, form), *values])
    return latex_table(["", "bound", *(title_of(m) for m in methods)], lines, f"Headline figures, L = {length}.")


def methods_html(groups: Sequence[Group], caption: str, *, knowledge: bool = False) -> str:
    """One row for each run, all figures."""
    columns = [c for c in COLUMNS if not (knowledge and c.figure in _LEFT_OUT)]
    heads = ["method", *(["told"] if knowledge else []), *(c.title for c in columns), "F1 \u2212 greedy ML"]
    lines = []
    for group in groups:
        told = [_KNOWLEDGE[group.knowledge]] if knowledge else []
        apart = (group.difference or {}).get("f1", Interval(math.nan, math.nan, math.nan))
        style = ' class="own"' if group.method == "localizer" else ""
        values = [value_html(group.figures[c.figure], c.form) for c in columns]
        lines.append((style, [html.escape(title_of(group.method)), *told, *values, difference_html(apart)]))
    return html_table(heads, lines, caption)


def methods_latex(groups: Sequence[Group], caption: str) -> str:
    """All figures of every run for a paper."""
    rows = [[title_of(g.method), *(latex_value(g.figures[c.figure], c.form) for c in COLUMNS)] for g in groups]
    return latex_table(["method", *(c.title for c in COLUMNS)], rows, caption)


def oracle_html(groups: Sequence[Group], length: int) -> str:
    """What every piece of knowledge is worth: F1 of the whole set and by SNR."""
    own = [g for g in groups if g.snapshots == length and g.scene_set == "main" and g.benchmark in ("B2", "B7")]
    edges = sorted({(g.low, g.high) for g in own if g.variable == "snr_db"})
    heads = ["method", "told", "F1", "recall", *(f"F1, {number(low)} … {number(high)} dB" for low, high in edges)]
    lines = []
    labels = dict.fromkeys(g.label for g in own if g.variable == "all")
    methods = list(dict.fromkeys(label.partition("@")[0] for label in labels))
    for label in sorted(labels, key=lambda label: methods.index(label.partition("@")[0])):
        whole = next(g for g in own if g.label == label and g.variable == "all")
        parts = {(g.low, g.high): g for g in own if g.label == label and g.variable == "snr_db"}
        cells = [value_html(whole.figures["f1"]), value_html(whole.figures["recall"])]
        cells += [f"{parts[e].figures['f1'].value:.3f}" if e in parts else DASH for e in edges]
        told = {"ml_from_truth": "all, as its start", "true_capon": "the true covariance"}.get(whole.method)
        lines.append(("", [html.escape(title_of(whole.method)), told or _KNOWLEDGE[whole.knowledge], *cells]))
    bound = {(g.low, g.high): g.figures["implied_recall"].value for g in own if g.variable == "snr_db"}
    whole = next(g for g in own if g.variable == "all")
    implied = whole.figures["implied_recall"].value
    cells = [DASH, f"{implied:.3f}", *(f"{bound[e]:.3f}" for e in edges)]
    lines.append((' class="bound"', ["recall that the bound implies", "", *cells]))
    scenes = int(whole.figures["scenes"].value)
    return html_table(heads, lines, f"L = {length}, the first {scenes} scenes of the set; all rows on the same scenes.")


def _robust_rows(groups: Sequence[Group], sets: Sequence[SceneSet], length: int) -> list[tuple[str, list[Group]]]:
    own = [g for g in groups if g.benchmark == "robustness" and g.snapshots == length]
    titles = {scene_set.name: scene_set.title for scene_set in sets}
    nominal = [g for g in own if g.variable == "nominal"]
    rows = [("no mismatch", nominal)] if nominal else []
    rows += [
        (titles[name], [g for g in own if g.scene_set == name and g.variable == "all"])
        for name in dict.fromkeys(g.scene_set for g in own)
    ]
    return rows


def _bound_cells(bounds: Table, length: int) -> dict[str, list[str]]:
    """By title of a mismatch: recall that both bounds imply, and their medians in metres."""
    cells = {}
    for row in bounds:
        if row["snapshots"] == length:
            known = row["mismatched_sources"] > 0
            medians = [f"{row['median_bound_m']:.2f}", *([f"{row['median_mismatched_m']:.2f}"] if known else [])]
            recall = f"{row['mismatched_recall']:.3f}" if known else DASH
            cells[row["title"]] = [f"{row['implied_recall']:.3f}", recall, " \u2192 ".join(medians)]
    return cells


def robustness_html(groups: Sequence[Group], sets: Sequence[SceneSet], length: int, bounds: Table) -> str:
    """F1 under each mismatch, and its difference from greedy ML, beside the bounds without and with the mismatch."""
    rows = _robust_rows(groups, sets, length)
    methods = [g.label for g in rows[0][1]]
    beside = _bound_cells(bounds, length)
    heads = ["", "bound of the nominal system", "bound with the mismatch", "bound, median (m)"]
    heads += [f"F1, {html.escape(title_of(m))}" for m in methods]
    first = methods[0]
    heads += [f"{html.escape(title_of(first))} \u2212 greedy ML", f"ghosts, {html.escape(title_of(first))}"]
    lines = []
    for title, cells in rows:
        by_label = {g.label: g for g in cells}
        own = by_label[first]
        apart = (own.difference or {}).get("f1", Interval(math.nan, math.nan, math.nan))
        line = [html.escape(title), *beside[title]]
        line += [value_html(by_label[m].figures["f1"]) for m in methods]
        lines.append(("", [*line, difference_html(apart), value_html(own.figures["ghosts_per_scene"], "{:.2f}")]))
    scenes = int(rows[0][1][0].figures["scenes"].value)
    caption = (
        f"L = {length}, {scenes} scenes a row. Every method works on with the nominal system. First the recall that "
        "the Cramér-Rao bound of the nominal system implies, with independent sources: a reference, not a limit. Then "
        "what the misspecified Cramér-Rao bound implies: the bias and the covariance of maximum likelihood that takes "
        "the true system for the nominal one, where codes or elements are off. Medians over the sources: of the one, "
        "and \u2192 of the other, bias included."
    )
    return html_table(heads, lines, caption)


def robustness_latex(groups: Sequence[Group], sets: Sequence[SceneSet], length: int, bounds: Table) -> str:
    """F1 under each mismatch, and what the bounds imply, for a paper."""
    rows = _robust_rows(groups, sets, length)
    methods = [g.label for g in rows[0][1]]
    beside = {row["title"]: row for row in bounds if row["snapshots"] == length}
    lines = []
    for title, cells in rows:
        own = [Interval(beside[title][name], math.nan, math.nan) for name in ("implied_recall", "mismatched_recall")]
        figures = [{g.label: g for g in cells}[m].figures["f1"] for m in methods]
        lines.append([title, *(latex_value(value) for value in [*own, *figures])])
    heads = ["mismatch", "nominal bound", "bound with the mismatch", *(f"F1, {title_of(m)}" for m in methods)]
    return latex_table(heads, lines, f"Robustness, L = {length}.")


def ablation_html(groups: Sequence[Group], timing: Table, length: int) -> str:
    """What the localizer is without each of its stages: F1, errors and time, and the paired difference."""
    own = [g for g in groups if g.benchmark == "ablation" and g.snapshots == length]
    columns = [c for c in COLUMNS if c.figure not in ("recall_over_implied", "gospa_m")]
    heads = ["", *(c.title for c in columns), "F1 \u2212 localizer", "ms a scene"]
    ms = {
        row["method"]: row["ms_per_scene"]
        for row in timing
        if (row["scene_set"], row["snapshots"], row["stage"]) == ("ablation", length, "total")
    }
    lines = []
    for group in own:
        apart = (group.difference or {}).get("f1", Interval(math.nan, math.nan, math.nan))
        values = [value_html(group.figures[c.figure], c.form) for c in columns]
        style = ' class="own"' if group.method == "localizer" else ""
        took = f"{ms[group.method]:.0f}" if math.isfinite(ms[group.method]) else DASH
        lines.append((style, [html.escape(title_of(group.method)), *values, difference_html(apart), took]))
    scenes = int(own[0].figures["scenes"].value)
    caption = (
        f"L = {length}, the first {scenes} scenes of the set. Each row is the localizer with one thing changed, "
        "and its paired difference from the localizer as it is."
    )
    return html_table(heads, lines, caption)


def timing_html(rows: Table) -> str:
    """Milliseconds a scene of every method and stage, one column for each L."""
    main = [row for row in rows if row["scene_set"] == "main"]
    blind = [row for row in main if row["knowledge"] == "blind" and row["method"] != "true_capon"]
    lengths = list(dict.fromkeys(row["snapshots"] for row in blind))
    heads = ["method", "stage", *(f"L = {length}: ms a scene" for length in lengths)]
    lines = []
    for method, stage in dict.fromkeys((row["method"], row["stage"]) for row in blind):
        cells = {row["snapshots"]: row for row in blind if (row["method"], row["stage"]) == (method, stage)}
        values = [
            value_html(Interval(c["ms_per_scene"], c["ms_low_quartile"], c["ms_high_quartile"]), "{:.1f}")
            for c in (cells[length] for length in lengths)
        ]
        total = stage == "total"
        lines.append(
            (' class="own"' if total else "", [html.escape(title_of(method)) if total else "", stage, *values])
        )
    caption = "Processor time of one thread, scenes in chunks of 16; median and quartiles over the chunks."
    return html_table(heads, lines, caption)
