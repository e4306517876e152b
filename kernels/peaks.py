"""Local maxima of a batch of volumes on a GPU: one candidate a cell, its window, and ranks by counting.

A point is kept iff no point of its clipped window has a larger value, or an equal value and a lower linear index. Two
kept points never lie in each other's windows, so a cell of (reach + 1) points along each axis, reach = size // 2,
holds at most one of them, and that one is the best point of its cell (Neubeck and Van Gool, ICPR 2006, algorithm 4).
A buffer of one slot a cell therefore never overflows.

Slots are handed out by an integer counter, so the order within the buffer is the scheduler's; the results are not:
where a candidate goes is the number of candidates that are better, which depends on their set alone.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from risfast.errors import ShapeError
from risfast.ops.peaks import reject_nan

from .launch import check_operands, launch

# Of one volume: linear indices are int32, and so are the numbers of the cells that the last program is given.
_MOST_POINTS = (1 << 31) - (1 << 12)


@triton.jit
def _pointer(volume, az, el, r, stride_az, stride_el, stride_r) -> Any:  # type: ignore[no-untyped-def]
    """Of points of one scene, whatever its strides."""
    return volume + (az.to(tl.int64) * stride_az + el.to(tl.int64) * stride_el + r.to(tl.int64) * stride_r)


@triton.jit
def _best_of_cells(  # type: ignore[no-untyped-def]
    corner,
    there,
    az,
    el,
    r,
    n_az,
    n_el,
    n_r,
    stride_az,
    stride_el,
    stride_r,
    REACH_AZ: tl.constexpr,
    REACH_EL: tl.constexpr,
    REACH_R: tl.constexpr,
) -> Any:
    """(value, place, NaN) of the best point of cells: its number within its cell, and whether the cell holds NaN.

    The cells have their corners at (az, el, r), ``corner`` in memory; one that is not ``there`` has -inf.
    """
    dtype: tl.constexpr = corner.dtype.element_ty
    lowest: tl.constexpr = float("-inf")
    best = tl.full(there.shape, lowest, dtype)
    place = tl.zeros(there.shape, tl.int32)
    nan = tl.zeros(there.shape, tl.int32)
    for a in range(REACH_AZ + 1):
        for e in range(REACH_EL + 1):
            row = corner + (tl.cast(a, tl.int64) * stride_az + tl.cast(e, tl.int64) * stride_el)
            inside = there & (az + a < n_az) & (el + e < n_el)
            for i in range(REACH_R + 1):
                value = tl.load(row + tl.cast(i, tl.int64) * stride_r, mask=inside & (r + i < n_r), other=lowest)
                nan |= (value != value).to(tl.int32)  # noqa: PLR0124
                # In ascending linear index, and strictly: a tie leaves the lower index.
                better = value > best
                best = tl.where(better, value, best)
                place = tl.where(better, (a * (REACH_EL + 1) + e) * (REACH_R + 1) + i, place)
    return best, place, nan


@triton.jit
def _above_neighbours(at, best, standing, position, size, stride, REACH: tl.constexpr) -> Any:  # type: ignore[no-untyped-def]
    """Of those standing, who is not below the next point along one axis and above the one before."""
    lowest: tl.constexpr = float("-inf")
    if REACH > 0:
        standing &= tl.load(at + stride, mask=standing & (position + 1 < size), other=lowest) <= best
        standing &= tl.load(at - stride, mask=standing & (position > 0), other=lowest) < best
    return standing


@triton.jit
def _is_beaten(  # type: ignore[no-untyped-def]
    volume,
    az,
    el,
    r,
    n_az,
    n_el,
    n_r,
    stride_az,
    stride_el,
    stride_r,
    REACH_AZ: tl.constexpr,
    REACH_EL: tl.constexpr,
    REACH_R: tl.constexpr,
    BLOCK_W: tl.constexpr,
) -> Any:
    """1 if a point of the clipped window around (az, el, r) is larger, or as large with a lower index; else 0."""
    lowest: tl.constexpr = float("-inf")
    WIDTH_EL: tl.constexpr = 2 * REACH_EL + 1
    WIDTH_R: tl.constexpr = 2 * REACH_R + 1
    WINDOW: tl.constexpr = (2 * REACH_AZ + 1) * WIDTH_EL * WIDTH_R
    peak = _pointer(volume, az, el, r, stride_az, stride_el, stride_r)
    value = tl.load(peak)
    beaten = tl.zeros([BLOCK_W], tl.int32)
    for first in range(0, WINDOW, BLOCK_W):
        w = first + tl.arange(0, BLOCK_W)  # [BLOCK_W]; w < WINDOW // 2 are the points of lower index
        d_az = w // (WIDTH_EL * WIDTH_R) - REACH_AZ
        d_el = w // WIDTH_R % WIDTH_EL - REACH_EL
        d_r = w % WIDTH_R - REACH_R
        inside = (w < WINDOW) & (az + d_az >= 0) & (az + d_az < n_az)
        inside &= (el + d_el >= 0) & (el + d_el < n_el) & (r + d_r >= 0) & (r + d_r < n_r)
        other = tl.load(_pointer(peak, d_az, d_el, d_r, stride_az, stride_el, stride_r), mask=inside, other=lowest)
        beaten |= ((other > value) | ((other == value) & (w < WINDOW // 2))).to(tl.int32)
    return tl.max(beaten)


@triton.jit(do_not_specialize=["floor_bits"])
def maxima_candidates_kernel(  # type: ignore[no-untyped-def]
    volume_ptr,  # [B, n_az, n_el, n_r], any strides
    place_ptr,  # [B, cells] int32: linear index
    value_ptr,  # [B, cells]
    found_ptr,  # [B] int32, zero on entry
    bad_ptr,  # [B] int32, zero on entry
    floor_bits,  # of a float64
    n_az,
    n_el,
    n_r,
    stride_scene,
    stride_az,
    stride_el,
    stride_r,
    cells_az,
    cells_el,
    cells_r,
    step_az,  # steps of the flat cell number along each axis: cells are numbered in the order of the memory
    step_el,
    step_r,
    blocks,
    REACH_AZ: tl.constexpr,
    REACH_EL: tl.constexpr,
    REACH_R: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_W: tl.constexpr,
) -> None:
    """The maxima among BLOCK cells of one scene, appended to the scene's buffer.

    Tile [BLOCK], one cell a lane; then [BLOCK_W] points of a window at a time, for what beats its direct neighbours.
    Reads every point once, and six neighbours a cell and the windows of survivors from the caches; writes survivors.
    Two comparisons a point; 4 bytes a point (float32).
    """
    pid = tl.program_id(0).to(tl.int64)
    scene = pid // blocks
    cells = cells_az * cells_el * cells_r
    lane = tl.arange(0, BLOCK)
    cell = (pid % blocks).to(tl.int32) * BLOCK + lane  # [BLOCK]
    az = cell // step_az % cells_az * (REACH_AZ + 1)
    el = cell // step_el % cells_el * (REACH_EL + 1)
    r = cell // step_r % cells_r * (REACH_R + 1)
    volume = volume_ptr + scene * stride_scene
    corner = _pointer(volume, az, el, r, stride_az, stride_el, stride_r)
    best, place, nan = _best_of_cells(
        corner,
        cell < cells,
        az,
        el,
        r,
        n_az,
        n_el,
        n_r,
        stride_az,
        stride_el,
        stride_r,
        REACH_AZ,
        REACH_EL,
        REACH_R,
    )
    if tl.max(nan) > 0:
        tl.store(bad_ptr + scene, 1)
    az += place // ((REACH_EL + 1) * (REACH_R + 1))
    el += place // (REACH_R + 1) % (REACH_EL + 1)
    r += place % (REACH_R + 1)
    # A cell outside the volume holds -inf, which is above no floor.
    standing = best > floor_bits.to(tl.int64).to(tl.float64, bitcast=True).to(volume_ptr.dtype.element_ty)
    at = _pointer(volume, az, el, r, stride_az, stride_el, stride_r)
    standing = _above_neighbours(at, best, standing, az, n_az, stride_az, REACH_AZ)
    standing = _above_neighbours(at, best, standing, el, n_el, stride_el, REACH_EL)
    standing = _above_neighbours(at, best, standing, r, n_r, stride_r, REACH_R)
    waiting = tl.where(standing, lane, BLOCK)
    kept = tl.zeros([BLOCK], tl.int32)
    chosen = tl.min(waiting)
    while chosen < BLOCK:  # one survivor after another, the lanes spread over its window
        this = lane == chosen
        peak_az, peak_el = tl.sum(tl.where(this, az, 0)), tl.sum(tl.where(this, el, 0))
        peak_r = tl.sum(tl.where(this, r, 0))
        beaten = _is_beaten(
            volume,
            peak_az,
            peak_el,
            peak_r,
            n_az,
            n_el,
            n_r,
            stride_az,
            stride_el,
            stride_r,
            REACH_AZ,
            REACH_EL,
            REACH_R,
            BLOCK_W,
        )
        kept = tl.where(this & (beaten == 0), 1, kept)
        waiting = tl.where(this, BLOCK, waiting)
        chosen = tl.min(waiting)
    total = tl.sum(kept)
    if total > 0:
        slot = tl.atomic_add(found_ptr + scene, total) + tl.cumsum(kept, 0) - kept
        out = scene * cells + slot
        tl.store(place_ptr + out, (az * n_el + el) * n_r + r, mask=kept > 0)
        tl.store(value_ptr + out, best, mask=kept > 0)


@triton.jit
def maxima_rank_kernel(  # type: ignore[no-untyped-def]
    place_ptr,  # [B, cells] int32
    value_ptr,  # [B, cells]
    found_ptr,  # [B] int32
    bad_ptr,  # [B] int32
    index_ptr,  # [B, k, 3] int64
    best_ptr,  # [B, k]
    count_ptr,  # [B] int64
    cells,
    n_el,
    n_r,
    k,
    parts,
    BLOCK: tl.constexpr,
    BLOCK_J: tl.constexpr,
) -> None:
    """Slots of every ``parts``-th block of BLOCK candidates of one scene; the first part pads what stays empty.

    Tile [BLOCK, BLOCK_J] of comparisons with all candidates of the scene, given up once k of them are better.
    Reads the buffer from the caches; writes k slots and the count.
    Four operations a pair of candidates; 8 bytes a candidate (float32) for every block.
    """
    pid = tl.program_id(0).to(tl.int64)
    scene = pid // parts
    part = (pid % parts).to(tl.int32)
    found = tl.load(found_ptr + scene)
    bad = tl.load(bad_ptr + scene) > 0
    places, values = place_ptr + scene * cells, value_ptr + scene * cells
    lowest: tl.constexpr = float("-inf")
    if part == 0:
        filled = tl.where(bad, 0, tl.minimum(found, k))
        tl.store(count_ptr + scene, filled.to(tl.int64))
        pad = tl.where(bad, float("nan"), lowest).to(best_ptr.dtype.element_ty)
        for first in range(0, k, BLOCK_J):
            slot = first + tl.arange(0, BLOCK_J)  # [BLOCK_J]
            empty = (slot >= filled) & (slot < k)
            tl.store(best_ptr + scene * k + slot, pad, mask=empty)
            for axis in tl.static_range(3):
                tl.store(index_ptr + (scene * k + slot) * 3 + axis, -1, mask=empty)
    for first in range(part * BLOCK, tl.where(bad, 0, found), parts * BLOCK):
        i = first + tl.arange(0, BLOCK)  # [BLOCK]
        place = tl.load(places + i, mask=i < found, other=0)
        value = tl.load(values + i, mask=i < found, other=lowest)
        rank = tl.where(i < found, 0, k)
        start = 0
        while (start < found) & (tl.min(rank) < k):
            j = start + tl.arange(0, BLOCK_J)  # [BLOCK_J]
            rival_place = tl.load(places + j, mask=j < found, other=0)[None, :]
            rival = tl.load(values + j, mask=j < found, other=lowest)[None, :]  # -inf is better than nothing
            better = (rival > value[:, None]) | ((rival == value[:, None]) & (rival_place < place[:, None]))
            rank += tl.sum(better.to(tl.int32), axis=1)
            start += BLOCK_J
        chosen = rank < k
        out = scene * k + rank
        tl.store(best_ptr + out, value, mask=chosen)
        tl.store(index_ptr + out * 3, (place // (n_el * n_r)).to(tl.int64), mask=chosen)
        tl.store(index_ptr + out * 3 + 1, (place // n_r % n_el).to(tl.int64), mask=chosen)
        tl.store(index_ptr + out * 3 + 2, (place % n_r).to(tl.int64), mask=chosen)


def candidates_configuration() -> dict[str, int]:
    """Pinned tile: one warp, whose reductions need no barrier, and four cells a lane to keep loads in flight."""
    return {"BLOCK": 128, "BLOCK_W": 256, "num_warps": 1}


def rank_configuration() -> dict[str, int]:
    """Pinned tile of the ranks: a smooth spectrum leaves one or two hundred candidates."""
    return {"BLOCK": 32, "BLOCK_J": 128, "num_warps": 4}


_RANK_PARTS = 8  # programs a scene


def double_bits(value: float) -> int:
    """The bits of a float64 as a signed int, because Triton rounds a Python float to float32 on its way to a kernel."""
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


def _check(volume: Tensor, window: Sequence[int], k: int, threshold: float | None) -> torch.device:
    device = check_operands(maxima_candidates_kernel, volume=volume)
    if volume.ndim != 4:
        raise ShapeError(f"volume must have shape (B, G_az, G_el, G_r), got {tuple(volume.shape)}")
    if volume.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"volume must be float32 or float64, got {volume.dtype}; convert it with .float()")
    if len(window) != 3 or not all(size > 0 and size % 2 == 1 for size in window):
        raise ValueError(f"window must be 3 odd positive ints (azimuth, elevation, range), got {tuple(window)}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if threshold is not None and math.isnan(threshold):
        raise ValueError("threshold must be a number or None, got NaN")
    if math.prod(volume.shape[1:]) > _MOST_POINTS:
        raise ShapeError(f"a scene must have at most {_MOST_POINTS} points, got {tuple(volume.shape[1:])}; cut it up")
    return device


def _cell_steps(volume: Tensor, cells: Sequence[int]) -> list[int]:
    """Steps of the flat cell number along each axis, fastest where the memory is fastest."""
    steps, step = [0, 0, 0], 1
    for axis in sorted(range(3), key=lambda a: (volume.stride(a + 1), -a)):
        steps[axis], step = step, step * cells[axis]
    return steps


def local_maxima(
    volume: Tensor, window: Sequence[int], k: int, threshold: float | None = None, *, check: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The k highest local maxima of each volume, bit-identical to :func:`risfast.ops.local_maxima_3d`.

    volume (B, G_az, G_el, G_r) -> index (B, k, 3), value (B, k), count (B,), bad (B,)
    """
    # Memory beside the volume: 8 bytes (float32; 12 in float64) a cell of (size // 2 + 1) points along each axis, 7 %
    # of the volume for the window (7, 7, 3).
    device = _check(volume, window, k, threshold)
    batch, sizes = volume.shape[0], volume.shape[1:]
    index = torch.empty(batch, k, 3, dtype=torch.int64, device=device)
    value = torch.empty(batch, k, dtype=volume.dtype, device=device)
    count = torch.empty(batch, dtype=torch.int64, device=device)
    reach = [min(size // 2, max(n - 1, 0)) for size, n in zip(window, sizes, strict=True)]
    cells = [triton.cdiv(n, half + 1) for n, half in zip(sizes, reach, strict=True)]
    slots = math.prod(cells)
    place = torch.empty(batch, slots, dtype=torch.int32, device=device)
    height = torch.empty(batch, slots, dtype=volume.dtype, device=device)
    found, bad = torch.zeros(2, batch, dtype=torch.int32, device=device).unbind(0)
    floor = -math.inf if threshold is None else float(torch.tensor(threshold, dtype=torch.float64).to(volume.dtype))
    candidates, rank = candidates_configuration(), rank_configuration()
    blocks = triton.cdiv(slots, candidates["BLOCK"])
    shape = (*sizes, *volume.stride(), *cells, *_cell_steps(volume, cells), blocks, *reach)
    operands = volume, place, height, found, bad, double_bits(floor)
    launch(maxima_candidates_kernel, batch * blocks, device, *operands, *shape, **candidates)
    results = bad, index, value, count
    counts = slots, sizes[1], sizes[2], k, _RANK_PARTS
    launch(maxima_rank_kernel, batch * _RANK_PARTS, device, place, height, found, *results, *counts, **rank)
    if check:
        reject_nan(bool(bad.any()))
    return index, value, count, bad
