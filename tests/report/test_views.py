"""What sources, spectra and setups show of themselves: pictures and tables of other libraries."""

from __future__ import annotations

import math
import sys
import types

import numpy as np
import pytest
import torch

from risfast import Region, SearchGrid, SensorArray, Setup, Sources
from risfast.ops import Spectrum, mvdr_spectrum

ARRAY = SensorArray.rectangular(4, 3, 0.1, 0.2)
SETUP = Setup(ARRAY, Region((-1.0, 1.0), (-0.5, 0.5), (0.5, 10.0)))
FOUND = Sources.at(torch.tensor([[0.4, 0.1, 1.5], [-0.3, -0.2, math.nan]]).double(), torch.tensor([2.0, 1.0]).double())


def points(axes, label=None):
    """Coordinates of the first line (of that label)."""
    line = next(line for line in axes.lines if label in (None, line.get_label()))
    return np.stack([line.get_xdata(), line.get_ydata()], -1)


@pytest.mark.parametrize("setup", [None, SETUP])
def test_sources_are_drawn_by_direction_and_from_above(setup, tmp_path):
    figure = FOUND.plot(setup)
    directions, above = figure.axes
    np.testing.assert_allclose(points(directions), FOUND.position[:, :2].rad2deg().numpy())
    assert (directions.get_xlabel(), directions.get_ylabel()) == ("azimuth (deg)", "elevation (deg)")
    assert [text.get_text() for text in directions.texts] == ["1.5 m", "range not determined"]
    np.testing.assert_allclose(points(above, "sources"), FOUND.xyz_m[:1, [0, 2]].numpy())
    assert "1 without a range" in above.get_title()
    assert [line.get_label() for line in above.lines] == ["sources"] + ["elements"] * (setup is not None)
    figure.savefig(tmp_path / "sources.png")


@pytest.mark.parametrize("region", [SETUP.region, Region((-0.5, 0.5), (-0.2, 0.2), (0.3, math.inf))])
def test_a_setup_is_drawn_from_the_front_and_from_above(region, tmp_path):
    figure = SETUP.replace(region=region).plot()
    front, above = figure.axes
    np.testing.assert_allclose(points(front), ARRAY.positions_m[:, :2].numpy())
    assert (front.get_xlabel(), above.get_ylabel()) == ("x (m)", "z (m)")
    border = np.linalg.norm(above.patches[0].get_xy(), axis=1)
    assert border.min() == pytest.approx(region.range_m[0])
    if math.isfinite(region.range_m[1]):
        assert border.max() == pytest.approx(region.range_m[1])
    assert ("far field" in above.get_title()) == math.isinf(region.range_m[1])
    figure.savefig(tmp_path / "setup.png")


def test_a_spectrum_draws_the_scene_that_is_asked_for():
    grid = SearchGrid.box(7, 5, (0.6, 1.0, 3.0), 0.5, 0.25)
    eye = torch.eye(12, dtype=torch.complex64)
    spectrum = mvdr_spectrum(torch.stack([eye, eye + 0.5]), ARRAY, grid)
    axes = spectrum.plot(grid, FOUND, scene=1).axes[0]
    assert axes.get_title(loc="left") == "scene 1"
    assert axes.get_xlabel() == "azimuth (deg)"
    single = Spectrum(spectrum.power[0], spectrum.plane[0])
    assert single.plot(grid).axes[0].get_title(loc="left") == ""
    with pytest.raises(ValueError, match="scene must be from 0 to 1, got 2"):
        spectrum.plot(grid, scene=2)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_data_frame_has_a_column_for_each_quantity(monkeypatch, library):
    made = types.ModuleType(library)
    made.DataFrame = dict
    monkeypatch.setitem(sys.modules, library, made)
    made.__spec__ = types.SimpleNamespace(name=library)
    frame = FOUND.to_dataframe(library)
    np.testing.assert_allclose(frame["azimuth_deg"], np.degrees([0.4, -0.3]))
    np.testing.assert_allclose(frame["power_db"], 10 * np.log10([2.0, 1.0]))
    np.testing.assert_array_equal(frame["at_edge"], [False, False])
    assert list(frame) == (
        [
            "azimuth_deg",
            "elevation_deg",
            "range_m",
            "x_m",
            "y_m",
            "z_m",
            "power_db",
            "confidence",
            "prominence_db",
            "at_edge",
        ]
    )
    assert len(Sources.empty().to_dataframe(library)["range_m"]) == 0


def test_a_data_frame_without_a_library_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install pandas"):
        FOUND.to_dataframe()
    with pytest.raises(ValueError, match="pandas or polars"):
        FOUND.to_dataframe("numpy")
