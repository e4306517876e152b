"""Channels between a surface and its antennas, the symbols of sources, and noise, drawn a batch of scenes at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from risfast.geometry import REFERENCE_AZIMUTH_RAD, REFERENCE_ELEVATION_RAD, PlanarArray
from risfast.simulate.streams import SceneRandom, Stream
from risfast.steering import steering_vectors


def rician_channel(
    array: PlanarArray,
    n_antennas: int,
    factor: Tensor | float,
    draws: SceneRandom,
    *,
    dtype: torch.dtype = torch.complex64,
) -> Tensor:
    """Rician channel from the surface to a base station with a half-wavelength line of antennas.

    factor (B,) -> (B, M, N)
    """
    # H = sqrt(K / (K + 1)) b a^H + sqrt(1 / (K + 1)) W with b the base station's and a the surface's planar steering
    # vector in directions drawn per scene, and W_mn ~ CN(0, 1): E|H_mn|^2 = 1 for every K.
    if n_antennas < 1:
        raise ValueError(f"n_antennas must be at least 1, got {n_antennas}")
    k = torch.as_tensor(factor, dtype=torch.float64, device=draws.device).expand(draws.batch)[:, None, None]
    if not bool((k >= 0).all()):
        raise ValueError("factor (the Rician factor) must be >= 0 and not NaN")
    angles = 2 * draws.uniform(Stream.LINE_OF_SIGHT, (3,)) - 1
    azimuth, elevation = angles[:, 0] * REFERENCE_AZIMUTH_RAD, angles[:, 1] * REFERENCE_ELEVATION_RAD
    surface = steering_vectors(
        array, azimuth, elevation, torch.ones_like(azimuth), wavefront="planar", dtype=torch.complex128
    )
    antenna = torch.arange(n_antennas, device=draws.device, dtype=torch.float64)
    phase = math.pi * antenna * (angles[:, 2:] * REFERENCE_AZIMUTH_RAD).sin()
    line_of_sight = torch.polar(torch.ones_like(phase), phase)[:, :, None] * surface.conj()[:, None, :]
    scattered = draws.complex_normal(Stream.SCATTERING, (n_antennas, array.n_elements))
    return ((k / (k + 1)).sqrt() * line_of_sight + (1 / (k + 1)).sqrt() * scattered).to(dtype)


def source_symbols(
    n_snapshots: int,
    power: Tensor,
    draws: SceneRandom,
    *,
    correlation: float = 1.0,
    coherent: Tensor | None = None,
) -> Tensor:
    """Gaussian symbols s_l ~ CN(0, P) that change every snapshot.

    power (B, K), coherent (B, K) -> (B, L, K)
    """
    if not 0 <= correlation <= 1:
        raise ValueError(f"correlation must lie in [0, 1], got {correlation!r}")
    n_sources = power.shape[1]
    symbols = draws.complex_normal(Stream.SYMBOLS, (n_sources, n_snapshots))  # one more source shifts no other's
    if coherent is not None:
        phase = 2 * math.pi * draws.uniform(Stream.COHERENT_PHASE, (n_sources, 1))
        common = draws.complex_normal(Stream.COMMON_SYMBOL, (1, n_snapshots))
        copies = torch.polar(torch.full_like(phase, math.sqrt(correlation)), phase) * common
        symbols = torch.where(coherent[..., None], copies + math.sqrt(1 - correlation) * symbols, symbols)
    return (power.double().sqrt()[..., None] * symbols).mT


def add_noise(clean: Tensor, snr_db: Tensor | float, draws: SceneRandom) -> tuple[Tensor, Tensor]:
    """Add n ~ CN(0, sigma^2 I) with sigma^2 = mean |clean|^2 / SNR, a mean over the snapshots and antennas.

    clean (B, L, M), snr_db (B,) -> y (B, L, M), noise_power (B,)
    """
    snr = torch.as_tensor(snr_db, dtype=torch.float64, device=clean.device)
    signal = clean.abs().square().mean((-2, -1))
    noise_power = torch.where(signal > 0, signal / 10 ** (snr / 10), torch.ones_like(signal))
    noise = draws.complex_normal(Stream.NOISE, clean.shape[1:])
    return clean + noise_power.sqrt()[:, None, None] * noise, noise_power
