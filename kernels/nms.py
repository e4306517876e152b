"""Greedy non-maximum suppression on a GPU: one program a scene, no ranking beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from risfast.errors import ShapeError
from risfast.ops.peaks import box_limits, reject_bad_candidates, sphere_coordinates

from .launch import check_extent, check_operands, launch
from .peaks import double_bits


@triton.jit
def _within(difference, bits) -> Any:  # type: ignore[no-untyped-def]
    """|difference| <= the float64 of these bits, which its dtype holds exactly."""
    return tl.abs(difference) <= bits.to(tl.int64).to(tl.float64, bitcast=True).to(difference.dtype)


@triton.jit
def _near(  # type: ignore[no-untyped-def]
    p, q, el, r, last_p, last_q, last_el, last_r, azimuth_bits, elevation_bits, range_bits, ON_SPHERE: tl.constexpr
) -> Any:
    """Whether points lie in the box around another; infinite ranges are equal."""
    turned = q * last_p - p * last_q if ON_SPHERE else p - last_p
    near = _within(turned, azimuth_bits) & _within(el - last_el, elevation_bits)
    return near & (_within(r - last_r, range_bits) | (r == last_r))


@triton.jit
def _loaded(positions, scores, i, P, ON_SPHERE: tl.constexpr) -> Any:  # type: ignore[no-untyped-def]
    """Coordinates and score of candidates i; those beyond P have the lowest score."""
    # Off the sphere the first coordinate is the azimuth, and the second the same.
    WIDTH: tl.constexpr = 4 if ON_SPHERE else 3
    there = i < P
    score = tl.load(scores + i, mask=there, other=float("-inf"))
    p = tl.load(positions + WIDTH * i, mask=there, other=0.0)
    q = tl.load(positions + WIDTH * i + (WIDTH - 3), mask=there, other=0.0)
    el = tl.load(positions + WIDTH * i + (WIDTH - 2), mask=there, other=0.0)
    return p, q, el, tl.load(positions + WIDTH * i + (WIDTH - 1), mask=there, other=0.0), score


@triton.jit
def _looked_over(  # type: ignore[no-untyped-def]
    positions, scores, left_ptr, P, ON_SPHERE: tl.constexpr, RESIDENT: tl.constexpr, BLOCK: tl.constexpr
) -> Any:
    """1 where a score is NaN or a present candidate is nowhere; marks who is present, if they are not RESIDENT."""
    bad = tl.full([], 0, tl.int32)
    for first in range(0, P, BLOCK):
        i = first + tl.arange(0, BLOCK)
        p, _, el, r, score = _loaded(positions, scores, i, P, ON_SPHERE)
        present = score > float("-inf")
        # x - x is 0 for a finite x and NaN for any other.
        placed = (p - p == 0) & (el - el == 0) & (r > float("-inf"))
        nan = score != score  # noqa: PLR0124
        wrong = nan | (present & (placed == 0))
        bad = tl.maximum(bad, tl.max(wrong.to(tl.int32)))
        if not RESIDENT:
            tl.store(left_ptr + i, present.to(tl.int8), mask=i < P)
    return bad


@triton.jit(do_not_specialize=["azimuth_bits", "elevation_bits", "range_bits"])
def nms_kernel(  # type: ignore[no-untyped-def]
    position_ptr,  # [B, P, 3]; on the sphere [B, P, 4], sphere_coordinates of risfast.ops.peaks
    score_ptr,  # [B, P]
    left_ptr,  # [B, P] int8, only where the candidates do not fit one block
    index_ptr,  # [B, k] int64
    count_ptr,  # [B] int64
    bad_ptr,  # [B] int32
    azimuth_bits,  # limits of the box: bits of float64
    elevation_bits,
    range_bits,
    P,
    k,
    ON_SPHERE: tl.constexpr,
    RESIDENT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """The k candidates of one scene that greedy suppression keeps, best first.

    Tile [BLOCK] candidates, in registers (RESIDENT) or block by block; each round drops what is near the last kept one
    and finds the best of the rest. Reads positions and scores once if resident; writes k indices.
    About 15 operations a candidate and round; 12 bytes a candidate and 3 numbers a scene in, 8 k bytes out (float32).
    """
    scene = tl.program_id(0).to(tl.int64)
    WIDTH: tl.constexpr = 4 if ON_SPHERE else 3
    positions, scores, lefts = position_ptr + scene * P * WIDTH, score_ptr + scene * P, left_ptr + scene * P
    lane = tl.arange(0, BLOCK)  # [BLOCK]
    lowest: tl.constexpr = float("-inf")
    bad = _looked_over(positions, scores, lefts, P, ON_SPHERE, RESIDENT, BLOCK)
    tl.store(bad_ptr + scene, bad)
    if RESIDENT:
        p, q, el, r, score = _loaded(positions, scores, lane, P, ON_SPHERE)
        left = score > lowest
    else:
        tl.debug_barrier()  # what one thread stores here, another may load
    kept = tl.full([], 0, tl.int32)
    open_ = bad == 0
    last = P  # the candidate kept last; P before the first
    while open_ & (kept < k):
        at = positions + WIDTH * tl.minimum(last, P - 1)
        last_p, last_q = tl.load(at), tl.load(at + (WIDTH - 3))
        last_el, last_r = tl.load(at + (WIDTH - 2)), tl.load(at + (WIDTH - 1))
        best = tl.full([], lowest, score_ptr.dtype.element_ty)
        chosen = tl.full([], 2147483647, tl.int32)
        for first in range(0, P, BLOCK):
            i = first + lane
            if not RESIDENT:
                p, q, el, r, score = _loaded(positions, scores, i, P, ON_SPHERE)
                left = tl.load(lefts + i, mask=i < P, other=0) > 0
            near = _near(
                p,
                q,
                el,
                r,
                last_p,
                last_q,
                last_el,
                last_r,
                azimuth_bits,
                elevation_bits,
                range_bits,
                ON_SPHERE,
            )
            left &= (near == 0) | (last == P)
            if not RESIDENT:
                tl.store(lefts + i, left.to(tl.int8), mask=i < P)
            value = tl.where(left, score, lowest)
            top = tl.max(value)
            place = tl.min(tl.where(left & (value == top), i, 2147483647))
            better = (top > best) & (place < P)  # blocks ascend: a tie leaves the lower index
            best = tl.where(better, top, best)
            chosen = tl.where(better, place, chosen)
        if not RESIDENT:
            tl.debug_barrier()
        open_ = chosen < P
        last = tl.minimum(chosen, P)
        tl.store(index_ptr + scene * k + kept, chosen.to(tl.int64), mask=open_)
        kept += tl.where(open_, 1, 0)
    tl.store(count_ptr + scene, kept.to(tl.int64))
    for first in range(0, k, BLOCK):
        slot = first + lane
        tl.store(index_ptr + scene * k + slot, tl.full([BLOCK], -1, tl.int64), mask=(slot >= kept) & (slot < k))


def nms_configuration(candidates: int) -> dict[str, int]:
    """Pinned tile for a number of candidates a scene; beyond 2048 they are read block by block."""
    for block, warps in ((32, 1), (128, 1), (1024, 4), (2048, 8)):
        if candidates <= block:
            return {"RESIDENT": 1, "BLOCK": block, "num_warps": warps}
    return {"RESIDENT": 0, "BLOCK": 512, "num_warps": 4}


def _check(position: Tensor, score: Tensor, separation: Sequence[float], k: int) -> torch.device:
    device = check_operands(nms_kernel, position=position, score=score)
    if score.ndim != 2 or position.shape != (*score.shape, 3):
        raise ShapeError(
            "position and score must have shapes (B, P, 3) and (B, P), got "
            f"{tuple(position.shape)} and {tuple(score.shape)}"
        )
    for name, tensor in (("position", position), ("score", score)):
        if tensor.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{name} must be float32 or float64, got {tensor.dtype}; convert it with .float()")
    if len(separation) != 3 or not all(s >= 0 for s in separation):
        raise ValueError(f"separation must be 3 numbers >= 0 (radians, radians, metres), got {tuple(separation)}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    check_extent(position=4 * score.shape[1], slots=k)
    return device


def nms(
    position: Tensor,
    score: Tensor,
    separation: Sequence[float],
    k: int,
    on_sphere: bool = False,
    *,
    check: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Greedy suppression with a box in (azimuth, elevation, range); the decisions of :func:`risfast.ops.nms_3d`.

    position (B, P, 3), score (B, P) -> index (B, k), count (B,), bad (B,)
    """
    device = _check(position, score, separation, k)
    batch, candidates = score.shape
    index = torch.empty(batch, k, dtype=torch.int64, device=device)
    count = torch.empty(batch, dtype=torch.int64, device=device)
    bad = torch.empty(batch, dtype=torch.int32, device=device)
    if candidates == 0 or batch == 0:
        return index.fill_(-1), count.zero_(), bad.zero_()
    limits = box_limits(separation, on_sphere, position.dtype).tolist()
    points = sphere_coordinates(position) if on_sphere else position.contiguous()
    configuration = nms_configuration(candidates)
    resident = bool(configuration["RESIDENT"])
    left = torch.empty((1,) if resident else (batch, candidates), dtype=torch.int8, device=device)
    operands = points, score.contiguous(), left, index, count, bad, *map(double_bits, limits)
    # Without fused operations: they would round a cross product once where the CPU rounds it twice.
    constants = {"ON_SPHERE": on_sphere, "enable_fp_fusion": False, **configuration}
    launch(nms_kernel, batch, device, *operands, candidates, k, **constants)
    if check:
        # The two faults are told apart here, where waiting no longer matters.
        broken = bad.bool()
        reject_bad_candidates(bool((score.isnan().any(1) & broken).any()), bool(broken.any()))
    return index, count, bad
