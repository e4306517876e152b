"""Low-rank Capon on a GPU in the form that does not cancel: a squared residual, not N minus the square of a projection.

With R = F F^H, F [B, N, K], and delta > 0,

    delta a^H (R + delta I)^-1 a = ||a - U V^H a||^2,    P = N delta / ||a - U V^H a||^2
    C C^H = F^H F + delta I,    V = F C^-H,    U = V (I + sqrt(delta) C^-H)^-1

Near a source N - ||V^H a||^2 is the small difference of two large numbers; the residual is small itself. A K x K
Cholesky factor replaces the singular vectors: with M = (C^H + sqrt(delta) I)^-1 C^-1 one has
M + M^H - M^H F^H F M = C^-H C^-1, which makes (I - F M F^H)^H (I - F M F^H) the identity minus Woodbury's term, as
the symmetric root D = 1 - sqrt(delta / (delta + s^2)) does with singular values s. No singular value is divided by, so
that F may have dependent columns.

Largest error of the map in dB against float64, reference surface, sources on points of a 25 x 13 x 7 grid, K = 1 to 32
(the interpreter's float32 arithmetic): 1e-4 at a loading of 1e-2, 8e-4 at 1e-4. Singular vectors give the same.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from risfast.errors import ShapeError
from risfast.ops.spectra import Epilogue

from .dense import DensePoints
from .device import (
    first_best,
    keep_best,
    load_complex,
    load_points,
    plus_conjugate_product,
    power_of,
    steering_tile,
    store_best,
)
from .inverse import inverse_factor
from .launch import check_extent, check_operands, dot_precision, interleaved, launch, power_and_plane, written

MOST_COLUMNS = 32  # products V^H a of one tile are held in registers


@triton.jit
def _project(v_ptr, n, k, N, K, a_re, a_im, y_re, y_im, PRECISION: tl.constexpr) -> Any:  # type: ignore[no-untyped-def]
    """(y_re, y_im) + a conj(v) for elements n and columns k: [BLOCK_G, BLOCK_K]."""
    entry = v_ptr + 2 * (n[:, None] * K + k[None, :])
    there = (n < N)[:, None] & (k < K)[None, :]
    v_re, v_im = load_complex(entry, there)  # [BLOCK_N, BLOCK_K]
    return plus_conjugate_product(a_re, a_im, v_re, v_im, y_re, y_im, PRECISION)


@triton.jit
def _less(u_ptr, n, k, N, K, y_re, y_im, e_re, e_im, PRECISION: tl.constexpr) -> Any:  # type: ignore[no-untyped-def]
    """(e_re, e_im) - y u^T for elements n and columns k: [BLOCK_G, BLOCK_N]."""
    entry = u_ptr + 2 * (n[None, :] * K + k[:, None])
    there = (n < N)[None, :] & (k < K)[:, None]
    u_re, u_im = load_complex(entry, there)  # [BLOCK_K, BLOCK_N]
    e_re = tl.dot(y_re, -u_re, e_re, input_precision=PRECISION)
    e_re = tl.dot(y_im, u_im, e_re, input_precision=PRECISION)
    e_im = tl.dot(y_re, -u_im, e_im, input_precision=PRECISION)
    e_im = tl.dot(y_im, -u_re, e_im, input_precision=PRECISION)
    return e_re, e_im


@triton.jit
def residual_kernel(  # type: ignore[no-untyped-def]
    u_ptr,  # [B, N, K, 2]
    v_ptr,  # [B, N, K, 2]
    position_ptr,  # [3, N] wavelengths
    direction_ptr,  # [3, G]
    range_ptr,  # [R] or [G], wavelengths
    scale_ptr,  # [B]
    best_ptr,  # [B, G]
    plane_ptr,  # [B, G]
    volume_ptr,  # [B, R, G]
    offset,
    N,
    K,
    G,
    R,
    range_step_plane,
    range_step_point,
    point_blocks,
    WAVEFRONT: tl.constexpr,
    EPILOGUE: tl.constexpr,
    VOLUME: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Residual q = ||a - U V^H a||^2, epilogue and best plane of BLOCK_G directions of one scene, over all planes.

    Two passes over the elements, BLOCK_N at a time: y = V^H a [BLOCK_G, BLOCK_K] (twice, if WIDE), then |a - U y|^2.
    Reads the factors of its scene from the caches; writes power and plane (the volume instead, if asked).
    16 N K + 6 N flops a point and 2 N steering elements; 8 bytes a direction, or 4 R.
    """
    pid = tl.program_id(0)
    g = pid % point_blocks * BLOCK_G + tl.arange(0, BLOCK_G)  # [BLOCK_G]
    scene = (pid // point_blocks).to(tl.int64)
    u_ptr += 2 * scene * N * K
    v_ptr += 2 * scene * N * K
    k = tl.arange(0, BLOCK_K)
    there = g < G
    direction = load_points(direction_ptr, g, G)  # of [BLOCK_G]
    scale = tl.load(scale_ptr + scene)
    best, plane = first_best(tl.zeros([BLOCK_G], tl.float32), EPILOGUE)
    for index in range(0, R):
        r = tl.load(range_ptr + index * range_step_plane + g * range_step_point, mask=there, other=1.0)  # [BLOCK_G]
        y_re = tl.zeros([BLOCK_G, BLOCK_K], tl.float32)
        y_im = tl.zeros([BLOCK_G, BLOCK_K], tl.float32)
        z_re, z_im = y_re, y_im  # of the second half of the columns, if WIDE
        for first_n in range(0, N, BLOCK_N):
            n = first_n + tl.arange(0, BLOCK_N)  # [BLOCK_N]
            a_re, a_im = steering_tile(direction, r, position_ptr, n, N, WAVEFRONT)  # [BLOCK_G, BLOCK_N]
            y_re, y_im = _project(v_ptr, n, k, N, K, a_re, a_im, y_re, y_im, PRECISION)
            if WIDE:
                z_re, z_im = _project(v_ptr, n, k + BLOCK_K, N, K, a_re, a_im, z_re, z_im, PRECISION)
        q = tl.zeros([BLOCK_G], tl.float32)
        for first_n in range(0, N, BLOCK_N):
            n = first_n + tl.arange(0, BLOCK_N)
            e_re, e_im = steering_tile(direction, r, position_ptr, n, N, WAVEFRONT)  # [BLOCK_G, BLOCK_N]
            e_re, e_im = _less(u_ptr, n, k, N, K, y_re, y_im, e_re, e_im, PRECISION)
            if WIDE:
                e_re, e_im = _less(u_ptr, n, k + BLOCK_K, N, K, z_re, z_im, e_re, e_im, PRECISION)
            q += tl.sum(tl.where((n < N)[None, :], e_re * e_re + e_im * e_im, 0.0), axis=1)
        if VOLUME:
            out = volume_ptr + (scene * R + index) * G + g
            tl.store(out, power_of(q, scale, offset, EPILOGUE), mask=there)
        else:
            best, plane = keep_best(best, plane, q, index, EPILOGUE)
    if not VOLUME:
        out = scene * G + g
        store_best(best_ptr + out, plane_ptr + out, best, plane, scale, offset, there, EPILOGUE)


def residual_factors(factor: Tensor, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U and V with ||a - U V^H a||^2 = delta a^H (F F^H + delta I)^-1 a, and info; on the device, without waiting.

    factor (B, N, K), delta (B,) -> U, V (B, N, K), info (B,)
    """
    device = check_operands(residual_kernel, factor=factor, delta=delta)
    if factor.ndim != 3 or not 1 <= factor.shape[2] <= MOST_COLUMNS:
        raise ShapeError(
            f"factor must have shape (B, N, K) with K at most {MOST_COLUMNS}, got {tuple(factor.shape)}; with more "
            "columns invert F F^H + delta I"
        )
    f = factor.to(torch.complex128)
    loading = delta.to(torch.float64)
    inverse, info = inverse_factor(f.mH.resolve_conj() @ f, loading, dtype=torch.float64)  # C^-H, upper triangular
    v = f @ inverse
    eye = torch.eye(f.shape[2], dtype=f.dtype, device=device)
    u = torch.linalg.solve_triangular(eye + loading.sqrt()[:, None, None] * inverse, v, upper=True, left=False)
    return u.to(torch.complex64), v.to(torch.complex64), info


def residual_configuration(columns: int) -> dict[str, int]:
    """Pinned tile for a number of columns."""
    wide = columns > 16
    tile = {"BLOCK_N": 16, "BLOCK_K": 16, "num_warps": 8, "num_stages": 1}
    return {"WIDE": wide, "BLOCK_G": 64 if wide else 128, **tile}


def residual_power(
    u: Tensor,
    v: Tensor,
    points: DensePoints,
    epilogue: Epilogue,
    volume: bool = False,
    *,
    precision: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Power from ||a - U V^H a||^2, as :func:`risfast.kernels.dense.dense_power`.

    u, v (B, N, K)
    """
    device = check_operands(residual_kernel, U=u, V=v, positions=points.positions)
    n, size = points.positions.shape[1], points.direction.shape[1]
    if u.shape != v.shape or u.ndim != 3 or u.shape[1] != n or not 1 <= u.shape[2] <= MOST_COLUMNS:
        raise ShapeError(
            f"U and V must have shape (B, {n}, K) with K at most {MOST_COLUMNS}, got {tuple(u.shape)} and "
            f"{tuple(v.shape)}"
        )
    if u.dtype != torch.complex64 or v.dtype != torch.complex64:
        raise TypeError(f"U and V must be complex64, got {u.dtype} and {v.dtype}")
    check_extent(points=size)
    batch, _, columns = u.shape
    outputs = points.outputs(batch, volume)
    configuration = residual_configuration(columns)
    blocks = triton.cdiv(size, configuration["BLOCK_G"])
    operands = interleaved(u), interleaved(v), *points.arguments, *written(epilogue, outputs, batch)
    sizes = n, columns, size, *points.planes, blocks
    # The halves of tf32x3 operands of 32 columns would spill.
    products = dot_precision(precision or ("ieee" if columns > 16 else None))
    constants = {"WAVEFRONT": points.wavefront, "EPILOGUE": epilogue.form, "VOLUME": volume, "PRECISION": products}
    programs = blocks * batch if points.shape[-1] else 0
    launch(residual_kernel, programs, device, *operands, *sizes, **constants, **configuration)
    return power_and_plane(outputs)
