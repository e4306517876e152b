"""The lag method on a GPU: coefficients along block-Toeplitz diagonals, rows per elevation, and the fused evaluation.

    q = a^H Q a = sum_D C_D(r) exp(j k (D_h u_x + D_v u_y)),    C_D(r) = sum_{p_m - p_n = D} conj(w_n) Q_nm w_m

with w_n = exp(-j k |p_n|^2 / 2 r). C_D is the conjugate of C_-D, so D_h >= 0 suffices, doubled where D_h > 0. For one
elevation the sum over D_v leaves a row of n_h coefficients x_D - j y_D, and q = sum_D x_D cos + y_D sin of
k D_h spacing sin(az) cos(el): at -az the sine part changes sign, so each row serves both.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from risfast.errors import ShapeError

from .device import complex_product, keep_best, power_of
from .lag_tables import LagTables
from .launch import Epilogue, check_operands, on_device, unused

__all__ = ["lag_coefficients", "lag_configuration", "lag_map", "lag_rows", "lag_volume"]

_BLOCK_H, _BLOCK_I, _BLOCK_R = 16, 4, 8  # coefficients: lags and columns along x, and range planes, of one tile
_BLOCK_E, _BLOCK_M, _BLOCK_K = 32, 32, 16  # rows: elevations, coefficients, vertical lags of one program
_MOST_SCENES = 8  # scenes of one evaluation program, which share its tables


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
            q_re = tl.load(entry, mask=inside, other=0.0).to(ACC)  # [BLOCK_I, BLOCK_H]
            q_im = tl.load(entry + 1, mask=inside, other=0.0).to(ACC)
            w = wv_ptr + 2 * (planes * n_v + i_v)
            left_re = tl.load(w, mask=plane_mask, other=0.0)  # [BLOCK_R]
            left_im = tl.load(w + 1, mask=plane_mask, other=0.0)
            right_re = tl.load(w + 2 * lag_v, mask=plane_mask, other=0.0)  # [BLOCK_R]
            right_im = tl.load(w + 2 * lag_v + 1, mask=plane_mask, other=0.0)
            w_re, w_im = complex_product(left_re, -left_im, right_re, right_im)
            part_re, part_im = complex_product(q_re[None], q_im[None], w_re[:, None, None], w_im[:, None, None])
            sum_re += part_re
            sum_im += part_im
        there = plane_mask[:, None, None] & inside[None]
        left = wh_ptr + 2 * (planes[:, None] * n_h + i_h[None, :])  # [BLOCK_R, BLOCK_I]
        left_there = plane_mask[:, None] & (i_h < n_h)[None, :]
        a_re = tl.load(left, mask=left_there, other=0.0)
        a_im = tl.load(left + 1, mask=left_there, other=0.0)
        right = wh_ptr + 2 * (planes[:, None, None] * n_h + j_h[None])  # [BLOCK_R, BLOCK_I, BLOCK_H]
        b_re = tl.load(right, mask=there, other=0.0)
        b_im = tl.load(right + 1, mask=there, other=0.0)
        g_re, g_im = complex_product(a_re[:, :, None], -a_im[:, :, None], b_re, b_im)
        part_re, part_im = complex_product(sum_re, sum_im, g_re, g_im)
        total_re += tl.sum(part_re, axis=1)
        total_im += tl.sum(part_im, axis=1)
    doubled = tl.where(lags > 0, 2.0, 1.0).to(ACC)[None, :]
    out = c_ptr + 2 * (((scene * R + planes[:, None]) * n_h + lags[None, :]) * n_lags + lag_v + n_v - 1)
    stored = plane_mask[:, None] & (lags < n_h)[None, :]
    tl.store(out, total_re * doubled, mask=stored)
    tl.store(out + 1, total_im * doubled, mask=stored)


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


@triton.jit
def _tables(table_ptr, a, half_az, N_H: tl.constexpr) -> Any:  # type: ignore[no-untyped-def]
    """Rows 1 .. N_H - 1 of [N_H, half G_az] at azimuths a, as a tuple that stays in registers."""
    values = ()
    for lag in tl.static_range(1, N_H):
        value = tl.load(table_ptr + lag * half_az + a, mask=a < half_az, other=0.0)
        # Triton's compiler knows no unpacking in tuple displays, nor annotations of local names.
        values = values + (value,)  # type: ignore[assignment] # noqa: RUF005
    return values


@triton.jit
def _store_map(  # type: ignore[no-untyped-def]
    best_ptr, plane_ptr, a, there, stride, best, plane, scale, offset, EPILOGUE: tl.constexpr
) -> None:
    tl.store(best_ptr + a * stride, power_of(best, scale, offset, EPILOGUE), mask=there)
    tl.store(plane_ptr + a * stride, plane, mask=there)


@triton.jit
def lag_evaluate_kernel(  # type: ignore[no-untyped-def]
    rows_ptr,  # [2, G_el, B, R, N_H]
    cos_ptr,  # [half G_el, N_H, half G_az]
    sin_ptr,  # [half G_el, N_H, half G_az]
    scale_ptr,  # [B]
    best_ptr,  # [B, G_el, G_az]
    plane_ptr,  # [B, G_el, G_az]
    volume_ptr,  # [B, R, G_el, G_az]
    offset,
    B,
    R,
    G_az,
    G_el,
    half_az,
    half_el,
    chunks,
    N_H: tl.constexpr,
    SCENES: tl.constexpr,
    MIRROR_AZ: tl.constexpr,
    IMAGES: tl.constexpr,
    BLOCK_A: tl.constexpr,
    TAIL: tl.constexpr,
    EPILOGUE: tl.constexpr,
    VOLUME: tl.constexpr,
) -> None:
    """Power and best plane at one elevation and its mirror image, of BLOCK_A + TAIL half-azimuths and SCENES scenes.

    Cosines and sines [N_H - 1] x [BLOCK_A + TAIL] stay in registers; the rows are scalars; TAIL may be 0.
    Reads the rows once per block of azimuths; writes power and plane (the volume instead, if asked), azimuth fastest.
    2 (N_H - 1) fused operations per pair of mirrored points and plane; 8 bytes per point of the map, 4 R of the volume.
    """
    pid = tl.program_id(0)
    e = pid % half_el
    first_a = pid // half_el % chunks * (BLOCK_A + TAIL)
    first_scene = pid // half_el // chunks * SCENES
    a0 = first_a + tl.arange(0, BLOCK_A)  # [BLOCK_A]
    cos0 = _tables(cos_ptr + e * N_H * half_az, a0, half_az, N_H)
    sin0 = _tables(sin_ptr + e * N_H * half_az, a0, half_az, N_H)
    if TAIL > 0:
        a1 = first_a + BLOCK_A + tl.arange(0, TAIL)  # [TAIL]
        cos1 = _tables(cos_ptr + e * N_H * half_az, a1, half_az, N_H)
        sin1 = _tables(sin_ptr + e * N_H * half_az, a1, half_az, N_H)
    dtype: tl.constexpr = rows_ptr.dtype.element_ty
    worst: tl.constexpr = float("inf") if EPILOGUE == "reciprocal" else float("-inf")
    for item in range(0, SCENES * IMAGES):
        scene = (first_scene + item // IMAGES).to(tl.int64)
        if scene < B:
            # The mirror image of elevation (G_el - half + e) is half - 1 - e; without one, half is G_el.
            el = G_el - half_el + e
            if item % IMAGES == 1:
                el = half_el - 1 - e
            scale = tl.load(scale_ptr + scene)
            best0 = tl.full([BLOCK_A], worst, dtype)
            plane0 = tl.zeros([BLOCK_A], tl.int32)
            mirror_best0, mirror_plane0 = best0, plane0
            if TAIL > 0:
                best1 = tl.full([TAIL], worst, dtype)
                plane1 = tl.zeros([TAIL], tl.int32)
                mirror_best1, mirror_plane1 = best1, plane1
            for r in range(0, R):
                x = rows_ptr + ((el.to(tl.int64) * B + scene) * R + r) * N_H
                y = rows_ptr + (((el + G_el).to(tl.int64) * B + scene) * R + r) * N_H
                constant = tl.load(x)
                even0 = tl.zeros([BLOCK_A], dtype) + constant
                odd0 = tl.zeros([BLOCK_A], dtype)
                if TAIL > 0:
                    even1 = tl.zeros([TAIL], dtype) + constant
                    odd1 = tl.zeros([TAIL], dtype)
                for lag in tl.static_range(1, N_H):
                    x_lag = tl.load(x + lag)
                    y_lag = tl.load(y + lag)
                    even0 += x_lag * cos0[lag - 1]
                    odd0 += y_lag * sin0[lag - 1]
                    if TAIL > 0:
                        even1 += x_lag * cos1[lag - 1]
                        odd1 += y_lag * sin1[lag - 1]
                upper = G_az - half_az
                lower = half_az - 1
                if VOLUME:
                    out = volume_ptr + ((scene * R + r) * G_el + el) * G_az
                    value = power_of(even0 + odd0, scale, offset, EPILOGUE)
                    tl.store(out + upper + a0, value, mask=a0 < half_az)
                    if MIRROR_AZ:
                        value = power_of(even0 - odd0, scale, offset, EPILOGUE)
                        tl.store(out + lower - a0, value, mask=(a0 < half_az) & (a0 >= G_az % 2))
                    if TAIL > 0:
                        value = power_of(even1 + odd1, scale, offset, EPILOGUE)
                        tl.store(out + upper + a1, value, mask=a1 < half_az)
                        if MIRROR_AZ:
                            value = power_of(even1 - odd1, scale, offset, EPILOGUE)
                            tl.store(out + lower - a1, value, mask=a1 < half_az)
                else:
                    best0, plane0 = keep_best(best0, plane0, even0 + odd0, r, EPILOGUE)
                    if MIRROR_AZ:
                        mirror_best0, mirror_plane0 = keep_best(mirror_best0, mirror_plane0, even0 - odd0, r, EPILOGUE)
                    if TAIL > 0:
                        best1, plane1 = keep_best(best1, plane1, even1 + odd1, r, EPILOGUE)
                        if MIRROR_AZ:
                            mirror_best1, mirror_plane1 = keep_best(
                                mirror_best1, mirror_plane1, even1 - odd1, r, EPILOGUE
                            )
            if not VOLUME:
                start = (scene * G_el + el) * G_az
                power, plane = best_ptr + start + G_az - half_az, plane_ptr + start + G_az - half_az
                _store_map(power, plane, a0, a0 < half_az, 1, best0, plane0, scale, offset, EPILOGUE)
                if TAIL > 0:
                    _store_map(power, plane, a1, a1 < half_az, 1, best1, plane1, scale, offset, EPILOGUE)
                if MIRROR_AZ:
                    power, plane = best_ptr + start + half_az - 1, plane_ptr + start + half_az - 1
                    beside = (a0 < half_az) & (a0 >= G_az % 2)  # the centre of an odd axis is its own image
                    _store_map(power, plane, a0, beside, -1, mirror_best0, mirror_plane0, scale, offset, EPILOGUE)
                    if TAIL > 0:
                        _store_map(
                            power, plane, a1, a1 < half_az, -1, mirror_best1, mirror_plane1, scale, offset, EPILOGUE
                        )


def lag_configuration(n_h: int, dtype: torch.dtype) -> dict[str, int]:
    """Pinned tile of the evaluation: as many azimuths per lane as the 2 (n_h - 1) tables leave registers for.

    Raises
    ------
    ValueError
        More columns than any configuration holds without spilling.
    """
    double = dtype == torch.float64
    warps = 2 if double else 1
    for most, block, tail in ((12, 128, 64), (16, 128, 0), (32, 64, 0), (64, 32, 0)):
        if n_h <= most and not (double and most == 64):
            return {"BLOCK_A": block, "TAIL": tail, "num_warps": warps}
    raise ValueError(
        f"the lag kernels ship no configuration for {n_h} columns in {dtype} (at most {32 if double else 64}); "
        "use method='chebyshev' or 'dense', or the CPU implementation of method='lag'"
    )


def lag_coefficients(matrix: Tensor, tables: LagTables) -> Tensor:
    """Coefficients C [B, R, n_h, 2 n_v - 1] of Hermitian Q, for D_h >= 0 and doubled where D_h > 0.

    Parameters
    ----------
    matrix : complex64 or complex128 tensor, shape (B, N, N)
        Elements in the array's own order.
    tables : LagTables
        Their dtype is that of the sums and of the result.

    Returns
    -------
    complex tensor, shape (B, R, n_h, 2 n_v - 1)
    """
    n = tables.n_h * tables.n_v
    if matrix.ndim != 3 or matrix.shape[1:] != (n, n):
        raise ShapeError(f"matrix must have shape (B, {n}, {n}), got {tuple(matrix.shape)}")
    device = check_operands(lag_coefficients_kernel, matrix=matrix, tables=tables.order)
    batch, planes, n_lags = matrix.shape[0], tables.weights_h.shape[0], 2 * tables.n_v - 1
    out = torch.empty(batch, planes, tables.n_h, n_lags, 2, dtype=tables.dtype, device=device)
    lag_blocks, plane_blocks = triton.cdiv(tables.n_h, _BLOCK_H), triton.cdiv(planes, _BLOCK_R)
    programs = batch * n_lags * lag_blocks * plane_blocks
    if programs:
        with on_device(device):
            lag_coefficients_kernel[(programs,)](
                torch.view_as_real(matrix.resolve_conj()).contiguous(),
                tables.order,
                tables.weights_h,
                tables.weights_v,
                out,
                planes,
                tables.n_h,
                tables.n_v,
                lag_blocks,
                plane_blocks,
                ACC=tl.float64 if tables.dtype == torch.float64 else tl.float32,
                BLOCK_H=_BLOCK_H,
                BLOCK_I=_BLOCK_I,
                BLOCK_R=_BLOCK_R,
                num_warps=4,
            )
    return torch.view_as_complex(out)


def lag_rows(coefficients: Tensor, tables: LagTables) -> Tensor:
    """Rows [2, G_el, B, R, n_h]: the sums over vertical lags at every elevation, real and negated imaginary parts."""
    device = check_operands(lag_rows_kernel, coefficients=coefficients, tables=tables.vertical)
    batch, planes, n_h, n_lags = coefficients.shape
    rows = torch.empty(2, tables.n_elevation, batch, planes, n_h, dtype=tables.dtype, device=device)
    e, m = 2 * tables.n_elevation, batch * planes * n_h
    m_blocks = triton.cdiv(m, _BLOCK_M)
    if m:
        with on_device(device):
            lag_rows_kernel[(triton.cdiv(e, _BLOCK_E) * m_blocks,)](
                tables.vertical,
                torch.view_as_real(coefficients).contiguous(),
                rows,
                e,
                m,
                2 * n_lags,
                m_blocks,
                ACC=tl.float64 if tables.dtype == torch.float64 else tl.float32,
                BLOCK_E=_BLOCK_E,
                BLOCK_M=_BLOCK_M,
                BLOCK_K=_BLOCK_K,
                num_warps=4,
            )
    return rows


def _evaluate(
    matrix: Tensor, tables: LagTables, epilogue: Epilogue, best: Tensor, plane: Tensor, volume: Tensor | None
) -> None:
    configuration = lag_configuration(tables.n_h, tables.dtype)
    scale = epilogue.scale_on(matrix.shape[0], tables.dtype, matrix.device)
    rows = lag_rows(lag_coefficients(matrix, tables), tables)
    batch, planes, n_h = rows.shape[2:]
    half_el, _, half_az = tables.cosines.shape
    chunks = triton.cdiv(half_az, configuration["BLOCK_A"] + configuration["TAIL"])
    scenes = min(_MOST_SCENES, triton.next_power_of_2(max(batch, 1)))
    device = check_operands(lag_evaluate_kernel, matrix=matrix, tables=tables.cosines, best=best)
    if batch == 0:
        return
    with on_device(device):
        lag_evaluate_kernel[(half_el * chunks * triton.cdiv(batch, scenes),)](
            rows,
            tables.cosines,
            tables.sines,
            scale,
            best,
            plane,
            best if volume is None else volume,
            epilogue.offset,
            batch,
            planes,
            tables.n_azimuth,
            tables.n_elevation,
            half_az,
            half_el,
            chunks,
            N_H=n_h,
            SCENES=scenes,
            MIRROR_AZ=tables.mirror_azimuth,
            IMAGES=2 if tables.mirror_elevation else 1,
            EPILOGUE=epilogue.form,
            VOLUME=volume is not None,
            **configuration,
        )


def lag_map(matrix: Tensor, tables: LagTables, epilogue: Epilogue) -> tuple[Tensor, Tensor]:
    """Power of the best plane and its index, both [B, G_az, G_el] with azimuth fastest in memory.

    Parameters
    ----------
    matrix : complex64 or complex128 tensor, shape (B, N, N)
        Hermitian Q, such as R^-1.
    tables : LagTables
        float32 or float64; of the result too.
    epilogue : Epilogue

    Returns
    -------
    power : tensor of ``tables.dtype``, plane : int32 tensor
        Ties go to the lowest plane.
    """
    shape = (matrix.shape[0], tables.n_elevation, tables.n_azimuth)
    best = torch.empty(shape, dtype=tables.dtype, device=matrix.device)
    plane = torch.empty(shape, dtype=torch.int32, device=matrix.device)
    _evaluate(matrix, tables, epilogue, best, plane, None)
    return best.mT, plane.mT


def lag_volume(matrix: Tensor, tables: LagTables, epilogue: Epilogue) -> Tensor:
    """Power on every point, [B, G_az, G_el, G_r], stored plane by plane with azimuth fastest; see :func:`lag_map`."""
    planes = tables.weights_h.shape[0]
    shape = (matrix.shape[0], planes, tables.n_elevation, tables.n_azimuth)
    volume = torch.empty(shape, dtype=tables.dtype, device=matrix.device)
    _evaluate(matrix, tables, epilogue, unused(matrix, tables.dtype), unused(matrix, torch.int32), volume)
    return volume.permute(0, 3, 2, 1)
