"""How far the true system is from the nominal one: errors of the codes that the surface applies, and of its elements.

Everything random takes its numbers from a :class:`risfast.simulate.streams.SceneRandom`, a batch of scenes at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from risfast.geometry import PlanarArray, direction_cosines
from risfast.simulate.streams import SceneRandom, Stream
from risfast.steering import check_wavefront, steering_phase


@dataclass(frozen=True)
class Impairments:
    """How far the true system is from the nominal one that an estimator knows. The default is a perfect system.

    Every effect is Gaussian of the given standard deviation, unless said.

    Parameters
    ----------
    code_phase_noise_rad : float
        Phase error of each element in each snapshot, radians.
    amplitude_jitter : float
        Relative error of the reflection amplitude of each element in each snapshot (never below zero).
    dropped_elements : float in [0, 1]
        Chance that an element is dead, reflecting nothing in all snapshots of the scene.
    wavelength_jitter : float, at most 0.1
        Relative error of the wavelength, one number a scene.
    spacing_jitter : float, at most 0.1
        Relative error of all element coordinates alike, one number a scene.
    position_jitter_m : float
        Error of each coordinate (x, y, z) of each element, metres.
    code_offset_rad : float
        A phase common to all elements, drawn for each snapshot. Symbols that are independent from snapshot to snapshot
        absorb it; only a method that compares phases across snapshots feels it.
    pointing_offset : float
        Error of the code's direction cosines (x and y) in each snapshot: the whole beam points off.

    Raises
    ------
    ValueError
        A value is negative, not finite, or above its limit.
    """

    code_phase_noise_rad: float = 0.0
    amplitude_jitter: float = 0.0
    dropped_elements: float = 0.0
    wavelength_jitter: float = 0.0
    spacing_jitter: float = 0.0
    position_jitter_m: float = 0.0
    code_offset_rad: float = 0.0
    pointing_offset: float = 0.0

    def __post_init__(self) -> None:
        """Check every value."""
        limits = {"dropped_elements": 1.0, "wavelength_jitter": 0.1, "spacing_jitter": 0.1}
        for f in fields(self):
            value, limit = getattr(self, f.name), limits.get(f.name, math.inf)
            if not (math.isfinite(value) and 0 <= value <= limit):
                raise ValueError(f"{f.name} must be finite and lie in [0, {limit:g}], got {value!r}")


_CODE_EFFECTS = ("code_phase_noise_rad", "amplitude_jitter", "dropped_elements", "code_offset_rad", "pointing_offset")


def impair_codes(codes: Tensor, array: PlanarArray, impairments: Impairments, draws: SceneRandom) -> Tensor:
    """The codes that the surface really applies where others are asked for.

    codes (B, L, N)
    """
    n_snapshots, n = codes.shape[1:]
    if not any(getattr(impairments, effect) for effect in _CODE_EFFECTS):
        return codes
    phase = torch.zeros(codes.shape, dtype=torch.float64, device=codes.device)
    if impairments.code_phase_noise_rad:
        phase += impairments.code_phase_noise_rad * draws.normal(Stream.CODE_PHASE_NOISE, (n_snapshots, n))
    if impairments.code_offset_rad:
        phase += impairments.code_offset_rad * draws.normal(Stream.CODE_OFFSET, (n_snapshots, 1))
    if impairments.pointing_offset:
        offset = impairments.pointing_offset * draws.normal(Stream.POINTING_OFFSET, (n_snapshots, 2))
        phase += array.wavenumber * (offset @ array.positions_m[:, :2].to(codes.device).T)
    amplitude = torch.ones_like(phase)
    if impairments.amplitude_jitter:
        amplitude += impairments.amplitude_jitter * draws.normal(Stream.AMPLITUDE_JITTER, (n_snapshots, n))
        amplitude.clamp_min_(0)
    if impairments.dropped_elements:
        amplitude *= draws.uniform(Stream.DROPPED_ELEMENTS, (1, n)) >= impairments.dropped_elements
    return codes * torch.polar(amplitude, phase).to(codes.dtype)


def impaired_steering(
    array: PlanarArray, position: Tensor, wavefront: str, impairments: Impairments, draws: SceneRandom
) -> Tensor:
    """Steering vectors of the true array where ``array`` is the nominal one.

    position (B, K, 3) -> (B, K, N)
    """
    check_wavefront(wavefront)
    elements = array.positions_m.to(position.device).expand(draws.batch, -1, -1)  # [B, N, 3]
    wavenumber = torch.full((draws.batch, 1, 1), array.wavenumber, dtype=torch.float64, device=position.device)
    if impairments.wavelength_jitter:
        wavenumber = wavenumber / (1 + impairments.wavelength_jitter * draws.normal(Stream.WAVELENGTH_JITTER, (1, 1)))
    if impairments.spacing_jitter:
        elements = elements * (1 + impairments.spacing_jitter * draws.normal(Stream.SPACING_JITTER, (1, 1)))
    if impairments.position_jitter_m:
        jitter = draws.normal(Stream.POSITION_JITTER, (array.n_elements, 3))
        elements = elements + impairments.position_jitter_m * jitter
    direction = direction_cosines(position[..., 0], position[..., 1])
    # every phase is proportional to the wavenumber, so wavenumber 1 gives path differences in metres, scene by scene
    path = torch.vmap(lambda p, u, r: steering_phase(p, u, r, 1.0, wavefront))(elements, direction, position[..., 2])
    return torch.polar(torch.ones_like(path), wavenumber * path)
