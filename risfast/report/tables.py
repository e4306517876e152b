"""The tables of the report, and the one writer that sets them as HTML, as LaTeX (booktabs) and as text."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from risfast.evaluate.figures import NOTHING, Interval
from risfast.evaluate.scenarios import SceneSet
from risfast.evaluate.tables import REFERENCE, Group, Row, Table
from risfast.report.style import DASH, number, title_of

_LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "%&_#${}"},
        **{sign: f"${command}$" for sign, command in zip("≤≥<>", (r"\le", r"\ge", "<", ">"), strict=True)},
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
        **{"°": r"$^\circ$", "²": r"$^2$", "λ": r"$\lambda$", "é": r"\'e"},
    }
)


@dataclass(frozen=True)
class Number:
    """A cell with a number and, where there is one, its interval."""

    value: Interval
    form: str = "{:.3f}"

    def html(self) -> str:
        """The interval in small print; a dash where there is no number."""
        text, ends = self._parts()
        return DASH if text is None else text + (f"<small>{' … '.join(ends)}</small>" if ends else "")

    def latex(self) -> str:
        """The interval in brackets."""
        text, ends = self._parts()
        return "--" if text is None else f"${text}" + (f" [{', '.join(ends)}]$" if ends else "$")

    def _parts(self) -> tuple[str | None, list[str]]:
        number, *ends = (self.form.format(v) if math.isfinite(v) else None for v in self.value)
        return number, [end for end in ends if end is not None] if None not in ends else []


@dataclass(frozen=True)
class Change(Number):
    """A cell with a difference and its interval; coloured where the interval excludes zero."""

    form: str = "{:+.3f}"
    less_is_better: bool = False

    def html(self) -> str:
        """In colour."""
        # Nothing that rounds to zero shows a minus.
        shown = (0.0 if math.isfinite(v) and float(self.form.format(v)) == 0 else v for v in self.value)
        text = Number(Interval(*shown), self.form).html().replace("-", "\u2212")
        up, down = self.value.low > 0, self.value.high < 0
        if not (up or down) or not math.isfinite(self.value.value):
            return text
        return f'<span class="{"better" if down == self.less_is_better else "worse"}">{text}</span>'


Cell = str | Number


@dataclass(frozen=True)
class Sheet:
    """A table, in no format yet."""

    heads: Sequence[str]  # A line break parts a head for text
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    styles: Sequence[str] = ()  # CSS class of each row, or empty

    def html(self) -> str:
        """A table in a card of its own, with its caption below."""
        styles = [' class="bound"' if head.startswith("bound") else "" for head in self.heads]
        top = "".join(
            f'<th{style} scope="col">{html.escape(name)}</th>' for style, name in zip(styles, self.heads, strict=True)
        )
        body = ""
        for own, row in zip(self.styles or [""] * len(self.rows), self.rows, strict=True):
            cells = (html.escape(cell) if isinstance(cell, str) else cell.html() for cell in row)
            shown = "".join(
                f'<td{style} data-name="{html.escape(head)}">{cell}</td>'
                for style, head, cell in zip(styles, self.heads, cells, strict=True)
            )
            body += f'<tr class="{own}">{shown}</tr>' if own else f"<tr>{shown}</tr>"
        name = html.escape(self.caption.split(".", maxsplit=1)[0])
        return (
            f'<div class="card"><div class="scroll"><table><caption>{name}</caption><thead><tr>{top}</tr></thead>'
            f'<tbody>{body}</tbody></table></div><p class="under">{self.caption}</p></div>'
        )

    def latex(self) -> str:
        """For a paper."""

        def line(cells: Sequence[Cell]) -> str:
            return " & ".join(c.translate(_LATEX) if isinstance(c, str) else c.latex() for c in cells) + r" \\"

        lines = [
            *(r"\begin{table}", r"\centering", rf"\caption{{{self.caption.translate(_LATEX)}}}"),
            *(rf"\begin{{tabular}}{{l{'r' * (len(self.heads) - 1)}}}", r"\toprule", line(self.heads), r"\midrule"),
            *map(line, self.rows),
            *(r"\bottomrule", r"\end{tabular}", r"\end{table}"),
        ]
        return "\n".join(lines) + "\n"

    def text(self) -> str:
        """For a terminal; every cell must be text."""
        above, heads = ([head.rpartition("\n")[part] for head in self.heads] for part in (0, 2))
        rows = [list(map(str, row)) for row in (above, heads, *self.rows) if any(row)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        forms = [f">{width}" if place else f"<{width}" for place, width in enumerate(widths)]
        return "\n".join(
            "  ".join(format(cell, form) for cell, form in zip(row, forms, strict=True)).rstrip() for row in rows
        )


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
    Column("recall / bound", "recall_over_implied"),
    Column("false alarms", "ghosts_per_scene", "{:.2f}"),
    Column("count right", "count_accuracy"),
    Column("median xyz, pairs (m)", "median_xyz_pairs_m"),
    Column("rms of hits / bound", "error_over_bound", "{:.2f}"),
    Column("GOSPA (m)", "gospa_m", "{:.2f}"),
)
_LEFT_OUT = ("precision", "recall_over_implied", "gospa_m")  # where what a method was told needs the room
_KNOWLEDGE = {"blind": "nothing", "noise": "noise power", "count": "K", "count_noise": "K and noise power"}


def _single(value: float, form: str = "{:.3f}") -> Number:
    """A number without an interval."""
    return Number(Interval(value, math.nan, math.nan), form)


def _interval(row: Row, prefix: str) -> Interval:
    return Interval(row[prefix], row[f"{prefix}_low"], row[f"{prefix}_high"])


def _f1_change(group: Group) -> Change:
    return Change(group.difference.get("f1", NOTHING))


def _figures(group: Group, columns: Sequence[Column]) -> list[Cell]:
    return [Number(group.figures[c.figure], c.form) for c in columns]


def _own(groups: Sequence[Group]) -> list[str]:
    """Styles of rows: those of the localizer stand out."""
    return ["own" if group.method == "localizer" else "" for group in groups]


def headline_sheet(rows: Table, length: int, *, paper: bool = False) -> Sheet:
    """One row for each headline figure: the bound, every method, and the first method's difference from greedy ML."""
    own = [row for row in rows if row["snapshots"] == length]
    methods = list(dict.fromkeys(row["method"] for row in own))
    compared = methods[0] != REFERENCE and REFERENCE in methods and not paper
    heads = ["", "bound", *map(title_of, methods)]
    if compared:
        heads.insert(3, f"{title_of(methods[0])} \u2212 greedy ML")
    lines = []
    for name in dict.fromkeys(row["name"] for row in own):
        cells = {row["method"]: row for row in own if row["name"] == name}
        first, form = cells[methods[0]], _FORMS.get(name, "{:.3f}")
        values = [Number(_interval(cells[m], "value"), form) for m in methods]
        line: list[Cell] = [first["title"], _single(first["bound"], form), *values]
        if compared:
            apart = _interval(first, "minus_greedy_ml")
            line.insert(3, Change(apart, form.replace(":", ":+"), less_is_better=name in _LESS_IS_BETTER))
        lines.append(line)
    caption = (
        f"L = {length}. Small print: 95 % bootstrap intervals over scenes. The difference is paired, scene by scene, "
        "and coloured where its interval excludes zero. The column of the bound holds the recall at the bound for "
        "the tolerance (beside F1 and recall), or what Gaussian errors as large as the bound would give."
    )
    return Sheet(heads, lines, f"Headline figures, L = {length}." if paper else caption)


def methods_sheet(groups: Sequence[Group], caption: str, *, knowledge: bool = False, paper: bool = False) -> Sheet:
    """One row for each run, all figures."""
    columns = [c for c in COLUMNS if not (knowledge and c.figure in _LEFT_OUT)]
    apart = [] if paper else ["F1 \u2212 greedy ML"]
    heads = ["method", *(["told"] if knowledge else []), *(c.title for c in columns), *apart]
    lines = []
    for group in groups:
        told = [_KNOWLEDGE[group.knowledge]] if knowledge else []
        difference = [] if paper else [_f1_change(group)]
        lines.append([title_of(group.method), *told, *_figures(group, columns), *difference])
    return Sheet(heads, lines, caption, _own(groups))


def oracle_sheet(groups: Sequence[Group], length: int) -> Sheet:
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
        cells: list[Cell] = [Number(whole.figures["f1"]), Number(whole.figures["recall"])]
        cells += [_single(parts[e].figures["f1"].value) if e in parts else DASH for e in edges]
        told = {"ml_from_truth": "all, as its start", "true_capon": "the true covariance"}.get(whole.method)
        lines.append([title_of(whole.method), told or _KNOWLEDGE[whole.knowledge], *cells])
    bound = {(g.low, g.high): g.figures["implied_recall"].value for g in own if g.variable == "snr_db"}
    whole = next(g for g in own if g.variable == "all")
    implied = [whole.figures["implied_recall"].value, *(bound[e] for e in edges)]
    lines.append(["recall at the bound", "", DASH, *map(_single, implied)])
    caption = (
        f"L = {length}, the first {int(whole.figures['scenes'].value)} scenes of the set; all rows on the same scenes."
    )
    return Sheet(heads, lines, caption, [""] * (len(lines) - 1) + ["bound"])


def robustness_sheet(
    groups: Sequence[Group], sets: Sequence[SceneSet], bounds: Table, length: int, *, paper: bool = False
) -> Sheet:
    """F1 under each mismatch, and its difference from greedy ML, beside the bounds without and with the mismatch."""
    own = [g for g in groups if g.benchmark == "robustness" and g.snapshots == length]
    titles = {scene_set.name: scene_set.title for scene_set in sets}
    rows: dict[str, list[Group]] = {}
    for group in sorted(own, key=lambda g: g.variable != "nominal"):  # the rows without a mismatch first
        title = "no mismatch" if group.variable == "nominal" else titles[group.scene_set]
        rows.setdefault(title, []).append(group)
    whole = next(iter(rows.values()))
    methods = [g.label for g in whole]
    beside = {row["title"]: row for row in bounds if row["snapshots"] == length}
    columns, first = [f"F1, {title_of(m)}" for m in methods], methods[0]
    if paper:
        heads = ["mismatch", "nominal bound", "bound with the mismatch", *columns]
    else:
        heads = ["", "bound of the nominal system", "bound with the mismatch", "bound, median (m)", *columns]
        heads += [f"{title_of(first)} \u2212 greedy ML", f"false alarms, {title_of(first)}"]
    lines = []
    for title, cells in rows.items():
        by_label, bound = {g.label: g for g in cells}, beside[title]
        line: list[Cell] = [title, _single(bound["implied_recall"]), _single(bound["mismatched_recall"])]
        if not paper:
            medians = [bound["median_bound_m"], *([bound["median_mismatched_m"]] * (bound["mismatched_sources"] > 0))]
            line.append(" \u2192 ".join(f"{median:.2f}" for median in medians))
        line += [Number(by_label[m].figures["f1"]) for m in methods]
        if not paper:
            line += [_f1_change(by_label[first]), Number(by_label[first].figures["ghosts_per_scene"], "{:.2f}")]
        lines.append(line)
    scenes = int(whole[0].figures["scenes"].value)
    caption = (
        f"L = {length}, {scenes} scenes a row. Every method works on with the nominal system. First the recall at "
        "the Cramér-Rao bound of the nominal system, with independent sources: a reference, not a limit. Then the "
        "recall at the misspecified Cramér-Rao bound: the bias and the covariance of maximum likelihood that takes "
        "the true system for the nominal one, where codes or elements are off. Medians over the sources: of the one, "
        "and \u2192 of the other, bias included."
    )
    return Sheet(heads, lines, f"Robustness, L = {length}." if paper else caption)


def ablation_sheet(groups: Sequence[Group], timing: Table, length: int) -> Sheet:
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
        took = _single(ms[group.method], "{:.0f}")
        lines.append([title_of(group.method), *_figures(group, columns), _f1_change(group), took])
    scenes = int(own[0].figures["scenes"].value)
    caption = (
        f"L = {length}, the first {scenes} scenes of the set. Each row is the localizer with one thing changed, "
        "and its paired difference from the localizer as it is."
    )
    return Sheet(heads, lines, caption, _own(own))


def calibration_sheet(rows: Table) -> Sheet:
    """What probabilities say, how often what they are of came, and the calibration error beside that of chance."""
    heads = ["method", "L", "probability of", "said", "came", "calibration error", "of a perfect one"]
    of = {"confidence": "a source to be a hit", "count": "the likeliest number of sources"}
    names = ("said", "right", "error", "perfect")
    lines: list[list[Cell]] = [
        [title_of(row["method"]), str(row["snapshots"]), of[row["probability"]], *(f"{row[n]:.3f}" for n in names)]
        for row in rows
        if row["knowledge"] == "blind"
    ]
    caption = "Mean distance of probability and share over ten bins of as many cases each; chance alone makes the last."
    return Sheet(heads, lines, caption, [""] * len(lines))


def timing_sheet(rows: Table) -> Sheet:
    """Milliseconds a scene of every method and stage, one column for each L."""
    main = [row for row in rows if row["scene_set"] == "main"]
    blind = [row for row in main if row["knowledge"] == "blind" and row["method"] != "true_capon"]
    lengths = list(dict.fromkeys(row["snapshots"] for row in blind))
    heads = ["method", "stage", *(f"L = {length}: ms a scene" for length in lengths)]
    lines = []
    for method, stage in dict.fromkeys((row["method"], row["stage"]) for row in blind):
        cells = {row["snapshots"]: row for row in blind if (row["method"], row["stage"]) == (method, stage)}
        values = [
            Number(Interval(c["ms_per_scene"], c["ms_low_quartile"], c["ms_high_quartile"]), "{:.1f}")
            for c in (cells[length] for length in lengths)
        ]
        lines.append([title_of(method) if stage == "total" else "", stage, *values])
    caption = "Processor time of one thread, scenes in chunks of 16; median and quartiles over the chunks."
    return Sheet(heads, lines, caption, ["own" if line[1] == "total" else "" for line in lines])
