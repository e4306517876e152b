"""The report of a suite: one HTML page that needs nothing from elsewhere."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from risfast.evaluate.collected import Collected
from risfast.evaluate.methods import Methods
from risfast.evaluate.scenarios import SceneSet
from risfast.evaluate.suite import SuiteConfig
from risfast.evaluate.tables import Group, Table
from risfast.io.toml_file import as_table
from risfast.report import charts, tables
from risfast.report.style import BOUND, STYLE, series_of, title_of
from risfast.setup import Tolerance
from risfast.simulate.scenes import SystemConfig


@dataclass(frozen=True, eq=False)
class Findings:
    """All that the report shows."""

    config: SuiteConfig
    methods: Methods
    sets: Sequence[SceneSet]
    collected: Collected
    groups: Sequence[Group]
    rows: Mapping[str, Table]  # Of each table, by its name
    made_by: Mapping[str, Any]  # The command and the environment of the results
    failures: Sequence[str] = ()  # Which methods failed on how many scenes

    @property
    def blind(self) -> list[str]:
        """Labels of the blind runs over the main set."""
        return list(dict.fromkeys(g.label for g in self.groups if g.benchmark == "B1"))

    @property
    def snapshots(self) -> tuple[int, ...]:
        """Each L."""
        return self.config.snapshots

    def of(self, benchmark: str, length: int | None = None, variable: str = "all") -> list[Group]:
        """Groups of one benchmark."""
        return [
            g
            for g in self.groups
            if g.benchmark == benchmark and g.variable == variable and length in (None, g.snapshots)
        ]

    def each(self, sheet: Callable[[int], tables.Sheet]) -> str:
        """A table for each L."""
        return "".join(f"<h3>{length} snapshots</h3>{sheet(length).html()}" for length in self.snapshots)


def report_html(findings: Findings) -> str:
    """The page."""
    parts = [
        ("headline", "Headline figures", _headline(findings)),
        ("errors", "Position errors", _errors(findings)),
        ("methods", "All scenes, nothing told", _methods(findings)),
        ("sweeps", "Over SNR, range, azimuth and number of sources", _sweeps(findings)),
        ("map", "Number of sources against SNR", _map(findings)),
        ("oracles", "What knowing more is worth", _oracles(findings)),
        ("ablation", "What each stage brings", _ablation(findings)),
        ("robustness", "When the system is not what it is taken for", _robustness(findings)),
        ("calibration", "What probabilities say", tables.calibration_sheet(findings.rows["calibration"]).html()),
        ("timing", "Time", tables.timing_sheet(findings.rows["timing"]).html()),
        ("spectra", "Best, median and worst scene", _spectra(findings)),
        ("latex", "LaTeX", _latex(findings)),
        ("about", "How these figures are made", _about(findings)),
    ]
    shown = [(anchor, title, body) for anchor, title, body in parts if body]
    links = "".join(f'<a href="#{anchor}">{html.escape(title)}</a>' for anchor, title, _ in shown)
    sections = "".join(
        f'<section id="{anchor}"><h2>{html.escape(title)}</h2>{body}</section>' for anchor, title, body in shown
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>risfast: evaluation</title><link rel="icon" href="data:,"><style>\n{STYLE}</style></head><body><main>'
        f"<header><h1>Source localisation against the bound and the baselines</h1>{_lead(findings)}"
        f"<nav>{links}</nav></header>{sections}</main></body></html>\n"
    )


def _lead(findings: Findings) -> str:
    main = findings.sets[0]
    system, lengths = findings.config.nominal(findings.methods), " and ".join(map(str, findings.snapshots))
    seen = f"seen through a surface of {system.array.n_elements} elements by {system.n_antennas} antennas"
    if system.sampling == "direct":
        bands = "" if system.wavelengths_m is None else f" in {len(system.wavelengths_m)} narrow bands"
        seen = f"sampled by the {system.array.n_elements} elements of an array{bands}"
    return (
        f'<p class="lead">{main.scenes} simulated scenes {seen}, with {lengths} snapshots. How many sources each '
        "method finds, how many false alarms, and how far off: on the very same scenes, beside greedy maximum "
        "likelihood and the Cramér-Rao bound.</p>"
    )


def _figure(body: str, caption: str, labels: Sequence[str] | None = None) -> str:
    """A card with a legend of the bound and of the methods."""
    entries = "" if labels is None else charts.legend([BOUND, *(series_of(label, i) for i, label in enumerate(labels))])
    return f'<figure class="card">{body}{entries}<figcaption>{caption}</figcaption></figure>'


def _headline(findings: Findings) -> str:
    rows = findings.each(partial(tables.headline_sheet, findings.rows["headline"]))
    return rows + "".join(f"<p>{html.escape(text)}.</p>" for text in findings.failures)


def _errors(findings: Findings) -> str:
    drawn = [charts.error_chart(findings.collected, length, findings.blind) for length in findings.snapshots]
    caption = (
        "Share of all true sources that have their estimate within a distance. Every true source counts, those that "
        "nothing was paired with as infinitely far, so silence does not look like precision. Dashed: the share if "
        "every source were found with Gaussian errors as large as its Cramér-Rao bound. An estimator that knows the "
        "field of view can pass it at large errors, where the bound is wider than the room."
    )
    return _figure(f'<div class="row">{"".join(drawn)}</div>', caption, findings.blind)


def _methods(findings: Findings) -> str:
    def sheet(length: int) -> tables.Sheet:
        groups = findings.of("B1", length)
        caption = (
            f"L = {length}, number of sources and noise power unknown. The recall at the bound is "
            f"{groups[0].figures['implied_recall'].value:.3f} on these scenes; recall / bound compares with it. rms "
            "of hits / bound: root mean square distance of the hits over that of the bound, for sources whose range "
            "bound is below 0.3 of the tolerance."
        )
        return tables.methods_sheet(groups, caption)

    return findings.each(sheet)


def _sweeps(findings: Findings) -> str:
    words = {
        "B4": "F1 over SNR, with 95 % bootstrap intervals. Dashed: the recall at the bound on these scenes.",
        "B5": "Recall over the true range. Range is nearly all of the error, and its bound grows as the square of the "
        "range; the dashed line is the recall at the bound for the tolerance of a hit.",
        "B6": "F1 over azimuth: true sources and estimates of the interval. Dashed: recall at the bound.",
        "B3": "F1 over the number of sources in the scene. Dashed: recall at the bound.",
    }
    return "".join(
        _figure(charts.sweep_charts(findings.groups, benchmark, findings.snapshots), text, findings.blind)
        for benchmark, text in words.items()
    )


def _map(findings: Findings) -> str:
    rows = findings.of("B9", variable="sources")
    if not rows:
        return ""
    labels = list(dict.fromkeys(g.label for g in rows))
    scenes = int(rows[0].figures["scenes"].value)
    parts = []
    for length in findings.snapshots:
        text = f"L = {length}: F1 at fixed number of sources and SNR, {scenes} scenes a cell; recall at the bound."
        parts.append(_figure(charts.map_charts(rows, length), text))
    text = "F1 of scenes with two sources over SNR, from the map. Dashed: recall at the bound."
    parts.append(_figure(charts.map_by_snr(rows, findings.snapshots), text, labels))
    caption = (
        "Median position error of all pairs of estimates and true sources, hits or not, at 10 dB. Dashed: the median "
        "of Gaussian errors as large as the bound of these scenes."
    )
    parts.append(_figure(charts.map_errors(rows, findings.snapshots, findings.collected), caption, labels))
    return "".join(parts)


def _oracles(findings: Findings) -> str:
    if not findings.of("B7"):
        return ""
    parts = []
    for length in findings.snapshots:
        told = findings.of("B2", length)
        scenes = int(told[0].figures["scenes"].value)
        caption = (
            f"L = {length}, the first {scenes} scenes: every method blind, and told the number of sources. Told K, "
            "precision and recall are the same wherever a method reports exactly K."
        )
        parts.append(f"<h3>{length} snapshots: told the number of sources</h3>")
        parts.append(tables.methods_sheet(told, caption, knowledge=True).html())
        parts.append(
            f"<h3>{length} snapshots: told more and more</h3>{tables.oracle_sheet(findings.groups, length).html()}"
        )
    return "".join(parts)


def _ablation(findings: Findings) -> str:
    if not findings.of("ablation"):
        return ""
    return findings.each(partial(tables.ablation_sheet, findings.groups, findings.rows["timing"]))


def _robustness(findings: Findings) -> str:
    if not findings.of("robustness"):
        return ""
    return findings.each(partial(tables.robustness_sheet, findings.groups, findings.sets, findings.rows["mismatch"]))


def _spectra(findings: Findings) -> str:
    label = findings.blind[0]
    parts = []
    for length in findings.snapshots:
        views = "".join(
            charts.spectrum_view(scene, findings.collected, findings.config, findings.methods)
            for scene in charts.typical_scenes(findings.collected, length, label)
        )
        whose = "the localizer's backbone" if label.startswith("localizer") else "ridge least squares"
        caption = (
            f"L = {length}. Capon spectrum of the covariance of {whose}, maximum over the range planes, in dB below "
            f"its peak. Black circles: true sources with their ranges. Red crosses: those of the {title_of(label)}. "
            "Best, median and worst of all scenes by GOSPA."
        )
        parts.append(_figure(f'<div class="row triple">{views}</div>', caption))
    return "".join(parts)


def latex_tables(findings: Findings) -> dict[str, str]:
    """Tables for a paper, by file name."""
    found, rows = {}, findings.rows
    for length in findings.snapshots:
        found[f"headline-L{length}.tex"] = tables.headline_sheet(rows["headline"], length, paper=True).latex()
        caption = f"All scenes, number of sources unknown, L = {length}."
        found[f"methods-L{length}.tex"] = tables.methods_sheet(findings.of("B1", length), caption, paper=True).latex()
        if findings.of("robustness", length):
            sheet = tables.robustness_sheet(findings.groups, findings.sets, rows["mismatch"], length, paper=True)
            found[f"robustness-L{length}.tex"] = sheet.latex()
    return found


def _latex(findings: Findings) -> str:
    return "".join(
        f"<details><summary>{name}</summary><pre>{html.escape(text)}</pre></details>"
        for name, text in latex_tables(findings).items()
    )


def _gate_text(gate: Tolerance) -> str:
    both = (("azimuth", gate.azimuth_rad), ("elevation", gate.elevation_rad))
    angles = [f"{math.degrees(value):.3g}° in {name}" for name, value in both]
    if math.isinf(gate.range_m):
        return f"{angles[0]} and {angles[1]}, whatever the range"
    return f"{angles[0]}, {angles[1]} and {gate.range_m:.3g} m in range"


def _scenes_text(system: SystemConfig) -> str:
    snr, counts, ranges = system.snr_db, system.n_sources, system.range_m
    power = "equal power" if system.gain == "equal" else "power falling as 1/r²"
    bits = "continuous" if system.code_bits is None else f"{system.code_bits}-bit"
    text = (
        f"SNR uniform {snr[0]:g} … {snr[1]:g} dB, {counts[0]} to {counts[1]} sources of {power}, range uniform "
        f"{ranges[0]:g} … {ranges[1]:g} m"
    )
    if system.sampling == "surface":
        text += f", Rician channel, {bits} codes ({', '.join(system.code_kinds)})"
    return text.replace("-", "\u2212", 1) if snr[0] < 0 else text


def _about(findings: Findings) -> str:
    environment, setup = findings.made_by["environment"], findings.methods.setup
    facts = {
        "command": f"<code>{html.escape(findings.made_by['command'])}</code>",
        "seed": str(findings.config.seed),
        "versions": f"risfast {environment['risfast']}, torch {environment['torch']}, Python {environment['python']}",
        "processor": f"{html.escape(str(environment['processor']))}, one thread a process",
        "scenes": _scenes_text(findings.config.nominal(findings.methods)),
        "hit": f"within {_gate_text(setup.tolerance)}, after the assignment with the least total distance (Hungarian)",
        "setup": f"<code>{html.escape(json.dumps(setup.to_json()))}</code>",
        "options": f"<code>{html.escape(json.dumps(as_table(findings.methods.localizer.options)))}</code>",
        "F1": "harmonic mean of precision and recall over all sources and estimates of the set",
        "recall at the bound": "mean over the true sources of the chance that a Gaussian error with the covariance of "
        "the stochastic Cramér-Rao bound is a hit; a reference, not a strict ceiling",
        "intervals": "95 % percentile bootstrap over scenes; differences resample both methods together",
        "GOSPA": "root mean square of the generalised optimal sub-pattern assignment metric, p = 2, cut-off "
        "twice the tolerance of range (2 m where range is not scored)",
    }
    rows = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in facts.items())
    return f'<div class="card"><dl>{rows}</dl></div>'
