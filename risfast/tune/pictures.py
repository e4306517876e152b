"""Pictures of a study: what mattered, how it went, where good trials lie, and accuracy against time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from risfast.report.plots import COLOURS, new_figure, save_figure
from risfast.tune.jobs import slot_trials
from risfast.tune.space import Choice, Float, Parameter, study_space
from risfast.tune.storage import quiet
from risfast.tune.study import OpenStudy, finished_trials

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

(_BLUE, _ORANGE, *_), _GREY = COLOURS, "#999999"
_BEHIND = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}  # so that lines do not cross text
_LEAST_FOR_IMPORTANCE = 8


def draw_study(opened: OpenStudy, folder: Path) -> dict[str, Path]:
    """Draw what can be drawn of a study."""
    trials = finished_trials(opened)
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "importance": _importance(opened, trials),
        "history": _history(opened),
        "parallel": _parallel(trials, study_space(opened.config)),
        "pareto": _pareto(trials, opened.config.what),
    }
    drawn = {folder / f"{name}.png": figure for name, figure in figures.items() if figure is not None}
    for path, figure in drawn.items():
        save_figure(figure, path)
    return {path.stem: path for path in drawn}


def _new(width: float, height: float) -> tuple[Figure, Axes]:
    figure = new_figure(width, height)
    axes = figure.subplots()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _importance(opened: OpenStudy, trials: Sequence[FrozenTrial]) -> Figure | None:
    """Share of the value's variation that each parameter explains (PED-ANOVA, Watanabe et al., IJCAI 2023)."""
    if len(trials) < _LEAST_FOR_IMPORTANCE or len({t.value for t in trials}) < 2:
        return None
    with quiet():
        found = optuna.importance.get_param_importances(opened.study)
    names = list(found)[::-1]
    figure, axes = _new(6.5, 1.0 + 0.3 * len(names))
    axes.barh(names, [found[name] for name in names], color=_BLUE, height=0.7)
    axes.set_title("importance of the parameters", fontsize=10, loc="left")
    axes.set_xlabel("share of the variation between good and other trials")
    return figure


def _history(opened: OpenStudy) -> Figure:
    trials = sorted(slot_trials(opened.study.get_trials(deepcopy=False)).values(), key=lambda t: t.number)
    done = [t for t in trials if t.state == TrialState.COMPLETE and t.value is not None]
    pruned = [t for t in trials if t.state == TrialState.PRUNED and t.value is not None]
    figure, axes = _new(6.5, 3.6)
    values = np.array([t.value for t in done], dtype=float)
    best = np.minimum.accumulate(values)
    axes.plot([t.number for t in done], values, ".", color=_BLUE, label="finished")
    if pruned:
        given_up = [float(t.value or 0.0) for t in pruned]
        axes.plot([t.number for t in pruned], given_up, "x", color=_GREY, label="pruned", markersize=5)
    axes.step([t.number for t in done], best, where="post", color=_ORANGE, label="best so far")
    low, high = float(values.min()), float(np.quantile(values, 0.9) + 2 * np.ptp(np.quantile(values, [0.1, 0.9])))
    if values.max() > high > low:  # a few failures would press everything else flat
        axes.set_ylim(low - 0.05 * (high - low), high)
    axes.set_title(f"history of {opened.config.name}", fontsize=10, loc="left")
    axes.set_xlabel("trial")
    axes.set_ylabel(opened.config.objective if opened.config.what == "training" else "mvdr_final")
    axes.legend(frameon=False, fontsize=8)
    axes.grid(color="#dddddd", linewidth=0.6)
    return figure


def _parallel(trials: Sequence[FrozenTrial], space: dict[str, Parameter]) -> Figure:
    """One line a trial, over axes that each run from the lowest to the highest value of a parameter."""
    from matplotlib import colormaps  # noqa: PLC0415  (only when a picture is drawn)
    from matplotlib.cm import ScalarMappable  # noqa: PLC0415
    from matplotlib.colors import Normalize  # noqa: PLC0415

    names = [name for name in space if all(name in t.params for t in trials)]
    values = np.array([t.value for t in trials])
    shade = Normalize(float(values.min()), float(max(np.quantile(values, 0.9), values.min() + 1e-12)))
    colours = colormaps["viridis_r"]
    figure, axes = _new(max(6.5, 1.15 * len(names)), 4.4)
    for trial, value in list(zip(trials, values, strict=True))[::-1]:  # the best on top
        heights = [_height(space[name], trial.params[name]) for name in names]
        axes.plot(range(len(names)), heights, color=colours(shade(value)), linewidth=0.8, alpha=0.7)
    for index, name in enumerate(names):
        axes.axvline(index, color="#444444", linewidth=0.8)
        for place, text in _marks(space[name]):
            axes.annotate(
                text, (index, place), xytext=(3, 0), textcoords="offset points", fontsize=7, va="center", bbox=_BEHIND
            )
    labels = [name.replace(".", ".\n") for name in names]
    axes.set_xticks(range(len(names)), labels, fontsize=7, rotation=0)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_title("finished trials, the best on top", fontsize=10, loc="left")
    figure.colorbar(ScalarMappable(shade, colours), ax=axes, label="value, lower is better", fraction=0.03)
    return figure


def _height(parameter: Parameter, value: Any) -> float:
    """Where a value stands on its axis, 0 at the bottom and 1 at the top."""
    if isinstance(parameter, Choice):
        return parameter.values.index(value) / max(len(parameter.values) - 1, 1)
    if isinstance(parameter, Float) and parameter.log:
        return math.log(value / parameter.low) / math.log(parameter.high / parameter.low)
    return (value - parameter.low) / max(parameter.high - parameter.low, 1e-300)


def _marks(parameter: Parameter) -> list[tuple[float, str]]:
    if isinstance(parameter, Choice):
        return [(_height(parameter, v), f"{v:g}" if isinstance(v, float) else str(v)) for v in parameter.values]
    return [(0.0, f"{parameter.low:.3g}"), (1.0, f"{parameter.high:.3g}")]


def _pareto(trials: Sequence[FrozenTrial], what: str) -> Figure | None:
    """Value against the time of production where it was measured, of the trial elsewhere."""
    timed = all("seconds_per_scene" in t.user_attrs for t in trials)
    if not timed and what == "detection":
        return None
    key = "seconds_per_scene" if timed else "seconds"
    factor, unit = (1e3, "time of the localizer, ms a scene") if timed else (1.0, "time of the trial, s")
    known = [t for t in trials if key in t.user_attrs]
    time = np.array([t.user_attrs[key] for t in known]) * factor
    value = np.array([t.value for t in known])
    front = [i for i in np.argsort(time, kind="stable") if not np.any((time <= time[i]) & (value < value[i]))]
    figure, axes = _new(6.5, 3.8)
    axes.plot(time, value, ".", color=_BLUE, alpha=0.7, label="trial")
    axes.step(time[front], value[front], where="post", color=_ORANGE, marker="o", markersize=4, label="Pareto front")
    axes.set_xlabel(unit)
    axes.set_ylabel("value, lower is better")
    axes.set_title("accuracy against time", fontsize=10, loc="left")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.legend(frameon=False, fontsize=8)
    return figure
