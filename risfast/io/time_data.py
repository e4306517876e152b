"""From samples in time to the covariances of the narrow bands that were asked for, and what there is to say of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from risfast.errors import FileFormatError
from risfast.io.bands import NARROW, BandRequest, segment_length
from risfast.io.guard import Array, check_held
from risfast.io.inspection import Inspection
from risfast.io.recording import Snapshots
from risfast.io.welch import Welch, narrowband_covariances

_ONE_BLOCK = 256  # of a single frequency


class TimeBands(NamedTuple):
    """Covariances of F bands in order of their frequencies, of the channels' samples in time."""

    covariance: Array  # complex128 (F, N, N)
    frequencies_hz: Array  # (F,)
    effective: float  # independent snapshots that each is worth
    notes: list[str]


class BandReader:
    """Reads samples (L, N) once, in blocks, to covariances; ``centre_hz`` is that of complex baseband.

    ``travel_s`` is the time that a wave takes along the array, 0 where it is not known.
    """

    def __init__(
        self, path: Path, samples: Snapshots, sample_rate_hz: float, travel_s: float, centre_hz: float = 0.0
    ) -> None:
        self._path, self._samples = path, samples
        self._rate, self._travel, self._centre = sample_rate_hz, travel_s, centre_hz

    def read(self, request: BandRequest, block_size: int | None, most_bands: int, names: Sequence[str]) -> TimeBands:
        """The bands that were asked for and have energy; ``names`` are those of the channels."""
        samples, (length, n) = self._samples, self._samples.shape
        block = block_size
        if block is None and request.one:
            block = _ONE_BLOCK
        elif block is None:
            block = segment_length(request, self._rate, self._travel, length, n)
        notes: list[str] = []
        wanted = list(request.points)
        if request.one:
            self._check_phase(wanted[0], block)
        else:
            wanted, notes = self._bins(request, block, most_bands)
        check_held(self._path, "the covariances of all bands", (len(wanted), n, n), 16)
        watcher = Inspection(2 * (length - block) // block + 1, names)
        offsets = [frequency - self._centre for frequency in wanted]
        welch = narrowband_covariances(samples, self._rate, offsets, block_size=block, watcher=watcher)
        frequencies = self._centre + np.array(welch.frequencies_hz)
        kept = self._with_energy(welch, watcher.power, block)
        if len(kept) < len(wanted):
            gone = [f"{f:g}" for f in np.delete(frequencies, kept)]
            notes.append(f"left out, without energy: {', '.join(gone[:8])}{' ...' if len(gone) > 8 else ''} Hz")
        notes += self._how(welch, frequencies[kept], block)
        notes += watcher.notes(frequencies.tolist(), length / self._rate)
        return TimeBands(welch.covariance.numpy()[kept], frequencies[kept], welch.effective, notes)

    def _check_phase(self, frequency: float, block: int) -> None:
        """Refuse a bin of real samples whose values are real: they have no phase."""
        index = round(frequency * block / self._rate)
        if self._samples.dtype.kind != "c" and (index == 0 or 2 * index == block):
            width = self._rate / block
            raise ValueError(
                f"frequency_hz={frequency:g} falls into the bin at {index * width:g} Hz, which has no phase in real "
                f"samples at {self._rate:g} Hz; choose one within {width:g} .. {(block - 1) // 2 * width:g} Hz"
            )

    def _bins(self, request: BandRequest, block: int, most: int) -> tuple[list[float], list[str]]:
        """Centres of the bins that were asked for, in hertz, of those that have a phase and a wavelength."""
        # The ends of the spectrum of real samples are real: they have no phase.
        real = self._samples.dtype.kind != "c"
        index = np.arange(1, (block + 1) // 2) if real else np.arange(-(block // 2), (block + 1) // 2)
        width = self._rate / block
        axis = self._centre + index * width
        axis = axis[axis > 0]
        if not len(axis):
            raise FileFormatError(f"{self._path}: block_size={block} leaves no bins between 0 and half the sample rate")
        (low, high), notes = request.ends, []
        if low < axis[0] - width / 2 or high > axis[-1] + width / 2:
            limits = f"{axis[0]:g} .. {axis[-1]:g} Hz (bins of {width:g} Hz of samples at {self._rate:g} Hz)"
            inside = [pair for pair in request.intervals if pair[1] > axis[0] and pair[0] < axis[-1]]
            if request.points or not inside:
                raise ValueError(f"frequency_hz must lie within {limits}, got {low:g} .. {high:g}")
            notes.append(f"of {low:g} .. {high:g} Hz, what lies within {limits}")
            request = BandRequest(intervals=tuple(inside))
        chosen, more = request.choose(axis, most)
        return axis[chosen].tolist(), notes + more

    def _with_energy(self, welch: Welch, power: float, block: int) -> Array:
        """Indices of the bands whose power is above that of the rounding of the samples."""
        # Rounding of the samples is white noise of about eps^2 / 12 of the power, that of the sums grows with the
        # segment; a Hann window has a noise bandwidth of 1.5 bins.
        rounding = float(np.finfo(self._samples.dtype).eps) ** 2 + block * float(np.finfo(np.float64).eps) ** 2
        level = np.einsum("fnn->fn", welch.covariance.numpy()).real.mean(1)
        kept = np.flatnonzero(level > power * rounding * 3 / block)
        if not len(kept):
            silent = [f"{self._centre + frequency:g}" for frequency in welch.frequencies_hz]
            raise FileFormatError(
                f"{self._samples.source}: the samples have no energy at {', '.join(silent[:8])} Hz"
                f"{' and more' if len(silent) > 8 else ''}; choose another band"
            )
        return kept

    def _how(self, welch: Welch, frequencies: Array, block: int) -> list[str]:
        """What was computed, and how well it fits the array."""
        what = f"covariance by Welch at {frequencies[0]:g} Hz"
        if len(frequencies) > 1:
            span = f"{frequencies[0]:g} to {frequencies[-1]:g} Hz"
            what = f"covariances by Welch in {len(frequencies)} bands from {span}"
        notes = [f"{what}, {welch.segments} segments of {block}, worth {welch.effective:.4g} independent ones"]
        if welch.segments == 1:
            notes.append("one segment only: each covariance is of rank one")
        product = self._rate / block * self._travel
        if product > 2 * NARROW:  # by default it is half of that, where the recording is long enough
            notes.append(
                f"bins of {self._rate / block:.4g} Hz are not narrow: waves take {1e3 * self._travel:.3g} ms across "
                f"the array, and the product is {product:.2g}; longer segments are better where there are enough"
            )
        return notes
