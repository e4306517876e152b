"""Maxima, suppression and refinement on a GPU: the same schemas, by kernels, without waiting for the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from risfast.ops.devices import checks_values, kernel_module
from risfast.ops.kept import constant_on, kept_tables


def local_maxima_cuda(
    volume: Tensor, window: Sequence[int], k: int, threshold: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`risfast.ops.peaks_reference.local_maxima_3d_reference`; a scene that holds NaN has no maxima."""
    peaks = kernel_module("peaks")

    return peaks.local_maxima(volume, window, k, threshold, check=checks_values(volume.device))[:3]


def nms_cuda(
    position: Tensor, score: Tensor, separation: Sequence[float], k: int, wrap_azimuth: bool
) -> tuple[Tensor, Tensor]:
    """See :func:`risfast.ops.peaks_reference.nms_3d_reference`; a scene with a score that is NaN keeps nothing."""
    nms = kernel_module("nms")

    return nms.nms(position, score, separation, k, wrap_azimuth, check=checks_values(score.device))[:2]


def refine_cuda(
    matrix: Tensor,
    factored: bool,
    low: Tensor,
    high: Tensor,
    points: Sequence[int],
    positions: Tensor,
    wavenumber: float,
    wavefront: str,
    widest: Sequence[float] | None = None,
) -> tuple[Tensor, Tensor]:
    """See :func:`risfast.ops.refinement.refine_torch`."""
    # Without ``widest``, the half sizes of the widest box are read off the boxes, which waits for the host.
    kernels = kernel_module("refine")
    half = tuple(kernels.widest_half(low, high) if widest is None else widest)
    key = ("refine", positions.numpy().tobytes(), wavenumber, wavefront, tuple(points), half, low.device)

    def build() -> Any:
        return kernels.RefinePlan.build(positions, wavenumber, wavefront, points, half, low.device)

    found: tuple[Tensor, Tensor] = kernels.refine(matrix, factored, low, high, kept_tables.get(key, build))
    return found


def walk_cuda(
    matrix: Tensor,
    factored: bool,
    start: Tensor,
    low: Tensor,
    high: Tensor,
    spacing: Sequence[float],
    positions: Tensor,
    wavenumber: float,
    wavefront: str,
) -> Tensor:
    """See :func:`risfast.ops.refinement.walk_torch`."""
    key = ("walk", positions.numpy().tobytes(), wavenumber, wavefront, start.device)

    def build() -> Any:
        return kernel_module("forms").FormGeometry.build(positions, wavenumber, wavefront, start.device)

    geometry = kept_tables.get(key, build)
    box = constant_on(low, start.device), constant_on(high, start.device)
    ended: Tensor = kernel_module("refine").walk(matrix, factored, start, *box, spacing, geometry)
    return ended
