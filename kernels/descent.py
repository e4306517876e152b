"""Newton steps down a quadratic form for all candidates of all scenes on a GPU.

Each iteration evaluates the form on a stencil of 19 points around every candidate, fits a quadratic model, moves to its
minimum (downhill along directions of negative curvature too), and keeps the lowest point seen. Candidates and models
are float64 throughout; only the forms may be float32.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .forms import FormGeometry, forms
from .launch import check_operands, launch

_STENCIL_POINTS = 19


@triton.jit
def _centre(point_ptr, step_ptr, low_ptr, high_ptr, at, there, scale) -> Any:  # type: ignore[no-untyped-def]
    """(centre, arm, low, high) of the stencil along one axis; at a wall the stencil moves inwards as a whole."""
    point = tl.load(point_ptr + at, mask=there, other=0.0)
    arm = tl.load(step_ptr + at, mask=there, other=0.0) * scale
    low = tl.load(low_ptr + at, mask=there, other=0.0)
    high = tl.load(high_ptr + at, mask=there, other=0.0)
    return tl.maximum(tl.minimum(point, high - arm), low + arm), arm, low, high


@triton.jit
def stencil_kernel(  # type: ignore[no-untyped-def]
    point_ptr,  # [C, 3]
    step_ptr,  # [C, 3]
    low_ptr,  # [C, 3]
    high_ptr,  # [C, 3]
    stencil_ptr,  # [19, 3]
    around_ptr,  # [C, 19, 3]
    scale,  # of the arms; a power of two, which float32 holds
    size,  # 57 C
    BLOCK: tl.constexpr,
) -> None:
    """Coordinates of the 19 points around C candidates.

    Tile [BLOCK] coordinates. Reads candidates, arms and boxes; writes 456 bytes a candidate; 5 flops a number.
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    there = i < size
    at = i // 57 * 3 + i % 3
    centre, arm, _, _ = _centre(point_ptr, step_ptr, low_ptr, high_ptr, at, there, scale)
    tl.store(around_ptr + i, centre + arm * tl.load(stencil_ptr + i % 57, mask=there, other=0.0), mask=there)


@triton.jit
def _rotation(app, aqq, apq) -> Any:  # type: ignore[no-untyped-def]
    """(tangent, cosine, sine) of the Jacobi rotation that takes apq out; the smaller of both angles."""
    difference = aqq - app
    spread = tl.abs(difference) + tl.sqrt(difference * difference + 4.0 * apq * apq)
    signed = tl.where(difference < 0.0, -2.0 * apq, 2.0 * apq)
    tangent = tl.where(spread > 0.0, signed / tl.where(spread > 0.0, spread, 1.0), 0.0)
    cosine = 1.0 / tl.sqrt(1.0 + tangent * tangent)
    return tangent, cosine, tangent * cosine


@triton.jit
def _turned(p, q, cosine, sine) -> Any:  # type: ignore[no-untyped-def]
    return cosine * p - sine * q, sine * p + cosine * q


@triton.jit
def newton_move(gx, gy, gz, xx, yy, zz, xy, xz, yz) -> Any:  # type: ignore[no-untyped-def]
    """Step -V |L|^-1 V^T g of models with gradient g and Hessian V L V^T, by Jacobi rotations.

    A flat direction gets a stiff spring instead of a division by zero.
    """
    spring = tl.maximum(tl.maximum(tl.abs(xx), tl.abs(yy)), tl.abs(zz))
    spring = tl.maximum(tl.maximum(spring, tl.abs(xy)), tl.maximum(tl.abs(xz), tl.abs(yz)))
    spring = tl.maximum(spring, 2.2250738585072014e-308) * 1e-6
    one, zero = tl.full(xx.shape, 1.0, xx.dtype), tl.zeros(xx.shape, xx.dtype)
    v00, v01, v02 = one, zero, zero
    v10, v11, v12 = zero, one, zero
    v20, v21, v22 = zero, zero, one
    for _ in range(6):  # sweeps; 3 x 3 matrices are diagonal to the last bit after four or five
        t, c, s = _rotation(xx, yy, xy)
        xx, yy, xy = xx - t * xy, yy + t * xy, zero
        xz, yz = _turned(xz, yz, c, s)
        v00, v01 = _turned(v00, v01, c, s)
        v10, v11 = _turned(v10, v11, c, s)
        v20, v21 = _turned(v20, v21, c, s)
        t, c, s = _rotation(xx, zz, xz)
        xx, zz, xz = xx - t * xz, zz + t * xz, zero
        xy, yz = _turned(xy, yz, c, s)
        v00, v02 = _turned(v00, v02, c, s)
        v10, v12 = _turned(v10, v12, c, s)
        v20, v22 = _turned(v20, v22, c, s)
        t, c, s = _rotation(yy, zz, yz)
        yy, zz, yz = yy - t * yz, zz + t * yz, zero
        xy, xz = _turned(xy, xz, c, s)
        v01, v02 = _turned(v01, v02, c, s)
        v11, v12 = _turned(v11, v12, c, s)
        v21, v22 = _turned(v21, v22, c, s)
    a = (v00 * gx + v10 * gy + v20 * gz) / tl.maximum(tl.abs(xx), spring)
    b = (v01 * gx + v11 * gy + v21 * gz) / tl.maximum(tl.abs(yy), spring)
    d = (v02 * gx + v12 * gy + v22 * gz) / tl.maximum(tl.abs(zz), spring)
    return -(v00 * a + v01 * b + v02 * d), -(v10 * a + v11 * b + v12 * d), -(v20 * a + v21 * b + v22 * d)


@triton.jit
def _store_moves(  # type: ignore[no-untyped-def]
    moved_ptr, point_ptr, step_ptr, low_ptr, high_ptr, c, C, axis: tl.constexpr, scale, move
) -> None:
    """The full and the half step along one axis, at most two arms long and inside the box."""
    centre, arm, low, high = _centre(point_ptr, step_ptr, low_ptr, high_ptr, c * 3 + axis, c < C, scale)
    move = arm * tl.minimum(tl.maximum(move, -2.0), 2.0)
    full = tl.maximum(tl.minimum(centre + move, high), low)
    half = tl.maximum(tl.minimum(centre + move / 2.0, high), low)
    tl.store(moved_ptr + c * 6 + axis, full, mask=c < C)
    tl.store(moved_ptr + c * 6 + 3 + axis, half, mask=c < C)


@triton.jit
def newton_kernel(  # type: ignore[no-untyped-def]
    point_ptr,  # [C, 3]
    step_ptr,  # [C, 3]
    low_ptr,  # [C, 3]
    high_ptr,  # [C, 3]
    height_ptr,  # [C, 19], float32 or float64
    fit_ptr,  # [10, 19]
    moved_ptr,  # [C, 2, 3]
    scale,
    C,
    BLOCK: tl.constexpr,
) -> None:
    """The full and the half Newton step of BLOCK candidates from the heights of their stencils.

    Tile [BLOCK], one candidate a lane. Reads 248 bytes a candidate, writes 48; about 1400 flops.
    """
    c = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    gx, gy, gz = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
    xx, yy, zz, xy, xz, yz = gx, gx, gx, gx, gx, gx
    for s in range(19):
        height = tl.load(height_ptr + c * 19 + s, mask=c < C, other=0.0).to(tl.float64)
        gx += height * tl.load(fit_ptr + 19 + s)
        gy += height * tl.load(fit_ptr + 38 + s)
        gz += height * tl.load(fit_ptr + 57 + s)
        xx += height * tl.load(fit_ptr + 76 + s)
        yy += height * tl.load(fit_ptr + 95 + s)
        zz += height * tl.load(fit_ptr + 114 + s)
        xy += height * tl.load(fit_ptr + 133 + s)
        xz += height * tl.load(fit_ptr + 152 + s)
        yz += height * tl.load(fit_ptr + 171 + s)
    x, y, z = newton_move(gx, gy, gz, xx, yy, zz, xy, xz, yz)
    _store_moves(moved_ptr, point_ptr, step_ptr, low_ptr, high_ptr, c, C, 0, scale, x)
    _store_moves(moved_ptr, point_ptr, step_ptr, low_ptr, high_ptr, c, C, 1, scale, y)
    _store_moves(moved_ptr, point_ptr, step_ptr, low_ptr, high_ptr, c, C, 2, scale, z)


@triton.jit
def choose_kernel(  # type: ignore[no-untyped-def]
    point_ptr,  # [C, 3], updated
    value_ptr,  # [C], updated
    step_ptr,  # [C, 3]
    low_ptr,  # [C, 3]
    high_ptr,  # [C, 3]
    stencil_ptr,  # [19, 3]
    height_ptr,  # [C, 19], float32 or float64
    moved_ptr,  # [C, 2, 3]
    moved_height_ptr,  # [C, 2], of the type of the heights
    scale,
    C,
    BLOCK: tl.constexpr,
) -> None:
    """The lowest of BLOCK candidates, their two moves and their stencils; ties to the first in that order.

    Tile [BLOCK], one candidate a lane. Reads 420 bytes a candidate, writes 32.
    """
    c = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    there = c < C
    lowest = tl.full([BLOCK], float("inf"), tl.float64)
    which = tl.zeros([BLOCK], tl.int32)
    for s in range(19):
        height = tl.load(height_ptr + c * 19 + s, mask=there, other=0.0).to(tl.float64)
        lower = height < lowest
        lowest = tl.where(lower, height, lowest)
        which = tl.where(lower, s, which)
    full = tl.load(moved_height_ptr + c * 2, mask=there, other=0.0).to(tl.float64)
    half = tl.load(moved_height_ptr + c * 2 + 1, mask=there, other=0.0).to(tl.float64)
    value = tl.load(value_ptr + c, mask=there, other=0.0)
    halved = half < full
    moved = tl.minimum(full, half)
    on_stencil = lowest < moved
    best = tl.minimum(moved, lowest)
    better = there & (best < value)
    tl.store(value_ptr + c, best, mask=better)
    for axis in tl.static_range(3):
        at = c * 3 + axis
        centre, arm, low, high = _centre(point_ptr, step_ptr, low_ptr, high_ptr, at, there, scale)
        around = centre + arm * tl.load(stencil_ptr + which * 3 + axis)
        around = tl.maximum(tl.minimum(around, high), low)
        to = tl.load(moved_ptr + c * 6 + axis + 3 * halved.to(tl.int64), mask=there, other=0.0)
        tl.store(point_ptr + at, tl.where(on_stencil, around, to), mask=better)


def _stencil() -> Tensor:
    """Centre, 6 faces and 12 edges of a cube, [19, 3]."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(-1, 2)] * 3, indexing="ij"), -1).reshape(-1, 3)
    return grid[grid.abs().sum(1) <= 2].double()


def _quadratic_fit() -> Tensor:
    """Pseudo-inverse [10, 19] of the quadratic model (1, x, x^2 / 2, cross terms) on the stencil."""
    x, y, z = _stencil().unbind(1)
    model = torch.stack([torch.ones_like(x), x, y, z, x * x / 2, y * y / 2, z * z / 2, x * y, x * z, y * z], 1)
    return torch.linalg.pinv(model)


@lru_cache(maxsize=8)
def _tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """Stencil [19, 3] and quadratic fit [10, 19]."""
    tables = _stencil(), _quadratic_fit()
    return tables[0].contiguous().to(device), tables[1].contiguous().to(device)


def step_configuration() -> dict[str, int]:
    """Pinned tile of the Newton and choosing kernels."""
    return {"BLOCK": 32, "num_warps": 1}


def stencil_configuration() -> dict[str, int]:
    """Pinned tile of the stencil kernel."""
    return {"BLOCK": 1024, "num_warps": 4}


def descend(
    point: Tensor,
    step: Tensor,
    low: Tensor,
    high: Tensor,
    matrix: Tensor,
    factored: bool,
    geometry: FormGeometry,
    dtype: torch.dtype,
    *,
    iterations: int,
    shrink: float,
) -> tuple[Tensor, Tensor]:
    """Newton steps on local quadratic models of the form; never uphill, never out of the box.

    point (B, C, 3), step (B, C, 3), low, high (B, C, 3) -> point (B, C, 3), value (B, C)
    """
    device = check_operands(newton_kernel, point=point, step=step, low=low, high=high, matrix=matrix)
    b, c = point.shape[:2]
    point, step = point.clone(memory_format=torch.contiguous_format), step.contiguous()
    low, high = low.contiguous(), high.contiguous()
    value = forms(point, matrix, factored, geometry, dtype).double()
    if b * c == 0:
        return point, value
    stencil, fit = _tables(device)
    around = torch.empty(b, c * _STENCIL_POINTS, 3, dtype=torch.float64, device=device)
    moved = torch.empty(b, c * 2, 3, dtype=torch.float64, device=device)
    box = (step, low, high)
    size, tile, wide = around.numel(), step_configuration(), stencil_configuration()
    programs, wide_programs = triton.cdiv(b * c, tile["BLOCK"]), triton.cdiv(size, wide["BLOCK"])
    for iteration in range(iterations):
        scale = shrink**iteration
        launch(stencil_kernel, wide_programs, device, point, *box, stencil, around, scale, size, **wide)
        heights = forms(around, matrix, factored, geometry, dtype)
        launch(newton_kernel, programs, device, point, *box, heights, fit, moved, scale, b * c, **tile)
        found = heights, moved, forms(moved, matrix, factored, geometry, dtype)
        launch(choose_kernel, programs, device, point, value, *box, stencil, *found, scale, b * c, **tile)
    return point, value
