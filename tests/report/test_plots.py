"""Pictures show the data they are given, in the units their labels name."""

from __future__ import annotations

import math
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.collections
import numpy as np
import pytest
import torch

from risfast.errors import ShapeError
from risfast.report.plots import (
    RangeProfile,
    SpectrumPanel,
    direction_figure,
    error_figure,
    range_figure,
    save_figure,
    spectrum_figure,
)

AZIMUTH = torch.tensor([-0.5, 0.0, 0.25, 0.75], dtype=torch.float64)
ELEVATION = torch.tensor([-0.25, 0.0, 0.5], dtype=torch.float64)
POWER = torch.tensor([[1.0, 2.0, 4.0], [8.0, 10.0, 0.5], [0.1, 5.0, 1e-9], [3.0, 6.0, 7.0]])
FOUND = torch.tensor([[0.25, 0.0, 2.5], [-0.5, 0.5, 7.125]], dtype=torch.float64)
TRUE = torch.tensor([[0.0, -0.25, 1.25]], dtype=torch.float64)
RANGE = torch.tensor([0.5, 1.0, 2.0, 5.0, 10.0], dtype=torch.float64)


def collection(axes: Any, label: str) -> Any:
    return next(item for item in axes.collections if item.get_label() == label)


def map_of(axes: Any) -> Any:
    return next(item for item in axes.collections if isinstance(item, matplotlib.collections.QuadMesh))


def texts(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_map_holds_decibels_below_the_maximum_with_azimuth_across() -> None:
    axes = spectrum_figure([SpectrumPanel("a", POWER, FOUND)], AZIMUTH, ELEVATION).axes[0]
    mesh = map_of(axes)
    expected = np.maximum(10 * np.log10(POWER.double().numpy() / 10.0), -40.0)
    np.testing.assert_allclose(np.asarray(mesh.get_array()).reshape(3, 4), expected.T, atol=1e-6)
    corners = mesh.get_coordinates()
    np.testing.assert_allclose(corners[0, :, 0], np.degrees([-0.75, -0.25, 0.125, 0.5, 1.0]))
    np.testing.assert_allclose(corners[:, 0, 1], np.degrees([-0.375, -0.125, 0.25, 0.75]))


@pytest.mark.parametrize("elevation_deg", [-30.0, -28.0, -22.0, 0.0, 23.0, 30.0])
def test_the_two_labels_of_a_source_lie_inside_of_the_map_and_apart(elevation_deg: float) -> None:
    azimuth, elevation = torch.linspace(-1, 1, 21), torch.linspace(-30, 30, 21).deg2rad()
    at = torch.tensor([[0.2, math.radians(elevation_deg), 1.8]])
    figure = spectrum_figure([SpectrumPanel("a", torch.ones(21, 21), at)], azimuth, elevation, at)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 2
    assert not boxes[0].overlaps(boxes[1])
    assert all(axes.bbox.y0 <= box.y0 and box.y1 <= axes.bbox.y1 for box in boxes)


def test_sources_are_marked_at_their_angles_in_degrees_and_labelled_with_their_range() -> None:
    figure = spectrum_figure([SpectrumPanel("a", POWER, FOUND)], AZIMUTH, ELEVATION, TRUE)
    axes = figure.axes[0]
    np.testing.assert_allclose(collection(axes, "found").get_offsets(), np.degrees(FOUND[:, :2].numpy()))
    np.testing.assert_allclose(collection(axes, "true").get_offsets(), np.degrees(TRUE[:, :2].numpy()))
    assert sorted(texts(axes)) == ["1.2 m", "2.5 m", "7.1 m"]
    assert sorted(text.get_text() for text in figure.legends[0].get_texts()) == ["found", "true"]


def test_without_the_truth_only_the_found_sources_are_drawn() -> None:
    axes = spectrum_figure([SpectrumPanel("a", POWER, FOUND)], AZIMUTH, ELEVATION).axes[0]
    assert texts(axes) == ["2.5 m", "7.1 m"]
    assert "true" not in [item.get_label() for item in axes.collections]


@pytest.mark.parametrize("n_panels", [1, 2, 3])
def test_all_maps_have_one_scale_and_every_axis_its_unit(n_panels: int) -> None:
    panels = [SpectrumPanel(f"map {i}", POWER ** (i + 1), FOUND[:i]) for i in range(n_panels)]
    figure = spectrum_figure(panels, AZIMUTH, ELEVATION)
    maps, bars = figure.axes[:n_panels], figure.axes[n_panels:]
    assert [axes.get_title(loc="left") for axes in maps] == [panel.title for panel in panels]
    assert all(axes.get_ylabel() == "elevation (deg)" for axes in maps)
    assert maps[-1].get_xlabel() == "azimuth (deg)"
    assert [bar.get_ylabel() for bar in bars] == ["power re maximum (dB)"]
    assert len({map_of(axes).get_clim() for axes in maps}) == 1


@pytest.mark.parametrize("power", [torch.zeros(4, 3), torch.full((4, 3), 2.0)])
def test_flat_and_dark_maps_are_drawn(power: torch.Tensor, tmp_path: Path) -> None:
    save_figure(
        spectrum_figure([SpectrumPanel("a", power, FOUND[:0])], AZIMUTH, ELEVATION, TRUE[:0]), tmp_path / "a.png"
    )
    assert (tmp_path / "a.png").stat().st_size > 1000


@pytest.mark.parametrize(("n_azimuth", "n_elevation"), [(1, 1), (1, 3), (4, 1)])
def test_maps_along_one_line_are_drawn_with_visible_cells(n_azimuth: int, n_elevation: int, tmp_path: Path) -> None:
    panel = SpectrumPanel("a", POWER[:n_azimuth, :n_elevation], FOUND)
    figure = spectrum_figure([panel], AZIMUTH[:n_azimuth], ELEVATION[:n_elevation])
    save_figure(figure, tmp_path / "a.png")
    corners = map_of(figure.axes[0]).get_coordinates()
    assert (np.diff(corners[0, :, 0]) > 0.1).all()
    assert (np.diff(corners[:, 0, 1]) > 0.1).all()


def test_maps_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"power of 'a' must have shape \(4, 3\), got \(3, 4\)"):
        spectrum_figure([SpectrumPanel("a", POWER.T, FOUND)], AZIMUTH, ELEVATION)
    with pytest.raises(ShapeError, match="at least one map"):
        spectrum_figure([], AZIMUTH, ELEVATION)


def profile() -> RangeProfile:
    power = {"one": torch.tensor([1.0, 10.0, 100.0, 10.0, 1e-3]), "two": torch.tensor([4.0, 4.0, 8.0, 2.0, 1.0])}
    return RangeProfile("here", power, {"one": [2.0], "two": [1.0, 10.0]}, 2.0)


def test_range_profiles_are_decibels_over_metres_with_the_found_ranges_on_the_curve() -> None:
    axes = range_figure([profile()], RANGE).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    np.testing.assert_allclose(lines["one"].get_xdata(), RANGE.numpy())
    np.testing.assert_allclose(lines["one"].get_ydata(), [-20, -10, 0, -10, -40], atol=1e-6)
    np.testing.assert_allclose(lines["two"].get_ydata(), 10 * np.log10([0.5, 0.5, 1, 0.25, 0.125]), atol=1e-6)
    np.testing.assert_allclose(lines["true range"].get_xdata(), [2.0, 2.0])
    np.testing.assert_allclose(lines["_found by one"].get_xdata(), [2.0])
    np.testing.assert_allclose(lines["_found by two"].get_xdata(), [1.0, 10.0])
    np.testing.assert_allclose(lines["_found by two"].get_ydata(), 10 * np.log10([0.5, 0.125]), atol=1e-6)
    assert axes.get_xlabel() == "range (m)"
    assert axes.get_ylabel().endswith("(dB)")


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_profile_has_a_panel_of_its_own_that_the_legend_leaves_room(count: int, tmp_path: Path) -> None:
    curves = {name: torch.rand(5) for name in ("true covariance", "LS sample", "ALS sample")}
    figure = range_figure([RangeProfile("azimuth -56°, elevation -18°, range 5.3 m", curves, {}, 5.3)] * count, RANGE)
    save_figure(figure, tmp_path / "range.png")
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert len(panels) == count
    width, height = figure.get_size_inches()
    for axes in panels:
        assert axes.get_position().width * width > 2.5
        assert axes.get_position().height * height > 1.5
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= 0
    assert legend.x1 <= figure.bbox.x1


def test_profiles_of_the_wrong_length_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"power of 'one' must have shape \(4,\), got \(5,\)"):
        range_figure([profile()], RANGE[:4])
    with pytest.raises(ShapeError, match="at least one profile"):
        range_figure([], RANGE)


def share_within(line: Any, distance: float) -> float:
    """What a step curve says at a distance."""
    x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    return float(y[np.flatnonzero(x <= distance)[-1]])


def test_error_curve_is_the_share_of_all_sources_and_misses_keep_it_down() -> None:
    rng = np.random.default_rng(0)
    errors = np.concatenate([rng.uniform(0.01, 3.0, 37), np.full(13, np.inf)])
    axes = error_figure({"method": errors}).axes[0]
    line = axes.lines[0]
    for distance in (0.005, 0.3, 1.0, 2.9, 10.0):
        assert share_within(line, distance) == pytest.approx(np.sum(errors <= distance) / 50)
    assert axes.get_xlabel() == "position error (m)"


@pytest.mark.parametrize("errors", [[], [np.inf, np.inf], [0.0], [1e-9, 50.0]])
def test_error_curves_without_hits_and_beyond_the_axis_are_drawn(errors: list[float], tmp_path: Path) -> None:
    figure = error_figure({"method": errors, "other": [0.5]})
    save_figure(figure, tmp_path / "errors.png")
    within_axis = sum(error <= 10 for error in errors) / max(len(errors), 1)
    assert share_within(figure.axes[0].lines[0], 10.0) == pytest.approx(within_axis)


def test_saved_picture_is_a_png_of_readable_size_and_the_same_every_time(tmp_path: Path) -> None:
    for name in ("a.png", "b.PNG"):
        save_figure(spectrum_figure([SpectrumPanel("a", POWER, FOUND)], AZIMUTH, ELEVATION, TRUE), tmp_path / name)
    content = (tmp_path / "a.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert 800 <= width <= 1600
    assert 300 <= height <= 1600
    assert (tmp_path / "b.PNG").read_bytes() == content


def test_pictures_in_an_unknown_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path must end in \.png, \.pdf, \.svg, got"):
        save_figure(error_figure({"a": [1.0]}), tmp_path / "a.jpg")


def test_neither_importing_nor_drawing_touches_global_plotting_state() -> None:
    program = (
        "import sys, risfast.report.plots as p; assert 'matplotlib' not in sys.modules; "
        "p.error_figure({'a': [1.0]}); assert 'matplotlib.pyplot' not in sys.modules"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_full_circle_is_drawn_as_bearings_and_closes(tmp_path):
    azimuth = torch.linspace(-math.pi, math.pi, 73, dtype=torch.float64)[:-1] + math.pi / 72
    power = (1.001 - (azimuth - 0.5).cos()).reciprocal()[:, None]
    found = torch.tensor([[0.5, 0.0, math.nan], [-3.1, 0.0, 2.5]])
    figure = direction_figure(SpectrumPanel("ring", power, found), azimuth, torch.zeros(1))
    [axes] = figure.axes
    assert axes.name == "polar"
    curve = axes.get_lines()[0]
    turn, level = curve.get_xdata(), curve.get_ydata()
    assert turn[-1] - turn[0] == pytest.approx(2 * math.pi)
    assert level[-1] == level[0]
    assert turn[level.argmax()] == pytest.approx(0.5, abs=math.radians(5))
    assert axes.get_theta_direction() == -1  # clockwise, as a compass
    assert [line.get_xdata()[0] for line in axes.get_lines()[1:]] == pytest.approx([0.5, -3.1])
    labels = [text.get_text() for text in axes.texts]
    assert labels == ["28.6\N{DEGREE SIGN}", "-177.6\N{DEGREE SIGN}, 2.5 m"]
    save_figure(figure, tmp_path / "bearings.png")


def test_a_sphere_is_drawn_as_bearings_and_as_a_map():
    azimuth = torch.linspace(-math.pi, math.pi, 37, dtype=torch.float64)[:-1]
    elevation = torch.linspace(-1.5, 1.5, 9)
    figure = direction_figure(SpectrumPanel("sphere", torch.rand(36, 9), FOUND), azimuth, elevation)
    assert figure.axes[0].name == "polar"
    assert figure.axes[1].get_ylabel() == "elevation (deg)"


@pytest.mark.parametrize("name", ["azimuth", "elevation"])
def test_one_angle_is_drawn_as_a_curve(name):
    axis, none = torch.linspace(-1.0, 1.0, 41, dtype=torch.float64), torch.zeros(1)
    power = (1.01 - (axis - 0.5).cos()).reciprocal()
    position = torch.tensor([[0.5, 0.0, 3.0]]) if name == "azimuth" else torch.tensor([[0.0, 0.5, 3.0]])
    axes_of = (axis, none) if name == "azimuth" else (none, axis)
    shaped = power[:, None] if name == "azimuth" else power[None]
    [axes] = direction_figure(SpectrumPanel("line", shaped, position), *axes_of).axes
    assert axes.get_xlabel() == f"{name} (deg)"
    curve, marks = axes.get_lines()
    np.testing.assert_allclose(curve.get_xdata(), axis.rad2deg(), atol=1e-9)
    np.testing.assert_allclose(marks.get_xdata(), [math.degrees(0.5)], rtol=1e-6)
    assert float(marks.get_ydata()[0]) == pytest.approx(0.0, abs=0.1)


def test_a_map_of_two_angles_stays_a_map():
    axes = direction_figure(SpectrumPanel("a", POWER, FOUND), AZIMUTH, ELEVATION).axes[0]
    assert axes.get_ylabel() == "elevation (deg)"
    with pytest.raises(ShapeError, match="power"):
        direction_figure(SpectrumPanel("a", POWER.T, FOUND), AZIMUTH, ELEVATION)
