"""Dense synthesis on a GPU, the adjoint of dense analysis: steering vectors made on the fly, summed as outer products.

    S = sum_g p_g a_g a_g^H    [B, N, N],    p real

for any array, any wavefront, box grids and lists of points. The points are split into a fixed number of parts; each
part is summed by itself and a second kernel adds the parts in their order, so that equal inputs give equal bits.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dense import DensePoints
from .device import load_complex, load_points, plus_conjugate_product, sincos_turns, steering_turns, store_complex
from .launch import check_extent, check_operands, dot_precision, launch
from .weights import PointWeights, load_weight

_PROGRAMS = 1024  # enough to fill a large GPU several times


@triton.jit
def settled(x) -> Any:  # type: ignore[no-untyped-def]
    """Returns x, computed or loaded once.

    An operand of a product goes to several warps. Triton would let each of them compute or load its own copy, element
    by element, and spill; a sum over one entry is where it stops.
    """
    return tl.sum(x[:, :, None], axis=2)


@triton.jit
def synthesis_kernel(  # type: ignore[no-untyped-def]
    weight_ptr,  # [B, R, G], or [B, G] with WINNER
    plane_ptr,  # [B, G] with WINNER
    position_ptr,  # [3, N] wavelengths
    direction_ptr,  # [3, G]
    range_ptr,  # [R] or [G], wavelengths
    part_ptr,  # [PARTS, B, N, N, 2]
    B,
    N,
    G,
    R,
    range_step_plane,
    range_step_point,
    blocks,
    pairs,
    parts,
    part_blocks,
    WAVEFRONT: tl.constexpr,
    WINNER: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """A tile [BLOCK_N, BLOCK_N] on or above the diagonal of one scene's S, summed over one part of the points.

    Points BLOCK_G at a time, all planes of each block of directions; with WINNER only the winning plane of each.
    Reads the weights of its points and makes two tiles of steering vectors; writes its tile of its part once.
    8 BLOCK_N^2 flops a point, and 2 BLOCK_N steering elements.
    """
    pid = tl.program_id(0).to(tl.int64)
    pair = (pid % pairs).to(tl.int32)
    part = (pid // pairs % parts).to(tl.int32)
    scene = pid // pairs // parts
    block_m = pair // blocks
    block_n = pair % blocks
    if block_m <= block_n:
        m = block_m * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
        n = block_n * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
        mx, my, mz = load_points(position_ptr, m[:, None], N)  # [BLOCK_N, 1]
        nx, ny, nz = load_points(position_ptr, n[None, :], N)  # [1, BLOCK_N]
        re = tl.zeros([BLOCK_N, BLOCK_N], tl.float32)
        im = tl.zeros([BLOCK_N, BLOCK_N], tl.float32)
        # One loop over blocks and planes: with a loop inside, what planes share would be kept, and spill.
        planes = 1 if WINNER else R
        for item in range(part * part_blocks * planes, (part + 1) * part_blocks * planes):
            g = item // planes * BLOCK_G + tl.arange(0, BLOCK_G)  # [BLOCK_G]
            there = g < G
            ux, uy, uz = load_points(direction_ptr, g, G)
            if WINNER:
                index = tl.load(plane_ptr + scene * G + g, mask=there, other=0)  # [BLOCK_G], the planes that won
                r = tl.load(range_ptr + index, mask=there, other=1.0)
            else:
                index = item % planes
                r = tl.load(range_ptr + index * range_step_plane + g * range_step_point, mask=there, other=1.0)
            w = load_weight(weight_ptr, plane_ptr, scene, g, index, G, R, there, WINNER)
            turns = steering_turns(ux[None, :], uy[None, :], uz[None, :], r[None, :], mx, my, mz, WAVEFRONT)
            left_im, left_re = sincos_turns(turns)  # [BLOCK_N, BLOCK_G]
            left_re, left_im = settled(left_re * w[None, :]), settled(left_im * w[None, :])
            turns = steering_turns(ux[:, None], uy[:, None], uz[:, None], r[:, None], nx, ny, nz, WAVEFRONT)
            right_im, right_re = sincos_turns(turns)  # [BLOCK_G, BLOCK_N]
            right_re, right_im = settled(right_re), settled(right_im)
            re, im = plus_conjugate_product(left_re, left_im, right_re, right_im, re, im, PRECISION)
        out = part_ptr + 2 * (((part.to(tl.int64) * B + scene) * N + m[:, None]) * N + n[None, :])
        store_complex(out, re, im, (m < N)[:, None] & (n < N)[None, :])


@triton.jit
def sum_parts_kernel(  # type: ignore[no-untyped-def]
    part_ptr,  # [parts, B, N, N, 2]
    out_ptr,  # [B, N, N, 2]
    B,
    N,
    parts,
    blocks,
    BLOCK: tl.constexpr,
) -> None:
    """BLOCK entries of one scene's S on or above the diagonal, added over the parts in order, and their mirror images.

    Reads each part once, writes S once, exactly Hermitian.
    """
    pid = tl.program_id(0).to(tl.int64)
    scene = pid // blocks
    entry = (pid % blocks).to(tl.int32) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    row = entry // N
    column = entry % N
    there = (entry < N * N) & (row <= column)
    re = tl.zeros([BLOCK], tl.float32)
    im = tl.zeros([BLOCK], tl.float32)
    for part in range(0, parts):
        start = part_ptr + 2 * ((part * B + scene) * N * N + entry)
        part_re, part_im = load_complex(start, there)
        re += part_re
        im += part_im
    im = tl.where(row == column, 0.0, im)
    out = out_ptr + 2 * (scene * N * N + entry)
    store_complex(out, re, im, there)
    store_complex(out_ptr + 2 * (scene * N * N + column * N + row), re, -im, there)


def synthesis_configuration() -> dict[str, int]:
    """Pinned tile of the sum."""
    return {"BLOCK_G": 16, "BLOCK_N": 32, "num_warps": 4}


def sum_configuration() -> dict[str, int]:
    """Pinned tile of the sum of the parts."""
    return {"BLOCK": 1024, "num_warps": 4}


def synthesis_parts(batch: int, n: int, points: int) -> int:
    """Parts that the points are split into: a function of the sizes alone, so that results repeat on any device."""
    configuration = synthesis_configuration()
    blocks = triton.cdiv(n, configuration["BLOCK_N"])
    most = triton.cdiv(points, configuration["BLOCK_G"])
    return max(1, min(most, triton.cdiv(_PROGRAMS, max(1, batch * blocks * (blocks + 1) // 2))))


def dense_synthesis(weights: PointWeights, points: DensePoints, *, precision: str | None = None) -> Tensor:
    """sum_g p_g a_g a_g^H, complex64 [B, N, N], exactly Hermitian.

    -> (B, N, N)
    """
    precision = dot_precision(precision)
    weights.check_shape(points.shape)
    check_extent(points=points.direction.shape[1], matrix=2 * points.positions.shape[1] ** 2)
    device = check_operands(synthesis_kernel, **weights.tensors(), positions=points.positions)
    operands = weights.operands(torch.float32, azimuth_last=False)
    batch, n, size = weights.values.shape[0], points.positions.shape[1], points.direction.shape[1]
    out = torch.empty(batch, n, n, 2, dtype=torch.float32, device=device)
    if weights.values.numel() == 0:
        return torch.view_as_complex(out.zero_())
    configuration = synthesis_configuration()
    parts = synthesis_parts(batch, n, size)
    blocks = triton.cdiv(n, configuration["BLOCK_N"])
    partial = torch.empty(parts, batch, n, n, 2, dtype=torch.float32, device=device)
    sum_blocks = triton.cdiv(n * n, sum_configuration()["BLOCK"])
    part_blocks = triton.cdiv(triton.cdiv(size, configuration["BLOCK_G"]), parts)
    sizes = batch, n, size, *points.planes, blocks, blocks * blocks, parts, part_blocks
    constants = {"WAVEFRONT": points.wavefront, "WINNER": weights.plane is not None}
    constants |= {"PRECISION": precision, **configuration}
    programs = batch * parts * blocks * blocks
    launch(synthesis_kernel, programs, device, *operands, *points.arguments, partial, *sizes, **constants)
    sums = partial, out, batch, n, parts, sum_blocks
    launch(sum_parts_kernel, batch * sum_blocks, device, *sums, **sum_configuration())
    return torch.view_as_complex(out)
