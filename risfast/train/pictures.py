"""Pictures of a run: its curves, and what the trained model finds in a scene."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from risfast.localize import pipeline
from risfast.localize.pipeline import PipelineOptions
from risfast.models.base import CovarianceEstimate
from risfast.report.plots import COLOURS, SpectrumPanel, new_figure, save_figure, spectrum_figure
from risfast.setup import Setup
from risfast.simulate.scenes import Scenes
from risfast.sources import Sources


def draw_curves(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Loss, NMSE and F1 over the scenes seen."""
    checks = [line for line in lines if line["kind"] == "validation"]
    # A refiner leaves the covariance as it is: then there is no panel for it.
    covariance = any("nmse_mean" in figures for line in checks for figures in line["sets"].values())
    figure = new_figure(11.0 if covariance else 7.5, 3.4)
    loss, *middle, f1 = figure.subplots(1, 3 if covariance else 2)
    steps = [line for line in lines if line["kind"] == "train" and line.get("loss") is not None]
    loss.plot([s["scenes"] for s in steps], [s["loss"] for s in steps], color=COLOURS[4], linewidth=1)
    names = list(dict.fromkeys(name for line in checks for name in line["sets"]))
    for index, name in enumerate(names):
        colour = COLOURS[index % len(COLOURS)]
        seen = [(line["scenes"], line["sets"][name]) for line in checks if name in line["sets"]]
        x = [scenes for scenes, _ in seen]
        for axes, key, style in (
            *((nmse, key, style) for nmse in middle for key, style in (("nmse_mean", "-"), ("nmse_median", "--"))),
            (f1, "f1", "-"),
            (f1, "own_f1", "--"),
            (f1, "capon_f1", ":"),
        ):
            if any(key in figures for _, figures in seen):
                label = f"{name} {key.replace('_', ' ')}"
                axes.plot(x, [figures.get(key) for _, figures in seen], style, color=colour, marker=".", label=label)
    titles = ["training loss", *("NMSE of the covariance" for _ in middle), "F1"]
    for axes, title in zip((loss, *middle, f1), titles, strict=True):
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("scenes")
        axes.grid(color="#dddddd", linewidth=0.6)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, frameon=False)
    for nmse in middle:
        nmse.set_yscale("log")
    save_figure(figure, path)


def draw_localisation(
    scenes: Scenes,
    estimate: CovarianceEstimate,
    found: Sequence[Sources],
    setup: Setup,
    options: PipelineOptions,
    path: Path,
) -> None:
    """Capon maps of the first scenes, one below the other, each with its true and its found sources."""
    # One figure shows one truth, so each scene is drawn into a file of its own name.
    measurement = pipeline.measure(scenes, options)
    spectrum, grid = pipeline.spectrum(pipeline.effective(estimate, measurement, options), setup, options)
    for index, sources in enumerate(found):
        title = f"{len(sources)} found of {int(scenes.n_sources[index])}, SNR {float(scenes.snr_db[index]):.0f} dB"
        panel = SpectrumPanel(title, spectrum.power[index], sources.position)
        true = scenes.position[index][scenes.mask[index]]
        figure = spectrum_figure([panel], grid.azimuth_rad, grid.elevation_rad, true)
        save_figure(figure, path if index == 0 else path.with_name(f"{path.stem}-{index + 1}{path.suffix}"))
