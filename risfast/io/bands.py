"""Which narrow bands of a recording were asked for, and how long the segments are that tell them apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from risfast.io.guard import Array

MOST_BANDS = 32
_FEWEST_SEGMENTS, _ENOUGH_SEGMENTS = 32, 64
_SHORTEST_SEGMENT = 16
# Bin width times the time that a wave takes across the array, of a wave along it. With a Hann window the covariance of
# one source has a second eigenvalue 19 dB below the first at 0.1, and 31 dB below at 0.025.
NARROW, _VERY_NARROW = 0.1, 0.025
# IEC 61260-1: nominal centres of one decade; the exact ones are 1000 * 10^(k/10) Hz, the edges 10^(1/20) from there.
_NOMINAL = (1.0, 1.25, 1.6, 2.0, 2.5, 3.15, 4.0, 5.0, 6.3, 8.0)


@dataclass(frozen=True)
class BandRequest:
    """Single frequencies, or intervals of them, in hertz."""

    points: tuple[float, ...] = ()
    intervals: tuple[tuple[float, float], ...] = ()
    one: bool = False  # a single number was given

    @classmethod
    def of(cls, frequency_hz: Any, third_octave: Any) -> BandRequest | None:
        """From the options of :func:`risfast.simulate.read`, checked; None where nothing was asked for."""
        if frequency_hz is None and third_octave is None:
            return None
        if third_octave is not None:
            if frequency_hz is not None:
                raise ValueError("give frequency_hz or third_octave, not both")
            centres = _numbers(third_octave, "third_octave")
            return cls(intervals=tuple(third_octave_edges(centre) for centre in sorted(set(centres))))
        numbers = _numbers(frequency_hz, "frequency_hz")
        if isinstance(frequency_hz, tuple):
            if len(numbers) != 2 or not numbers[0] < numbers[1]:
                raise ValueError(
                    f"frequency_hz as a tuple is one band (low, high) with low < high, got {frequency_hz!r}; single "
                    "frequencies are a list"
                )
            return cls(intervals=((numbers[0], numbers[1]),))
        return cls(points=tuple(sorted(set(numbers))), one=np.ndim(frequency_hz) == 0)

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest frequency."""
        every = [*self.points, *(end for interval in self.intervals for end in interval)]
        return min(every), max(every)

    @property
    def resolution_hz(self) -> float:
        """How wide a bin may be at most to tell apart what was asked for."""
        gaps = [high - low for low, high in self.intervals]
        gaps += [high - low for low, high in zip(self.points, self.points[1:], strict=False)]
        return min(gaps, default=math.inf)

    def choose(self, axis: Array, most: int) -> tuple[list[int], list[str]]:
        """Indices into frequencies (F,), increasing, and notes: of an interval at most its share of ``most``.

        A frequency takes the nearest of the axis, and so does an interval that holds none, by its middle.
        """
        chosen, notes = {int(np.abs(axis - point).argmin()) for point in self.points}, []
        if len(chosen) < len(self.points):
            notes.append(f"{len(self.points)} frequencies lie in {len(chosen)} bins")
        share = max(most // max(len(self.intervals), 1), 1)
        for low, high in self.intervals:
            slack = 1e-9 * max(abs(low), abs(high))
            inside = np.flatnonzero((axis >= low - slack) & (axis <= high + slack))
            if not len(inside):
                inside = np.array([np.abs(axis - (low + high) / 2).argmin()])
                notes.append(f"no bin lies within {low:g} .. {high:g} Hz: the one at {axis[inside[0]]:g} Hz is taken")
            elif len(inside) > share:
                notes.append(f"{share} of the {len(inside)} bins within {low:g} .. {high:g} Hz are taken, evenly")
                inside = inside[np.linspace(0, len(inside) - 1, share).round().astype(int)]
            chosen |= {int(index) for index in inside}
        return sorted(chosen), notes


def _numbers(given: Any, name: str) -> list[float]:
    """One or more finite frequencies."""
    try:
        values = np.asarray(given)
        numeric = values.dtype.kind in "iuf" and values.ndim <= 1 and values.size > 0
    except (TypeError, ValueError):  # lists of unequal lengths
        numeric = False
    if not numeric or not np.isfinite(values).all():
        raise ValueError(f"{name} must be a finite number of hertz, or a list of at least one, got {given!r}")
    return [float(value) for value in values.reshape(-1)]


def third_octave_edges(nominal_hz: float) -> tuple[float, float]:
    """Exact edges in hertz of the third-octave band with a nominal centre, such as 1250, in the base-10 system.

    Raises
    ------
    ValueError
        No such band.
    """
    step = round(10 * math.log10(nominal_hz / 1000)) if nominal_hz > 0 else 0
    nominal = _NOMINAL[step % 10] * 10.0 ** (3 + step // 10)
    if not math.isclose(nominal, nominal_hz, rel_tol=1e-9):
        raise ValueError(
            f"third_octave must be nominal centres of IEC 61260 such as 1000, 1250 or 1600, got {nominal_hz:g}"
            + (f"; the nearest is {nominal:g}" if nominal_hz > 0 else "")
        )
    return 1000 * 10 ** ((step - 0.5) / 10), 1000 * 10 ** ((step + 0.5) / 10)


def segment_length(request: BandRequest, sample_rate_hz: float, travel_s: float, length: int, channels: int) -> int:
    """Samples of a segment, a power of two: short enough for many segments, long enough for narrow bins.

    A bin is narrow where its width times the time across the array (``travel_s``) is at most 0.1, better 0.025, and
    resolves what was asked for where it is no wider than that. At least N / 2 (and 32) half-overlapping segments come
    before the first, 4 N (and 64) before the better: fewer snapshots than elements cost the likelihood of many bands
    little, a wave that is not narrow looks like several.
    """

    def power_of_two(narrow: float, segments: int) -> int:
        wanted = 2 ** math.ceil(math.log2(max(narrow, _SHORTEST_SEGMENT)))
        longest = 2 * length / (segments + 1)
        return min(wanted, 2 ** math.floor(math.log2(max(longest, _SHORTEST_SEGMENT))))

    resolved = sample_rate_hz / request.resolution_hz
    narrow = max(sample_rate_hz * travel_s / NARROW, resolved)
    better = max(sample_rate_hz * travel_s / _VERY_NARROW, resolved)
    fewest, enough = max(channels // 2, _FEWEST_SEGMENTS), max(4 * channels, _ENOUGH_SEGMENTS)
    return max(power_of_two(narrow, fewest), power_of_two(better, enough))
