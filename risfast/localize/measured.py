"""What a localizer is given: the arrays of one scene or of a batch, checked before any work."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from risfast.errors import ShapeError
from risfast.models import Measurement

__all__ = ["direct_measurement", "measurement_from"]


def measurement_from(y: Any, codes: Any, channel: Any, noise_power: Any) -> Measurement:
    """Check, batch and convert.

    y (L, M) or (B, L, M), codes (L, N) or (B, L, N), channel (M, N) or (B, M, N), noise_power () or (B,)
    """
    tensors = {"y": _tensor(y, "y"), "codes": _tensor(codes, "codes"), "channel": _tensor(channel, "channel")}
    ranks = {name: t.ndim for name, t in tensors.items()}
    if set(ranks.values()) not in ({2}, {3}):
        raise ValueError(
            "y, codes and channel must all have 2 dimensions (one scene) or all 3 (a batch), got "
            + ", ".join(f"{name} with {rank}" for name, rank in ranks.items())
        )
    if ranks["y"] == 2:
        tensors = {name: t[None] for name, t in tensors.items()}
    measurement = Measurement(**tensors)
    if measurement.y.shape[1] == 0:
        raise ValueError("y holds no snapshot: L must be at least 1")
    if len(measurement) and not bool((measurement.y.abs().amax((1, 2)) > 0).all()):
        silent = int((measurement.y.abs().amax((1, 2)) == 0).nonzero()[0, 0])
        raise ValueError(f"y[{silent}] is zero throughout: there is nothing to localise")
    if noise_power is None:
        return measurement
    noise = torch.as_tensor(noise_power).to(measurement.y.device).double()
    noise = noise.expand(len(measurement)) if noise.ndim == 0 else noise
    return Measurement(measurement.y, measurement.codes, measurement.channel, _checked_noise(noise, measurement))


def direct_measurement(x: Any, n_elements: int, noise_power: Any) -> Measurement:
    """Snapshots of the elements themselves, (L, N) or (B, L, N), as a measurement through an identity."""
    tensor = _tensor(x, "x")
    if tensor.ndim not in (2, 3) or tensor.shape[-1] != n_elements:
        turned = tensor.ndim in (2, 3) and tensor.shape[-2] == n_elements
        raise ShapeError(
            f"x must have shape (L, {n_elements}) or (B, L, {n_elements}), one row per snapshot, got "
            f"{tuple(tensor.shape)}{'; it looks transposed' if turned else ''}"
        )
    codes = torch.ones_like(tensor)
    channel = torch.eye(n_elements, dtype=tensor.dtype, device=tensor.device)
    return measurement_from(tensor, codes, channel.expand(*tensor.shape[:-2], -1, -1), noise_power)


def _tensor(value: Any, name: str) -> Tensor:
    if isinstance(value, np.ndarray):  # torch takes no read-only and no reversed arrays
        value = np.require(value, requirements=["C", "W"])
    tensor = torch.as_tensor(value)
    if not tensor.is_complex():
        raise TypeError(f"{name} must be complex64 or complex128, got {tensor.dtype}")
    if not bool(torch.isfinite(torch.view_as_real(tensor.resolve_conj())).all()):
        raise ValueError(f"{name} holds values that are not finite")
    return tensor


def _checked_noise(noise: Tensor, measurement: Measurement) -> Tensor:
    if noise.shape != (len(measurement),):
        raise ValueError(
            f"noise_power must be one number or have shape ({len(measurement)},), one for each scene, got "
            f"{tuple(noise.shape)}"
        )
    if not bool((torch.isfinite(noise) & (noise > 0)).all()):
        raise ValueError("noise_power must be positive and finite: it is linear (sigma^2), not in dB")
    received = measurement.y.abs().double().square().mean((1, 2))
    loud = (noise > 3 * received).nonzero()[:, 0]
    if len(loud):
        # What is received holds the noise too: three times as much noise does not happen.
        warnings.warn(
            f"noise_power of scene {int(loud[0])} is {float(noise[loud[0]]):.3g}, more than three times the mean power "
            f"{float(received[loud[0]]):.3g} of its snapshots; is it in dB?",
            stacklevel=4,
        )
    return noise
