"""Local refinement on a GPU: all candidates of all scenes at once, nothing waits for the host.

The form on Chebyshev nodes of every box, interpolated onto a fine grid; from its smallest point, three Newton steps in
float64 below the grid. How many nodes a box needs follows from its size,
which on a GPU only the device knows; asking it would make the host wait. So a plan is made for the widest box that will
come, which the caller knows beforehand: the boxes that a walk leaves behind are as wide as two steps of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from risfast.errors import ShapeError
from risfast.ops import refinement as definition
from risfast.ops.interpolation import bessel_node_count, chebyshev_nodes, interpolation_matrix

from .descent import descend
from .forms import FormGeometry, forms
from .launch import check_operands, dot_precision, launch

_NODE_BYTES = 256 << 20  # coordinates of nodes held at once
_NO_KEY = (1 << 63) - 1
# Interpolation error of a phase difference, rms over pairs. The fine grid only has to find the right valley of the
# form; the last step below the grid is exact.
_NODE_TOLERANCE = 1e-5
_MOST_NODES = 41
_STEPS_BELOW_GRID = 3
_WALK_STEPS = 8


@triton.jit
def grid_minimum_kernel(  # type: ignore[no-untyped-def]
    node_ptr,  # [C, n_az, n_el, n_r]
    azimuth_ptr,  # [p_az, n_az]
    elevation_ptr,  # [p_el, n_el]
    range_ptr,  # [p_r, n_r]
    key_ptr,  # [C] int64: value in the upper half, index in the lower; the largest int on entry
    n_az,
    n_el,
    n_r,
    p_az,
    p_el,
    p_r,
    chunks,
    AZIMUTHS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """The smallest interpolated value of one box on AZIMUTHS azimuths of its fine grid, and its lowest index.

    Tile [BLOCK_E, BLOCK_R] of one azimuth; all nodes in (elevation, range) at once, [BLOCK_J, BLOCK_K].
    Reads the nodes of the box from the caches for every azimuth; one atomic minimum of integers.
    2 n_el n_r (n_az + p_el) + 2 p_el p_r n_r flops an azimuth.
    """
    pid = tl.program_id(0).to(tl.int64)
    candidate = pid // chunks
    first = (pid % chunks).to(tl.int32) * AZIMUTHS
    j = tl.arange(0, BLOCK_J)  # [BLOCK_J]
    k = tl.arange(0, BLOCK_K)  # [BLOCK_K]
    nodes = node_ptr + candidate * n_az * n_el * n_r + j[:, None] * n_r + k[None, :]
    node_there = (j < n_el)[:, None] & (k < n_r)[None, :]
    smallest = tl.full([], 9223372036854775807, tl.int64)
    for a in range(first, tl.minimum(first + AZIMUTHS, p_az)):
        along = tl.zeros([BLOCK_J, BLOCK_K], tl.float32)
        for i in range(0, n_az):
            weight = tl.load(azimuth_ptr + a * n_az + i)
            along += weight * tl.load(nodes + i * n_el * n_r, mask=node_there, other=0.0)
        for first_e in range(0, p_el, BLOCK_E):
            e = first_e + tl.arange(0, BLOCK_E)  # [BLOCK_E]
            left_there = (e < p_el)[:, None] & (j < n_el)[None, :]
            left = tl.load(elevation_ptr + e[:, None] * n_el + j[None, :], mask=left_there, other=0.0)
            half = tl.dot(left, along, input_precision=PRECISION)  # [BLOCK_E, BLOCK_K]
            for first_r in range(0, p_r, BLOCK_R):
                r = first_r + tl.arange(0, BLOCK_R)  # [BLOCK_R]
                right_there = (k < n_r)[:, None] & (r < p_r)[None, :]
                right = tl.load(range_ptr + r[None, :] * n_r + k[:, None], mask=right_there, other=0.0)
                q = tl.dot(half, right, input_precision=PRECISION)  # [BLOCK_E, BLOCK_R]
                # The bits of a float32 are in the order of the numbers once those of negative ones are turned over.
                bits = q.to(tl.int32, bitcast=True)
                bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
                index = (a * p_el + e[:, None]) * p_r + r[None, :]
                key = (bits.to(tl.int64) << 32) | index.to(tl.int64)
                there = (e < p_el)[:, None] & (r < p_r)[None, :]
                smallest = tl.minimum(smallest, tl.min(tl.where(there, key, 9223372036854775807)))
    tl.atomic_min(key_ptr + candidate, smallest)


def grid_minimum_configuration(n_el: int, n_r: int) -> dict[str, int]:
    """Pinned tile for numbers of nodes; boxes of a walk need 7 along each axis."""
    blocks = {"BLOCK_J": max(16, triton.next_power_of_2(n_el)), "BLOCK_K": max(16, triton.next_power_of_2(n_r))}
    if max(blocks.values()) > 32:
        return blocks | {"AZIMUTHS": 8, "BLOCK_E": 16, "BLOCK_R": 32, "num_warps": 8}
    return blocks | {"AZIMUTHS": 8, "BLOCK_E": 32, "BLOCK_R": 32, "num_warps": 4}


def widest_half(low: Tensor, high: Tensor) -> tuple[float, float, float]:
    """Half of the widest box along (azimuth, elevation, 1/range); waits for the device that holds the corners."""
    if low.numel() == 0:
        return 0.0, 0.0, 0.0
    azimuth, elevation, inverse_range = ((high - low) / 2).flatten(0, -2).amax(0).tolist()
    return azimuth, elevation, inverse_range


def _half_phases(positions: Tensor, low: Tensor, high: Tensor, wavenumber: float) -> tuple[Tensor, Tensor, Tensor]:
    """Phase that pairs of elements turn through over half of the widest box, along each axis, seen from afar."""
    half = ((high - low) / 2).amax((0, 1)).tolist()
    index = torch.triu_indices(len(positions), len(positions), 0)
    separation = positions[index[0]] - positions[index[1]]
    path = definition.bending(positions)
    bend = path[index[0]] - path[index[1]]
    k = wavenumber
    length = separation.norm(dim=1)
    return k * half[0] * length, k * half[1] * length, k * half[2] * bend / 2


@dataclass(frozen=True, eq=False)
class RefinePlan:
    """What refinement needs of the array, the fine grid and the widest box; made once, in float64 on the host."""

    geometry: FormGeometry
    points: tuple[int, int, int]  # Fine grid in (azimuth, elevation, 1/range)
    offsets: Tensor  # (nodes, 3) Nodes in a box from -1 to 1
    matrices: tuple[Tensor, Tensor, Tensor]  # (points, nodes)

    @classmethod
    def build(
        cls,
        positions_m: Tensor,
        wavenumber: float,
        wavefront: str,
        points: Sequence[int],
        widest: Sequence[float],
        device: torch.device | str,
    ) -> RefinePlan:
        """Plan for boxes of at most ``widest`` half sizes in (azimuth, elevation, 1/range)."""
        # A wider box is interpolated with too few nodes and may end in another valley; :func:`widest_half` gives the
        # sizes of boxes that are at hand.
        if len(points) != 3 or min(points) < 1 or math.prod(points) >= 1 << 31:
            raise ValueError(f"points must be three counts >= 1 of fewer than 2^31 points, got {tuple(points)}")
        if len(widest) != 3 or not all(0 <= half < math.inf for half in widest):
            raise ValueError(f"widest must be three finite half sizes >= 0, got {tuple(widest)}")
        half = torch.tensor([[list(widest)]], dtype=torch.float64)
        phases = _half_phases(positions_m.double().cpu(), -half, half, wavenumber)
        counts = [
            bessel_node_count(p, _NODE_TOLERANCE, min(n, _MOST_NODES)) for p, n in zip(phases, points, strict=True)
        ]
        nodes = [chebyshev_nodes(-1.0, 1.0, count) for count in counts]
        matrices = [
            interpolation_matrix(axis, -1.0, 1.0, torch.linspace(-1, 1, n, dtype=torch.float64)).float().to(device)
            for axis, n in zip(nodes, points, strict=True)
        ]
        offsets = torch.stack(torch.meshgrid(*nodes, indexing="ij"), -1).reshape(-1, 3)
        geometry = FormGeometry.build(positions_m.cpu(), wavenumber, wavefront, device)
        return cls(
            geometry,
            (points[0], points[1], points[2]),
            offsets.to(device),
            (matrices[0].contiguous(), matrices[1].contiguous(), matrices[2].contiguous()),
        )


def _fine_grid_minimum(matrix: Tensor, factored: bool, low: Tensor, high: Tensor, plan: RefinePlan) -> Tensor:
    """Point of the fine grid with the smallest form in each box [B, C, 3], in (azimuth, elevation, 1/range)."""
    batch, candidates = low.shape[:2]
    device = low.device
    counts, points = [m.shape[1] for m in plan.matrices], plan.points
    configuration = grid_minimum_configuration(counts[1], counts[2])
    chunks = triton.cdiv(points[0], configuration["AZIMUTHS"])
    key = torch.full((batch, candidates), _NO_KEY, dtype=torch.int64, device=device)
    centre, half = ((high + low) / 2)[:, :, None], ((high - low) / 2)[:, :, None]
    scenes = max(1, _NODE_BYTES // (24 * candidates * plan.offsets.shape[0]))
    for start in range(0, batch, scenes):
        part = slice(start, start + scenes)
        nodes = (centre[part] + half[part] * plan.offsets).flatten(1, 2)
        q = forms(nodes, matrix[part], factored, plan.geometry, torch.float32)
        operands = q, *plan.matrices, key[part], *counts, *points, chunks
        programs = key[part].numel() * chunks
        launch(grid_minimum_kernel, programs, device, *operands, PRECISION=dot_precision(), **configuration)
    linear = key & 0xFFFFFFFF
    plane = points[1] * points[2]
    index = torch.stack([linear // plane, linear // points[2] % points[1], linear % points[2]], -1)
    share = [
        index[..., a].double() / (n - 1) if n > 1 else torch.full_like(low[..., 0], 0.5) for a, n in enumerate(points)
    ]
    return low + (high - low) * torch.stack(share, -1)


def _ready(matrix: Tensor) -> Tensor:
    """As the forms read it, once for all of them."""
    return matrix.to(torch.complex128).resolve_conj().contiguous() if matrix.is_complex() else matrix


def _check_boxes(matrix: Tensor, **corners: Tensor) -> None:
    for name, corner in corners.items():
        if corner.ndim != 3 or corner.shape[0] != matrix.shape[0] or corner.shape[2] != 3:
            raise ShapeError(f"{name} must have shape ({matrix.shape[0]}, C, 3), got {tuple(corner.shape)}")
        if corner.dtype != torch.float64:
            raise TypeError(f"{name} must be float64, got {corner.dtype}; convert it with .double()")
    if len({corner.shape for corner in corners.values()}) > 1:
        found = ", ".join(f"{name} {tuple(corner.shape)}" for name, corner in corners.items())
        raise ShapeError(f"the corners must have one shape, got {found}")


def refine(matrix: Tensor, factored: bool, low: Tensor, high: Tensor, plan: RefinePlan) -> tuple[Tensor, Tensor]:
    """Smallest a^H Q a, or N - ||W^H a||^2, in each of C boxes a scene.

    matrix (B, N, N), or (B, N, K), low, high (B, C, 3) -> point (B, C, 3), value (B, C)
    """
    # Within 1e-4 degrees and 0.1 mm of :func:`risfast.ops.refinement.refine_op` (the tests hold it to that); not to the
    # last bit, because the float32 of the fine grid may take a neighbouring point.
    check_operands(grid_minimum_kernel, matrix=matrix, low=low, high=high, plan=plan.offsets)
    _check_boxes(matrix, low=low, high=high)
    if low.shape[0] * low.shape[1] == 0:
        return torch.empty_like(low), low.new_empty(low.shape[:2])
    matrix = _ready(matrix)
    start = _fine_grid_minimum(matrix, factored, low, high, plan)
    # Divided by a number on each axis, because a tensor of them would have to be copied to the device. No stencil is
    # wider than its box; the middle of a box of one point is where a walk ended, near its minimum.
    parts = [max(n - 1, 2) if n > 1 else 8 for n in plan.points]
    spacing = torch.stack([(high - low)[..., axis] / part for axis, part in enumerate(parts)], -1)
    found, value = descend(
        start,
        spacing,
        low,
        high,
        matrix,
        factored,
        plan.geometry,
        torch.float64,
        iterations=_STEPS_BELOW_GRID,
        shrink=0.125,
    )
    return torch.cat([found[..., :2], 1 / found[..., 2:]], -1), value


def walk(
    matrix: Tensor,
    factored: bool,
    start: Tensor,
    low: Tensor,
    high: Tensor,
    spacing: Sequence[float],
    geometry: FormGeometry,
) -> Tensor:
    """Descend from ``start`` within one box for all; forms in float32, coordinates in float64.

    start (B, C, 3), low, high (3,) -> (B, C, 3)
    """
    check_operands(grid_minimum_kernel, matrix=matrix, start=start, low=low, high=high)
    _check_boxes(matrix, start=start)
    step = torch.stack([torch.full_like(start[..., 0], arm) for arm in spacing], -1)
    box = low.expand_as(start), high.expand_as(start)
    ready, real = _ready(matrix), torch.float32
    ended, _ = descend(start, step, *box, ready, factored, geometry, real, iterations=_WALK_STEPS, shrink=1.0)
    # A stencil as wide as a step has its own minimum beside that of the form.
    ended, _ = descend(ended, step / 16, *box, ready, factored, geometry, real, iterations=2, shrink=1.0)
    return ended
