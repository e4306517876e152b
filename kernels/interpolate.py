"""Interpolation from nodes on a GPU: two small matrix products, epilogue and best plane in one kernel.

The nodes hold q on a small grid of every plane (the dense kernel makes them, as a volume with the linear epilogue);
q on the whole grid is P_az nodes P_el^T, with the interpolation matrices of :mod:`risfast.ops.interpolation`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from risfast.errors import ShapeError
from risfast.ops.spectra import Epilogue

from .device import first_best, keep_best, power_of, store_best
from .launch import (
    check_extent,
    check_operands,
    dot_precision,
    launch,
    map_or_volume,
    power_and_plane,
    written,
)


@triton.jit
def interpolate_kernel(  # type: ignore[no-untyped-def]
    nodes_ptr,  # [B, R, n_az, n_el]
    azimuth_ptr,  # [G_az, n_az]
    elevation_ptr,  # [G_el, n_el]
    scale_ptr,  # [B]
    best_ptr,  # [B, G_az, G_el]
    plane_ptr,  # [B, G_az, G_el]
    volume_ptr,  # [B, R, G_az, G_el]
    offset,
    R,
    n_az,
    n_el,
    G_az,
    G_el,
    azimuth_blocks,
    elevation_blocks,
    EPILOGUE: tl.constexpr,
    VOLUME: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """P_az nodes P_el^T, epilogue and best plane of one scene on BLOCK_A azimuths x BLOCK_E elevations, all planes.

    Tile [BLOCK_A, BLOCK_E]; azimuth nodes in steps of BLOCK_M, elevation nodes in steps of BLOCK_N.
    Reads each node once per tile and both matrices from the caches; writes power and plane (or the volume, if asked).
    2 n_el (1 + n_az / BLOCK_E) flops a point and plane; 4 R n_az n_el bytes in, 8 bytes a direction out, or 4 R.
    """
    pid = tl.program_id(0).to(tl.int64)
    scene = pid // elevation_blocks // azimuth_blocks
    a = (pid // elevation_blocks % azimuth_blocks).to(tl.int32) * BLOCK_A + tl.arange(0, BLOCK_A)  # [BLOCK_A]
    e = (pid % elevation_blocks).to(tl.int32) * BLOCK_E + tl.arange(0, BLOCK_E)  # [BLOCK_E]
    there = (a < G_az)[:, None] & (e < G_el)[None, :]  # [BLOCK_A, BLOCK_E]
    point = a[:, None].to(tl.int64) * G_el + e[None, :]
    scale = tl.load(scale_ptr + scene)
    best, plane = first_best(tl.zeros([BLOCK_A, BLOCK_E], tl.float32), EPILOGUE)
    for index in range(0, R):
        q = tl.zeros([BLOCK_A, BLOCK_E], tl.float32)
        nodes = nodes_ptr + (scene * R + index) * n_az * n_el
        for first_n in range(0, n_el, BLOCK_N):
            n = first_n + tl.arange(0, BLOCK_N)  # [BLOCK_N]
            half = tl.zeros([BLOCK_A, BLOCK_N], tl.float32)  # interpolated in azimuth only
            for first_m in range(0, n_az, BLOCK_M):
                m = first_m + tl.arange(0, BLOCK_M)  # [BLOCK_M]
                left_there = (a < G_az)[:, None] & (m < n_az)[None, :]
                left = tl.load(azimuth_ptr + a[:, None] * n_az + m[None, :], mask=left_there, other=0.0)
                node_there = (m < n_az)[:, None] & (n < n_el)[None, :]
                value = tl.load(nodes + m[:, None] * n_el + n[None, :], mask=node_there, other=0.0)
                half = tl.dot(left, value, half, input_precision=PRECISION)
            right_there = (n < n_el)[:, None] & (e < G_el)[None, :]
            right = tl.load(elevation_ptr + e[None, :] * n_el + n[:, None], mask=right_there, other=0.0)
            q = tl.dot(half, right, q, input_precision=PRECISION)
        if VOLUME:
            out = volume_ptr + (scene * R + index) * G_az * G_el + point
            tl.store(out, power_of(q, scale, offset, EPILOGUE), mask=there)
        else:
            best, plane = keep_best(best, plane, q, index, EPILOGUE)
    if not VOLUME:
        out = scene * G_az * G_el + point
        store_best(best_ptr + out, plane_ptr + out, best, plane, scale, offset, there, EPILOGUE)


def interpolate_configuration() -> dict[str, int]:
    """Pinned tile; 64 x 64 spills on sm_80, whose tf32x3 products hold both halves of every operand in registers."""
    return {"BLOCK_A": 64, "BLOCK_E": 32, "BLOCK_M": 16, "BLOCK_N": 16, "num_warps": 4}


def interpolated_power(
    nodes: Tensor,
    azimuth: Tensor,
    elevation: Tensor,
    epilogue: Epilogue,
    volume: bool = False,
    *,
    precision: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Power of the best plane and its index, both [B, G_az, G_el]; or on every point, and no index.

    nodes (B, R, n_az, n_el), azimuth, elevation (G_az, n_az), (G_el, n_el)
    """
    device = check_operands(interpolate_kernel, nodes=nodes, azimuth=azimuth, elevation=elevation)
    if nodes.ndim != 4 or azimuth.shape[1:] != nodes.shape[2:3] or elevation.shape[1:] != nodes.shape[3:]:
        raise ShapeError(
            "nodes, azimuth and elevation must have shapes (B, R, n_az, n_el), (G_az, n_az) and (G_el, n_el), got "
            f"{tuple(nodes.shape)}, {tuple(azimuth.shape)} and {tuple(elevation.shape)}"
        )
    for name, tensor in (("nodes", nodes), ("azimuth", azimuth), ("elevation", elevation)):
        if tensor.dtype != torch.float32:
            raise TypeError(f"{name} must be float32, got {tensor.dtype}; convert it with .float()")
    batch, planes, n_az, n_el = nodes.shape
    g_az, g_el = azimuth.shape[0], elevation.shape[0]
    check_extent(azimuth=azimuth.numel(), elevation=elevation.numel(), nodes=n_az * n_el, grid=g_az * g_el)
    outputs = map_or_volume((batch, planes, g_az, g_el), volume, torch.float32, device)
    configuration = interpolate_configuration()
    azimuth_blocks = triton.cdiv(g_az, configuration["BLOCK_A"])
    elevation_blocks = triton.cdiv(g_el, configuration["BLOCK_E"])
    operands = nodes.contiguous(), azimuth.contiguous(), elevation.contiguous(), *written(epilogue, outputs, batch)
    sizes = planes, n_az, n_el, g_az, g_el, azimuth_blocks, elevation_blocks
    constants = {"EPILOGUE": epilogue.form, "VOLUME": volume, "PRECISION": dot_precision(precision), **configuration}
    programs = batch * azimuth_blocks * elevation_blocks
    launch(interpolate_kernel, programs, device, *operands, *sizes, **constants)
    return power_and_plane(outputs)
