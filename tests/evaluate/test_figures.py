"""Figures against loops over the scenes, and intervals against resampling by hand and against theory."""

from __future__ import annotations

import math

import numpy as np
import pytest

from risfast.evaluate import match, summarise
from risfast.evaluate.figures import FIGURES, bootstrap, bootstrap_difference, figures
from risfast.evaluate.metrics import gospa, score


def positions(count, rng):
    return rng.uniform([-0.8, -0.4, 0.6], [0.8, 0.4, 9.0], (count, 3))


def random_set(seed=0, scenes=25, spread=0.5):
    rng = np.random.default_rng(seed)
    estimated, true, bounds = [], [], []
    for _ in range(scenes):
        t = positions(int(rng.integers(1, 5)), rng)
        e = t[: int(rng.integers(0, len(t) + 1))]
        e = e + rng.normal(0, [0.03, 0.03, spread], e.shape)
        e[:, 2] = np.maximum(e[:, 2], 0.1)
        estimated.append(np.concatenate([e, positions(int(rng.integers(0, 2)), rng)]))
        true.append(t)
        bounds.append(
            np.column_stack([rng.uniform(0, 0.6, len(t)), rng.uniform(0.1, 1, len(t)), rng.uniform(0, 1, len(t))])
        )
    return estimated, true, bounds, np.linspace(-5, 20, scenes, endpoint=False)


def scored(*args, **kwargs):
    estimated, true, bounds, snr = random_set(*args, **kwargs)
    return score(estimated, true, bound=bounds, snr_db=snr)


def rms(values):
    return math.sqrt(sum(v * v for v in values) / len(values)) if values else math.nan


def by_loops(estimated, true, bounds):
    """Every figure by the words that describe it."""
    matches = [match(e, t) for e, t in zip(estimated, true, strict=True)]
    pairs, hits, sharp, implied = [], [], [], []
    for m, b in zip(matches, bounds, strict=True):
        implied += b[:, 2].tolist()
        for (_, source), error, distance, hit in zip(m.pairs, m.error, m.distance_m, m.hit, strict=True):
            pairs.append((*error, distance))
            if hit:
                hits.append((*error, distance))
                if b[source, 0] < 0.3:
                    sharp.append((distance, b[source, 1]))
    sources, estimates = sum(len(t) for t in true), sum(len(e) for e in estimated)
    parts = [gospa(e, t) for e, t in zip(estimated, true, strict=True)]
    scenes = len(true)
    result = {
        "scenes": scenes,
        "sources": sources,
        "estimates": estimates,
        "precision": len(hits) / estimates,
        "recall": len(hits) / sources,
        "f1": 2 * len(hits) / (sources + estimates),
        "implied_recall": sum(implied) / sources,
        "recall_over_implied": len(hits) / sum(implied),
        "ghosts_per_scene": (estimates - len(hits)) / scenes,
        "count_accuracy": sum(len(e) == len(t) for e, t in zip(estimated, true, strict=True)) / scenes,
        "gospa_m": rms([p.distance_m for p in parts]),
        "gospa_localisation_m2": sum(p.localisation for p in parts) / scenes,
        "gospa_missed_m2": sum(p.missed for p in parts) / scenes,
        "gospa_false_m2": sum(p.false for p in parts) / scenes,
        "sharp_hits": len(sharp),
        "error_over_bound": rms([d for d, _ in sharp]) / rms([b for _, b in sharp]),
        "normalised_error": rms([d / b for d, b in sharp]),
    }
    for kind, rows in (("pairs", pairs), ("hits", hits)):
        for i, name in enumerate(("azimuth", "elevation", "range", "xyz")):
            result[f"rmse_{name}_{kind}_{'rad' if i < 2 else 'm'}"] = rms([row[i] for row in rows])
        result[f"median_xyz_{kind}_m"] = float(np.median([row[3] for row in rows]))
    return result


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_figures_are_what_their_names_say(seed):
    estimated, true, bounds, snr = random_set(seed)
    found = figures(score(estimated, true, bound=bounds, snr_db=snr))
    expected = by_loops(estimated, true, bounds)
    assert list(found) == list(FIGURES)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-9), name


def test_figures_agree_with_the_summary_of_matches():
    estimated, true, *_ = random_set(5)
    found = figures(score(estimated, true))
    summary = summarise([match(e, t) for e, t in zip(estimated, true, strict=True)])
    for name in ("precision", "recall", "f1", "ghosts_per_scene", "count_accuracy", "median_xyz_pairs_m"):
        assert found[name] == pytest.approx(getattr(summary, name), rel=1e-12)
    assert math.isnan(found["implied_recall"])
    assert math.isnan(found["error_over_bound"])


@pytest.mark.parametrize(("n_estimated", "n_true", "f1"), [(0, 0, 1.0), (2, 0, 0.0), (0, 2, 0.0)])
def test_nothing_to_find_or_nothing_found(n_estimated, n_true, f1):
    rng = np.random.default_rng(0)
    found = figures(score([positions(n_estimated, rng)], [positions(n_true, rng)]))
    assert (found["precision"], found["recall"], found["f1"]) == (f1, f1, f1)
    assert math.isnan(found["rmse_xyz_pairs_m"])
    assert math.isnan(found["median_xyz_hits_m"])


def test_no_scenes_have_no_figures_but_counts():
    found = bootstrap(score([], []), resamples=3)
    assert found["scenes"].value == 0
    assert math.isnan(found["ghosts_per_scene"].value)
    assert math.isnan(found["gospa_m"].low)


def test_resampling_is_that_of_whole_scenes():
    """The spread of every figure is that of figures of resampled lists, drawn with the same counts."""
    estimated, true, bounds, snr = random_set(3, 12)
    scores = score(estimated, true, bound=bounds, snr_db=snr)
    draws = np.random.default_rng(7).multinomial(12, np.full(12, 1 / 12), size=40)
    rows = []
    for counts in draws:
        index = np.repeat(np.arange(12), counts)
        rows.append(by_loops(*([part[i] for i in index] for part in (estimated, true, bounds))))
    found = bootstrap(scores, resamples=40, level=0.8, seed=7)
    for name in FIGURES:
        values = [row[name] for row in rows]
        assert found[name].low == pytest.approx(np.quantile(values, 0.1), rel=1e-9, abs=1e-12), name
        assert found[name].high == pytest.approx(np.quantile(values, 0.9), rel=1e-9, abs=1e-12), name


def test_the_interval_of_a_share_is_that_of_the_binomial_law():
    """Scenes with one source each, hit with chance 0.7: recall has a standard error of sqrt(0.21 / n)."""
    n = 400
    rng = np.random.default_rng(1)
    true = [positions(1, rng) for _ in range(n)]
    estimated = [t + np.array([0, 0, 0 if rng.random() < 0.7 else 5.0]) for t in true]
    found = bootstrap(score(estimated, true), resamples=4000)["recall"]
    share = found.value
    half = 1.96 * math.sqrt(share * (1 - share) / n)
    # A quantile of 4000 draws is good to 4 percent of the half-width; discreteness adds one source in 400.
    assert found.low == pytest.approx(share - half, abs=0.1 * half + 1 / n)
    assert found.high == pytest.approx(share + half, abs=0.1 * half + 1 / n)


def test_paired_differences_are_narrower_than_those_of_independent_scenes():
    estimated, true, bounds, _ = random_set(8, 200, spread=0.7)
    worse = [e + np.array([0, 0, 0.05]) for e in estimated]
    one, other = score(estimated, true, bound=bounds), score(worse, true, bound=bounds)
    difference = bootstrap_difference(one, other)
    alone = bootstrap(one)
    for name in ("recall", "f1", "rmse_range_pairs_m", "gospa_m"):
        assert difference[name].value == pytest.approx(figures(one)[name] - figures(other)[name], abs=1e-12)
        assert difference[name].low <= difference[name].value <= difference[name].high
        assert difference[name].high - difference[name].low < 0.5 * (alone[name].high - alone[name].low)
    same = bootstrap_difference(one, one)
    assert all(same[name][:] == (0, 0, 0) for name in ("f1", "precision", "gospa_m", "median_xyz_pairs_m"))


def test_differences_of_other_scenes_are_refused():
    one = scored(0)
    with pytest.raises(ValueError, match="same scenes"):
        bootstrap_difference(one, scored(1))
    estimated, true, *_ = random_set(0)
    with pytest.raises(ValueError, match="true sources differ"):
        bootstrap_difference(one, score(estimated, [t + np.array([0, 0, 0.1]) for t in true]))


def test_intervals_repeat_with_their_seed():
    scores = scored(2)
    assert repr(bootstrap(scores, resamples=50, seed=3)) == repr(bootstrap(scores, resamples=50, seed=3))
    assert repr(bootstrap(scores, resamples=50, seed=3)) != repr(bootstrap(scores, resamples=50, seed=4))


def test_bad_arguments_are_named():
    scores = scored(0)
    with pytest.raises(ValueError, match="resamples"):
        bootstrap(scores, resamples=0)
    with pytest.raises(ValueError, match="level"):
        bootstrap(scores, level=1.0)
