"""The judge of the shipped configurations: bounds against float64, and the largest error put on record."""

from __future__ import annotations

import numpy as np
import oracles
import pytest

from tests.machine.outcome import LARGEST_ERROR


class Judge:
    """Compares with float64 and remembers the largest error, relative to the largest entry."""

    def __init__(self) -> None:
        self.largest = 0.0

    def close(self, actual, expected, *, rtol=0.0, atol=0.0):
        """All entries within a bound, which is relative to each entry (rtol) or to the largest (atol)."""
        actual, expected = np.asarray(actual), np.asarray(expected)
        scale = np.abs(expected).max()
        self.largest = max(self.largest, float(np.abs(actual - expected).max() / scale))
        np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol * scale)

    def equal(self, actual, expected):
        """Equal to the bit."""
        np.testing.assert_array_equal(actual, expected)

    def map(self, power, plane, volume, rtol):
        """Power and plane of a map against the volume; where two planes tie within the error, either may win."""
        best, _ = oracles.maximum_over_planes(volume)
        self.close(power, best, rtol=rtol)
        plane = np.asarray(plane)
        assert plane.min() >= 0
        assert plane.max() < volume.shape[-1]
        chosen = np.take_along_axis(volume, plane[..., None].astype(int), -1)[..., 0]
        np.testing.assert_allclose(chosen, best, rtol=2 * rtol)


@pytest.fixture
def judge(record_property):
    """A judge whose largest error is in the log of a test that passes."""
    one = Judge()
    yield one
    record_property(LARGEST_ERROR, one.largest)
