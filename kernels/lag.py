"""The lag method on a GPU: coefficients along block-Toeplitz diagonals, rows per elevation, then their evaluation.

    q = a^H Q a = sum_D C_D(r) exp(j k (D_h u_x + D_v u_y)),    C_D(r) = sum_{p_m - p_n = D} conj(w_n) Q_nm w_m

with w_n = exp(-j k |p_n|^2 / 2 r). C_D is the conjugate of C_-D, so D_h >= 0 suffices, doubled where D_h > 0. For one
elevation the sum over D_v leaves a row of n_h coefficients x_D - j y_D, for :mod:`risfast.kernels.lag_evaluate`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from risfast.errors import ShapeError
from risfast.ops.spectra import Epilogue

from .device import complex_product, load_complex, store_complex
from .lag_evaluate import lag_configuration, lag_evaluate
from .lag_tables import LagTables
from .launch import (
    accumulator,
    check_extent,
    check_operands,
    interleaved,
    launch,
    map_or_volume,
    power_and_plane,
)


@triton.jit
def lag_coefficients_kernel(  # type: ignore[no-untyped-def]
    q_ptr,  # [B, N, N, 2]
    order_ptr,  # [N] int32
    wh_ptr,  # [R, n_h, 2]
    wv_ptr,  # [R, n_v, 2]
    c_ptr,  # [B, R, n_h, 2 n_v - 1, 2]
    R,
    n_h,
    n_v,
    lag_blocks,
    plane_blocks,
    ACC: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_R: tl.constexpr,
) -> None:
    """C_D(r) of one scene and one vertical lag, for BLOCK_H horizontal lags and BLOCK_R planes; no atomics.

    Tile [BLOCK_R planes, BLOCK_I columns i_h, BLOCK_H lags D_h], summed over i_h in registers.
    Reads half of Q once per block of planes and the weights; writes R n_h (2 n_v - 1) complex numbers a scene.
    16 flops a matrix entry (half of N^2) and plane; 4 N^2 + 8 R n_h (2 n_v - 1) bytes a scene in float32.
    """
    pid = tl.program_id(0).to(tl.int64)
    block_r = (pid % plane_blocks).to(tl.int32)
    block_h = (pid // plane_blocks % lag_blocks).to(tl.int32)
    n_lags = 2 * n_v - 1
    lag_v = (pid // plane_blocks // lag_blocks % n_lags).to(tl.int32) - (n_v - 1)
    scene = pid // plane_blocks // lag_blocks // n_lags
    n = n_h * n_v
    planes = block_r * BLOCK_R + tl.arange(0, BLOCK_R)  # [BLOCK_R]
    lags = block_h * BLOCK_H + tl.arange(0, BLOCK_H)  # [BLOCK_H]
    total_re = tl.zeros([BLOCK_R, BLOCK_H], ACC)
    total_im = tl.zeros([BLOCK_R, BLOCK_H], ACC)
    plane_mask = planes < R
    for start in range(0, n_h - block_h * BLOCK_H, BLOCK_I):
        i_h = start + tl.arange(0, BLOCK_I)  # [BLOCK_I]
        j_h = i_h[:, None] + lags[None, :]  # [BLOCK_I, BLOCK_H]
        inside = (i_h[:, None] < n_h) & (j_h < n_h)
        sum_re = tl.zeros([BLOCK_R, BLOCK_I, BLOCK_H], ACC)
        sum_im = tl.zeros([BLOCK_R, BLOCK_I, BLOCK_H], ACC)
        for i_v in range(tl.maximum(0, -lag_v), n_v - tl.maximum(0, lag_v)):
            row = tl.load(order_ptr + i_h * n_v + i_v, mask=i_h < n_h, other=0)  # [BLOCK_I]
            column = tl.load(order_ptr + j_h * n_v + i_v + lag_v, mask=inside, other=0)  # [BLOCK_I, BLOCK_H]
            entry = q_ptr + 2 * (scene * n * n + row[:, None] * n + column)
            q_re, q_im = load_complex(entry, inside)  # [BLOCK_I, BLOCK_H]
            q_re, q_im = q_re.to(ACC), q_im.to(ACC)
            w = wv_ptr + 2 * (planes * n_v + i_v)
            left_re, left_im = load_complex(w, plane_mask)  # [BLOCK_R]
            right_re, right_im = load_complex(w + 2 * lag_v, plane_mask)
            w_re, w_im = complex_product(left_re, -left_im, right_re, right_im)
            part_re, part_im = complex_product(q_re[None], q_im[None], w_re[:, None, None], w_im[:, None, None])
            sum_re += part_re
            sum_im += part_im
        there = plane_mask[:, None, None] & inside[None]
        left = wh_ptr + 2 * (planes[:, None] * n_h + i_h[None, :])  # [BLOCK_R, BLOCK_I]
        left_there = plane_mask[:, None] & (i_h < n_h)[None, :]
        a_re, a_im = load_complex(left, left_there)
        b_re, b_im = load_complex(wh_ptr + 2 * (planes[:, None, None] * n_h + j_h[None]), there)  # [.., BLOCK_H]
        g_re, g_im = complex_product(a_re[:, :, None], -a_im[:, :, None], b_re, b_im)
        part_re, part_im = complex_product(sum_re, sum_im, g_re, g_im)
        total_re += tl.sum(part_re, axis=1)
        total_im += tl.sum(part_im, axis=1)
    doubled = tl.where(lags > 0, 2.0, 1.0).to(ACC)[None, :]
    out = c_ptr + 2 * (((scene * R + planes[:, None]) * n_h + lags[None, :]) * n_lags + lag_v + n_v - 1)
    store_complex(out, total_re * doubled, total_im * doubled, plane_mask[:, None] & (lags < n_h)[None, :])


@triton.jit
def lag_rows_kernel(  # type: ignore[no-untyped-def]
    table_ptr,  # [2 G_el, K]
    c_ptr,  # [M, K]
    rows_ptr,  # [2 G_el, M]
    E,
    M,
    K,
    m_blocks,
    ACC: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Rows [2 G_el, M] = table [2 G_el, K] times coefficients [M, K] transposed, K = 2 (2 n_v - 1), M = B R n_h.

    Tile [BLOCK_E, BLOCK_M], K in steps of BLOCK_K, never in reduced precision.
    Reads both operands, from the second-level cache after the first program of a row; writes the rows once.
    2 K flops and one number written per row and coefficient: 2.8 Mflop and 0.12 MB a scene of the reference system.
    """
    pid = tl.program_id(0).to(tl.int64)
    e = (pid // m_blocks * BLOCK_E).to(tl.int32) + tl.arange(0, BLOCK_E)  # [BLOCK_E]
    m = pid % m_blocks * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M] int64
    total = tl.zeros([BLOCK_E, BLOCK_M], ACC)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        left_there = (e < E)[:, None] & (k < K)[None, :]
        left = tl.load(table_ptr + e[:, None] * K + k[None, :], mask=left_there, other=0.0)  # [BLOCK_E, BLOCK_K]
        right_there = (k < K)[:, None] & (m < M)[None, :]
        right = tl.load(c_ptr + m[None, :] * K + k[:, None], mask=right_there, other=0.0)  # [BLOCK_K, BLOCK_M]
        total = tl.dot(left, right, total, input_precision="ieee", out_dtype=ACC)
    out = rows_ptr + e[:, None].to(tl.int64) * M + m[None, :]
    tl.store(out, total, mask=(e < E)[:, None] & (m < M)[None, :])


def coefficients_configuration() -> dict[str, int]:
    """Pinned tile of the coefficients: lags and columns along x, and range planes."""
    return {"BLOCK_H": 16, "BLOCK_I": 4, "BLOCK_R": 8, "num_warps": 4}


def rows_configuration() -> dict[str, int]:
    """Pinned tile of the rows: elevations, coefficients, vertical lags."""
    return {"BLOCK_E": 32, "BLOCK_M": 32, "BLOCK_K": 16, "num_warps": 4}


def lag_coefficients(matrix: Tensor, tables: LagTables) -> Tensor:
    """Coefficients C [B, R, n_h, 2 n_v - 1] of Hermitian Q, for D_h >= 0 and doubled where D_h > 0.

    matrix (B, N, N) -> (B, R, n_h, 2 n_v - 1)
    """
    n = tables.n_h * tables.n_v
    if matrix.ndim != 3 or matrix.shape[1:] != (n, n):
        raise ShapeError(f"matrix must have shape (B, {n}, {n}), got {tuple(matrix.shape)}")
    check_extent(matrix=2 * n * n)
    device = check_operands(lag_coefficients_kernel, matrix=matrix, tables=tables.order)
    batch, planes, n_lags = matrix.shape[0], tables.weights_h.shape[0], 2 * tables.n_v - 1
    out = torch.empty(batch, planes, tables.n_h, n_lags, 2, dtype=tables.dtype, device=device)
    tile = coefficients_configuration()
    lag_blocks, plane_blocks = triton.cdiv(tables.n_h, tile["BLOCK_H"]), triton.cdiv(planes, tile["BLOCK_R"])
    operands = interleaved(matrix), tables.order, tables.weights_h, tables.weights_v, out
    sizes = planes, tables.n_h, tables.n_v, lag_blocks, plane_blocks
    programs = batch * n_lags * lag_blocks * plane_blocks
    launch(lag_coefficients_kernel, programs, device, *operands, *sizes, ACC=accumulator(tables.dtype), **tile)
    return torch.view_as_complex(out)


def lag_rows(coefficients: Tensor, tables: LagTables) -> Tensor:
    """Rows [2, G_el, B, R, n_h]: the sums over vertical lags at every elevation, real and negated imaginary parts."""
    device = check_operands(lag_rows_kernel, coefficients=coefficients, tables=tables.vertical)
    batch, planes, n_h, n_lags = coefficients.shape
    rows = torch.empty(2, tables.n_elevation, batch, planes, n_h, dtype=tables.dtype, device=device)
    e, m = 2 * tables.n_elevation, batch * planes * n_h
    tile = rows_configuration()
    m_blocks = triton.cdiv(m, tile["BLOCK_M"])
    operands = tables.vertical, torch.view_as_real(coefficients).contiguous(), rows, e, m, 2 * n_lags, m_blocks
    programs = triton.cdiv(e, tile["BLOCK_E"]) * m_blocks
    launch(lag_rows_kernel, programs, device, *operands, ACC=accumulator(tables.dtype), **tile)
    return rows


def lag_power(matrix: Tensor, tables: LagTables, epilogue: Epilogue, volume: bool = False) -> tuple[Tensor, Tensor]:
    """Power of the best plane and its index, or on every point and no index, with azimuth fastest in memory.

    matrix (B, N, N) -> power (B, G_az, G_el) or (B, G_az, G_el, G_r), plane (B, G_az, G_el)
    """
    # What cannot be met raises before any work.
    lag_configuration(tables.n_h, tables.dtype)
    batch, planes = matrix.shape[0], tables.weights_h.shape[0]
    epilogue = replace(epilogue, scale=epilogue.scale_on(batch, tables.dtype, matrix.device))
    shape = (batch, planes, tables.n_elevation, tables.n_azimuth)
    outputs = map_or_volume(shape, volume, tables.dtype, matrix.device)
    lag_evaluate(lag_rows(lag_coefficients(matrix, tables), tables), tables, epilogue, outputs)
    power, plane = power_and_plane(outputs)
    return power.transpose(1, 2), plane if volume else plane.mT
