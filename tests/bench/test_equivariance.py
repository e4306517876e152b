"""The measurement of equivariance: a few scenes of it, and its judge."""

from __future__ import annotations

import torch

from bench import equivariance
from bench.equivariance import Difference, compared, differences
from risfast import Localizer, SensorArray
from risfast.simulate import SystemConfig

SYSTEM = SystemConfig(SensorArray.rectangular(5, 4), n_antennas=6, n_snapshots=12, n_sources=(1, 2), snr_db=(10, 20))


def test_units_orders_and_phases_change_no_answer():
    found = list(differences(Localizer.classical(SYSTEM.setup), SYSTEM, 3))
    assert len(found) == 11
    for difference in found:
        assert not difference.wrong, difference.line()
        assert difference.direction_rad < 1e-3


def answer(position, deviation=0.01, confidence=0.9):
    count = len(position)
    at = torch.tensor(position, dtype=torch.float64).view(count, 3)
    return at, torch.full((count, 3), deviation).double(), torch.full((count,), confidence).double()


def test_what_moves_comes_or_goes_is_wrong():
    usual = answer([[0.1, 0.2, 2.0], [0.5, 0.0, 3.0]])
    same = answer([[0.5, 0.0, 3.0], [0.1, 0.2, 2.0]])  # in another order
    assert compared("", [same], [usual], 0.4) == Difference("", 1, 0, 0, 0.0, 0.0, 0.0)
    moved = compared("", [answer([[0.1, 0.2, 2.002], [0.5, 0.0, 3.0]])], [usual], 0.4)
    assert abs(moved.range_relative - 1e-3) < 1e-9
    assert abs(moved.deviations - 0.2) < 1e-6
    assert moved.wrong
    for deviation, wrong in ((0.01, True), (10.0, False)):  # beside what is known of it, nothing
        other = compared("", [answer([[0.1, 0.2001, 2.002]])], [answer([[0.1, 0.2, 2.0]], deviation)], 0.4)
        assert other.wrong == wrong
    fewer = compared("", [answer([[0.1, 0.2, 2.0]])], [usual], 0.4)
    assert (fewer.others, fewer.excused, fewer.wrong) == (1, 0, True)
    beside = compared("", [answer([[0.1, 0.2, 2.0]], confidence=0.4005)], [usual], 0.4)
    assert (beside.others, beside.excused, beside.wrong) == (1, 1, False)
    unknown = compared("", [answer([[0.1, 0.2, float("nan")], [0.5, 0.0, 3.0]])], [usual], 0.4)
    assert unknown.others == 1


def test_the_command_tells_both_localizers(monkeypatch, capsys):
    monkeypatch.setattr(equivariance, "differences", lambda *_: iter([Difference("units", 1, 0, 0, 0.0, 0.0, 0.0)]))
    assert equivariance.main(["--scenes", "1"]) == 0
    told = capsys.readouterr().out
    assert "shipped model" in told
    assert "classical fit" in told
