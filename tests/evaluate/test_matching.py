"""Matching and its figures against exhaustive search over every pairing."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from risfast.errors import ShapeError
from risfast.evaluate import Tolerance, match, summarise
from risfast.evaluate.matching import pair_distances

RANDOM_SCENES = [
    (n_estimated, n_true, seed) for n_estimated in (0, 1, 2, 3, 5) for n_true in (0, 1, 3, 4) for seed in (0, 1)
]


def random_positions(count: int, rng: np.random.Generator) -> np.ndarray:
    low, high = [-1.0, -0.5, 0.5], [1.0, 0.5, 10.0]
    return rng.uniform(low, high, (count, 3))


def to_xyz(position: np.ndarray) -> np.ndarray:
    azimuth, elevation, r = position
    return np.array(
        [
            r * math.sin(azimuth) * math.cos(elevation),
            r * math.sin(elevation),
            r * math.cos(azimuth) * math.cos(elevation),
        ]
    )


def brute_force_pairs(estimated: np.ndarray, true: np.ndarray) -> tuple[float, set[tuple[int, int]]]:
    """Least total distance over every one-to-one pairing, and the pairing that has it."""
    size = min(len(estimated), len(true))
    best: tuple[float, set[tuple[int, int]]] = (math.inf, set())
    for chosen_true in itertools.combinations(range(len(true)), size):
        for chosen_estimate in itertools.permutations(range(len(estimated)), size):
            pairs = list(zip(chosen_estimate, chosen_true, strict=True))
            total = sum(float(np.linalg.norm(to_xyz(estimated[e]) - to_xyz(true[t]))) for e, t in pairs)
            if total < best[0]:
                best = (total, set(pairs))
    return best


@pytest.mark.parametrize(("n_estimated", "n_true", "seed"), RANDOM_SCENES)
def test_pairing_has_the_least_total_distance_of_all_pairings(n_estimated: int, n_true: int, seed: int) -> None:
    rng = np.random.default_rng((n_estimated, n_true, seed))
    estimated, true = random_positions(n_estimated, rng), random_positions(n_true, rng)
    total, pairs = brute_force_pairs(estimated, true)
    result = match(estimated, true)
    assert {(int(e), int(t)) for e, t in result.pairs} == pairs
    assert result.distance_m.sum() == pytest.approx(total, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(("n_estimated", "n_true", "seed"), RANDOM_SCENES)
def test_hits_misses_and_ghosts_add_up_to_the_counts_of_brute_force(n_estimated: int, n_true: int, seed: int) -> None:
    rng = np.random.default_rng((n_true, n_estimated, seed))
    true = random_positions(n_true, rng)
    noise = rng.normal(0, [0.05, 0.05, 0.6], (n_estimated, 3))
    estimated = random_positions(n_estimated, rng)
    near = min(n_estimated, n_true)
    estimated[:near] = true[:near] + noise[:near]
    estimated[:, 2] = np.maximum(estimated[:, 2], 0.1)
    _, pairs = brute_force_pairs(estimated, true)
    hits = sum(
        abs(estimated[e, 0] - true[t, 0]) <= math.radians(5)
        and abs(estimated[e, 1] - true[t, 1]) <= math.radians(5)
        and abs(estimated[e, 2] - true[t, 2]) <= 1.0
        for e, t in pairs
    )
    result = match(estimated, true)
    assert (result.hits, result.misses, result.ghosts) == (hits, n_true - hits, n_estimated - hits)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_pair_beyond_any_one_tolerance_is_a_miss_and_a_ghost(axis: int) -> None:
    true = np.array([[0.3, -0.2, 4.0]])
    limit = [math.radians(5), math.radians(5), 1.0][axis]
    inside, outside = true.copy(), true.copy()
    inside[0, axis] += 0.999 * limit
    outside[0, axis] += 1.001 * limit
    near, far = match(inside, true), match(outside, true)
    assert (near.hits, near.misses, near.ghosts) == (1, 0, 0)
    assert (far.hits, far.misses, far.ghosts) == (0, 1, 1)
    assert len(far.pairs) == 1


def test_tolerance_that_is_passed_is_the_one_that_counts() -> None:
    estimated, true = np.array([[0.0, 0.0, 2.3]]), np.array([[0.0, 0.0, 2.0]])
    assert match(estimated, true, Tolerance(range_m=0.2)).hits == 0
    assert match(estimated, true, Tolerance(range_m=0.4)).hits == 1


def test_error_is_estimate_minus_truth_with_azimuth_wrapped() -> None:
    estimated, true = np.array([[math.pi - 0.01, 0.1, 2.0]]), np.array([[-math.pi + 0.02, 0.15, 1.5]])
    result = match(estimated, true)
    np.testing.assert_allclose(result.error, [[-0.03, -0.05, 0.5]], atol=1e-12)
    assert result.hits == 1


def test_order_of_the_estimates_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    estimated, true = random_positions(5, rng), random_positions(4, rng)
    shuffled = rng.permutation(5)
    first, second = match(estimated, true), match(estimated[shuffled], true)
    np.testing.assert_array_equal(first.pairs[:, 0], shuffled[second.pairs[:, 0]])
    np.testing.assert_array_equal(first.hit, second.hit)


def test_tensors_of_any_real_dtype_and_stride_are_accepted() -> None:
    rng = np.random.default_rng(4)
    positions = torch.from_numpy(random_positions(3, rng)).float()
    strided = positions.T.contiguous().T
    assert not strided.is_contiguous()
    assert match(strided, positions.double()).hits == 3


def test_summary_agrees_with_counting_by_hand() -> None:
    broadside = np.array([[0.0, 0.0, 2.0]])
    two = np.array([[0.0, 0.0, 2.0], [0.7, 0.0, 5.0]])
    matches = [
        match(np.array([[0.03, -0.04, 2.0]]), broadside),  # one hit
        match(np.array([[0.0, 0.0, 2.5]]), two),  # one hit, one missed
        match(two[1:], broadside),  # one missed, one ghost
        match(np.empty((0, 3)), np.empty((0, 3))),  # nothing there, nothing said
    ]
    s = summarise(matches)
    assert (s.scenes, s.sources, s.estimates, s.found, s.missed, s.ghosts) == (4, 4, 3, 2, 2, 1)
    assert s.precision == pytest.approx(2 / 3)
    assert s.recall == pytest.approx(1 / 2)
    assert s.f1 == pytest.approx(2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2))
    assert s.ghosts_per_scene == pytest.approx(1 / 4)
    assert s.count_accuracy == pytest.approx(3 / 4)
    assert s.rmse_azimuth_rad == pytest.approx(0.03 / math.sqrt(2))
    assert s.rmse_elevation_rad == pytest.approx(0.04 / math.sqrt(2))
    assert s.rmse_range_m == pytest.approx(0.5 / math.sqrt(2))
    angle_off = float(np.linalg.norm(to_xyz(np.array([0.03, -0.04, 2.0])) - to_xyz(broadside[0])))
    ghost_off = float(np.linalg.norm(to_xyz(two[1]) - to_xyz(broadside[0])))
    assert s.rmse_xyz_m == pytest.approx(math.sqrt((angle_off**2 + 0.25) / 2))
    assert s.median_xyz_hits_m == pytest.approx((angle_off + 0.5) / 2)
    assert s.median_xyz_pairs_m == pytest.approx(sorted([angle_off, 0.5, ghost_off])[1])


def test_nothing_to_find_and_nothing_found_is_perfect() -> None:
    for matches in ([], [match(np.empty((0, 3)), np.empty((0, 3)))]):
        s = summarise(matches)
        assert (s.precision, s.recall, s.f1, s.count_accuracy, s.ghosts_per_scene) == (1, 1, 1, 1, 0)
        assert math.isnan(s.rmse_xyz_m)
        assert math.isnan(s.median_xyz_hits_m)
        assert math.isnan(s.median_xyz_pairs_m)


@pytest.mark.parametrize(("n_estimated", "n_true"), [(0, 3), (2, 0)])
def test_silence_among_sources_and_ghosts_among_none_score_zero(n_estimated: int, n_true: int) -> None:
    rng = np.random.default_rng(5)
    s = summarise([match(random_positions(n_estimated, rng), random_positions(n_true, rng))])
    assert (s.precision, s.recall, s.f1, s.count_accuracy) == (0, 0, 0, 0)
    assert (s.missed, s.ghosts) == (n_true, n_estimated)


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        (np.zeros(3), ShapeError, "estimated must have shape"),
        (np.ones((3, 5)), ShapeError, "transposed"),
        (np.array([[0.0, math.nan, 1.0]]), ValueError, "finite"),
        (np.array([[math.inf, 0.0, 1.0]]), ValueError, "finite"),
        (np.array([[0.0, 0.0, -math.inf]]), ValueError, "positive ranges"),
        (np.array([[0.0, 0.0, 0.0]]), ValueError, "positive ranges"),
    ],
)
def test_positions_that_are_no_positions_are_refused(bad: np.ndarray, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        match(bad, np.array([[0.0, 0.0, 1.0]]))


def test_a_true_source_without_a_range_is_refused() -> None:
    with pytest.raises(ValueError, match="only an estimate may lack one"):
        match(np.array([[0.0, 0.0, 1.0]]), np.array([[0.0, 0.0, math.nan]]))


# ---- ranges that are not determined, or infinite


def cost_by_hand(estimate: np.ndarray, truth: np.ndarray, length: float, scored: bool) -> float:
    """From the words of the docstring, through angles instead of products."""
    u, v = (to_xyz(np.array([*row[:2], 1.0])) for row in (estimate, truth))
    angle = 2 * math.asin(min(float(np.linalg.norm(u - v)) / 2, 1.0))
    if not math.isfinite(truth[2]):
        return length * angle
    if math.isfinite(estimate[2]) and scored:
        return float(np.linalg.norm(to_xyz(estimate) - to_xyz(truth)))
    return truth[2] * (math.sin(angle) if angle < math.pi / 2 else 1.0)


MIXED_SCENES = [(ke, kt, seed) for ke in (1, 2, 4) for kt in (1, 3, 4) for seed in range(4)]


def mixed_scene(n_estimated: int, n_true: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Anywhere on the sphere, some beside a true source; ranges finite, NaN and infinite."""
    rng = np.random.default_rng((n_estimated, n_true, seed, 7))
    low, high = [-math.pi, -1.5, 0.5], [math.pi, 1.5, 10.0]
    estimated, true = rng.uniform(low, high, (n_estimated, 3)), rng.uniform(low, high, (n_true, 3))
    near = min(n_estimated, n_true, int(rng.integers(0, 4)))
    estimated[:near] = true[:near] + rng.uniform(-0.03, 0.03, (near, 3))
    true[rng.random(n_true) < 0.3, 2] = math.inf
    kind = rng.random(n_estimated)
    estimated[kind < 0.3, 2], estimated[kind > 0.8, 2] = math.nan, math.inf
    return estimated, true


@pytest.mark.parametrize("range_m", [1.0, math.inf])
@pytest.mark.parametrize(("n_estimated", "n_true", "seed"), MIXED_SCENES)
def test_ranges_that_are_not_numbers_match_as_brute_force_does(
    n_estimated: int, n_true: int, seed: int, range_m: float
) -> None:
    estimated, true = mixed_scene(n_estimated, n_true, seed)
    gate, scored = Tolerance(range_m=range_m), math.isfinite(range_m)
    ranges = np.concatenate([estimated[:, 2], true[:, 2]])
    length = max([r for r in ranges if math.isfinite(r)], default=1.0)
    table = np.array([[cost_by_hand(e, t, length, scored) for t in true] for e in estimated])
    cost, points = pair_distances(estimated, true, range_scored=scored)
    np.testing.assert_allclose(cost, table, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(points, np.isfinite(estimated[:, None, 2]) & np.isfinite(true[None, :, 2]))
    size = min(n_estimated, n_true)
    least = min(
        sum(table[e, t] for e, t in zip(chosen, columns, strict=True))
        for columns in itertools.combinations(range(n_true), size)
        for chosen in itertools.permutations(range(n_estimated), size)
    )
    result = match(estimated, true, gate)
    assert sum(table[e, t] for e, t in result.pairs) == pytest.approx(least, rel=1e-9, abs=1e-9)
    for (e, t), hit, error in zip(result.pairs, result.hit, result.error, strict=True):
        angles = np.abs(estimated[e, :2] - true[t, :2])
        angles[0] = min(angles[0], 2 * math.pi - angles[0])
        one, other = estimated[e, 2], true[t, 2]
        within = one == other or abs(one - other) <= range_m or not scored
        assert hit == bool((angles <= math.radians(5)).all() and within)
        if math.isinf(other) and not math.isfinite(one):
            assert math.isnan(error[2]) if math.isnan(one) else error[2] == 0
        np.testing.assert_allclose(np.abs(error[:2]), angles, atol=1e-12)
    finite = np.array([math.isfinite(estimated[e, 2]) and math.isfinite(true[t, 2]) for e, t in result.pairs], bool)
    np.testing.assert_array_equal(np.isfinite(result.distance_m), finite)
    for (e, t), distance in zip(result.pairs[finite], result.distance_m[finite], strict=True):
        assert distance == pytest.approx(float(np.linalg.norm(to_xyz(estimated[e]) - to_xyz(true[t]))))


def test_a_range_that_is_not_determined_is_a_miss_where_range_is_scored_and_no_matter_where_it_is_not() -> None:
    true = np.array([[0.2, 0.1, 3.0], [-0.4, 0.0, math.inf]])
    estimated = np.array([[0.21, 0.1, math.nan], [-0.41, 0.01, 7.0]])
    scored, unscored = match(estimated, true), match(estimated, true, Tolerance(range_m=math.inf))
    assert (scored.hits, scored.misses, scored.ghosts) == (0, 2, 2)
    assert (unscored.hits, unscored.misses, unscored.ghosts) == (2, 0, 0)
    assert match(true, true).hits == 2  # infinity is where infinity was said


def test_where_range_is_not_scored_a_wrong_range_does_not_change_who_belongs_to_whom() -> None:
    true = np.array([[0.0, 0.0, 1.0], [0.6, 0.0, 9.0]])
    estimated = np.array([[0.6, 0.0, 0.5], [0.0, 0.0, 9.0]])
    assert match(estimated, true, Tolerance(range_m=math.inf)).hits == 2
    assert match(estimated, true).hits == 0


def test_figures_of_errors_skip_what_is_not_finite() -> None:
    true = np.array([[0.0, 0.0, 2.0], [0.5, 0.0, math.inf], [-0.5, 0.0, 4.0]])
    estimated = np.array([[0.0, 0.0, 2.5], [0.51, 0.0, math.inf], [-0.5, 0.02, math.nan]])
    s = summarise([match(estimated, true, Tolerance(range_m=math.inf))])
    assert (s.found, s.missed, s.ghosts) == (3, 0, 0)
    assert s.rmse_azimuth_rad == pytest.approx(0.01 / math.sqrt(3))
    assert s.rmse_elevation_rad == pytest.approx(0.02 / math.sqrt(3))
    assert s.rmse_xyz_m == s.median_xyz_hits_m == s.median_xyz_pairs_m == pytest.approx(0.5)
    assert s.rmse_range_m == pytest.approx(0.5 / math.sqrt(2))  # infinity found at infinity is no error


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"azimuth_rad": -0.1}, "azimuth_rad must be at least 0"),
        ({"range_m": math.nan}, "range_m must be at least 0"),
        ({"elevation_rad": 5.0}, "is it in degrees"),
    ],
)
def test_tolerances_that_make_no_sense_are_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Tolerance(**options)
