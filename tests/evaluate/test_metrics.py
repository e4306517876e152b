"""GOSPA and the scores of scenes, against every possible assignment."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from risfast.errors import ShapeError
from risfast.evaluate import Tolerance, match
from risfast.evaluate.bounds import scene_bound
from risfast.evaluate.figures import figures
from risfast.evaluate.metrics import Scores, gospa, score, score_scenes
from risfast.geometry import SensorArray
from risfast.simulate.scenes import SystemConfig, generate_scenes
from risfast.sources import Sources

COUNTS = [(e, t, seed) for e in (0, 1, 3, 4) for t in (0, 1, 2, 4) for seed in (0, 1)]


def positions(count, rng, reach=1.0):
    return rng.uniform([-0.5, -0.3, 1.0], [0.5, 0.3, 1.0 + reach], (count, 3))


def to_xyz(position):
    az, el, r = position
    return r * np.array([math.sin(az) * math.cos(el), math.sin(el), math.cos(az) * math.cos(el)])


def every_assignment(n, m):
    """All sets of one-to-one pairs between n and m things, the empty one included."""
    for size in range(min(n, m) + 1):
        for left in itertools.combinations(range(n), size):
            for right in itertools.permutations(range(m), size):
                yield list(zip(left, right, strict=True))


def brute_gospa(estimated, true, cutoff):
    """The least cost over all assignments, with its parts."""
    best = (math.inf, 0.0, 0.0, 0.0)
    for pairs in every_assignment(len(estimated), len(true)):
        errors = sum(float(np.sum((to_xyz(estimated[e]) - to_xyz(true[t])) ** 2)) for e, t in pairs)
        missed, false = (cutoff**2 / 2 * (n - len(pairs)) for n in (len(true), len(estimated)))
        best = min(best, (errors + missed + false, errors, missed, false))
    return best


@pytest.mark.parametrize(("n_estimated", "n_true", "seed"), COUNTS)
@pytest.mark.parametrize("cutoff", [0.3, 1.0])
def test_gospa_is_the_least_cost_over_all_assignments(n_estimated, n_true, seed, cutoff):
    rng = np.random.default_rng((n_estimated, n_true, seed))
    estimated, true = positions(n_estimated, rng), positions(n_true, rng)
    total, errors, missed, false = brute_gospa(estimated, true, cutoff)
    found = gospa(estimated, true, cutoff)
    assert found.distance_m == pytest.approx(math.sqrt(total), rel=1e-12, abs=1e-12)
    assert found[1:] == pytest.approx((errors, missed, false), rel=1e-12, abs=1e-12)


def test_gospa_is_symmetric_and_obeys_the_triangle_inequality():
    rng = np.random.default_rng(3)
    for _ in range(50):
        a, b, c = (positions(int(rng.integers(0, 4)), rng) for _ in range(3))
        ab, bc, ac = (gospa(*pair, 0.5).distance_m for pair in ((a, b), (b, c), (a, c)))
        assert gospa(b, a, 0.5).distance_m == pytest.approx(ab, rel=1e-12)
        assert ac <= ab + bc + 1e-12
        assert gospa(a, a, 0.5).distance_m == 0


@pytest.mark.parametrize("cutoff", [0.0, -1.0, math.inf, math.nan])
def test_gospa_refuses_a_cutoff_that_is_none(cutoff):
    with pytest.raises(ValueError, match="cutoff_m"):
        gospa(np.zeros((0, 3)), np.zeros((0, 3)), cutoff)


def test_gospa_refuses_what_matching_refuses():
    with pytest.raises(ShapeError, match="transposed"):
        gospa(np.ones((3, 2)), np.ones((1, 3)))


def random_set(seed=0, scenes=12):
    rng = np.random.default_rng(seed)
    estimated, true = [], []
    for _ in range(scenes):
        t = positions(int(rng.integers(0, 4)), rng, 8.0)
        e = t[: int(rng.integers(0, len(t) + 1))] + rng.normal(0, [0.04, 0.04, 0.6], (1, 3))
        estimated.append(np.concatenate([np.maximum(e, [-1, -1, 0.1]), positions(int(rng.integers(0, 2)), rng, 8.0)]))
        true.append(t)
    return estimated, true


def brute_pairs(estimated, true):
    size = min(len(estimated), len(true))
    full = [p for p in every_assignment(len(estimated), len(true)) if len(p) == size]
    return min(full, key=lambda p: sum(np.linalg.norm(to_xyz(estimated[e]) - to_xyz(true[t])) for e, t in p))


def test_an_estimate_without_a_range_is_beyond_the_cutoff_only_where_range_is_scored():
    true = np.array([[0.0, 0.0, 2.0], [0.4, 0.1, math.inf]])
    estimated = np.array([[0.03, 0.0, math.nan], [0.42, 0.1, math.inf]])
    far = 2.0 * angle_between(estimated[1], true[1])  # the largest finite range of the scene times the angle
    scored = gospa(estimated, true, 0.5)
    assert scored[1:] == pytest.approx((far**2, 0.125, 0.125))
    unscored = gospa(estimated, true, 0.5, Tolerance(range_m=math.inf))
    assert unscored[1:] == pytest.approx((far**2 + (2 * math.sin(0.03)) ** 2, 0.0, 0.0))


def angle_between(one, other):
    u, v = (to_xyz([*row[:2], 1.0]) for row in (one, other))
    return 2 * math.asin(float(np.linalg.norm(u - v)) / 2)


def test_scores_without_ranges_keep_their_hits_and_leave_out_their_errors():
    true, gate = [np.array([[0.0, 0.0, 2.0], [0.4, 0.1, 3.0]])], Tolerance(range_m=math.inf)
    scores = score([np.array([[0.02, 0.0, math.nan], [0.4, 0.11, 2.5]])], true, tolerance=gate)
    assert scores.source_hit.tolist() == scores.estimate_hit.tolist() == [True, True]
    np.testing.assert_array_equal(np.isfinite(scores.source_error), [[True, True, False, False], [True] * 4])
    found = figures(scores)
    assert found["recall"] == found["precision"] == 1
    assert found["rmse_azimuth_hits_rad"] == pytest.approx(0.02 / math.sqrt(2))
    assert found["rmse_range_hits_m"] == found["rmse_range_pairs_m"] == pytest.approx(0.5)
    assert found["median_xyz_pairs_m"] == found["rmse_xyz_hits_m"] == pytest.approx(scores.source_error[1, 3])
    none = figures(score([np.array([[0.02, 0.0, math.nan]])], true, tolerance=gate))
    assert math.isnan(none["rmse_xyz_pairs_m"])
    assert math.isnan(none["median_xyz_hits_m"])
    assert math.isfinite(none["gospa_m"])


def test_scores_hold_what_became_of_every_source_and_estimate():
    estimated, true = random_set()
    bounds = [np.arange(3 * len(t), dtype=float).reshape(-1, 3) for t in true]
    scores = score(estimated, true, snr_db=np.arange(12.0), bound=bounds, tolerance=Tolerance(0.1, 0.1, 1.0))
    assert len(scores) == 12
    source = estimate = 0
    for s, (e, t) in enumerate(zip(estimated, true, strict=True)):
        partner = {j: i for i, j in brute_pairs(e, t)}
        hits = set()
        for j in range(len(t)):
            assert scores.source_scene[source] == s
            np.testing.assert_array_equal(scores.source_position[source], t[j])
            np.testing.assert_array_equal(scores.source_bound[source], bounds[s][j])
            if j in partner:
                i = partner[j]
                error = [*(e[i] - t[j]), np.linalg.norm(to_xyz(e[i]) - to_xyz(t[j]))]
                np.testing.assert_allclose(scores.source_error[source], error, rtol=1e-9, atol=1e-12)
                hit = bool((np.abs(error[:3]) <= [0.1, 0.1, 1.0]).all())
                hits |= {i} if hit else set()
            else:
                assert np.isnan(scores.source_error[source]).all()
                hit = False
            assert scores.source_hit[source] == hit
            source += 1
        for i in range(len(e)):
            assert scores.estimate_scene[estimate] == s
            assert scores.estimate_range_m[estimate] == e[i, 2]
            assert scores.estimate_hit[estimate] == (i in hits)
            estimate += 1
        assert scores.gospa[s] == pytest.approx(brute_gospa(e, t, 2.0)[1:], rel=1e-12, abs=1e-12)
        assert (scores.n_true[s], scores.n_estimated[s], scores.snr_db[s]) == (len(t), len(e), s)
    assert (source, estimate) == (len(scores.source_hit), len(scores.estimate_hit))


def assert_same(one, other):
    for name, value in vars(one).items():
        np.testing.assert_array_equal(value, getattr(other, name), err_msg=name)


def test_chosen_scenes_score_as_if_they_were_alone():
    estimated, true = random_set(1)
    keep = np.arange(12) % 3 == 1
    chosen = score(estimated, true).of_scenes(keep)
    alone = score(
        [e for e, k in zip(estimated, keep, strict=True) if k], [t for t, k in zip(true, keep, strict=True) if k]
    )
    assert_same(chosen, alone)


def test_joined_scores_are_those_of_the_whole():
    estimated, true = random_set(2)
    cuts = [slice(0, 5), slice(5, 5), slice(5, 12)]
    assert_same(Scores.joined([score(estimated[c], true[c]) for c in cuts]), score(estimated, true))


def test_an_interval_of_range_takes_sources_by_their_own_range_and_estimates_by_theirs():
    estimated, true = random_set(4, 30)
    whole = score(estimated, true)
    edges = [0.0, 3.0, 6.0, math.inf]
    parts = [whole.in_range(a, b) for a, b in itertools.pairwise(edges)]
    for part, (a, b) in zip(parts, itertools.pairwise(edges), strict=True):
        assert part.partial
        assert len(part) == 30
        assert len(part.source_hit) == sum(a <= t[2] < b for scene in true for t in scene)
        assert len(part.estimate_hit) == sum(a <= e[2] < b for scene in estimated for e in scene)
    assert sum(int(p.source_hit.sum()) for p in parts) == int(whole.source_hit.sum())
    assert sum(int(p.estimate_hit.sum()) for p in parts) == int(whole.estimate_hit.sum())


def test_scenes_are_scored_with_their_bounds():
    array = SensorArray.rectangular(4, 3)
    config = SystemConfig(array=array, n_antennas=4, n_snapshots=8, n_sources=(0, 3))
    scenes = generate_scenes(config, 5, range(8))
    bound = scene_bound(scenes)
    found = []
    for position, mask in zip(scenes.position.double(), scenes.mask, strict=True):
        azimuth, elevation, r = position[mask].unbind(-1)
        found.append(Sources(azimuth, elevation, r + 0.01, torch.ones_like(r), torch.ones_like(r)))
    scores = score_scenes(found, scenes, bound=bound)
    assert bool(scores.source_hit.all())
    np.testing.assert_allclose(scores.source_error[:, 2:], 0.01, rtol=1e-6)
    row = 0
    for b in range(8):
        for k in range(int(scenes.n_sources[b])):
            assert scores.source_bound[row, 0] == float(bound.covariance[b, k, 2, 2].sqrt())
            assert scores.source_bound[row, 1] == float(bound.position_m[b, k])
            assert scores.source_bound[row, 2] == pytest.approx(float(bound.implied_recall()[b, k]), abs=1e-12)
            row += 1
    assert row == len(scores.source_hit)
    np.testing.assert_array_equal(scores.snr_db, scenes.snr_db.double().numpy())
    assert np.isnan(score_scenes(found, scenes).source_bound).all()


def test_no_scenes_at_all():
    scores = score([], [])
    assert len(scores) == 0
    assert scores.gospa.shape == (0, 3)


def test_sequences_of_different_lengths_are_named():
    one = np.ones((1, 3))
    with pytest.raises(ValueError, match="estimated must have one entry for each of the 2 scenes"):
        score([one], [one, one])
    with pytest.raises(ValueError, match="snr_db"):
        score([one], [one], snr_db=[1.0, 2.0])
    with pytest.raises(ValueError, match="bound"):
        score([one], [one], bound=[])


def test_a_hit_is_what_matching_says():
    estimated, true = random_set(6)
    scores = score(estimated, true)
    for s, (e, t) in enumerate(zip(estimated, true, strict=True)):
        m = match(e, t)
        assert scores.source_hit[scores.source_scene == s].sum() == m.hits
        assert (~scores.estimate_hit[scores.estimate_scene == s]).sum() == m.ghosts
