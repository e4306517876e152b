"""Local maxima and non-maximum suppression on the CPU.

The kernels use numpy on views of the tensors: for arrays of this size its comparison and search of booleans are several
times faster than torch's on one thread. Correct is what :mod:`risfast.ops.reference` says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from risfast.ops.peaks import box_limits, reject_bad_candidates, reject_nan, sphere_coordinates

_Array = np.ndarray[Any, Any]

# Scenes are worked on in groups of about this many points: small grids share calls, large ones stay in the cache.
_POINTS_AT_ONCE = 1 << 19
# Entries of a temporary table of gathered window points or of candidate pairs; 8 MB of addresses.
_TABLE_ENTRIES = 1 << 20
# Candidates whose windows are looked at first, as a multiple of k, and the growth of the rounds after that.
_FIRST_ROUND = 2
_ROUND_GROWTH = 4
# With more candidates than this in a round, most of them fall to their nearest neighbours, which are looked at first.
_MANY = 4096
# Candidates that suppression ranks against each other at once: long tiles save calls, short ones save comparisons.
_SHORTEST_TILE, _LONGEST_TILE = 32, 128
_TILE_PAIRS = 1 << 16


class _Axis(NamedTuple):
    """One axis of a dense volume in the order of its memory."""

    size: int
    stride: int  # in memory, within a scene
    linear: int  # step in the linear index, which follows the public order (azimuth, elevation, range)
    reach: int  # half the window
    dense: bool  # whether direct neighbours along it are compared over the whole volume


def _memory_layout(volume: Tensor, window: Sequence[int]) -> tuple[_Array, list[_Axis]]:
    """The volume as a contiguous array with its slowest axis first, and what is known of each axis."""
    order = sorted(range(3), key=lambda a: (-volume.stride(a + 1), a))
    array = volume.permute(0, *(a + 1 for a in order)).contiguous().detach().numpy()
    sizes = volume.shape[1:]
    linear = (sizes[1] * sizes[2], sizes[2], 1)
    reach = [min(window[a] // 2, sizes[a] - 1) for a in range(3)]
    # A comparison costs the same along every axis, except for the ends of the axis: of a short one there are many.
    longest = sorted((a for a in range(3) if reach[a]), key=lambda a: -sizes[a])[:2]
    strides = (sizes[order[1]] * sizes[order[2]], sizes[order[2]], 1)
    axes = [_Axis(sizes[a], step, linear[a], reach[a], a in longest) for a, step in zip(order, strides, strict=True)]
    return array, axes


def _at(address: _Array, axis: _Axis) -> _Array:
    """Coordinate along one axis of points given by their flat address."""
    return address // axis.stride % axis.size


def _local_candidates(flat: _Array, axes: list[_Axis], floor: float) -> _Array:
    """Addresses of the points above the floor that hold the rule against their direct neighbours along each axis."""
    # One comparison x[i] >= x[i + step] along an axis serves both ends: where it is true the later point is beaten (an
    # equal value of lower index comes before it), where it is false the earlier one is.
    standing = np.ones(flat.size, bool)
    not_less = np.empty(flat.size, bool)
    for axis in axes:
        if axis.dense:
            np.greater_equal(flat[: -axis.stride], flat[axis.stride :], out=not_less[: -axis.stride])
            # Comparisons that leave the end of the axis are of points that are no neighbours, and are cut away here.
            first = not_less.reshape(-1, axis.size, axis.stride)[:, :-1]
            rows = standing.reshape(-1, axis.size, axis.stride)
            np.logical_and(rows[:, :-1], first, out=rows[:, :-1])
            np.greater(rows[:, 1:], first, out=rows[:, 1:])  # and not
    address = np.flatnonzero(standing)
    address = address[flat[address] > floor]
    for axis in axes:
        if axis.reach and not axis.dense:
            value, place = flat[address], _at(address, axis)
            after = address + axis.stride * (place < axis.size - 1)
            before = address - axis.stride * (place > 0)
            address = address[(flat[after] <= value) & ((flat[before] < value) | (before == address))]
    return address


def _linear_index(address: _Array, axes: list[_Axis]) -> _Array:
    """Index in the public order, within the scene, of points given by their flat address."""
    a, b, c = (_at(address, axis) * axis.linear for axis in axes)
    return a + b + c


def _unbeaten(flat: _Array, axes: list[_Axis], address: _Array) -> _Array:
    """The rule itself: nothing larger in the window, and nothing equal of lower linear index."""
    around = [np.arange(-a.reach, a.reach + 1)[:, None] for a in axes]
    columns = max(1, _TABLE_ENTRIES // math.prod(offsets.size for offsets in around))
    scene_size = math.prod(a.size for a in axes)
    kept = np.empty(address.size, bool)
    for start in range(0, address.size, columns):
        point = address[start : start + columns]
        # Clipping a coordinate repeats points that are in the window anyway, which no comparison minds.
        x, y, z = (
            np.minimum(np.maximum(_at(point, axis) + offsets, 0), axis.size - 1) * axis.stride
            for axis, offsets in zip(axes, around, strict=True)
        )
        z += point // scene_size * scene_size
        seen = (x[:, None, None] + (y[:, None] + z)).reshape(-1, point.size)  # [window points, candidates]
        values, peak = flat[seen], flat[point]
        unbeaten = values.max(0) <= peak
        tie = np.nonzero((values == peak) & unbeaten)
        rival = _linear_index(seen[tie], axes) < _linear_index(point, axes)[tie[1]]
        unbeaten[tie[1][rival]] = False
        kept[start : start + columns] = unbeaten
    return kept


def _scene_maxima(array: _Array, axes: list[_Axis], k: int, floor: float) -> tuple[_Array, _Array, _Array, _Array]:
    """Scene, rank, linear index and value of the k best maxima of each scene."""
    # Windows are looked at in rounds of falling value; a scene is done when it has k, for whatever comes later is
    # lower.
    flat, scenes, scene_size = array.reshape(-1), len(array), array[0].size
    reject_nan(bool(np.isnan(flat.max())))
    nearest = [axis._replace(reach=min(axis.reach, 1)) for axis in axes]
    waiting = _local_candidates(flat, axes, floor)
    found = np.zeros(scenes, np.int64)
    rounds: list[_Array] = []
    budget = _FIRST_ROUND * k * scenes
    while waiting.size:
        value = flat[waiting]
        cut = value.size - budget
        due = value >= np.partition(value, cut)[cut] if cut > 0 else np.ones(value.size, bool)
        address = waiting[due]
        if address.size > _MANY:
            address = address[_unbeaten(flat, nearest, address)]
        address = address[_unbeaten(flat, axes, address)]
        rounds.append(address)
        found += np.bincount(address // scene_size, minlength=scenes)
        waiting = waiting[~due & (found < k)[waiting // scene_size]]
        budget *= _ROUND_GROWTH
    address = np.concatenate(rounds) if rounds else waiting
    scene, linear, value = address // scene_size, _linear_index(address, axes), flat[address]
    order = np.lexsort((linear, -value, scene))
    rank = np.arange(order.size) - (found.cumsum() - found)[scene[order]]
    best = order[rank < k]
    return scene[best], rank[rank < k], linear[best], value[best]


def local_maxima_cpu(
    volume: Tensor, window: Sequence[int], k: int, threshold: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The CPU kernel of :func:`risfast.ops.local_maxima_3d`: group scenes, find their maxima, write the first k of
    each.
    """
    batch, sizes = volume.shape[0], volume.shape[1:]
    index = torch.full((batch, k, 3), -1, dtype=torch.int64)
    value = volume.new_full((batch, k), -math.inf)
    if volume.numel():
        array, axes = _memory_layout(volume, window)
        # Rounded as torch does, which takes a threshold beyond float32 to infinity without a warning.
        floor = -math.inf if threshold is None else float(torch.tensor(threshold, dtype=torch.float64).to(volume.dtype))
        group = max(1, _POINTS_AT_ONCE // math.prod(sizes))
        for start in range(0, batch, group):
            scene, rank, linear, peak = _scene_maxima(array[start : start + group], axes, k, floor)
            index.numpy()[start + scene, rank] = np.stack(np.unravel_index(linear, sizes), -1)
            value.numpy()[start + scene, rank] = peak
    return index, value, (value > -math.inf).sum(1)


def _near(these: _Array, those: _Array, limits: _Array) -> _Array:
    """Whether points [B, T, 3 or 4] lie within the limits of points [B, U, 3 or 4] in all coordinates: [B, T, U]."""
    one, other = np.moveaxis(these[:, :, None], -1, 0), np.moveaxis(those[:, None], -1, 0)
    on_sphere = len(one) == 4
    turned = one[1] * other[0] - one[0] * other[1] if on_sphere else one[0] - other[0]
    near = np.abs(turned, out=turned) <= limits[0]
    raised = one[-2] - other[-2]
    near &= np.abs(raised, out=raised) <= limits[1]
    with np.errstate(invalid="ignore"):  # of two infinite ranges, which are equal
        difference = one[-1] - other[-1]
    near &= (np.abs(difference, out=difference) <= limits[2]) | (one[-1] == other[-1])
    return near


def _suppress(position: _Array, order: _Array, present: _Array, limits: _Array, k: int) -> _Array:
    """Greedy suppression of some scenes by tiles of candidates in falling order: index [B, k]."""
    # Within a tile, "kept unless a better kept one is near" is applied to all candidates at once until nothing changes.
    # Its only fixed point is the greedy answer, and it is there after as many steps as the longest chain of
    # suppressions.
    batch, k = order.shape[0], min(k, order.shape[1])
    tile = max(_SHORTEST_TILE, min(_LONGEST_TILE, math.isqrt(_TILE_PAIRS // max(batch, 1))))
    index = np.full((batch, k), -1, np.int64)
    chosen = np.zeros((batch, k, position.shape[2]), position.dtype)
    count = np.zeros(batch, np.int64)
    for start in range(0, int(present.max(initial=0)), tile):
        block = order[:, start : start + tile]
        places = np.arange(block.shape[1])
        open_ = (start + places < present[:, None]) & (count < k)[:, None]
        if not open_.any():
            break
        points = np.where(open_[..., None], np.take_along_axis(position, block[..., None], 1), 0)
        filled = int(count.max())
        if filled:
            taken = np.arange(filled) < count[:, None]
            open_ &= ~(_near(points, chosen[:, :filled], limits) & taken[:, None]).any(2)
        rivals = _near(points, points, limits) & (places < places[:, None])
        kept, before = open_, None
        while before is None or not np.array_equal(kept, before):
            kept, before = open_ & ~(rivals & kept[:, None]).any(2), kept
        slot = count[:, None] + kept.cumsum(1) - 1
        scene, place = np.nonzero(kept & (slot < k))
        target = scene, slot[scene, place]
        index[target], chosen[target] = block[scene, place], points[scene, place]
        count = np.minimum(count + kept.sum(1), k)
    return index


def nms_cpu(
    position: Tensor, score: Tensor, separation: Sequence[float], k: int, on_sphere: bool
) -> tuple[Tensor, Tensor]:
    """The CPU kernel of :func:`risfast.ops.nms_3d`: rank the candidates, then suppress group by group of scenes."""
    points, value = position.detach().numpy(), score.detach().numpy()
    absent = value == -math.inf
    placed = np.isfinite(points[..., :2]).all(2) & (points[..., 2] > -math.inf)
    reject_bad_candidates(bool(np.isnan(value).any()), bool((~placed & ~absent).any()))
    order = np.argsort(-value, axis=1, kind="stable")
    present = (~absent).sum(1)
    limits = box_limits(separation, on_sphere, position.dtype).numpy()
    if on_sphere:
        points = sphere_coordinates(position.detach()).numpy()
    index = torch.full((score.shape[0], k), -1, dtype=torch.int64)
    columns = min(k, score.shape[1])
    group = max(1, _TABLE_ENTRIES // (_SHORTEST_TILE * max(_SHORTEST_TILE, columns)))
    for start in range(0, score.shape[0], group):
        part = slice(start, start + group)
        index.numpy()[part, :columns] = _suppress(points[part], order[part], present[part], limits, k)
    return index, (index >= 0).sum(1)
