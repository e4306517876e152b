"""Narrowband covariances from samples in time, by Welch's method."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from risfast.errors import FileFormatError
from risfast.io.recording import Snapshots

_BLOCK_BYTES = 16 << 20


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
    from scipy.signal import get_window  # noqa: PLC0415  (slow to import)

    real = samples.dtype.kind != "c"
    if not (isinstance(block_size, int) and block_size >= 2) or not 0 <= overlap < 1:
        raise ValueError(f"block_size must be at least 2 and 0 <= overlap < 1, got {block_size} and {overlap}")
    low = 0.0 if real else -sample_rate_hz / 2
    if not low <= frequency_hz <= sample_rate_hz / 2:
        raise ValueError(
            f"frequency_hz must lie within {low:g} .. {sample_rate_hz / 2:g} Hz (samples come at {sample_rate_hz:g} "
            f"Hz), got {frequency_hz:g}"
        )
    if len(samples) < block_size:
        raise FileFormatError(
            f"{samples.source}: there are {len(samples)} samples, fewer than one segment of block_size={block_size}"
        )
    bin_number = round(frequency_hz * block_size / sample_rate_hz)
    weights = get_window(window, block_size)
    turns = np.exp(-2j * np.pi * bin_number * np.arange(block_size) / block_size)
    kernel = torch.from_numpy(weights * turns / weights.sum())
    hop = max(block_size - int(block_size * overlap), 1)
    total, segments = _accumulate(samples, kernel, block_size, hop)
    mirrored = real and bin_number != 0 and 2 * bin_number != block_size
    return total * ((2 if mirrored else 1) / segments), bin_number * sample_rate_hz / block_size, segments


def _accumulate(samples: Snapshots, kernel: Tensor, block_size: int, hop: int) -> tuple[Tensor, int]:
    """Sum of X X^H over all segments, and their number; segments may reach from one block of the file into the next."""
    n = samples.shape[1]
    total, segments = torch.zeros(n, n, dtype=torch.complex128), 0
    rest = torch.empty(0, n, dtype=torch.float64 if samples.dtype.kind != "c" else torch.complex128)
    step = max(_BLOCK_BYTES // (n * 16), block_size)
    for block in samples.blocks(step * n * samples.dtype.itemsize):
        held = torch.cat([rest, block.to(rest.dtype)])
        count = (len(held) - block_size) // hop + 1 if len(held) >= block_size else 0
        if count:
            frames = held.unfold(0, block_size, hop)[:count]  # [segments, N, block_size], a view
            lines = frames.to(torch.complex128) @ kernel if frames.is_complex() else _real_lines(frames, kernel)
            total += lines.mT @ lines.conj()
            segments += count
        rest = held[count * hop :]
    return total, segments


def _real_lines(frames: Tensor, kernel: Tensor) -> Tensor:
    return torch.complex(frames @ kernel.real.contiguous(), frames @ kernel.imag.contiguous())
