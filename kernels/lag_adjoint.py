"""Synthesis on a uniform planar array on a GPU: the adjoint of the lag method, in three small steps.

    S_nm = sum_g p_g a_n conj(a_m) = sum_r w_n conj(w_m) T_D(r),    T_D(r) = sum_g p_g exp(-j k (D_h u_x + D_v u_y))

with D = p_m - p_n and w_n = exp(-j k |p_n|^2 / 2 r): the weights are summed over azimuth to rows of n_h cosine and sine
sums for every elevation, the rows over elevation to lags T, and the lags are written out as a block-Toeplitz matrix.
Every number is summed by one program in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import complex_product, load_complex, store_complex
from .lag_tables import LagTables
from .launch import accumulator, check_extent, check_operands, launch
from .weights import PointWeights, load_weight


@triton.jit
def weight_rows_kernel(  # type: ignore[no-untyped-def]
    weight_ptr,  # [B, R, G_el, G_az], or [B, G_el, G_az] with WINNER
    plane_ptr,  # [B, G_el, G_az] with WINNER
    cos_ptr,  # [half G_el, n_h, half G_az]
    sin_ptr,  # [half G_el, n_h, half G_az]
    rows_ptr,  # [2, G_el, B, R, n_h]
    B,
    R,
    n_h,
    G_az,
    G_el,
    half_az,
    half_el,
    row_blocks,
    lag_blocks,
    MIRROR_AZ: tl.constexpr,
    WINNER: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_A: tl.constexpr,
) -> None:
    """Sums over azimuth of weights times cosine and sine, at one elevation, for BLOCK_M scenes' planes and some lags.

    Tiles [BLOCK_M, BLOCK_H]; mirror images in azimuth are added (cosine) or subtracted (sine) before the product.
    Reads the weights of its elevation once per block of lags, and the tables; writes the rows once.
    2 n_h flops a point and plane (4 without mirror images).
    """
    pid = tl.program_id(0).to(tl.int64)
    lag = (pid % lag_blocks).to(tl.int32) * BLOCK_H + tl.arange(0, BLOCK_H)  # [BLOCK_H]
    row = pid // lag_blocks % row_blocks * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M] int64: scene, then plane
    elevation = pid // lag_blocks // row_blocks
    el = elevation.to(tl.int32)
    # The tables hold the upper half of a mirrored axis.
    half = tl.where(el >= G_el - half_el, el - (G_el - half_el), half_el - 1 - el)
    scene = (row // R)[:, None]
    r = (row % R)[:, None]
    inside = scene < B  # [BLOCK_M, 1]
    x = tl.zeros([BLOCK_M, BLOCK_H], ACC)
    y = tl.zeros([BLOCK_M, BLOCK_H], ACC)
    for first in range(0, half_az, BLOCK_A):
        a = first + tl.arange(0, BLOCK_A)  # [BLOCK_A]
        there = inside & (a < half_az)[None, :]  # [BLOCK_M, BLOCK_A]
        g = (el * G_az + G_az - half_az + a)[None, :]
        G = G_az * G_el
        even = load_weight(weight_ptr, plane_ptr, scene, g, r, G, R, there, WINNER)
        odd = even
        if MIRROR_AZ:
            # The centre of an odd axis is its own image.
            there = inside & ((a < half_az) & (a >= G_az % 2))[None, :]
            g = (el * G_az + half_az - 1 - a)[None, :]
            image = load_weight(weight_ptr, plane_ptr, scene, g, r, G, R, there, WINNER)
            odd = even - image
            even = even + image
        entry = (half * n_h + lag[None, :]) * half_az + a[:, None]
        table_there = (lag < n_h)[None, :] & (a < half_az)[:, None]
        cosine = tl.load(cos_ptr + entry, mask=table_there, other=0.0)  # [BLOCK_A, BLOCK_H]
        sine = tl.load(sin_ptr + entry, mask=table_there, other=0.0)
        x = tl.dot(even, cosine, x, input_precision="ieee", out_dtype=ACC)
        y = tl.dot(odd, sine, y, input_precision="ieee", out_dtype=ACC)
    out = rows_ptr + (elevation * B * R + row[:, None]) * n_h + lag[None, :]
    beside = rows_ptr + ((elevation + G_el) * B * R + row[:, None]) * n_h + lag[None, :]
    stored = inside & (lag < n_h)[None, :]
    tl.store(out, x, mask=stored)
    tl.store(beside, y, mask=stored)


@triton.jit
def lags_kernel(  # type: ignore[no-untyped-def]
    rows_ptr,  # [E, M]
    table_ptr,  # [E, K]
    lags_ptr,  # [M, K]
    E,
    M,
    K,
    k_blocks,
    ACC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_E: tl.constexpr,
) -> None:
    """Lags [M, K] = rows [E, M] transposed times table [E, K]; E = 2 G_el, K = 2 (2 n_v - 1), M = B R n_h.

    Tile [BLOCK_M, BLOCK_K], E in steps of BLOCK_E, never in reduced precision: the transpose of the rows of analysis.
    """
    pid = tl.program_id(0).to(tl.int64)
    m = pid // k_blocks * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M] int64
    k = (pid % k_blocks).to(tl.int32) * BLOCK_K + tl.arange(0, BLOCK_K)  # [BLOCK_K]
    total = tl.zeros([BLOCK_M, BLOCK_K], ACC)
    for first in range(0, E, BLOCK_E):
        e = first + tl.arange(0, BLOCK_E)
        left_there = (m < M)[:, None] & (e < E)[None, :]
        left = tl.load(rows_ptr + e[None, :].to(tl.int64) * M + m[:, None], mask=left_there, other=0.0)
        right_there = (e < E)[:, None] & (k < K)[None, :]
        right = tl.load(table_ptr + e[:, None] * K + k[None, :], mask=right_there, other=0.0)  # [BLOCK_E, BLOCK_K]
        total = tl.dot(left, right, total, input_precision="ieee", out_dtype=ACC)
    tl.store(lags_ptr + m[:, None] * K + k[None, :], total, mask=(m < M)[:, None] & (k < K)[None, :])


@triton.jit
def toeplitz_kernel(  # type: ignore[no-untyped-def]
    lags_ptr,  # [B, R, n_h, 2 n_v - 1, 2]
    order_ptr,  # [N] int32
    wh_ptr,  # [R, n_h, 2]
    wv_ptr,  # [R, n_v, 2]
    out_ptr,  # [B, N, N, 2]
    R,
    n_h,
    n_v,
    blocks,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """A tile [BLOCK, BLOCK] on or above the diagonal of one scene's S in lattice order, and its mirror image.

    Reads R lags and weights an entry from the caches, writes S once in the array's own order, exactly Hermitian.
    """
    pid = tl.program_id(0).to(tl.int64)
    block_i = (pid % blocks).to(tl.int32)
    block_j = (pid // blocks % blocks).to(tl.int32)
    scene = pid // blocks // blocks
    if block_i <= block_j:
        n = n_h * n_v
        n_lags = 2 * n_v - 1
        i = (block_i * BLOCK + tl.arange(0, BLOCK))[:, None]  # lattice index i_h n_v + i_v
        j = (block_j * BLOCK + tl.arange(0, BLOCK))[None, :]
        there = (i <= j) & (j < n)  # so that D_h >= 0
        lag = (j // n_v - i // n_v) * n_lags + j % n_v - i % n_v + n_v - 1
        re = tl.zeros([BLOCK, BLOCK], ACC)
        im = tl.zeros([BLOCK, BLOCK], ACC)
        for r in range(0, R):
            ih_re, ih_im = load_complex(wh_ptr + 2 * (r * n_h + i // n_v), i < n)  # [BLOCK, 1]
            jh_re, jh_im = load_complex(wh_ptr + 2 * (r * n_h + j // n_v), j < n)  # [1, BLOCK]
            iv_re, iv_im = load_complex(wv_ptr + 2 * (r * n_v + i % n_v), i < n)
            jv_re, jv_im = load_complex(wv_ptr + 2 * (r * n_v + j % n_v), j < n)
            i_re, i_im = complex_product(ih_re, ih_im, iv_re, iv_im)
            j_re, j_im = complex_product(jh_re, jh_im, jv_re, jv_im)
            w_re, w_im = complex_product(i_re, i_im, j_re, -j_im)  # [BLOCK, BLOCK]
            t_re, t_im = load_complex(lags_ptr + 2 * ((scene * R + r) * n_h * n_lags + lag), there)
            part_re, part_im = complex_product(w_re, w_im, t_re, t_im)
            re += part_re
            im += part_im
        im = tl.where(i == j, 0.0, im)
        row = tl.load(order_ptr + i, mask=i < n, other=0)
        column = tl.load(order_ptr + j, mask=j < n, other=0)
        store_complex(out_ptr + 2 * (scene * n * n + row * n + column), re, im, there)
        store_complex(out_ptr + 2 * (scene * n * n + column * n + row), re, -im, there)


def weight_rows_configuration() -> dict[str, int]:
    """Pinned tile of the sums over azimuth."""
    return {"BLOCK_M": 16, "BLOCK_H": 16, "BLOCK_A": 16, "num_warps": 4, "num_stages": 1}


def lags_configuration() -> dict[str, int]:
    """Pinned tile of the sums over elevation."""
    return {"BLOCK_M": 32, "BLOCK_K": 32, "BLOCK_E": 16, "num_warps": 4}


def toeplitz_configuration() -> dict[str, int]:
    """Pinned tile of the matrix."""
    return {"BLOCK": 32, "num_warps": 4}


def _rows(weights: PointWeights, tables: LagTables, planes: int, device: torch.device) -> Tensor:
    """Cosine and sine sums [2, G_el, B, R, n_h]."""
    batch = weights.values.shape[0]
    half_el, n_h, half_az = tables.cosines.shape
    rows = torch.empty(2, tables.n_elevation, batch, planes, n_h, dtype=tables.dtype, device=device)
    tile = weight_rows_configuration()
    row_blocks, lag_blocks = triton.cdiv(batch * planes, tile["BLOCK_M"]), triton.cdiv(n_h, tile["BLOCK_H"])
    operands = *weights.operands(tables.dtype, azimuth_last=True), tables.cosines, tables.sines, rows
    sizes = batch, planes, n_h, tables.n_azimuth, tables.n_elevation, half_az, half_el, row_blocks, lag_blocks
    constants = {"MIRROR_AZ": tables.mirror_azimuth, "WINNER": weights.plane is not None, **tile}
    programs = tables.n_elevation * row_blocks * lag_blocks
    launch(weight_rows_kernel, programs, device, *operands, *sizes, ACC=accumulator(tables.dtype), **constants)
    return rows


def _lags(rows: Tensor, tables: LagTables) -> Tensor:
    """T_D [B, R, n_h, 2 n_v - 1, 2] for D_h >= 0."""
    _, _, batch, planes, n_h = rows.shape
    n_lags = 2 * tables.n_v - 1
    lags = torch.empty(batch, planes, n_h, n_lags, 2, dtype=tables.dtype, device=rows.device)
    tile = lags_configuration()
    m, k_blocks = batch * planes * n_h, triton.cdiv(2 * n_lags, tile["BLOCK_K"])
    operands = rows, tables.vertical, lags, 2 * tables.n_elevation, m, 2 * n_lags, k_blocks
    programs = triton.cdiv(m, tile["BLOCK_M"]) * k_blocks
    launch(lags_kernel, programs, rows.device, *operands, ACC=accumulator(tables.dtype), **tile)
    return lags


def lag_synthesis(weights: PointWeights, tables: LagTables) -> Tensor:
    """sum_g p_g a_g a_g^H, complex [B, N, N] in the array's own order, exactly Hermitian.

    -> (B, N, N)
    """
    planes, n = tables.weights_h.shape[0], tables.n_h * tables.n_v
    weights.check_shape((tables.n_azimuth, tables.n_elevation, planes))
    check_extent(grid=tables.n_azimuth * tables.n_elevation, matrix=2 * n * n)
    device = check_operands(weight_rows_kernel, **weights.tensors(), tables=tables.cosines)
    batch = weights.values.shape[0]
    out = torch.empty(batch, n, n, 2, dtype=tables.dtype, device=device)
    if batch:
        lags = _lags(_rows(weights, tables, planes, device), tables)
        tile = toeplitz_configuration()
        blocks = triton.cdiv(n, tile["BLOCK"])
        operands = lags, tables.order, tables.weights_h, tables.weights_v, out, planes, tables.n_h, tables.n_v, blocks
        launch(toeplitz_kernel, batch * blocks * blocks, device, *operands, ACC=accumulator(tables.dtype), **tile)
    return torch.view_as_complex(out)
