"""The live loop: every frame in order, or the newest ones, and what is said of the others."""

from __future__ import annotations

import math
import threading
import time

import pytest
import torch

from risfast import DetectionOptions, PlanarArray, SearchGrid, Setup, Sources
from risfast.errors import ShapeError
from risfast.localize import ForgettingDetector, LiveLoop
from risfast.steering import steering_vectors

SETUP = Setup(PlanarArray.rectangular(4, 4), sampling="direct", wavefront="planar")
GRID = SearchGrid.box(21, 11, (10.0,), math.radians(50), math.radians(25))


def nothing(frame):
    return Sources.empty()


def slow(frame):
    time.sleep(0.05)
    return Sources.empty()


def test_a_source_that_can_wait_loses_no_frame():
    results = list(LiveLoop(nothing, drop="none").run(range(50)))
    assert [result.frame for result in results] == list(range(50))
    assert all(result.dropped == 0 for result in results)
    assert all(0 <= result.seconds <= result.latency_s for result in results)


@pytest.mark.parametrize("waiting", [1, 3])
def test_frames_that_come_too_fast_are_left_out_and_counted_and_results_are_not_late(waiting):
    def source():
        for number in range(100):
            time.sleep(0.005)
            yield number

    results = list(LiveLoop(slow, waiting=waiting).run(source()))
    frames = [result.frame for result in results]
    assert frames == sorted(frames)
    assert frames[-1] == 99, "the newest frame is always located"
    assert 5 < len(results) < 40
    assert sum(result.dropped for result in results) + len(results) == 100
    longest = max(result.seconds for result in results)
    assert max(result.latency_s for result in results) < (waiting + 1) * longest + 0.05


def test_a_frame_that_cannot_be_located_ends_the_loop_or_is_told():
    def picky(frame):
        if frame == 2:
            raise ValueError("it is bad")
        return Sources.empty()

    with pytest.raises(ValueError, match="frame 2: it is bad"):
        list(LiveLoop(picky, drop="none").run(range(4)))
    results = list(LiveLoop(picky, drop="none", on_error="skip").run(range(4)))
    assert [result.error for result in results] == ["", "", "it is bad", ""]
    assert len(results[2].sources) == 0


@pytest.mark.parametrize("error", [torch.linalg.LinAlgError, ZeroDivisionError, TypeError])
def test_other_errors_of_one_frame_are_told_or_raised_as_they_are(error):
    def picky(frame):
        if frame == 1:
            raise error
        return Sources.empty()

    results = list(LiveLoop(picky, drop="none", on_error="skip").run(range(3)))
    assert [result.error for result in results] == ["", error.__name__, ""]
    with pytest.raises(error) as raised:
        list(LiveLoop(picky, drop="none").run(range(3)))
    assert raised.value.__notes__ == ["frame 1 could not be located"]


def test_where_none_is_left_out_a_result_is_late_by_one_frame_more():
    """One is located, one waits, and one more waits for room: each of the three takes its time before the last."""
    results = list(LiveLoop(slow, drop="none").run(range(8)))
    assert max(result.latency_s for result in results) > 2.5 * 0.05
    assert max(result.latency_s for result in results) < 3 * max(result.seconds for result in results) + 0.2


@pytest.mark.parametrize("frame", [torch.zeros(3, 16), torch.zeros(3, 16, dtype=torch.int64), None])
def test_a_frame_that_holds_no_complex_numbers_is_named(frame):
    with pytest.raises(TypeError, match="frame must be"):
        ForgettingDetector(SETUP)(frame)


def test_an_error_of_the_source_is_raised_behind_its_frames():
    def source():
        yield 1
        raise OSError("unplugged")

    found = []
    with pytest.raises(OSError, match="unplugged"):
        found.extend(LiveLoop(nothing, drop="none").run(source()))
    results = LiveLoop(nothing, drop="none").run(source())
    assert next(results).frame == 0


def test_who_stops_early_leaves_no_thread_behind():
    before = threading.active_count()
    results = LiveLoop(nothing, drop="none").run(iter(range(10**9)))
    next(results)
    results.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


@pytest.mark.parametrize(
    "wrong", [{"waiting": 0}, {"waiting": math.nan}, {"waiting": "2"}, {"drop": "newest"}, {"on_error": "ignore"}]
)
def test_words_are_checked(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        LiveLoop(nothing, **wrong)
    with pytest.raises(ValueError, match="memory must lie"):
        ForgettingDetector(SETUP, memory=1.0)


def snapshots(azimuth, seed):
    generator = torch.Generator().manual_seed(seed)
    angle, far = torch.tensor([azimuth]).double(), torch.tensor([math.inf]).double()
    a = steering_vectors(SETUP.array, angle, 0 * angle, far, wavefront="planar")
    signal = torch.randn(64, 1, dtype=torch.complex64, generator=generator)
    return signal * a + 0.1 * torch.randn(64, 16, dtype=torch.complex64, generator=generator)


def test_a_detector_forgets_where_the_source_was_and_what_it_refused():
    detector = ForgettingDetector(SETUP, 0.5, GRID, DetectionOptions(max_sources=1))
    for seed in range(4):
        first = detector(snapshots(-0.5, seed))
    assert abs(float(first.azimuth[0]) + 0.5) < 0.02
    for bad, error in ((torch.full((64, 16), torch.nan + 0j), ValueError), (torch.zeros(3, 5) + 0j, ShapeError)):
        with pytest.raises(error):
            detector(bad)
    for seed in range(4, 12):
        last = detector(snapshots(0.4, seed))
    assert abs(float(last.azimuth[0]) - 0.4) < 0.02
