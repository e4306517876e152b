"""Local refinement of spectrum peaks: a fine grid around every candidate of every scene, then below the grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from risfast.errors import ShapeError
from risfast.geometry import PlanarArray
from risfast.ops import checks, register_cuda_peaks, spectra
from risfast.ops import register_cuda_operands as operands
from risfast.ops.descent import Geometry, descend, form, steering, walk_spacing
from risfast.ops.devices import checks_values, on_host, serves_kernels
from risfast.ops.domain import adjoint_of
from risfast.ops.interpolation import bessel_node_count, chebyshev_nodes, interpolation_matrix
from risfast.ops.kept import constant_on
from risfast.ops.register_devices import serve_gpu
from risfast.steering import WAVEFRONTS

__all__ = [
    "Denominator",
    "Refined",
    "denominator",
    "refine_from",
    "refine_op",
    "refine_peaks",
    "walk_from",
    "walk_op",
    "walk_peaks",
    "widest_after_walk",
]

# Interpolation error of a phase difference, rms over pairs. The fine grid only has to find the right valley of the
# denominator; the last step below the grid is exact.
_NODE_TOLERANCE = 1e-5
_MOST_NODES = 41
_STEPS_BELOW_GRID = 2
_WALK_STEPS = 8
_TILE_VALUES = 1 << 17  # steering vector entries made at once


class Refined(NamedTuple):
    """Peaks after refinement.

    Attributes
    ----------
    position : float64 tensor, shape (B, C, 3)
        Azimuth, elevation (radians) and range (metres).
    power : float64 tensor, shape (B, C)
        Capon power there.
    """

    position: Tensor
    power: Tensor


def _half_phases(positions: Tensor, low: Tensor, high: Tensor, wavenumber: float) -> tuple[Tensor, Tensor, Tensor]:
    """Phase that pairs of elements turn through over half of the widest box, along each axis, seen from afar."""
    half = ((high - low) / 2).amax((0, 1)).tolist()
    index = torch.triu_indices(len(positions), len(positions), 0)
    separation = positions[index[0]] - positions[index[1]]
    squared = positions.square().sum(1)
    bend = squared[index[0]] - squared[index[1]]
    k = wavenumber
    length = separation.norm(dim=1)
    return k * half[0] * length, k * half[1] * length, k * half[2] * bend / 2


@lru_cache(maxsize=32)
def _axis(count: int, points: int) -> tuple[Tensor, Tensor]:
    """Chebyshev nodes on [-1, 1] and the matrix from them to ``points`` uniform points."""
    nodes = chebyshev_nodes(-1.0, 1.0, count)
    return nodes, interpolation_matrix(nodes, -1.0, 1.0, torch.linspace(-1, 1, points, dtype=torch.float64)).float()


def _fine_grid_minimum(
    low: Tensor, high: Tensor, matrix: Tensor, factored: bool, points: list[int], counts: list[int], geometry: Geometry
) -> Tensor:
    """Point of the fine grid with the smallest form in each box [C, 3], in (azimuth, elevation, 1/range)."""
    positions, wavenumber, wavefront = geometry
    positions = positions.float()
    with on_host(low.device):  # kept between calls, so not made on the device that comes first
        axes = [_axis(count, n) for count, n in zip(counts, points, strict=True)]
    axes = [(nodes.to(low.device), matrix.to(low.device)) for nodes, matrix in axes]
    offsets = torch.stack(torch.meshgrid(*[nodes for nodes, _ in axes], indexing="ij"), -1).reshape(-1, 3)
    to_az, to_el, to_r = (m for _, m in axes)
    single = matrix.to(torch.complex64)
    best = torch.empty(low.shape[0], dtype=torch.long)
    step = max(1, _TILE_VALUES // (offsets.shape[0] * positions.shape[0]))
    for start in range(0, low.shape[0], step):
        stop = min(start + step, low.shape[0])
        centre, half = (high + low)[start:stop, None] / 2, (high - low)[start:stop, None] / 2
        nodes = (centre + half * offsets).float().reshape(-1, 3)
        q = form(steering(nodes, positions, wavenumber, wavefront), single, factored)
        q = to_az @ q.reshape(stop - start, counts[0], -1)
        q = to_el @ q.reshape(-1, counts[1], counts[2])
        q = q.reshape(-1, counts[2]) @ to_r.mT
        best[start:stop] = q.reshape(stop - start, -1).argmin(1)
    index = torch.stack(torch.unravel_index(best, tuple(points)), -1)
    last = torch.tensor(points, dtype=torch.float64).sub(1).clamp_min(1)
    return low + (high - low) * torch.where(torch.tensor(points) > 1, index / last, torch.full((3,), 0.5))


def refine_torch(
    matrix: Tensor,
    factored: bool,
    low: Tensor,
    high: Tensor,
    points: list[int],
    positions: Tensor,
    wavenumber: float,
    wavefront: str,
    widest: Sequence[float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Smallest a^H Q a (Q [B, N, N]), or N - ||W^H a||^2 (W [B, N, K]), in each of C boxes a scene.

    ``low`` and ``high`` [B, C, 3] are float64 corners in (azimuth, elevation, 1/range); returns the point
    (azimuth, elevation, range) [B, C, 3] and the value [B, C], float64. ``widest`` are half sizes that no box exceeds,
    for devices that would have to wait for them; plain torch looks for itself.
    """
    b, c = low.shape[:2]
    point, value = torch.empty(b, c, 3, dtype=torch.float64), torch.empty(b, c, dtype=torch.float64)
    if b * c == 0:
        return point, value
    geometry = (positions.to(low.device), wavenumber, wavefront)
    with on_host(low.device):
        half = _half_phases(positions, low, high, wavenumber)
        counts = [bessel_node_count(p, _NODE_TOLERANCE, min(n, _MOST_NODES)) for p, n in zip(half, points, strict=True)]
    spacing = (high - low) / torch.tensor(points, dtype=torch.float64).sub(1).clamp_min(1)
    for scene in range(b):
        m = matrix[scene].to(torch.complex128)
        box = (low[scene], high[scene])
        start = _fine_grid_minimum(*box, m, factored, points, counts, geometry)
        # The model of each next step is so much more exact.
        found, value[scene] = descend(
            start, spacing[scene], *box, m, factored, geometry, iterations=_STEPS_BELOW_GRID, shrink=0.125
        )
        point[scene, :, :2] = found[:, :2]
        point[scene, :, 2] = 1 / found[:, 2]
    return point, value


refine_op = torch.library.custom_op("risfast::refine", refine_torch, mutates_args=(), device_types="cpu")


serve_gpu(refine_op, refine_torch, register_cuda_peaks.refine)


@refine_op.register_fake
def _(matrix: Tensor, factored: bool, low: Tensor, high: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(low), low.new_empty(low.shape[:2])


class Denominator(NamedTuple):
    """The form that the Capon power divides by: scale / (a^H Q a), or scale / (N - ||W^H a||^2) where ``factored``.

    It does not depend on the scale of the covariance, so that no scale leaves the range of float32.

    Attributes
    ----------
    matrix : complex128 tensor, shape (B, N, N) or (B, N, K)
    factored : bool
    scale : float64 tensor, shape (B, 1)
    """

    matrix: Tensor
    factored: bool
    scale: Tensor


def denominator(matrix: Tensor, factored: bool, loading: float) -> Denominator:
    """From a covariance [B, N, N] or a factor [B, N, K], as :func:`refine_peaks` takes them, with their checks."""
    n = matrix.shape[-2]
    if checks_values(matrix.device):
        (checks.check_finite if factored else checks.check_covariance_values)(matrix, "matrix")
    if factored:
        if serves_kernels(matrix):
            delta = operands.lowrank_delta(matrix, loading)
            return Denominator(operands.woodbury_factor(matrix, delta), True, n * delta[:, None])
        delta = loading * spectra.mean_power(matrix)
        return Denominator(adjoint_of(spectra.lowrank_operand(matrix, delta).matrix), True, n * delta[:, None])
    mean = matrix.diagonal(dim1=-2, dim2=-1).real.double().mean(-1)
    if serves_kernels(matrix):
        inverse = operands.loaded_inverse(matrix, loading)
    else:
        inverse = spectra.capon_operand(matrix, loading).matrix
    return Denominator(inverse * mean[:, None, None], False, n * mean[:, None])


def walk_torch(
    matrix: Tensor,
    factored: bool,
    start: Tensor,
    low: Tensor,
    high: Tensor,
    spacing: list[float],
    positions: Tensor,
    wavenumber: float,
    wavefront: str,
) -> Tensor:
    """Descend from ``start`` [B, C, 3] within ``low`` .. ``high`` [3]: (azimuth, elevation, 1/range), float64."""
    point = torch.empty_like(start, memory_format=torch.contiguous_format)
    low, high = low.to(start.device), high.to(start.device)
    geometry = (positions.float().to(start.device), wavenumber, wavefront)
    step = torch.tensor(spacing).expand(start.shape[1], 3)
    for scene in range(start.shape[0]):
        m = matrix[scene].to(torch.complex64)
        box = (low.float()[None], high.float()[None])
        point[scene], _ = descend(
            start[scene].float(), step, *box, m, factored, geometry, iterations=_WALK_STEPS, shrink=1.0
        )
    return point


walk_op = torch.library.custom_op("risfast::walk", walk_torch, mutates_args=(), device_types="cpu")


serve_gpu(walk_op, walk_torch, register_cuda_peaks.walk)


@walk_op.register_fake
def _(matrix: Tensor, factored: bool, start: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(start, memory_format=torch.contiguous_format)


def walk_peaks(
    matrix: Tensor,
    array: PlanarArray,
    position: Tensor,
    low: Tensor,
    high: Tensor,
    *,
    factored: bool = False,
    loading: float = 1e-2,
    wavefront: str = "spherical",
) -> tuple[Tensor, Tensor, Tensor]:
    """Walk candidates of a coarse grid towards the peaks they belong to, and put boxes around where they end.

    A near-field source between two range planes shows up on them at angles several degrees off. The denominator of the
    Capon power is smooth over a radian of phase, so a few Newton steps of that size lead from there to the source.

    Parameters
    ----------
    matrix, array, factored, loading, wavefront
        As for :func:`refine_peaks`; ``matrix`` (B, N, N) or (B, N, K).
    position : float64 tensor, shape (B, C, 3)
        Candidates: azimuth, elevation (radians), range (metres).
    low, high : float64 tensors, shape (3,)
        Bounds of the walk, in the same coordinates.

    Returns
    -------
    position, low, high : float64 tensors, shape (B, C, 3)
        Where each walk ended, and the corners of a box around it for :func:`refine_peaks`.

    Raises
    ------
    ValueError
        As :func:`refine_peaks` for the matrix.
    """
    return walk_from(denominator(matrix, factored, loading), array, position, low, high, wavefront)


def walk_from(
    form: Denominator, array: PlanarArray, position: Tensor, low: Tensor, high: Tensor, wavefront: str
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`walk_peaks` on a denominator; ``low`` and ``high`` on the CPU."""
    lowest, highest, arms = _walk_box(array, low, high)
    geometry = (array.positions_m, array.wavenumber, wavefront)
    ended = walk_op(form.matrix, form.factored, _inverse_range(position), lowest, highest, arms.tolist(), *geometry)
    lowest, highest, arms = (constant_on(t, ended.device) for t in (lowest, highest, arms))
    # The walk runs in float32, which may end a rounding outside.
    ended = torch.maximum(torch.minimum(ended, highest), lowest)
    near = torch.maximum(ended - arms, lowest)
    far = torch.minimum(ended + arms, highest)
    corner_low = torch.cat([near[..., :2], 1 / far[..., 2:]], -1)
    corner_high = torch.cat([far[..., :2], 1 / near[..., 2:]], -1)
    return _inverse_range(ended), corner_low, corner_high


def _walk_box(array: PlanarArray, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bounds of a walk in (azimuth, elevation, 1/range), and its steps, float64 [3]."""
    bounds = (_inverse_range(low), _inverse_range(high))
    lowest, highest = torch.minimum(*bounds), torch.maximum(*bounds)
    return lowest, highest, torch.minimum(walk_spacing(array.positions_m, array.wavenumber), (highest - lowest) / 8)


def widest_after_walk(array: PlanarArray, low: Tensor, high: Tensor) -> list[float]:
    """Half sizes that no box around the end of a walk within ``low`` and ``high`` exceeds beyond rounding."""
    steps: list[float] = _walk_box(array, low, high)[2].tolist()
    return steps


def _inverse_range(coordinates: Tensor) -> Tensor:
    """(azimuth, elevation, range) to (azimuth, elevation, 1/range) and back."""
    return torch.cat([coordinates[..., :2], 1 / coordinates[..., 2:]], -1).double()


def refine_peaks(
    matrix: Tensor,
    array: PlanarArray,
    low: Tensor,
    high: Tensor,
    *,
    factored: bool = False,
    loading: float = 1e-2,
    wavefront: str = "spherical",
    points: tuple[int, int, int] = (41, 41, 41),
) -> Refined:
    """Highest Capon power in a box around every candidate of every scene.

    Parameters
    ----------
    matrix : complex64 or complex128 tensor, shape (B, N, N) or (B, N, K)
        Covariance R, or with ``factored`` a factor F of R = F F^H.
    array : PlanarArray
        N elements.
    low, high : float64 tensors, shape (B, C, 3)
        Corners of the boxes: azimuth, elevation in radians and range in metres, low < high, range > 0.
    factored : bool
        Whether ``matrix`` is a factor.
    loading, wavefront
        As for :func:`risfast.ops.mvdr_spectrum`.
    points : (int, int, int)
        Fine grid in (azimuth, elevation, 1/range), uniform in each; 1 along an axis leaves it at the centre.

    Returns
    -------
    Refined
        ``position`` (B, C, 3) and ``power`` (B, C), float64.

    Raises
    ------
    ShapeError, TypeError, ValueError
        As :func:`risfast.ops.mvdr_spectrum`; boxes that do not fit, are empty, or reach range 0.

    Notes
    -----
    The denominator of the Capon power is evaluated on Chebyshev nodes of each box, as many as the bandwidth of the
    array over the widest box asks for, and interpolated onto the fine grid; from its minimum, two Newton steps on a
    19-point quadratic model in float64 go below the grid.
    """
    checks.check_array(array)
    checks.check_option(wavefront, "wavefront", WAVEFRONTS)
    checks.check_loading(loading, minimum_open=factored)
    checks.check_complex(matrix, "matrix")
    checks.check_matrix(matrix, "matrix", array.n_elements, square=not factored)
    for name, corner in (("low", low), ("high", high)):
        if corner.ndim != 3 or corner.shape[2] != 3 or corner.shape[0] != matrix.shape[0]:
            raise ShapeError(f"{name} must have shape (B, C, 3) with B = {matrix.shape[0]}, got {tuple(corner.shape)}")
    if low.shape != high.shape:
        raise ShapeError(f"low and high must have the same shape, got {tuple(low.shape)} and {tuple(high.shape)}")
    if {low.device, high.device} != {matrix.device}:
        raise ValueError(
            f"matrix, low and high must be on one device, got {matrix.device}, {low.device}, {high.device}"
        )
    if checks_values(low.device) and not bool(
        (low <= high).all() and (low[..., 2] > 0).all() and torch.isfinite(high).all()
    ):
        raise ValueError("low and high must be finite, with low <= high and ranges > 0")
    if len(points) != 3 or min(points) < 1:
        raise ValueError(f"points must be three counts of at least 1, got {points}")
    return refine_from(denominator(matrix, factored, loading), array, low, high, wavefront, points)


def refine_from(
    form: Denominator,
    array: PlanarArray,
    low: Tensor,
    high: Tensor,
    wavefront: str,
    points: tuple[int, int, int],
    widest: list[float] | None = None,
) -> Refined:
    """:func:`refine_peaks` on a denominator; with ``widest``, half sizes that no box exceeds, a GPU need not wait."""
    # Range runs against 1/range, in which the phase of a near-field source is nearly linear.
    corners = _inverse_range(low), _inverse_range(high)
    corner_low, corner_high = torch.minimum(*corners), torch.maximum(*corners)
    geometry = (array.positions_m, array.wavenumber, wavefront)
    position, value = refine_op(form.matrix, form.factored, corner_low, corner_high, list(points), *geometry, widest)
    # N - q cancels to nothing at a source without noise; no form is smaller than what float64 leaves of it.
    return Refined(position, form.scale / value.clamp_min(math.ldexp(array.n_elements, -50)))
