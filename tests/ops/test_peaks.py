"""Local maxima and non-maximum suppression against loops over the written rule, and the ways they compose."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from risfast.errors import ShapeError
from risfast.ops import peaks_cpu as peaks
from risfast.ops import reference
from risfast.ops.peaks import Peaks, Selection, local_maxima_3d, nms_3d

SHAPES = [
    (1, 1, 1),
    (7, 1, 1),
    (1, 6, 1),
    (1, 1, 5),
    (2, 3, 2),
    (5, 4, 3),
    (7, 6, 2),
    (3, 8, 7),
    (11, 5, 1),
    (13, 7, 3),
]
WINDOWS = [(7, 7, 3), (3, 3, 3), (1, 3, 5), (5, 1, 1), (1, 1, 1), (21, 21, 21)]
SEPARATION = (0.25, 0.125, 1.0)  # exact in binary, as are the positions of the tests: no doubt at the boundary


def brute_force_maxima(scene, window, k, threshold=None, full_circle=False):
    """[(az, el, r), ...] and values of one scene, by loops over points and windows."""
    n_az, n_el, n_r = scene.shape
    scene = scene.tolist()  # Python floats: loops over numpy scalars take several times as long
    reach = [size // 2 for size in window]
    kept = []
    for a in range(n_az):
        for e in range(n_el):
            for r in range(n_r):
                value = scene[a][e][r]
                if value == -math.inf or (threshold is not None and not value > threshold):
                    continue
                beaten = False
                first, last = a - reach[0], a + reach[0] + 1
                around = (
                    {i % n_az for i in range(first, last)} if full_circle else range(max(0, first), min(n_az, last))
                )
                for a2 in around:
                    for e2 in range(max(0, e - reach[1]), min(n_el, e + reach[1] + 1)):
                        for r2 in range(max(0, r - reach[2]), min(n_r, r + reach[2] + 1)):
                            other = scene[a2][e2][r2]
                            beaten |= other > value or (other == value and (a2, e2, r2) < (a, e, r))
                if not beaten:
                    kept.append((-value, (a, e, r)))
    kept.sort()
    return [place for _, place in kept[:k]], [-negative for negative, _ in kept[:k]]


def azimuth_on_sphere(one, other):
    """Angle that two azimuths are apart on the sphere: of haversine cos el cos el' hav(az - az')."""
    haversine = math.cos(one[1]) * math.cos(other[1]) * math.sin((one[0] - other[0]) / 2) ** 2
    return 2 * math.asin(min(math.sqrt(max(haversine, 0.0)), 1.0))


def great_circle(one, other):
    """Angle between two directions, by their unit vectors."""
    u, v = (np.array([math.sin(a) * math.cos(e), math.sin(e), math.cos(a) * math.cos(e)]) for a, e, *_ in (one, other))
    return math.atan2(float(np.linalg.norm(np.cross(u, v))), float(u @ v))


def brute_force_nms(position, score, separation, k, on_sphere=False):
    """Kept indices of one scene, by loops over candidates in falling order."""
    kept = []
    for i in sorted(range(len(score)), key=lambda i: (-score[i], i)):
        if score[i] == -math.inf or len(kept) == k:
            continue
        for j in kept:
            difference = [abs(position[i][c] - position[j][c]) for c in range(3)]
            if on_sphere:
                difference[0] = azimuth_on_sphere(position[i], position[j])
            if all(d <= s for d, s in zip(difference, separation, strict=True)):
                break
        else:
            kept.append(i)
    return kept


def fast(volume, window, k, threshold=None):
    return local_maxima_3d(volume, window=window, k=k, threshold=threshold)


def by_definition(volume, window, k, threshold=None):
    return Peaks(*reference.local_maxima_3d(volume, window, k, threshold))


def fast_nms(position, score, separation, k, on_sphere=False):
    return nms_3d(position, score, separation=separation, k=k, on_sphere=on_sphere)


def reference_nms(position, score, separation, k, on_sphere=False):
    return Selection(*reference.nms_3d(position, score, separation, k, on_sphere))


both = pytest.mark.parametrize("find", [fast, by_definition])
both_nms = pytest.mark.parametrize("suppress", [fast_nms, reference_nms])


def assert_is_brute_force(found, volume, window, k, threshold=None):
    for b, scene in enumerate(volume.double().numpy()):
        places, values = brute_force_maxima(scene, window, k, threshold)
        count = len(places)
        assert int(found.count[b]) == count
        assert [tuple(p) for p in found.index[b, :count].tolist()] == places
        assert found.value[b, :count].tolist() == values
        assert (found.index[b, count:] == -1).all()
        assert (found.value[b, count:] == -math.inf).all()


def assert_same(found, expected):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def quantised(shape, levels, seed, dtype=torch.float32):
    return torch.randint(levels, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def candidates_on_sphere(batch, count, seed, dtype=torch.float64):
    """Directions that crowd at the poles and at the seam, some turns apart, and scores without ties."""
    generator = torch.Generator().manual_seed(seed)
    azimuth = torch.rand(batch, count, generator=generator, dtype=torch.float64) * 12 - 6
    pole = torch.randint(3, (batch, count), generator=generator) - 1
    elevation = torch.where(pole == 0, 0.3, pole * math.pi / 2) * torch.rand(
        batch, count, generator=generator, dtype=torch.float64
    ).pow(0.1)
    elevation[:, ::7] = elevation[:, ::7].sign() * math.pi / 2
    r = 1 + torch.rand(batch, count, generator=generator, dtype=torch.float64) * 3
    score = torch.randperm(batch * count, generator=generator).reshape(batch, count)
    return torch.stack([azimuth, elevation, r], -1).to(dtype), score.to(dtype)


def candidates(batch, count, seed, levels=None, dtype=torch.float32):
    """Positions on a grid exact in binary, and scores with ties if ``levels`` is given."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(0, 17, (batch, count, 3), generator=generator)
    position = (steps * torch.tensor([0.0625, 0.0625, 0.5]) + torch.tensor([-0.5, -0.5, 0.5])).to(dtype)
    if levels is None:
        return position, torch.rand(batch, count, generator=generator, dtype=dtype)
    return position, torch.randint(levels, (batch, count), generator=generator).to(dtype)


# Local maxima: the rule


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("window", WINDOWS)
def test_maxima_match_brute_force(shape, window):
    volume = torch.cat([quantised((1, *shape), levels, seed=math.prod(shape)) for levels in (2, 5, 1000)])
    for find in (fast, by_definition):
        assert_is_brute_force(find(volume, window, 9), volume, window, 9)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.data())
def test_fast_and_reference_match_brute_force_on_any_small_volume(data):
    shape = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.integers(1, 4)))
    window = data.draw(st.tuples(*[st.sampled_from([1, 3, 5, 7])] * 3))
    levels = st.sampled_from([-math.inf, -1.0, 0.0, 1.0, 2.0, math.inf])
    flat = data.draw(st.lists(levels, min_size=math.prod(shape), max_size=math.prod(shape)))
    volume = torch.tensor(flat, dtype=data.draw(st.sampled_from([torch.float32, torch.float64]))).reshape(shape)
    order = data.draw(st.permutations([0, 1, 2, 3]))
    volume = volume.permute(order).contiguous().permute([order.index(axis) for axis in range(4)])
    k = data.draw(st.integers(1, 12))
    threshold = data.draw(st.sampled_from([None, -1.0, 0.5]))
    for find in (fast, by_definition):
        assert_is_brute_force(find(volume, window, k, threshold), volume, window, k, threshold)


@pytest.mark.parametrize("levels", [2, 4, 30, 10**6])
def test_fast_equals_reference_on_volumes_with_thousands_of_candidates(levels):
    volume = quantised((2, 61, 41, 7), levels, seed=levels)
    for k in (64, 3000):
        assert_same(fast(volume, (7, 7, 3), k), by_definition(volume, (7, 7, 3), k, None))


@pytest.mark.parametrize("k", [2, 6, 11, 30])
def test_highest_candidates_that_fall_in_a_wide_window_are_made_up_for_by_lower_ones(k):
    volume = quantised((4, 53, 37, 3), 10**6, seed=9)
    assert_same(fast(volume, (17, 17, 3), k), by_definition(volume, (17, 17, 3), k))


@both
def test_float64_differences_below_float32_resolution_are_seen(find):
    volume = torch.ones(1, 9, 9, 3, dtype=torch.float64)
    volume[0, 4, 5, 1] += 1e-12
    found = find(volume, (3, 3, 3), 4)
    assert found.index[0, 0].tolist() == [4, 5, 1]
    assert found.value.dtype == torch.float64
    assert float(found.value[0, 0]) == 1 + 1e-12


@both
@pytest.mark.parametrize("corner", [(0, 0, 0), (8, 0, 2), (0, 6, 2), (8, 6, 0), (8, 6, 2), (4, 0, 1)])
def test_points_on_the_border_can_be_maxima(find, corner):
    volume = torch.zeros(1, 9, 7, 3)
    volume[(0, *corner)] = 2.0
    found = find(volume, (3, 3, 3), 5, 1.0)
    assert found.count.tolist() == [1]
    assert tuple(found.index[0, 0].tolist()) == corner


# Local maxima: a full circle of azimuths


def assert_is_brute_force_on_circle(volume, window, k, threshold=None):
    found = local_maxima_3d(volume, window=window, k=k, threshold=threshold, full_circle=True)
    for b, scene in enumerate(volume.double().numpy()):
        places, values = brute_force_maxima(scene, window, k, threshold, full_circle=True)
        count = len(places)
        assert int(found.count[b]) == count
        assert [tuple(p) for p in found.index[b, :count].tolist()] == places
        assert found.value[b, :count].tolist() == values
        assert (found.index[b, count:] == -1).all()
        assert (found.value[b, count:] == -math.inf).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("window", WINDOWS)
def test_maxima_on_a_full_circle_match_brute_force(shape, window):
    volume = torch.cat([quantised((1, *shape), levels, seed=math.prod(shape)) for levels in (2, 5, 1000)])
    for k in (1, 9):
        assert_is_brute_force_on_circle(volume, window, k)
    assert_is_brute_force_on_circle(volume, window, 4, 2.5)


def test_turning_the_circle_turns_its_maxima():
    volume = quantised((2, 40, 13, 3), 10**6, seed=4)
    found = local_maxima_3d(volume, k=300, full_circle=True)
    turned = local_maxima_3d(volume.roll(17, 1), k=300, full_circle=True)
    assert int(found.count.min()) > 0
    assert torch.equal(turned.value, found.value)
    there = found.index >= 0
    expected = torch.where(there, (found.index + torch.tensor([17, 0, 0])) % torch.tensor([40, 13, 3]), -1)
    assert torch.equal(turned.index, expected)


def test_a_high_seam_does_not_take_the_slots_of_the_maxima_on_a_full_circle():
    volume = quantised((1, 30, 24, 5), 1000, seed=8)
    slope = torch.linspace(1e6, 2e6, 30)
    volume = volume + slope[:, None, None]
    volume[:, 0] = 3e6 + torch.arange(24 * 5).reshape(24, 5)
    assert_is_brute_force_on_circle(volume, (7, 3, 3), 3)
    assert_is_brute_force_on_circle(volume, (3, 3, 3), 12)


def test_maxima_on_a_full_circle_take_empty_volumes_any_strides_and_lanes():
    assert local_maxima_3d(torch.zeros(0, 5, 4, 3), k=2, full_circle=True).index.shape == (0, 2, 3)
    assert local_maxima_3d(torch.zeros(2, 5, 0, 3), k=2, full_circle=True).count.tolist() == [0, 0]
    volume = quantised((3, 11, 8, 3), 50, seed=1)

    def find(v):
        return local_maxima_3d(v, k=5, full_circle=True)

    assert_same(find(volume.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1)), find(volume))
    assert_same([field[0] for field in find(volume)], find(volume[0]))
    assert_same(torch.vmap(find)(volume), find(volume))


# Local maxima: plateaus and ties


@both
def test_constant_volume_has_one_maximum_at_its_first_point(find):
    found = find(torch.full((2, 23, 19, 5), 3.0), (7, 7, 3), 8)
    assert found.count.tolist() == [1, 1]
    assert found.index[:, 0].tolist() == [[0, 0, 0]] * 2
    assert found.value[:, 0].tolist() == [3.0, 3.0]


@both
def test_constant_volume_has_one_maximum_for_each_plane_along_an_axis_with_window_one(find):
    found = find(torch.ones(1, 9, 8, 4), (7, 7, 1), 8)
    assert found.index[0, :4].tolist() == [[0, 0, plane] for plane in range(4)]
    assert found.count.tolist() == [4]


@both
def test_straight_plateau_longer_than_the_window_has_one_maximum(find):
    volume = torch.zeros(1, 40, 9, 3)
    volume[0, 3:37, 4, 1] = 1.0
    found = find(volume, (7, 7, 3), 8, 0.5)
    assert found.index[0, 0].tolist() == [3, 4, 1]
    assert found.count.tolist() == [1]


@both
def test_both_tips_of_a_v_shaped_plateau_are_kept(find):
    volume = torch.zeros(1, 12, 21, 1)
    for a in range(10):
        volume[0, 1 + a, a, 0] = volume[0, 1 + a, 20 - a, 0] = 1.0
    found = find(volume, (7, 7, 3), 8, 0.5)
    assert found.index[0, : int(found.count)].tolist() == [[1, 0, 0], [1, 20, 0]]


@both
def test_equal_points_in_one_window_keep_only_the_lowest_index(find):
    volume = torch.zeros(1, 9, 9, 3)
    volume[0, 4, 6, 0] = volume[0, 5, 3, 2] = volume[0, 4, 6, 1] = 1.0
    found = find(volume, (7, 7, 3), 8, 0.5)
    assert found.index[0, : int(found.count)].tolist() == [[4, 6, 0]]


@both
def test_equal_maxima_come_in_the_order_of_their_linear_index(find):
    volume = torch.zeros(1, 30, 20, 3)
    places = [(2, 15, 0), (10, 3, 2), (10, 12, 1), (25, 0, 0)]
    for place in places:
        volume[(0, *place)] = 1.0
    found = find(volume.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1), (7, 7, 3), 3)
    assert [tuple(p) for p in found.index[0].tolist()] == places[:3]


# Local maxima: options, padding, layouts


@both
def test_only_the_k_highest_are_returned_and_count_saturates(find):
    volume = torch.zeros(1, 50, 5, 1)
    volume[0, ::10, 2, 0] = torch.tensor([3.0, 5.0, 1.0, 4.0, 2.0])
    found = find(volume, (3, 3, 1), 3, 0.5)
    assert found.value.tolist() == [[5.0, 4.0, 3.0]]
    assert found.index[0, :, 0].tolist() == [10, 30, 0]
    assert found.count.tolist() == [3]


@both
def test_k_beyond_the_number_of_points_pads(find):
    found = find(torch.ones(1, 2, 2, 1), (3, 3, 3), 9)
    assert found.index.shape == (1, 9, 3)
    assert found.value[0].tolist() == [1.0] + [-math.inf] * 8
    assert found.count.tolist() == [1]


@both
def test_threshold_is_strict_and_rounded_to_the_dtype_of_the_volume(find):
    volume = torch.zeros(1, 9, 9, 1)
    volume[0, 4, 4, 0] = 0.1  # as float32 this is above the float64 number 0.1
    assert find(volume, (3, 3, 3), 4, 0.1).count.tolist() == [0]
    assert find(volume, (3, 3, 3), 4, 0.0999999).count.tolist() == [1]
    assert find(volume, (3, 3, 3), 4, 1e300).count.tolist() == [0]


@both
def test_threshold_does_not_hide_larger_neighbours(find):
    volume = torch.tensor([1.0, 2.0, 3.0, 2.5, 1.0]).reshape(1, 5, 1, 1)
    assert find(volume, (3, 1, 1), 4, 2.2).index[0, :, 0].tolist() == [2, -1, -1, -1]


@both
def test_minus_infinity_is_never_a_maximum_and_plus_infinity_is(find):
    volume = torch.full((2, 5, 5, 2), -math.inf)
    volume[1, 3, 3, 1] = math.inf
    found = find(volume, (3, 3, 3), 2)
    assert found.count.tolist() == [0, 1]
    assert found.index.tolist() == [[[-1] * 3] * 2, [[3, 3, 1], [-1] * 3]]
    assert found.value[1].tolist() == [math.inf, -math.inf]


@pytest.mark.parametrize("order", [(0, 3, 1, 2), (3, 2, 1, 0), (0, 2, 1, 3), (1, 0, 3, 2), (2, 3, 0, 1)])
@pytest.mark.parametrize("levels", [3, 10**6])
def test_result_does_not_depend_on_the_memory_layout(order, levels):
    volume = quantised((3, 13, 11, 5), levels, seed=7)
    permuted = volume.permute(order).contiguous().permute([order.index(axis) for axis in range(4)])
    assert permuted.stride() != volume.stride()
    assert_same(fast(permuted, (7, 7, 3), 40), fast(volume, (7, 7, 3), 40))
    assert_same(fast(permuted, (7, 7, 3), 40), by_definition(volume, (7, 7, 3), 40))


def test_sliced_and_expanded_volumes_are_read_where_they_lie():
    base = quantised((2, 30, 22, 9), 6, seed=3)
    sliced = base[:, 1::2, ::3, 2:]
    assert_same(fast(sliced, (5, 3, 3), 30), by_definition(sliced.clone(), (5, 3, 3), 30))
    expanded = base[:1, :, :, :1].expand(3, -1, -1, 4)
    assert_same(fast(expanded, (5, 3, 3), 30), by_definition(expanded.clone(), (5, 3, 3), 30))


def test_result_does_not_depend_on_how_the_work_is_cut_up(monkeypatch):
    volume = torch.cat([quantised((4, 17, 9, 4), 10**6, 1), quantised((3, 17, 9, 4), 3, 2)])
    whole = fast(volume, (7, 5, 3), 25)
    monkeypatch.setattr(peaks, "_POINTS_AT_ONCE", 1500)
    monkeypatch.setattr(peaks, "_TABLE_ENTRIES", 300)
    monkeypatch.setattr(peaks, "_MANY", 10)
    assert_same(fast(volume, (7, 5, 3), 25), whole)
    assert_same(torch.stack([fast(v, (7, 5, 3), 25).index for v in volume])[None], whole.index[None])


def test_scenes_with_very_different_levels_do_not_starve_each_other():
    volume = quantised((3, 31, 21, 3), 10**6, seed=5) + torch.tensor([0.0, 1e7, 2e7])[:, None, None, None]
    found = fast(volume, (3, 3, 3), 20)
    assert found.count.tolist() == [20, 20, 20]
    assert_same(found, by_definition(volume, (3, 3, 3), 20))


@both
@pytest.mark.parametrize("shape", [(0, 5, 4, 3), (2, 0, 4, 3), (2, 5, 0, 3), (2, 5, 4, 0)])
def test_empty_batches_and_empty_grids_give_empty_results(find, shape):
    found = find(torch.zeros(shape), (7, 7, 3), 6)
    assert found.index.shape == (shape[0], 6, 3)
    assert (found.index == -1).all()
    assert (found.value == -math.inf).all()
    assert found.count.tolist() == [0] * shape[0]


def test_an_unbatched_volume_gives_unbatched_peaks():
    volume = quantised((9, 8, 3), 50, seed=1)
    found = local_maxima_3d(volume, k=5)
    assert (found.index.shape, found.value.shape, found.count.shape) == ((5, 3), (5,), ())
    assert_same(found, [field[0] for field in local_maxima_3d(volume[None], k=5)])


# Local maxima: bad input


@both
@pytest.mark.parametrize("place", [(0, 0, 0), (8, 7, 2), (4, 3, 1)])
def test_nan_in_the_volume_is_refused(find, place):
    volume = quantised((2, 9, 8, 3), 50, seed=1)
    volume[(1, *place)] = math.nan
    with pytest.raises(ValueError, match="volume must not hold NaN"):
        find(volume, (7, 7, 3), 4)


@pytest.mark.parametrize(
    ("volume", "options", "error", "message"),
    [
        (torch.zeros(4, 4), {}, ShapeError, r"G_az, G_el, G_r\), got \(4, 4\)"),
        (torch.zeros(1, 1, 4, 4, 4), {}, ShapeError, "volume must have shape"),
        (torch.zeros(4, 4, 4, dtype=torch.int64), {}, TypeError, "volume must be float32 or float64, got torch.int64"),
        (torch.zeros(4, 4, 4, dtype=torch.bfloat16), {}, TypeError, "got torch.bfloat16"),
        (np.zeros((4, 4, 4)), {}, TypeError, "volume must be a torch tensor, got ndarray"),
        (torch.zeros(4, 4, 4), {"window": (7, 7)}, ValueError, r"3 odd positive ints .*got \(7, 7\)"),
        (torch.zeros(4, 4, 4), {"window": (7, 6, 3)}, ValueError, "window must be 3 odd"),
        (torch.zeros(4, 4, 4), {"window": (7, -1, 3)}, ValueError, "window must be 3 odd"),
        (torch.zeros(4, 4, 4), {"window": (7.0, 7, 3)}, ValueError, "window must be 3 odd"),
        (torch.zeros(4, 4, 4), {"k": 0}, ValueError, "k must be an int of at least 1, got 0"),
        (torch.zeros(4, 4, 4), {"threshold": math.nan}, ValueError, "threshold must be a number or None, got NaN"),
    ],
)
def test_bad_arguments_of_local_maxima_are_named(volume, options, error, message):
    with pytest.raises(error, match=message):
        local_maxima_3d(volume, **options)


# Suppression


def assert_is_brute_force_nms(kept, position, score, separation, k, on_sphere=False):
    for b in range(score.shape[0]):
        expected = brute_force_nms(position[b].tolist(), score[b].tolist(), separation, k, on_sphere)
        assert kept.index[b].tolist() == expected + [-1] * (k - len(expected))
        assert int(kept.count[b]) == len(expected)


@both_nms
@pytest.mark.parametrize("count", [1, 7, 40, 150])
@pytest.mark.parametrize("levels", [None, 3])
@pytest.mark.parametrize("k", [1, 5, 60])
def test_suppression_matches_brute_force(suppress, count, levels, k):
    position, score = candidates(3, count, seed=count + k, levels=levels)
    assert_is_brute_force_nms(suppress(position, score, SEPARATION, k), position, score, SEPARATION, k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_suppression_of_two_thousand_candidates_matches_brute_force(dtype):
    position, score = candidates(1, 2000, seed=11, levels=500, dtype=dtype)
    for k in (20, 300):
        kept = fast_nms(position, score, SEPARATION, k)
        assert_is_brute_force_nms(kept, position, score, SEPARATION, k)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.data())
def test_fast_and_reference_suppression_match_brute_force_on_any_candidates(data):
    batch, count, k = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 12)), data.draw(st.integers(1, 8))
    steps = data.draw(st.lists(st.integers(0, 6), min_size=batch * count * 3, max_size=batch * count * 3))
    levels = st.sampled_from([-math.inf, 0.0, 1.0, 2.0, math.inf])
    position = torch.tensor(steps, dtype=torch.float32).reshape(batch, count, 3) * torch.tensor([0.125, 0.125, 0.5])
    score = torch.tensor(data.draw(st.lists(levels, min_size=batch * count, max_size=batch * count)))
    score = score.reshape(batch, count)
    for suppress in (fast_nms, reference_nms):
        kept = suppress(position, score, SEPARATION, k)
        assert_is_brute_force_nms(kept, position, score, SEPARATION, k)


@both_nms
def test_a_chain_keeps_every_second_candidate(suppress):
    count = 301  # longer than two tiles: each candidate is near the next one only, and the best stands at one end
    position = torch.zeros(1, count, 3)
    position[0, :, 2] = torch.arange(count) * 1.0
    kept = suppress(position, -torch.arange(count).float()[None], (0.0, 0.0, 1.0), 200)
    assert kept.index[0, :151].tolist() == list(range(0, count, 2))
    assert kept.count.tolist() == [151]


@both_nms
def test_suppression_needs_all_three_coordinates_and_includes_the_boundary(suppress):
    position = torch.tensor([[0, 0, 1], [0.25, 0.125, 2], [0.26, 0, 1], [0, 0.126, 1], [0, 0, 2.01]])[None]
    kept = suppress(position, torch.tensor([[5.0, 4, 3, 2, 1]]), SEPARATION, 5)
    assert kept.index.tolist() == [[0, 2, 3, 4, -1]]


@both_nms
def test_a_suppressed_candidate_suppresses_nothing(suppress):
    position = torch.tensor([[0.0, 0, 1], [0.2, 0, 1], [0.4, 0, 1]])[None]
    assert suppress(position, torch.tensor([[3.0, 2, 1]]), SEPARATION, 3).index.tolist() == [[0, 2, -1]]


@both_nms
def test_equal_scores_keep_the_lowest_index(suppress):
    position = torch.zeros(1, 4, 3)
    assert suppress(position, torch.tensor([[1.0, 2, 2, 2]]), SEPARATION, 2).index.tolist() == [[1, -1]]


@both_nms
def test_azimuths_are_measured_round_the_circle_only_on_the_sphere(suppress):
    turn = 2 * math.pi
    position = torch.tensor([[3.1, 0, 1], [-3.1, 0, 1], [3.05 - 3 * turn, 0, 1], [0, 0, 1]], dtype=torch.float64)[None]
    score = torch.tensor([[4.0, 3, 2, 1]])
    assert suppress(position, score, SEPARATION, 4).index.tolist() == [[0, 1, 2, 3]]
    assert suppress(position, score, SEPARATION, 4, True).index.tolist() == [[0, 3, -1, -1]]


@both_nms
@pytest.mark.parametrize("pole", [math.pi / 2, -math.pi / 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_directions_about_a_pole_are_one(suppress, pole, dtype):
    azimuth = torch.linspace(-math.pi, math.pi, 17, dtype=torch.float64)
    for elevation in (pole, pole * (1 - 0.005)):  # at the pole, and on a circle of 0.9 degrees about it
        position = torch.stack([azimuth, torch.full_like(azimuth, elevation), torch.ones_like(azimuth)], -1)[None]
        score = torch.arange(17.0)[None]
        kept = suppress(position.to(dtype), score, (math.radians(2), math.radians(2), 0.5), 17, True)
        assert kept.index[0, :2].tolist() == [16, -1]


@both_nms
def test_range_and_elevation_do_not_wrap_on_the_sphere(suppress):
    position = torch.tensor([[0, 0.5, 1], [0, -0.5, 1], [0, 0.5, 1 + 2 * math.pi]])[None]
    assert suppress(position, torch.tensor([[3.0, 2, 1]]), SEPARATION, 3, True).index.tolist() == [[0, 1, 2]]


@both_nms
@pytest.mark.parametrize("separation", [(0.1, 0.1, 1.0), (0.03, 0.2, 5.0), (0.7, 0.05, 0.5), (math.pi, 0.1, math.inf)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_suppression_on_the_sphere_matches_brute_force(suppress, separation, dtype):
    position, score = candidates_on_sphere(3, 150, 2, dtype)
    kept = suppress(position, score, separation, 100, True)
    assert_is_brute_force_nms(kept, position, score, separation, 100, True)
    assert (kept.count < 100).all()


@both_nms
def test_on_the_sphere_nothing_kept_is_closer_than_the_separation_and_nothing_far_is_dropped(suppress):
    position, score = candidates_on_sphere(2, 200, 5)
    angle = 0.1
    kept = suppress(position, score, (angle, angle, math.inf), 200, True)
    for b in range(2):
        places = position[b].tolist()
        chosen = kept.index[b, : int(kept.count[b])].tolist()
        assert all(great_circle(places[i], places[j]) > angle for i in chosen for j in chosen if i < j)
        for i in set(range(200)) - set(chosen):  # the box reaches to its corners
            assert min(great_circle(places[i], places[j]) for j in chosen) < angle * math.sqrt(2) + 1e-9


@both_nms
def test_on_the_sphere_the_same_place_is_one_where_nothing_else_is(suppress):
    position = torch.tensor([[0.7, 0.3, 2.0], [0.7, 0.3, 2.0], [0.7, 0.3000001, 2.0]], dtype=torch.float64)[None]
    kept = suppress(position, torch.tensor([[3.0, 2, 1]]), (0.0, 0.0, 0.0), 3, True)
    assert kept.index.tolist() == [[0, 2, -1]]


@both_nms
def test_infinite_separation_leaves_a_coordinate_out(suppress):
    position = torch.tensor([[0.0, 0, 1], [0, 0, 9], [1, 0, 1]])[None]
    kept = suppress(position, torch.tensor([[3.0, 2, 1]]), (0.1, 0.1, math.inf), 3)
    assert kept.index.tolist() == [[0, 2, -1]]


@both_nms
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_infinite_ranges_are_equal_and_far_from_any_other(suppress, dtype):
    position = torch.tensor([[0.0, 0, math.inf], [0.1, 0, 1e30], [0, 0.1, math.inf], [0, 0, 1], [1, 0, math.inf]])
    position, score = position[None].to(dtype), torch.tensor([[5.0, 4, 3, 2, 1]])
    assert suppress(position, score, (0.2, 0.2, 1e10), 5).index.tolist() == [[0, 1, 3, 4, -1]]
    assert suppress(position, score, (0.2, 0.2, math.inf), 5).index.tolist() == [[0, 4, -1, -1, -1]]
    for on_sphere in (False, True):
        assert suppress(position, score, (0.0, 0.0, 0.0), 5, on_sphere).index.tolist() == [[0, 1, 2, 3, 4]]


@both_nms
@pytest.mark.parametrize(("batch", "count"), [(0, 5), (3, 0), (0, 0)])
def test_no_scenes_or_no_candidates_give_empty_results(suppress, batch, count):
    kept = suppress(torch.zeros(batch, count, 3), torch.zeros(batch, count), SEPARATION, 4)
    assert kept.index.shape == (batch, 4)
    assert (kept.index == -1).all()
    assert kept.count.tolist() == [0] * batch


@both_nms
def test_absent_candidates_may_stand_anywhere(suppress):
    position = torch.tensor([[[math.nan, 0, 1], [0, 0, 1], [math.inf, 0, -math.inf]], [[math.nan] * 3] * 3])
    score = torch.tensor([[-math.inf, 1, -math.inf], [-math.inf] * 3])
    for on_sphere in (False, True):
        kept = suppress(position, score, SEPARATION, 2, on_sphere)
        assert kept.index.tolist() == [[1, -1], [-1, -1]]
        assert kept.count.tolist() == [1, 0]


def test_candidates_that_are_not_valid_are_absent():
    position, score = candidates(2, 30, seed=4)
    valid = torch.rand(2, 30, generator=torch.Generator().manual_seed(1)) > 0.4
    masked = nms_3d(position, score, separation=SEPARATION, k=9, valid=valid)
    assert_is_brute_force_nms(masked, position, score.masked_fill(~valid, -math.inf), SEPARATION, 9)
    score[~valid] = math.nan
    assert_same(nms_3d(position, score, separation=SEPARATION, k=9, valid=valid), masked)


def test_suppression_does_not_depend_on_how_the_work_is_cut_up(monkeypatch):
    position, score = candidates(9, 90, seed=8, levels=40)
    whole = fast_nms(position, score, SEPARATION, 30)
    monkeypatch.setattr(peaks, "_SHORTEST_TILE", 3)
    monkeypatch.setattr(peaks, "_LONGEST_TILE", 4)
    monkeypatch.setattr(peaks, "_TABLE_ENTRIES", 180)
    assert_same(fast_nms(position, score, SEPARATION, 30), whole)


def test_suppression_reads_strided_candidates_and_mixed_dtypes():
    position, score = candidates(2, 40, seed=6)
    strided = position.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    wide = torch.stack([score, -score], -1)[..., 0]
    expected = fast_nms(position, score, SEPARATION, 12)
    assert_same(fast_nms(strided, wide, SEPARATION, 12), expected)
    assert_same(fast_nms(position.double(), score, SEPARATION, 12), expected)
    assert_same(fast_nms(position[0], score[0], SEPARATION, 12), [field[0] for field in expected])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"position": torch.zeros(2, 5, 2)}, ShapeError, r"position must have shape \(2, 5, 3\).*got \(2, 5, 2\)"),
        ({"position": torch.zeros(2, 3, 5)}, ShapeError, "its last axis is"),
        ({"score": torch.zeros(2, 5, 1)}, ShapeError, r"score must have shape \(B, P\)"),
        ({"score": torch.zeros(2, 5, dtype=torch.int32)}, TypeError, "score must be float32 or float64"),
        ({"position": torch.zeros(2, 5, 3).half()}, TypeError, "position must be float32 or float64"),
        ({"score": [[0.0]]}, TypeError, "score must be a torch tensor, got list"),
        ({"separation": (0.1, 0.1)}, ValueError, "separation must be 3 numbers"),
        ({"separation": (0.1, -0.1, 1.0)}, ValueError, "separation must be 3 numbers >= 0"),
        ({"separation": (0.1, math.nan, 1.0)}, ValueError, "separation must be 3 numbers >= 0"),
        ({"k": 0}, ValueError, "k must be an int of at least 1"),
        ({"valid": torch.ones(2, 4, dtype=torch.bool)}, ShapeError, r"valid must have the shape of score, \(2, 5\)"),
        ({"valid": torch.ones(2, 5)}, TypeError, "valid must be a bool tensor or None, got torch.float32"),
        ({"position": torch.zeros(2, 5, 3, device="meta")}, ValueError, "on one device, got cpu, meta"),
        ({"score": torch.full((2, 5), math.nan)}, ValueError, "score must not hold NaN"),
        ({"position": torch.full((2, 5, 3), math.nan)}, ValueError, "position must be finite"),
        ({"position": torch.full((2, 5, 3), math.inf)}, ValueError, "position must be finite"),
        ({"position": torch.tensor([0, 0, -math.inf]).expand(2, 5, 3)}, ValueError, "position must be finite"),
        ({"position": torch.tensor([0, 0, math.nan]).expand(2, 5, 3)}, ValueError, "position must be finite"),
    ],
)
def test_bad_arguments_of_suppression_are_named(changes, error, message):
    arguments = {"position": torch.zeros(2, 5, 3), "score": torch.zeros(2, 5), "separation": SEPARATION} | changes
    with pytest.raises(error, match=message):
        nms_3d(arguments.pop("position"), arguments.pop("score"), **arguments)


@pytest.mark.parametrize("bad", ["score", "position"])
def test_reference_suppression_refuses_candidates_without_order_or_place(bad):
    position, score = torch.zeros(1, 2, 3), torch.zeros(1, 2)
    (score if bad == "score" else position).fill_(math.nan)
    with pytest.raises(ValueError, match=bad):
        reference.nms_3d(position, score, SEPARATION, 2, False)


# Composition


def pipeline(volume):
    """Peaks and suppression together, as a detector uses them."""
    found = local_maxima_3d(volume, k=16)
    position = found.index * torch.tensor([0.0625, 0.0625, 0.5])
    kept = nms_3d(position, found.value, separation=SEPARATION, k=5)
    return found.index, found.value, found.count, kept.index, kept.count


class Pipeline(torch.nn.Module):
    def forward(self, volume):
        return pipeline(volume)


def test_maxima_and_suppression_pass_opcheck():
    volume = quantised((2, 9, 8, 3), 50, seed=1)
    for sample in (volume, volume.transpose(1, 3), volume[:0], volume.double(), volume.clone().requires_grad_()):
        torch.library.opcheck(torch.ops.risfast.local_maxima_3d, (sample, (7, 7, 3), 6, None))
    torch.library.opcheck(torch.ops.risfast.local_maxima_3d, (volume, (3, 3, 3), 6, 2.0))
    for batch, count in ((2, 30), (0, 5), (2, 0)):
        position, score = candidates(batch, count, seed=1)
        torch.library.opcheck(torch.ops.risfast.nms_3d, (position, score, SEPARATION, 4, False))
        leaves = position.requires_grad_(), score.requires_grad_()
        torch.library.opcheck(torch.ops.risfast.nms_3d, (*leaves, SEPARATION, 4, True))


def test_pipeline_compiles_as_one_graph():
    compiled = torch.compile(pipeline, fullgraph=True, backend="aot_eager", dynamic=False)
    for seed, shape in enumerate([(2, 15, 9, 3), (0, 15, 9, 3)]):
        volume = quantised(shape, 100, seed)
        assert_same(compiled(volume), pipeline(volume))


def test_pipeline_compiles_with_dynamic_shapes():
    compiled = torch.compile(pipeline, fullgraph=True, backend="aot_eager", dynamic=True)
    for seed, shape in enumerate([(2, 15, 9, 3), (3, 11, 13, 4)]):
        volume = quantised(shape, 100, seed)
        assert_same(compiled(volume), pipeline(volume))


def test_pipeline_exports():
    volume = quantised((2, 15, 9, 3), 100, 0)
    program = torch.export.export(Pipeline(), (volume,))
    other = quantised((2, 15, 9, 3), 100, 1)
    assert_same(program.module()(other), pipeline(other))


def test_pipeline_exports_with_a_dynamic_batch():
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(Pipeline(), (quantised((2, 15, 9, 3), 100, 0),), dynamic_shapes=({0: batch},))
    other = quantised((5, 15, 9, 3), 100, 1)
    assert_same(program.module()(other), pipeline(other))


def test_vmap_over_any_axis_equals_a_loop():
    volumes = quantised((4, 2, 9, 8, 3), 60, seed=2)
    stacked = [torch.stack(fields) for fields in zip(*(pipeline(v) for v in volumes), strict=True)]
    assert_same(torch.vmap(pipeline)(volumes), stacked)
    assert_same(torch.vmap(pipeline, in_dims=3)(volumes.movedim(0, 3)), stacked)
    nested = torch.vmap(torch.vmap(local_maxima_3d))(volumes)
    assert_same([field.flatten(0, 1) for field in nested], local_maxima_3d(volumes.flatten(0, 1)))


def test_vmap_over_one_argument_of_suppression_shares_the_other():
    position, score = candidates(3, 20, seed=5)

    def suppress(p, s):
        return nms_3d(p, s, separation=SEPARATION, k=6).index

    expected = torch.stack([suppress(position[0], s) for s in score])
    assert torch.equal(torch.vmap(suppress, in_dims=(None, 0))(position[0], score), expected)
    expected = torch.stack([suppress(p, score[0]) for p in position])
    assert torch.equal(torch.vmap(suppress, in_dims=(0, None))(position, score[0]), expected)


def test_results_carry_no_gradient():
    volume = quantised((1, 9, 8, 3), 50, seed=1).requires_grad_()
    position, score = candidates(1, 5, seed=0)
    position.requires_grad_()
    for found in (
        local_maxima_3d(volume, k=4),
        torch.ops.risfast.local_maxima_3d(volume, (7, 7, 3), 4, None),
        nms_3d(position, score, separation=SEPARATION),
        torch.ops.risfast.nms_3d(position, score, SEPARATION, 4, False),
    ):
        assert not any(field.requires_grad for field in found)


def test_values_gathered_at_the_maxima_carry_the_gradient():
    volume = quantised((9, 8, 3), 50, seed=1)

    def best(v):
        index = local_maxima_3d(v, k=1).index[0]
        return v[index[0], index[1], index[2]]

    expected = torch.zeros_like(volume)
    expected[tuple(brute_force_maxima(volume.numpy(), (7, 7, 3), 1)[0][0])] = 1.0
    leaf = volume.clone().requires_grad_()
    best(leaf).backward()
    assert torch.equal(leaf.grad, expected)
