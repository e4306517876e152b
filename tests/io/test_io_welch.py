"""Narrowband covariances against scipy's own Welch estimate."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal

from risfast.errors import FileFormatError
from risfast.io import Snapshots, narrowband_covariance
from risfast.io import welch as module

RATE = 1000.0


def by_scipy(values, block_size, overlap, window, frequency):
    """R_ij = <X_i X_j^*>; scipy.signal.csd(x, y) is <X^* Y>."""
    n = values.shape[1]
    both = bool(np.iscomplexobj(values))
    expected = np.empty((n, n), complex)
    for i in range(n):
        for j in range(n):
            axis, spectrum = scipy.signal.csd(
                values[:, j],
                values[:, i],
                fs=RATE,
                window=window,
                nperseg=block_size,
                noverlap=int(block_size * overlap),
                detrend=False,
                scaling="spectrum",
                return_onesided=not both,
            )
            expected[i, j] = spectrum[np.abs(axis - frequency).argmin()]
    return expected


@pytest.mark.parametrize("frequency", [0.0, 125.0, 230.0, 500.0])
@pytest.mark.parametrize(
    ("block_size", "overlap", "window"), [(64, 0.5, "hann"), (50, 0.0, "boxcar"), (32, 0.75, "hamming")]
)
def test_real_samples_as_scipy(frequency, block_size, overlap, window):
    values = np.random.default_rng(2).normal(size=(777, 3))
    matrix, actual, _ = narrowband_covariance(
        Snapshots.of(values), RATE, frequency, block_size=block_size, overlap=overlap, window=window
    )
    expected = by_scipy(values, block_size, overlap, window, actual)
    np.testing.assert_allclose(matrix, expected, rtol=1e-10, atol=1e-13)
    assert abs(actual - frequency) <= RATE / block_size / 2


@pytest.mark.parametrize("frequency", [-250.0, 0.0, 125.0])
def test_complex_samples_as_scipy(frequency):
    rng = np.random.default_rng(3)
    values = rng.normal(size=(500, 3)) + 1j * rng.normal(size=(500, 3))
    matrix, actual, _ = narrowband_covariance(Snapshots.of(values), RATE, frequency, block_size=64)
    np.testing.assert_allclose(matrix, by_scipy(values, 64, 0.5, "hann", actual), rtol=1e-10, atol=1e-13)


def test_the_result_does_not_depend_on_the_blocks_of_the_file(monkeypatch):
    values = np.random.default_rng(4).normal(size=(1003, 2))
    whole, _, count = narrowband_covariance(Snapshots.of(values), RATE, 100.0, block_size=32)
    monkeypatch.setattr(module, "_BLOCK_BYTES", 1)
    parts, _, same = narrowband_covariance(Snapshots.of(values), RATE, 100.0, block_size=32)
    assert count == same == (1003 - 32) // 16 + 1
    np.testing.assert_allclose(parts, whole, rtol=1e-12)


def test_a_sine_has_the_power_of_its_amplitude_and_a_later_arrival_the_smaller_phase():
    time = np.arange(4096) / RATE
    delay = 0.7e-3
    values = 3 * np.stack([np.cos(2 * np.pi * 125 * time), np.cos(2 * np.pi * 125 * (time - delay))], 1)
    matrix, _, _ = narrowband_covariance(Snapshots.of(values), RATE, 125.0, block_size=64)
    np.testing.assert_allclose(matrix.diagonal().real, [4.5, 4.5], rtol=1e-10)
    np.testing.assert_allclose(np.angle(matrix[1, 0].numpy()), -2 * np.pi * 125 * delay, rtol=1e-10)


def test_what_cannot_be_is_refused():
    values = Snapshots.of(np.zeros((100, 2)))
    for options, message in (({"block_size": 1}, "block_size"), ({"overlap": 1.0}, "overlap")):
        with pytest.raises(ValueError, match=message):
            narrowband_covariance(values, RATE, 100.0, **{"block_size": 32, **options})
    for frequency in (-1.0, 501.0):
        with pytest.raises(ValueError, match="frequency_hz must lie within"):
            narrowband_covariance(values, RATE, frequency, block_size=32)
    with pytest.raises(FileFormatError, match="100 samples, fewer than one segment"):
        narrowband_covariance(values, RATE, 100.0)
