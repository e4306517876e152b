"""What a calibration found, as a table and as a picture."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from risfast.localize import ArrayCalibration
from risfast.report.plots import COLOURS, new_figure
from risfast.setup import Setup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DB = 20 / math.log(10)  # of a log amplitude
_MM = 1e3


def calibration_table(found: ArrayCalibration, before: Setup) -> str:
    """Gain, phase and shift of every element with the standard deviations that the data leave them."""
    moved = _moved_mm(found, before)
    titles = ["element", "gain (dB)", "+-", "phase (deg)", "+-"]
    titles += [] if moved is None else ["x (mm)", "+-", "y (mm)", "+-", "z (mm)", "+-"]
    lines = [" ".join(f"{title:>11}" if title != "+-" else f"{title:>8}" for title in titles)]
    for element, row in enumerate(zip(*_columns(found), strict=True)):
        values = [*row]
        if moved is not None and found.position_deviation_m is not None:
            for shift, deviation in zip(moved[element], found.position_deviation_m[element], strict=True):
                values += [float(shift), _MM * float(deviation)]
        text = (f"{value:11.3f}" if place % 2 == 0 else f"{value:8.3f}" for place, value in enumerate(values))
        lines.append(f"{element:>11} " + " ".join(text))
    return "\n".join(lines)


def calibration_figure(found: ArrayCalibration, before: Setup) -> Figure:
    """Gains, phases and shifts over the elements, with bars of two standard deviations."""
    gain, gain_deviation, phase, phase_deviation = _columns(found)
    rows = [("gain (dB)", [("", gain, gain_deviation)]), ("phase (deg)", [("", phase, phase_deviation)])]
    moved = _moved_mm(found, before)
    if moved is not None and found.position_deviation_m is not None:
        deviations = (_MM * found.position_deviation_m).mT.tolist()
        shifts = zip("xyz", moved.mT.tolist(), deviations, strict=True)
        rows.append(("moved by (mm)", list(shifts)))
    figure = new_figure(8.0, 2.3 * len(rows) + 0.3)
    grid = figure.subplots(len(rows), 1, sharex=True)
    for axes, (title, series) in zip(grid, rows, strict=True):
        for number, (name, values, deviation) in enumerate(series):
            places = [element + 0.15 * (number - (len(series) - 1) / 2) for element in range(len(values))]
            bars = [2 * value for value in deviation]
            look = {"color": COLOURS[number], "ms": 4, "capsize": 2, "linewidth": 1.2}
            axes.errorbar(places, values, bars, fmt="os^"[number], label=name, **look)
        axes.axhline(0, color="#999999", linewidth=0.8, zorder=0)
        axes.set_ylabel(title)
        axes.grid(color="#dddddd", linewidth=0.6)
        if len(series) > 1:
            axes.legend(ncols=3, frameon=False, fontsize=9)
    grid[-1].set_xlabel("element")
    grid[-1].xaxis.get_major_locator().set_params(integer=True)
    grid[0].set_title("bars: two standard deviations (Cramér-Rao bound)", fontsize=10, loc="left")
    return figure


def _columns(found: ArrayCalibration) -> tuple[list[float], ...]:
    """Gains (dB), phases (degrees) and their deviations."""
    phase = found.gains.angle().rad2deg()
    return (
        (_DB * found.gains.abs().log()).tolist(),
        (_DB * found.amplitude_deviation).tolist(),
        phase.tolist(),
        found.phase_deviation_rad.rad2deg().tolist(),
    )


def _moved_mm(found: ArrayCalibration, before: Setup) -> torch.Tensor | None:
    """How far each element stands from where it was, (N, 3); None where positions were not asked for."""
    if found.position_deviation_m is None:
        return None
    return _MM * (found.setup.array.positions_m - before.array.positions_m)
