"""Narrowband covariances from samples in time, by Welch's method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from risfast.errors import FileFormatError
from risfast.io.guard import Array
from risfast.io.recording import Snapshots

_BLOCK_BYTES = 16 << 20


class Watcher(Protocol):
    """What sees the samples and their spectra as they are read once."""

    def see_samples(self, block: Tensor) -> None:
        """The next rows (rows, N)."""

    def see_lines(self, lines: Tensor) -> None:
        """The next segments' values (S, F, N) in the bins."""


class Welch(NamedTuple):
    """Covariances of F bins."""

    covariance: Tensor  # complex128 (F, N, N)
    frequencies_hz: tuple[float, ...]  # the centres of the bins
    segments: int
    effective: float  # independent snapshots that the segments are worth


def narrowband_covariances(
    samples: Snapshots,
    sample_rate_hz: float,
    frequencies_hz: Sequence[float],
    *,
    block_size: int = 256,
    window: str = "hann",
    overlap: float = 0.5,
    watcher: Watcher | None = None,
) -> Welch:
    """As :func:`narrowband_covariance` of several frequencies, the samples read once, in blocks."""
    from scipy.signal import get_window  # noqa: PLC0415  (slow to import)

    real = samples.dtype.kind != "c"
    if not (isinstance(block_size, int) and block_size >= 2) or not 0 <= overlap < 1:
        raise ValueError(f"block_size must be at least 2 and 0 <= overlap < 1, got {block_size} and {overlap}")
    low = 0.0 if real else -sample_rate_hz / 2
    for frequency in frequencies_hz:
        if not low <= frequency <= sample_rate_hz / 2:
            raise ValueError(
                f"frequency_hz must lie within {low:g} .. {sample_rate_hz / 2:g} Hz (samples come at "
                f"{sample_rate_hz:g} Hz), got {frequency:g}"
            )
    if len(samples) < block_size:
        raise FileFormatError(
            f"{samples.source}: there are {len(samples)} samples, fewer than one segment of block_size={block_size}"
        )
    bins = np.array([round(frequency * block_size / sample_rate_hz) for frequency in frequencies_hz])
    weights = get_window(window, block_size)
    turns = np.exp(-2j * np.pi * (bins[:, None] * np.arange(block_size) % block_size) / block_size)
    kernel = torch.from_numpy(weights * turns / weights.sum())
    hop = max(block_size - int(block_size * overlap), 1)
    total, segments = _accumulate(samples, kernel, hop, watcher)
    mirrored = real & (bins != 0) & (2 * bins != block_size)
    scale = torch.from_numpy(np.where(mirrored, 2.0, 1.0) / segments)
    centres = tuple(float(index * sample_rate_hz / block_size) for index in bins)
    return Welch(total * scale[:, None, None], centres, segments, effective_segments(weights, hop, segments))


def effective_segments(weights: Array, hop: int, segments: int) -> float:
    """How many independent segments overlapping ones are worth: K / (1 + 2 sum_j (1 - j/K) rho_j^2).

    weights (block_size,); rho_j is the normalised autocorrelation of the window at a lag of j hops. Welch 1967.
    """
    energy, excess = float(weights @ weights), 0.0
    for j in range(1, min(segments, -(-len(weights) // hop))):
        rho = float(weights[j * hop :] @ weights[: -j * hop]) / energy
        excess += (1 - j / segments) * rho**2
    return segments / (1 + 2 * excess)


def narrowband_covariance(
    samples: Snapshots,
    sample_rate_hz: float,
    frequency_hz: float,
    *,
    block_size: int = 256,
    window: str = "hann",
    overlap: float = 0.5,
) -> tuple[Tensor, float, int]:
    """Covariance of all channels in the bin nearest to a frequency, averaged over windowed, overlapping segments.

    Parameters
    ----------
    samples : Snapshots
        Shape (L, N): real signals, or complex baseband, where negative frequencies count.
    sample_rate_hz : float
    frequency_hz : float
        Within 0 .. sample_rate / 2 for real samples, +-sample_rate / 2 for complex ones.
    block_size : int
        Samples of a segment; bins are ``sample_rate_hz / block_size`` apart.
    window : str
        As :func:`scipy.signal.get_window` knows it.
    overlap : float
        Part of a segment that it shares with the next, 0 <= overlap < 1.

    Returns
    -------
    covariance : complex128 tensor, shape (N, N)
        Mean over segments of X X^H / (sum of the window)^2, where X is the transform with exp(-j 2 pi f t), so that
        a wave that arrives later has the smaller phase. For real samples the bin and its mirror image are counted
        together (twice the value except at 0 and at half the sample rate): the power of a sine of amplitude A is
        A^2 / 2, as in ``scipy.signal.csd(..., scaling="spectrum", detrend=False)``.
    frequency_hz : float
        The centre of the bin.
    segments : int
        How many were averaged; a covariance of fewer segments than N is singular.

    Raises
    ------
    FileFormatError
        Fewer samples than a segment, or samples that are not finite.
    ValueError
        The frequency is beyond the sampled band, or an option is impossible.

    Notes
    -----
    Welch, "The use of fast Fourier transform for the estimation of power spectra", IEEE Trans. Audio Electroacoust.
    15 (1967). Only the one bin is computed, as a product with the windowed exponential.
    """
    how = {"block_size": block_size, "window": window, "overlap": overlap}
    found = narrowband_covariances(samples, sample_rate_hz, [frequency_hz], **how)  # type: ignore[arg-type]
    return found.covariance[0], found.frequencies_hz[0], found.segments


def _accumulate(samples: Snapshots, kernel: Tensor, hop: int, watcher: Watcher | None) -> tuple[Tensor, int]:
    """Sums of X X^H [F, N, N] over all segments, and their number; segments may reach into the next block of the file.

    kernel [F, block_size]
    """
    (bands, block_size), n = kernel.shape, samples.shape[1]
    total, segments = torch.zeros(bands, n, n, dtype=torch.complex128), 0
    rest = torch.empty(0, n, dtype=torch.float64 if samples.dtype.kind != "c" else torch.complex128)
    step = max(_BLOCK_BYTES // (n * 16), block_size)
    for block in samples.blocks(step * n * samples.dtype.itemsize):
        if watcher is not None:
            watcher.see_samples(block)
        held = torch.cat([rest, block.to(rest.dtype)])
        count = (len(held) - block_size) // hop + 1 if len(held) >= block_size else 0
        if count:
            frames = held.unfold(0, block_size, hop)[:count]  # [segments, N, block_size], a view
            lines = frames @ kernel.mT if frames.is_complex() else _real_lines(frames, kernel)  # [segments, N, F]
            lines = lines.mT
            total += torch.einsum("sfn,sfm->fnm", lines, lines.conj())
            segments += count
            if watcher is not None:
                watcher.see_lines(lines)
        rest = held[count * hop :]
    return total, segments


def _real_lines(frames: Tensor, kernel: Tensor) -> Tensor:
    both = frames @ torch.cat([kernel.real, kernel.imag]).mT
    return torch.complex(*both.split(len(kernel), dim=-1))
