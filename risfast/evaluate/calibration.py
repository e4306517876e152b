"""How far probabilities are from what they say: of sources to be hits, and of numbers of sources to be right."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from risfast.evaluate.matching import Array

_BINS = 10
_DRAWS = 200


class Calibration(NamedTuple):
    """The calibration error of some probabilities, and what to compare it with."""

    said: float  # Mean probability
    right: float  # Share of the outcomes that came
    error: float  # Mean distance of the two over bins of as many probabilities each
    perfect: float  # Mean error of outcomes that come as often as the probabilities say


def calibration(probability: Array, outcome: Array, bins: int = _BINS, seed: int = 0) -> Calibration:
    """Expected calibration error over bins of equal mass.

    probability (S,), outcome (S,) bool -> NaN without any
    """
    # M. P. Naeini, G. F. Cooper and M. Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning",
    # AAAI 2015. Chance alone makes an error that shrinks with the root of the number in a bin: ``perfect`` says which.
    if not len(probability):
        return Calibration(np.nan, np.nan, np.nan, np.nan)
    order = np.argsort(probability, kind="stable")
    edges = np.linspace(0, len(order), min(bins, len(order)) + 1).astype(int)
    sorted_probability = probability[order]

    def error(outcomes: Array) -> Array:  # (..., S)
        gaps = np.add.reduceat(outcomes - sorted_probability, edges[:-1], axis=-1)
        return np.abs(gaps).sum(-1) / len(order)

    drawn = np.random.default_rng(seed).random((_DRAWS, len(order))) < sorted_probability
    said, right = float(probability.mean()), float(outcome.mean())
    return Calibration(
        said, right, float(error(outcome[order].astype(float))), float(error(drawn.astype(float)).mean())
    )
