"""The measurement of sources anywhere: its places, its judge, and a ring, which has neither poles nor ends."""

from __future__ import annotations

import math

import pytest
import torch

from bench import everywhere
from risfast import Setup, Sources


def test_places_cover_the_region_with_its_ends():
    setup = Setup(everywhere.ARRAYS["sphere"], sampling="direct")
    position = everywhere.places(setup, 400)
    assert torch.equal(position, everywhere.places(setup, 400))
    assert bool(setup.region.holds(position).all())
    elevation, azimuth = position[:, 1].abs(), position[:, 0].abs()
    assert int((elevation == math.pi / 2).sum()) > 5
    assert int((azimuth > math.pi - 2e-4).sum()) > 20
    assert 0.2 < float((position[:, 1].abs() < math.radians(30)).double().mean()) < 0.6


def test_a_source_of_a_ring_is_found_once_where_it_is(capsys):
    assert everywhere.main(["ring", "--places", "24"]) == 0
    assert "24 of 24 found once" in capsys.readouterr().out


HARD = {  # degrees and metres
    "sphere": [(50.4862, -88.2811, 1.1456), (112.574, 88.2811, 0.2622), (-30.8261, 88.2811, 0.4803)],
    "plane": [(1.8675, -86.987, 0.3951), (-73.8366, -56.7105, 0.5473), (88.2811, 40.8228, 0.7884)],
}


@pytest.mark.parametrize("name", HARD)
def test_a_source_beside_a_pole_or_the_plane_of_its_array_is_found_once(name, monkeypatch):
    """There a search stays on slopes that are too flat to be seen, and ended in a second detection."""
    position = torch.tensor([[math.radians(az), math.radians(el), r] for az, el, r in HARD[name]]).double()
    monkeypatch.setattr(everywhere, "places", lambda setup, count: position)
    assert everywhere.wrong(name, len(position)) == []


def test_what_is_missed_doubled_or_elsewhere_is_told(monkeypatch, capsys):
    def answered(sources):
        monkeypatch.setattr(everywhere, "detect_sources", lambda covariance, setup, grid: [sources] * len(covariance))
        return everywhere.main(["ring", "--places", "3", "--show", "1"]), capsys.readouterr().out

    away = Sources.at(torch.tensor([[0.0, 1.0, 1.0]]).double(), torch.ones(1).double())
    for sources, told in ((Sources.empty(), "0 detections"), (away, "deg,")):
        status, out = answered(sources)
        assert status == 1
        assert "0 of 3 found once" in out
        assert told in out
    with pytest.raises(SystemExit):
        everywhere.main(["cube"])
