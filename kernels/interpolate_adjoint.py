"""Adjoint of interpolation from nodes on a GPU: from weights of the grid to weights of the nodes.

    V_r = P_az^T W_r P_el    for every plane r

with the interpolation matrices of :mod:`risfast.ops.interpolation`; synthesis from the nodes with V is then that from
the grid with W, because a_g a_g^H is interpolated by the same matrices.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from risfast.errors import ShapeError

from .launch import check_extent, check_operands, dot_precision, launch
from .weights import PointWeights, load_weight


@triton.jit
def interpolate_adjoint_kernel(  # type: ignore[no-untyped-def]
    weight_ptr,  # [B, R, G_az, G_el], or [B, G_az, G_el] with WINNER
    plane_ptr,  # [B, G_az, G_el] with WINNER
    azimuth_ptr,  # [G_az, n_az]
    elevation_ptr,  # [G_el, n_el]
    nodes_ptr,  # [B, R, n_az, n_el]
    R,
    n_az,
    n_el,
    G_az,
    G_el,
    azimuth_blocks,
    elevation_blocks,
    WINNER: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """P_az^T W P_el of one scene and plane on BLOCK_M x BLOCK_N nodes.

    Tile [BLOCK_M, BLOCK_N], over azimuths BLOCK_A and elevations BLOCK_E at a time; the sum over the elevations comes
    first and is made again for each block of azimuth nodes.
    Reads the weights once per tile, both matrices from the caches; writes the nodes once.
    2 n_el (n_az + G_el n_az / BLOCK_M) flops an azimuth and plane; 4 G_az G_el bytes in a plane, or a map for all.
    """
    pid = tl.program_id(0).to(tl.int64)
    m = (pid % azimuth_blocks).to(tl.int32) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    n = (pid // azimuth_blocks % elevation_blocks).to(tl.int32) * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    r = (pid // azimuth_blocks // elevation_blocks % R).to(tl.int32)
    scene = pid // azimuth_blocks // elevation_blocks // R
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first_a in range(0, G_az, BLOCK_A):
        a = first_a + tl.arange(0, BLOCK_A)  # [BLOCK_A]
        half = tl.zeros([BLOCK_A, BLOCK_N], tl.float32)  # summed over the elevations only
        for first_e in range(0, G_el, BLOCK_E):
            e = first_e + tl.arange(0, BLOCK_E)  # [BLOCK_E]
            there = (a < G_az)[:, None] & (e < G_el)[None, :]
            g = a[:, None] * G_el + e[None, :]
            # [BLOCK_A, BLOCK_E]
            w = load_weight(weight_ptr, plane_ptr, scene, g, r, G_az * G_el, R, there, WINNER)
            right_there = (e < G_el)[:, None] & (n < n_el)[None, :]
            right = tl.load(elevation_ptr + e[:, None] * n_el + n[None, :], mask=right_there, other=0.0)
            half = tl.dot(w, right, half, input_precision=PRECISION)
        left_there = (m < n_az)[:, None] & (a < G_az)[None, :]
        left = tl.load(azimuth_ptr + a[None, :] * n_az + m[:, None], mask=left_there, other=0.0)  # [BLOCK_M, BLOCK_A]
        total = tl.dot(left, half, total, input_precision=PRECISION)
    out = nodes_ptr + ((scene * R + r) * n_az + m[:, None]) * n_el + n[None, :]
    tl.store(out, total, mask=(m < n_az)[:, None] & (n < n_el)[None, :])


def interpolate_adjoint_configuration() -> dict[str, int]:
    """Pinned tile."""
    return {"BLOCK_A": 32, "BLOCK_E": 16, "BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "num_stages": 1}


def interpolate_adjoint(
    weights: PointWeights, azimuth: Tensor, elevation: Tensor, planes: int, *, precision: str | None = None
) -> Tensor:
    """Weights of the nodes, float32 [B, R, n_az, n_el], from weights of a box grid.

    azimuth, elevation (G_az, n_az), (G_el, n_el) -> (B, R, n_az, n_el)
    """
    precision = dot_precision(precision)
    for name, matrix in (("azimuth", azimuth), ("elevation", elevation)):
        if matrix.ndim != 2:
            raise ShapeError(f"{name} must be a matrix [points, nodes], got {tuple(matrix.shape)}")
        if matrix.dtype != torch.float32:
            raise TypeError(f"{name} must be float32, got {matrix.dtype}; convert it with .float()")
    weights.check_shape((azimuth.shape[0], elevation.shape[0], planes))
    check_extent(azimuth=azimuth.numel(), elevation=elevation.numel(), grid=azimuth.shape[0] * elevation.shape[0])
    device = check_operands(interpolate_adjoint_kernel, **weights.tensors(), azimuth=azimuth, elevation=elevation)
    batch = weights.values.shape[0]
    (g_az, n_az), (g_el, n_el) = azimuth.shape, elevation.shape
    nodes = torch.empty(batch, planes, n_az, n_el, dtype=torch.float32, device=device)
    configuration = interpolate_adjoint_configuration()
    azimuth_blocks = triton.cdiv(n_az, configuration["BLOCK_M"])
    elevation_blocks = triton.cdiv(n_el, configuration["BLOCK_N"])
    operands = *weights.operands(torch.float32, azimuth_last=False), azimuth.contiguous(), elevation.contiguous(), nodes
    sizes = planes, n_az, n_el, g_az, g_el, azimuth_blocks, elevation_blocks
    constants = {"WINNER": weights.plane is not None, "PRECISION": precision, **configuration}
    programs = batch * planes * azimuth_blocks * elevation_blocks
    launch(interpolate_adjoint_kernel, programs, device, *operands, *sizes, **constants)
    return nodes
