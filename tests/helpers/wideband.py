"""Samples in time of wideband sources near an array: exact delays, by turning the phases of the whole recording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
SPEED = 343.0


def spherical(
    positions: Array,
    places: Sequence[Sequence[float]],
    rate: float,
    length: int,
    *,
    snr_db: float = 20.0,
    seed: int = 0,
    drift_ppm: Mapping[int, float] | None = None,
    envelopes: Array | None = None,
) -> Array:
    """(length, N) of independent white sources of one power at places (x, y, z), and white noise, of RMS 0.1 in all.

    ``drift_ppm`` of channels whose clock is fast, ``envelopes`` (K, length) of the sources. Periodic in ``length``.
    """
    rng = np.random.default_rng(seed)
    frequency = np.fft.rfftfreq(length, 1 / rate)
    moments = np.arange(length) / rate
    received = np.zeros((length, len(positions)))
    for k, place in enumerate(places):
        signal = rng.normal(size=length) * (1.0 if envelopes is None else envelopes[k])
        spectrum = np.fft.rfft(signal)
        for i, position in enumerate(positions):
            distance = float(np.linalg.norm(np.array(place) - position))
            arrived = spectrum * np.exp(-2j * np.pi * frequency * distance / SPEED) / distance
            received[:, i] += at_rate(arrived, moments, rate, (drift_ppm or {}).get(i, 0.0))
    received /= received.std()
    noisy = received + 10 ** (-snr_db / 20) * rng.normal(size=received.shape)
    return 0.1 * noisy / noisy.std()


def at_rate(spectrum: NDArray[np.complex128], moments: Array, rate: float, ppm: float) -> Array:
    """The signal of a spectrum at moments times (1 + ppm / 10^6): twelve terms of its Taylor series from a sample."""
    length = len(moments)
    if ppm == 0:
        return np.fft.irfft(spectrum, length)
    late = moments * ppm * 1e-6 * rate
    whole = np.round(late).astype(int)
    left = (late - whole) / rate
    omega = 2j * np.pi * np.fft.rfftfreq(length, 1 / rate)
    index = (np.arange(length) + whole) % length
    total, factor = np.zeros(length), np.ones(length)
    for order in range(12):
        total += factor * np.fft.irfft(spectrum * omega**order, length)[index]
        factor = factor * left / (order + 1)
    return total
