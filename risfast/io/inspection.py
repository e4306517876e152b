"""What samples in time say of their own faults, found in the one pass that makes the covariance of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from risfast.io.guard import Array

_OFFSET = 0.1  # of a mean, relative to the RMS
_PILE, _PILE_RATIO = 10, 4  # samples at the very extreme value, and how many times as many as at the next one
_UNEVEN_DB = 30.0
# Clocks: parts of the recording that one phase each is taken of, the segments in one, and the stretches that a straight
# line is fitted to.
_MOST_PARTS, _PART_SEGMENTS, _STRETCHES = 512, 4, 16
_MOST_NUMBERS = 1 << 22  # of parts, bands and channels
_COHERENT = 0.8  # mean magnitude of a part's coherence; of independent channels, four segments give 0.5
_STEADY = 0.97  # R^2 of the straight line; a step in the middle of the recording reaches 0.75
_LEAST_TURN_RAD = 0.2


class Inspection:
    """Gathers what is needed while a recording of N channels is read in blocks, and says what it shows.

    Parameters
    ----------
    segments : int
        How many segments of Welch's method there will be.
    names : sequence of str
        Of the channels.
    """

    def __init__(self, segments: int, names: Sequence[str]) -> None:
        self._names = names
        self._rows = 0
        self._sum: Array = np.zeros(len(names), complex)
        self._power: Array = np.zeros(len(names))
        self._extremes: dict[str, tuple[Array, Array]] = {}  # the two largest values [2, N], and how often
        self._reference = -1
        self._parts, self._segments, self._seen = 0, segments, 0
        self._cross: Tensor | None = None  # [parts, F, N] with the reference channel, and the powers
        self._levels: Tensor | None = None

    @property
    def power(self) -> float:
        """Mean square of all samples."""
        return float(self._power.mean()) / max(self._rows, 1)

    def see_samples(self, block: Tensor) -> None:
        """The next rows (rows, N)."""
        values = block.numpy()
        self._rows += len(values)
        wide = np.complex128 if values.dtype.kind == "c" else np.float64
        self._sum += values.sum(0, dtype=wide)
        parts = [values.real, values.imag] if values.dtype.kind == "c" else [values]
        for name, part in zip(("real", "imaginary"), parts, strict=False):
            self._power += np.einsum("ln,ln->n", part, part, dtype=np.float64)
            for sign in (1, -1):
                self._see_extremes(f"{name} {sign}", sign * part)

    def _see_extremes(self, key: str, values: Array) -> None:
        largest = values.max(0)
        lower = np.where(values < largest, values, -np.inf)
        second = lower.max(0)
        found = np.stack([largest, second]).astype(np.float64)
        counts = np.stack([(values == largest).sum(0), (lower == second).sum(0)])
        if key in self._extremes:
            before = self._extremes[key]
            every, number = np.concatenate([before[0], found]), np.concatenate([before[1], counts])
            top = every.max(0)
            below = np.where(every < top, every, -np.inf).max(0)
            found = np.stack([top, below])
            counts = np.stack([np.where(every == level, number, 0).sum(0) for level in found])
        self._extremes[key] = found, counts

    def see_lines(self, lines: Tensor) -> None:
        """The next segments' values (S, F, N) in the bins."""
        if not self._seen:
            most = _MOST_NUMBERS // (lines.shape[1] * lines.shape[2])
            self._parts = min(_MOST_PARTS, most, self._segments // _PART_SEGMENTS)
        if self._parts < _STRETCHES:
            self._seen += len(lines)
            return
        if self._cross is None or self._levels is None:
            # A channel of middling power is neither dead nor broken.
            power = lines.abs().square().sum((0, 1))
            self._reference = int(power.argsort()[len(power) // 2])
            self._cross = torch.zeros(self._parts, *lines.shape[1:], dtype=torch.complex128)
            self._levels = torch.zeros(self._parts, *lines.shape[1:], dtype=torch.float64)
        part = (torch.arange(self._seen, self._seen + len(lines)) * self._parts) // self._segments
        self._seen += len(lines)
        self._cross.index_add_(0, part, lines * lines[..., self._reference, None].conj())
        self._levels.index_add_(0, part, lines.abs().square())

    def notes(self, frequencies_hz: Sequence[float], duration_s: float) -> list[str]:
        """One sentence for each fault."""
        found = [self._offset(), self._clipping(), *self._uneven()]
        found += self._clocks(np.array(frequencies_hz), duration_s)
        return [text for text in found if text is not None]

    def _channels(self, which: Array) -> str:
        """Their names, at most eight."""
        names = [self._names[int(index)] for index in np.flatnonzero(which)]
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        return f"channel{'s' if len(names) > 1 else ''} {', '.join(names[:8])}{more}"

    def _offset(self) -> str | None:
        rms = np.sqrt(self._power / self._rows)
        share = np.divide(np.abs(self._sum) / self._rows, rms, out=np.zeros_like(rms), where=rms > 0)
        if not (share > _OFFSET).any():
            return None
        return f"DC: the mean of {self._channels(share > _OFFSET)} is up to {share.max():.2g} of the RMS"

    def _clipping(self) -> str | None:
        piled = np.zeros(len(self._names))
        for _, counts in self._extremes.values():
            clipped = (counts[0] >= _PILE) & (counts[0] > _PILE_RATIO * counts[1])
            # A channel of one value throughout is dead, or a constant.
            piled += np.where(clipped & (counts[0] < self._rows), counts[0], 0)
        if not piled.any():
            return None
        share = piled.max() / self._rows
        return f"clipping: {self._channels(piled > 0)}, up to {share:.2%} of the samples at the extreme values"

    def _uneven(self) -> list[str]:
        # Without the mean, which is said by itself.
        power = self._power / self._rows - np.abs(self._sum / self._rows) ** 2
        alive = power > 1e-20 * power.max()
        if not alive.any():
            return []
        level = 10 * np.log10(np.where(alive, power, 1.0) / np.median(power[alive]))
        notes = []
        for word, which in (("below", alive & (level < -_UNEVEN_DB)), ("above", alive & (level > _UNEVEN_DB))):
            if which.any():
                most = np.abs(level[which]).max()
                notes.append(f"{self._channels(which)}: up to {most:.0f} dB {word} the median power of the channels")
        return notes

    def _clocks(self, frequencies_hz: Array, duration_s: float) -> list[str]:
        """Channels whose phase turns steadily, in proportion to time and frequency, against the others."""
        if self._cross is None or self._levels is None or not (frequencies_hz > 0).all():
            return []
        reference = self._levels[..., self._reference, None]
        scale = (self._levels * reference).sqrt()
        coherence = (self._cross / scale.clamp_min(torch.finfo(torch.float64).tiny)).numpy()  # [P, F, N]
        strong = np.abs(coherence).mean(0) > _COHERENT  # [F, N]
        omega = 2 * np.pi * frequencies_hz
        time = (np.arange(self._parts) + 0.5) / self._parts * duration_s
        usable = strong.any(0)
        delays = np.full((_STRETCHES, len(self._names)), np.nan)
        for channel in np.flatnonzero(usable):
            bins = strong[:, channel]
            delays[:, channel] = _delays(coherence[:, bins, channel], omega[bins], time)
        if usable.sum() < 2:
            return []
        # Against the channels' common clock, whichever the reference is.
        middle = np.sort(delays[:, usable], axis=1)[:, (usable.sum() - 1) // 2]
        moment = np.arange(_STRETCHES) - (_STRETCHES - 1) / 2
        drift = np.zeros(len(self._names))
        for channel in np.flatnonzero(usable):
            delay = delays[:, channel] - middle
            delay = delay - delay.mean()
            slope = float(moment @ delay) / float(moment @ moment)
            left = delay - slope * moment
            steady = float(left @ left) <= (1 - _STEADY) * float(delay @ delay)
            turn = abs(slope) * _STRETCHES * omega[strong[:, channel]].max()
            if steady and turn >= _LEAST_TURN_RAD:
                drift[channel] = slope * _STRETCHES / duration_s
        if not drift.any():
            return []
        return [
            f"clock drift: the phase of {self._channels(drift != 0)} turns steadily against the others, by up to "
            f"{np.abs(drift).max() * 1e6:.3g} ppm: the clocks differ, or a source moves"
        ]


def _delays(coherence: Array, omega: Array, time: Array) -> Array:
    """Delay in seconds of each stretch of a recording, up to a constant, from phases (P, F)."""
    step = time[1] - time[0]
    # A first rate from one part to the next, where phases do not wrap yet; then what is left of them, bin by bin.
    increment = (coherence[1:] * coherence[:-1].conj()).sum(0)
    rate = float((omega * np.abs(increment)) @ np.angle(increment) / ((omega**2) @ np.abs(increment) * step))
    turned = coherence * np.exp(-1j * rate * time[:, None] * omega)
    mean = turned.sum(0)
    left = np.angle(turned * mean.conj())
    weight = np.abs(coherence) ** 2
    stretch = np.arange(len(time)) * _STRETCHES // len(time)
    delays = np.empty(_STRETCHES)
    for index in range(_STRETCHES):
        part = stretch == index
        delays[index] = (weight[part] * omega * left[part]).sum() / (weight[part] * omega**2).sum()
        delays[index] += rate * time[part].mean()
    return delays


def grating_note(positions_m: Array, wavelengths_m: Sequence[float], speed_m_s: float | None) -> str | None:
    """Which bands lie above the frequency at which the closest two elements are half a wavelength apart."""
    if len(positions_m) < 2:
        return None
    spacing = float(torch.pdist(torch.from_numpy(positions_m)).min())
    above = sum(spacing > 0.5005 * wavelength for wavelength in wavelengths_m)
    if not above:
        return None
    limit = "" if speed_m_s is None or math.isinf(speed_m_s) else f" (above {speed_m_s / (2 * spacing):.4g} Hz)"
    which = "" if len(wavelengths_m) == 1 else f" in {above} of {len(wavelengths_m)} bands"
    return (
        f"the closest elements are {spacing:.4g} m apart, more than half a wavelength{which}{limit}: directions may be "
        "ambiguous"
    )
