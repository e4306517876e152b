"""Calibration errors against sums by hand, and against what chance alone makes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from risfast.evaluate.calibration import calibration


def test_error_is_the_mean_gap_over_bins_of_equal_mass() -> None:
    probability = np.array([0.9, 0.1, 0.2, 0.8])
    outcome = np.array([True, False, True, True])
    found = calibration(probability, outcome, bins=2)
    # Bins (0.1, 0.2) and (0.8, 0.9): they say 0.15 and 0.85, and 0.5 and 1 came.
    assert found.error == pytest.approx((0.35 + 0.15) / 2)
    assert (found.said, found.right) == pytest.approx((0.5, 0.75))


def test_what_is_drawn_as_it_says_is_as_good_as_a_perfect_one_and_what_boasts_is_not() -> None:
    rng = np.random.default_rng(1)
    probability = rng.random(3000)
    outcome = rng.random(3000) < probability
    honest = calibration(probability, outcome)
    assert honest.error < 1.5 * honest.perfect
    boasting = calibration(np.sqrt(probability), outcome)
    assert boasting.error > 0.1 > 3 * boasting.perfect
    # A thousand probabilities that are mostly large, as those of a count are.
    few = calibration(rng.beta(8, 1, 1000), np.ones(1000, dtype=bool))
    assert 0.015 < few.perfect < 0.035


def test_nothing_has_no_calibration_and_fewer_than_bins_have_one_each() -> None:
    assert all(math.isnan(v) for v in calibration(np.zeros(0), np.zeros(0, dtype=bool)))
    assert calibration(np.array([0.25]), np.array([True])).error == pytest.approx(0.75)
