"""The kernels of local maxima and suppression against loops over the written rule, and bit for bit against the CPU."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from test_kernels_interpreter import DEVICE, kernel_module, poisoned  # noqa: F401 - a fixture that every test uses
from test_peaks import (
    SEPARATION,
    SHAPES,
    Peaks,
    Selection,
    assert_is_brute_force,
    assert_is_brute_force_nms,
    assert_same,
    candidates,
    candidates_on_sphere,
    quantised,
)

from risfast.errors import ShapeError
from risfast.ops import reference

peaks = kernel_module("peaks")
nms_module = kernel_module("nms")

# A GPU turns NaN and overflow into their IEEE results silently.
pytestmark = pytest.mark.filterwarnings("ignore:(divide by zero|invalid value|overflow):RuntimeWarning")

TOP = torch.finfo(torch.float32).max


def found_in(volume, window, k, threshold=None):
    """Peaks of the kernels, on the CPU; of volumes without NaN."""
    *found, bad = peaks.local_maxima(volume.to(DEVICE), window, k, threshold)
    assert not bad.any()
    return Peaks(*(field.cpu() for field in found))


def kept_of(position, score, separation, k, on_sphere=False):
    *kept, bad = nms_module.nms(position.to(DEVICE), score.to(DEVICE), separation, k, on_sphere)
    assert not bad.any()
    return Selection(*(field.cpu() for field in kept))


# Local maxima


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("window", [(7, 7, 3), (1, 3, 5), (21, 21, 21)])
def test_maxima_match_brute_force(shape, window):
    volume = torch.cat([quantised((1, *shape), levels, seed=math.prod(shape)) for levels in (2, 5, 1000)])
    assert_is_brute_force(found_in(volume, window, 9), volume, window, 9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [3, 10**6])
def test_maxima_equal_the_cpu_operator_bit_for_bit(levels, dtype):
    volume = quantised((2, 17, 11, 7), levels, levels, dtype) / 7
    for k in (9, 300):
        assert_same(found_in(volume, (7, 7, 3), k), torch.ops.risfast.local_maxima_3d(volume, (7, 7, 3), k, None))


@pytest.mark.parametrize("order", list(itertools.permutations(range(1, 4))))
def test_the_layout_of_the_memory_does_not_matter(order):
    volume = quantised((2, 17, 12, 5), 40, seed=3)
    axes = (0, *order)
    laid_out = volume.permute(axes).contiguous().permute([axes.index(axis) for axis in range(4)])
    assert laid_out.stride() != volume.stride() or order == (1, 2, 3)
    assert_is_brute_force(found_in(laid_out, (3, 5, 3), 12), volume, (3, 5, 3), 12)


def test_views_with_gaps_and_repeated_planes_are_read_in_place():
    whole = quantised((2, 18, 14, 7), 40, seed=5)
    for view in (
        whole[1:, 1::3, ::2, 2::2],
        whole[:, :, :, :1].expand(2, 18, 14, 3),
        whole[:1, :9].expand(3, 9, 14, 7),
    ):
        expected = torch.ops.risfast.local_maxima_3d(view.contiguous(), (5, 5, 3), 20, None)
        assert_same(found_in(view, (5, 5, 3), 20), expected)


def test_a_constant_volume_has_one_maximum_and_one_a_plane_under_a_flat_window():
    found = found_in(torch.full((2, 23, 19, 5), 3.0), (7, 7, 3), 8)
    assert found.count.tolist() == [1, 1]
    assert found.index[:, 0].tolist() == [[0, 0, 0]] * 2
    assert found_in(torch.ones(1, 9, 8, 4), (7, 7, 1), 8).count.tolist() == [4]


def test_plateaus_give_what_the_written_rule_gives():
    volume = torch.zeros(1, 15, 14, 3)
    volume[0, 3:9, 4:6, 1] = 5.0  # convex
    volume[0, [10, 11, 12, 13, 12, 11, 10], [2, 3, 4, 5, 6, 7, 8], 2] = 6.0  # a V, with two tips
    assert_is_brute_force(found_in(volume, (3, 3, 3), 9, 0.5), volume, (3, 3, 3), 9, 0.5)


@pytest.mark.parametrize("corner", [(0, 0, 0), (8, 0, 2), (0, 6, 2), (8, 6, 0), (8, 6, 2), (4, 0, 1)])
def test_points_on_the_border_can_be_maxima(corner):
    volume = torch.zeros(1, 9, 7, 3)
    volume[(0, *corner)] = 2.0
    found = found_in(volume, (3, 3, 3), 5, 1.0)
    assert found.count.tolist() == [1]
    assert tuple(found.index[0, 0].tolist()) == corner


def test_infinities_and_signed_zeros_are_ordered_as_numbers():
    levels = torch.tensor([-math.inf, -TOP, -1.0, -1e-42, -0.0, 0.0, 1e-42, TOP, math.inf])
    volume = levels[quantised((3, 9, 8, 4), len(levels), seed=2).long()]
    volume[1].clamp_(max=-0.0)
    volume[2] = -math.inf
    found = found_in(volume, (3, 3, 3), 40)
    assert_is_brute_force(found, volume, (3, 3, 3), 40)
    assert_same(found, torch.ops.risfast.local_maxima_3d(volume, (3, 3, 3), 40, None))
    zeros = found.value == 0
    there = volume[torch.where(zeros)[0], *found.index[zeros].unbind(1)]
    assert zeros.any()
    assert torch.equal(found.value[zeros].signbit(), there.signbit())


@pytest.mark.parametrize("threshold", [-math.inf, 2.0, 0.1, 6.0, 1e300, -1e300, math.inf])
def test_only_points_strictly_above_the_threshold_are_maxima(threshold):
    volume = quantised((2, 11, 9, 3), 7, seed=1)
    volume[volume == 4] = 0.1  # not exact: it equals the threshold once that is rounded to float32
    expected = reference.local_maxima_3d(volume, (3, 3, 3), 30, threshold)
    assert_same(found_in(volume, (3, 3, 3), 30, threshold), expected)


@pytest.mark.parametrize("window", [(1, 1, 1), (3, 3, 3), (7, 7, 3)])
def test_the_buffer_holds_as_many_maxima_as_can_be(window):
    reach = [size // 2 for size in window]
    volume = torch.zeros(2, 7, 6, 3)
    volume[0, :: reach[0] + 1, :: reach[1] + 1, :: reach[2] + 1] = 1.0  # the densest packing: one in every cell
    volume[1] = torch.arange(volume[1].numel()).reshape(volume[1].shape)
    bound = math.prod(-(-n // (half + 1)) for n, half in zip(volume.shape[1:], reach, strict=True))
    found = found_in(volume, window, bound + 5, -1.0)
    assert_same(found, reference.local_maxima_3d(volume, window, bound + 5, -1.0))
    assert int(found.count[0]) == bound


@pytest.mark.parametrize("k", [1, 33, 129, 600])
def test_ranks_do_not_depend_on_the_order_in_which_candidates_were_found(k):
    rng = torch.Generator().manual_seed(k)
    cells, found = 400, 350
    value = torch.randint(40, (cells,), generator=rng).float()
    place = torch.randperm(7 * 9 * 11, generator=rng)[:cells].int()
    ranked = sorted(range(found), key=lambda i: (-float(value[i]), int(place[i])))[:k]
    for shuffle in (torch.arange(found), torch.randperm(found, generator=rng), torch.arange(found).flip(0)):
        buffers = torch.full((cells,), 10**6, dtype=torch.int32), torch.full((cells,), math.nan)
        buffers[0][:found], buffers[1][:found] = place[shuffle], value[shuffle]
        index, best, count = torch.empty(1, k, 3).long(), torch.empty(1, k), torch.empty(1).long()
        given = [t.to(DEVICE) for t in (*buffers, torch.tensor([found]).int(), torch.zeros(1).int())]
        out = [t.to(DEVICE) for t in (index, best, count)]
        peaks.maxima_rank_kernel[(3,)](*given, *out, cells, 9, 11, k, 3, **peaks.rank_configuration())
        index, best, count = (t.cpu() for t in out)
        assert int(count) == len(ranked) == min(k, found)
        linear = (index[0, : len(ranked)] * torch.tensor([99, 11, 1])).sum(1)
        assert linear.tolist() == place[ranked].tolist()
        assert best[0, : len(ranked)].tolist() == value[ranked].tolist()
        assert (index[0, len(ranked) :] == -1).all()
        assert (best[0, len(ranked) :] == -math.inf).all()


def test_small_tiles_give_what_large_ones_give(monkeypatch):
    volume = quantised((2, 14, 11, 3), 50, seed=7)
    expected = reference.local_maxima_3d(volume, (5, 5, 3), 25, None)
    monkeypatch.setattr(peaks, "candidates_configuration", lambda: {"BLOCK": 8, "BLOCK_W": 16, "num_warps": 1})
    monkeypatch.setattr(peaks, "rank_configuration", lambda: {"BLOCK": 4, "BLOCK_J": 8, "num_warps": 1})
    monkeypatch.setattr(peaks, "_RANK_PARTS", 2)
    assert_same(found_in(volume, (5, 5, 3), 25), expected)


def test_a_scene_with_nan_is_marked_and_the_others_are_not_touched():
    volume = quantised((4, 13, 7, 3), 30, seed=4)
    expected = reference.local_maxima_3d(volume, (7, 7, 3), 6, None)
    volume[1, 12, 6, 2] = math.nan
    volume[3] = math.nan
    index, value, count, bad = (field.cpu() for field in peaks.local_maxima(volume.to(DEVICE), (7, 7, 3), 6))
    assert bad.tolist() == [0, 1, 0, 1]
    assert count[[1, 3]].tolist() == [0, 0]
    assert (index[[1, 3]] == -1).all()
    assert value[[1, 3]].isnan().all()
    for ours, theirs in zip((index, value, count), expected, strict=True):
        assert torch.equal(ours[[0, 2]], theirs[[0, 2]])
    with pytest.raises(ValueError, match="volume must not hold NaN"):
        peaks.local_maxima(volume.to(DEVICE), (7, 7, 3), 6, check=True)


@pytest.mark.parametrize("shape", [(0, 5, 4, 3), (2, 0, 4, 3), (2, 5, 4, 0)])
def test_empty_volumes_give_empty_slots(shape):
    found = found_in(torch.zeros(shape), (7, 7, 3), 4)
    assert found.index.shape == (shape[0], 4, 3)
    assert (found.index == -1).all()
    assert (found.value == -math.inf).all()
    assert found.count.tolist() == [0] * shape[0]


def test_scenes_more_than_2_31_numbers_apart_are_reached(tmp_path):
    # A file with a hole in it: only the pages that are touched take room.
    storage = np.memmap(tmp_path / "volumes", np.float32, "w+", shape=((1 << 31) + 64,))
    storage[:36], storage[-36:] = np.arange(36) % 17, np.arange(36) % 13
    volume = torch.from_numpy(storage).as_strided((2, 3, 4, 3), ((1 << 31) + 28, 12, 3, 1))
    if DEVICE == "cuda":
        pytest.skip("takes 8 GB of the device for what the interpreter shows")
    assert_same(found_in(volume, (3, 3, 3), 8), reference.local_maxima_3d(volume.clone(), (3, 3, 3), 8, None))


@pytest.mark.parametrize(
    ("volume", "options", "error", "message"),
    [
        (torch.zeros(4, 4, 4), {}, ShapeError, r"volume must have shape \(B, G_az, G_el, G_r\)"),
        (torch.zeros(1, 4, 4, 4).half(), {}, TypeError, "volume must be float32 or float64"),
        (torch.zeros(1, 4, 4, 4), {"window": (7, 6, 3)}, ValueError, "window must be 3 odd positive ints"),
        (torch.zeros(1, 4, 4, 4), {"k": 0}, ValueError, "k must be at least 1"),
        (torch.zeros(1, 4, 4, 4), {"threshold": math.nan}, ValueError, "threshold must be a number or None"),
        (torch.zeros(1, 1, 1, 1).expand(1, 1 << 16, 1 << 15, 1), {}, ShapeError, "at most .* points"),
    ],
)
def test_bad_arguments_of_maxima_are_named(volume, options, error, message):
    with pytest.raises(error, match=message):
        peaks.local_maxima(volume.to(DEVICE), **{"window": (7, 7, 3), "k": 4} | options)


# Suppression


@pytest.mark.parametrize("count", [1, 7, 40, 150])
@pytest.mark.parametrize("levels", [None, 3])
def test_suppression_matches_brute_force(count, levels):
    position, score = candidates(3, count, seed=count, levels=levels)
    for k in (1, 25):
        assert_is_brute_force_nms(kept_of(position, score, SEPARATION, k), position, score, SEPARATION, k)


@pytest.mark.parametrize("on_sphere", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_suppression_decides_as_the_cpu_operator_to_the_last_bit(dtype, on_sphere):
    # Steps of a tenth and of a quarter turn: many differences round to the very edge of the box, many lie at the poles.
    rng = torch.Generator().manual_seed(3)
    steps = torch.randint(0, 12, (4, 60, 3), generator=rng).to(dtype)
    position = steps * torch.tensor([0.1, 0.1, 0.3], dtype=dtype)
    position[2:, :, 0] = (steps[2:, :, 0] - 6) * (math.pi / 2)
    position[3, :, 1] = (steps[3, :, 1] - 6).clamp(-2, 2) * (math.pi / 4)
    score = torch.randint(20, (4, 60), generator=rng).float()
    for separation in ((0.2, 0.3, 0.6), (0.1, 0.1, 0.3), (math.pi / 2, 0.4, math.inf), (0.0, 0.0, 0.0)):
        kept = kept_of(position, score, separation, 40, on_sphere)
        assert_same(kept, torch.ops.risfast.nms_3d(position, score, separation, 40, on_sphere))
        assert_same(kept, reference.nms_3d(position, score, separation, 40, on_sphere))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [150, 2100])
def test_suppression_on_the_sphere_matches_brute_force(dtype, count):
    position, score = candidates_on_sphere(1, count, 5, dtype)
    separation = (0.1, 0.2, 1.0)
    kept = kept_of(position, score, separation, 25, True)
    assert_is_brute_force_nms(kept, position, score, separation, 25, True)
    assert_same(kept, torch.ops.risfast.nms_3d(position, score, separation, 25, True))


def test_a_chain_keeps_every_second_candidate():
    position = torch.zeros(1, 101, 3)
    position[0, :, 2] = torch.arange(101) * 1.0
    kept = kept_of(position, -torch.arange(101).float()[None], (0.0, 0.0, 1.0), 70)
    assert kept.index[0, :51].tolist() == list(range(0, 101, 2))
    assert kept.count.tolist() == [51]


@pytest.mark.parametrize("resident", [True, False])
def test_candidates_in_blocks_give_what_candidates_in_registers_give(monkeypatch, resident):
    position, score = candidates(2, 77, seed=9, levels=12)
    block = {"RESIDENT": int(resident), "BLOCK": 128 if resident else 16, "num_warps": 1}
    monkeypatch.setattr(nms_module, "nms_configuration", lambda count: block)
    for k in (5, 50):
        assert_same(kept_of(position, score, SEPARATION, k), reference.nms_3d(position, score, SEPARATION, k, False))


def test_thousands_of_candidates_are_read_block_by_block():
    position, score = candidates(1, 2500, seed=11, levels=500)
    assert not nms_module.nms_configuration(2500)["RESIDENT"]
    kept = kept_of(position, score, SEPARATION, 12)
    assert_same(kept, torch.ops.risfast.nms_3d(position, score, SEPARATION, 12, False))


def test_absent_candidates_may_stand_anywhere():
    position = torch.tensor([[[math.nan, 0, 1], [0, 0, 1], [math.inf, 0, -math.inf]], [[math.nan] * 3] * 3])
    score = torch.tensor([[-math.inf, 1, -math.inf], [-math.inf] * 3])
    for on_sphere in (False, True):
        kept = kept_of(position, score, SEPARATION, 2, on_sphere)
        assert kept.index.tolist() == [[1, -1], [-1, -1]]
        assert kept.count.tolist() == [1, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [20, 2500])
def test_infinite_ranges_are_decided_upon_as_by_the_cpu(count, dtype):
    position, score = candidates(2, count, seed=12, levels=500, dtype=dtype)
    position[:, ::3, 2] = math.inf
    for separation in (SEPARATION, (0.1, 0.1, math.inf), (0.3, 0.3, 0.0)):
        kept = kept_of(position, score, separation, 12)
        assert_same(kept, torch.ops.risfast.nms_3d(position, score, separation, 12, False))
        assert_same(kept, reference.nms_3d(position, score, separation, 12, False))


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_a_range_must_be_a_place(bad):
    position, score = candidates(2, 9, seed=1)
    position[1, 3, 2] = bad
    assert nms_module.nms(position.to(DEVICE), score.to(DEVICE), SEPARATION, 5)[2].tolist() == [0, 1]


def test_infinite_and_equal_scores_go_by_index():
    position = torch.arange(18.0).reshape(1, 6, 3) * 5
    score = torch.tensor([[0.0, -0.0, math.inf, 3, math.inf, -math.inf]])
    assert kept_of(position, score, SEPARATION, 6).index.tolist() == [[2, 4, 3, 0, 1, -1]]


def test_scenes_whose_candidates_have_no_order_or_place_are_marked():
    position, score = candidates(4, 9, seed=1)
    expected = reference.nms_3d(position, score, SEPARATION, 5, False)
    score[1, 4] = math.nan
    position[2, 7, 1] = math.inf
    index, count, bad = (t.cpu() for t in nms_module.nms(position.to(DEVICE), score.to(DEVICE), SEPARATION, 5))
    assert bad.tolist() == [0, 1, 1, 0]
    assert count[1:3].tolist() == [0, 0]
    assert (index[1:3] == -1).all()
    assert torch.equal(index[[0, 3]], expected[0][[0, 3]])
    with pytest.raises(ValueError, match="score must not hold NaN"):
        nms_module.nms(position.to(DEVICE), score.to(DEVICE), SEPARATION, 5, check=True)
    with pytest.raises(ValueError, match="position must be finite"):
        nms_module.nms(position[2:].to(DEVICE), score[2:].to(DEVICE), SEPARATION, 5, check=True)


@pytest.mark.parametrize(("batch", "count"), [(0, 5), (3, 0), (0, 0)])
def test_no_scenes_or_no_candidates_give_empty_results(batch, count):
    kept = kept_of(torch.zeros(batch, count, 3), torch.zeros(batch, count), SEPARATION, 4)
    assert kept.index.tolist() == [[-1] * 4] * batch
    assert kept.count.tolist() == [0] * batch


def test_strided_candidates_and_mixed_dtypes_are_read():
    position, score = candidates(2, 40, seed=6)
    strided = position.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    wide = torch.stack([score, -score], -1)[..., 0]
    expected = reference.nms_3d(position, score, SEPARATION, 12, False)
    assert_same(kept_of(strided, wide, SEPARATION, 12), expected)
    assert_same(kept_of(position.double(), score, SEPARATION, 12), expected)
    assert_same(kept_of(position, score.double(), SEPARATION, 12), expected)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"position": torch.zeros(2, 5, 2)}, ShapeError, r"shapes \(B, P, 3\) and \(B, P\)"),
        ({"position": torch.zeros(2, 5, 3).half()}, TypeError, "position must be float32 or float64"),
        ({"score": torch.zeros(2, 5).int()}, TypeError, "score must be float32 or float64"),
        ({"separation": (0.1, -0.1, 1.0)}, ValueError, "separation must be 3 numbers >= 0"),
        ({"separation": (0.1, math.nan, 1.0)}, ValueError, "separation must be 3 numbers >= 0"),
        ({"k": 0}, ValueError, "k must be at least 1"),
    ],
)
def test_bad_arguments_of_suppression_are_named(changes, error, message):
    given = {"position": torch.zeros(2, 5, 3), "score": torch.zeros(2, 5), "separation": SEPARATION, "k": 3} | changes
    with pytest.raises(error, match=message):
        nms_module.nms(**{k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in given.items()})
