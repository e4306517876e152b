"""The net: answers that are recorded, so that a change says which of them it changes (see tests/net)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from net.answers import GROUPS
from net.comparison import RECORDED, compare, load, report


@pytest.fixture
def one_thread():
    """As they were recorded: more threads add up in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("group", GROUPS)
def test_answers_are_the_recorded_ones(group, one_thread):
    changes = compare(group, load(group), GROUPS[group].answers())
    assert changes[0].excess <= 1, (
        f"{group}: {report(changes)}\n"
        f"If the change is meant, say so in the commit and record it: python -m tests.net.record {group}"
    )


def test_the_record_is_of_these_groups_and_small():
    files = list(RECORDED.iterdir())
    assert sorted(file.name for file in files) == sorted(f"{group}.npz" for group in GROUPS)
    assert sum(file.stat().st_size for file in files) < 1 << 20


def recorded():
    return {
        "case/count": np.array([2, 1, 1]),
        "case/azimuth": np.array([0.1, 0.2, 0.3, np.nan]),
        "case/power": np.array([1.0, 2.0, 3.0, 4.0]),
        "case/noise_power": np.array([1.0, 2.0, 3.0]),
    }


def test_the_same_answers_and_answers_within_the_tolerance_are_no_change():
    close = recorded() | {"case/azimuth": recorded()["case/azimuth"] + 5e-7}
    assert [change.excess for change in compare("classical", recorded(), recorded())] == [0, 0, 0, 0]
    worst, *others = compare("classical", recorded(), close)
    assert worst.key == "case/azimuth"
    assert worst.excess == pytest.approx(0.5)
    assert all(change.excess == 0 for change in others)


def test_a_moved_value_is_told_with_its_scene_and_by_how_much():
    moved = recorded() | {"case/azimuth": np.array([0.1, 0.2, 0.3125, np.nan])}
    worst = compare("classical", recorded(), moved)[0]
    assert worst.excess == pytest.approx(12500)
    assert "1 of 4 values, largest change 0.013 rad (allowed 1e-06), scene 1: 0.3125, recorded 0.3" in worst.text


def test_a_lost_source_is_a_change_of_the_count_and_the_other_scenes_are_still_compared():
    lost = recorded() | {
        "case/count": np.array([1, 1, 1]),
        "case/azimuth": np.array([0.1, 0.3, np.nan]),
        "case/power": np.array([1.0, 3.0, 4.5]),
    }
    changes = {change.key: change for change in compare("classical", recorded(), lost)}
    assert "scene 0: 1, recorded 2" in changes["case/count"].text
    assert changes["case/azimuth"].excess == 0
    assert "scene 2: 4.5, recorded 4" in changes["case/power"].text


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"case/azimuth": np.array([0.1, 0.2, 0.3, 0.4])}, "scene 2: 0.4, recorded nan"),
        ({"case/power": np.array([1.0, 2.0, 3.0, np.inf])}, "scene 2: inf, recorded 4"),
        ({"case/power": np.array([1.0, 2.0, 3.0, 4.0], np.float32)}, "float32 (4,), recorded float64 (4,)"),
        ({"case/noise_power": np.array([1.0, 2.0])}, "float64 (2,), recorded float64 (3,)"),
        ({"case/range": np.zeros(4)}, "is answered and not recorded"),
    ],
)
def test_what_cannot_be_measured_is_a_change_too(change, text):
    worst = compare("classical", recorded(), recorded() | change)[0]
    assert worst.excess == np.inf
    assert text in worst.text


def test_an_answer_that_is_missing_is_a_change():
    answers = recorded()
    del answers["case/power"]
    worst = compare("classical", recorded(), answers)[0]
    assert (worst.key, worst.text) == ("case/power", "is recorded and not answered any more")
