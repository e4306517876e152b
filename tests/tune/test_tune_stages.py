"""Two stages: the best of the first again, unchanged; and a winner only where the second can tell."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState
from scipy.stats import spearmanr
from tuning_process import Waiting, config

from risfast.tune.objectives import value_of_sums
from risfast.tune.options import PRESETS, Hpo2Config, StudyError, TrialRejectedError
from risfast.tune.results import (
    rank_correlation,
    second_config,
    second_stage,
    top_trials,
    verdict,
    verdict_text,
)
from risfast.tune.space import study_space
from risfast.tune.study import Result, finished_trials, open_study, work

FARTHEST = 22.0


def stages(tmp_path, trials=6, top=3, storage="journal"):
    both = Hpo2Config(top=top, budget=2.0, resamples=400, study=config(storage, trials))
    return both, open_study(both.study, tmp_path), open_study(second_config(both), tmp_path)


class Judged:
    """An objective whose scenes have errors of a given mean, drawn from the same scenes for all."""

    def __init__(self, means, scenes=60, spread=0.5, shared=1.0):
        rng = np.random.default_rng(0)
        self.means, self.spread, self.scenes = iter(means), spread, scenes
        self.common = shared * rng.random(scenes)
        self.rng = rng

    def __call__(self, choice, seed, folder, report):
        mean = next(self.means)
        if mean is None:
            raise TrialRejectedError("no")
        distance = mean + self.common + self.spread * self.rng.random(self.scenes)
        ones = [1.0] * self.scenes
        sums = {"sources": ones, "estimates": ones, "hits": ones, "pairs": ones, "squared_m2": list(distance**2)}
        value = float(value_of_sums({k: sum(v) for k, v in sums.items()}, config("journal", 3).score, FARTHEST))
        return Result(value, {"sums": sums, "figures": {"f1": 1.0, "rmse_xyz_pairs_m": 1.0}})


def test_stage_two_takes_the_best_unchanged_with_more_steps_and_never_prunes(tmp_path):
    _both, first, second = stages(tmp_path)
    work(first, Waiting(0.0), lambda line: None)
    second_stage(first, second, Judged([0.1, 0.2, 0.3]), lambda line: None)
    best = sorted((t.value, t.params) for t in first.study.trials if t.state == TrialState.COMPLETE)[:3]
    again = sorted(second.study.trials, key=lambda t: t.user_attrs["slot"])
    assert [t.params for t in again] == [params for _, params in best]
    assert second.config.base.optimiser.steps == 2 * first.config.base.optimiser.steps
    assert second.config.base.validation.every == 2 * first.config.base.validation.every
    assert second.config.pruner.kind == "none"
    assert second.config.objective == "mvdr_final"


def test_stage_two_has_the_parameters_of_stage_one_and_no_other():
    """Also where its objective would tune the localizer, and its longer trainings a longer warm-up."""
    for both in (Hpo2Config(), PRESETS["quick"](), Hpo2Config(study=config("journal", 9))):
        assert list(study_space(second_config(both))) == list(study_space(both.study))


def test_stage_two_before_stage_one_has_enough_trials_is_refused(tmp_path):
    both, first, _second = stages(tmp_path)
    with pytest.raises(StudyError, match=r"takes the best 3 trials.*finished 0 \(of 6.*--stages first.*lower --top"):
        top_trials(first, both.top)
    with pytest.raises(StudyError, match=r"no trial of 'risfast' has finished \(0 were pruned\)"):
        finished_trials(first)


def test_different_trials_have_a_winner_and_the_correlation_of_the_stages_is_reported(tmp_path):
    both, first, second = stages(tmp_path)
    work(first, Waiting(0.0), lambda line: None)
    second_stage(first, second, Judged([1.0, 0.1, 3.0]), lambda line: None)
    found = verdict(both, first, second)
    assert not found.flat
    assert found.winner.user_attrs["slot"] == 1
    assert found.correlation == pytest.approx(spearmanr([1, 2, 3], [2, 1, 3]).statistic)
    assert [row[3] for row in found.rows] == sorted(row[3] for row in found.rows)
    assert "winner: trial 1" in verdict_text(found)


def test_equally_good_trials_have_no_winner_and_the_budget_that_would_tell_is_named(tmp_path):
    both, first, second = stages(tmp_path)
    work(first, Waiting(0.0), lambda line: None)
    second_stage(first, second, Judged([0.5, 0.5, 0.5], spread=1.0), lambda line: None)
    found = verdict(both, first, second)
    assert found.flat
    assert found.noise >= found.spread > 0
    assert found.scenes_needed == math.ceil(60 * (found.noise / found.spread) ** 2)
    text = verdict_text(found)
    assert "no winner: stage 2 is flat" in text
    assert f"about {found.scenes_needed} scenes" in text


def test_identical_trials_are_the_same_whatever_the_budget(tmp_path):
    both, first, second = stages(tmp_path)
    work(first, Waiting(0.0), lambda line: None)
    second_stage(first, second, Judged([0.5, 0.5, 0.5], spread=0.0), lambda line: None)
    found = verdict(both, first, second)
    assert found.flat
    assert found.scenes_needed is None
    assert "no number of scenes" in verdict_text(found)


def test_errors_that_all_trials_share_do_not_count_as_noise(tmp_path):
    both, first, second = stages(tmp_path)
    work(first, Waiting(0.0), lambda line: None)
    second_stage(first, second, Judged([0.5, 0.55, 0.6], spread=0.01, shared=30.0), lambda line: None)
    assert not verdict(both, first, second).flat


def test_equally_good_trials_are_rarely_crowned():
    """The test of flatness holds its level: of 200 stages without a difference about one in twenty is crowned."""
    rng = np.random.default_rng(3)
    crowned = 0
    for _ in range(200):
        squared = rng.random((4, 80))  # [trials, scenes]
        values = np.sqrt(squared.mean(1))
        weights = rng.multinomial(80, np.full(80, 1 / 80), size=300) / 80
        resampled = np.sqrt(weights @ squared.T)
        noise = np.quantile((resampled - values).std(1, ddof=1), 0.95)
        crowned += values.std(ddof=1) > noise
    assert crowned <= 25  # binomial(200, 0.05): fewer than one chance in ten thousand to be above 22


def test_a_stage_two_with_too_few_finished_trials_is_refused(tmp_path):
    both, first, second = stages(tmp_path)
    work(first, Waiting(0.0), lambda line: None)
    second_stage(first, second, Judged([0.5, None, None]), lambda line: None)
    with pytest.raises(StudyError, match=r"finished 1 trials.*more --top"):
        verdict(both, first, second)


def test_a_first_stage_that_went_on_is_refused(tmp_path):
    _both, first, second = stages(tmp_path, trials=3)
    work(first, Waiting(0.0), lambda line: None)
    second_stage(first, second, Judged([0.1, 0.2, 0.3]), lambda line: None)

    def better(choice, seed, folder, report):
        return Result(-1.0)

    more = open_study(config("journal", 5), tmp_path)
    work(more, better, lambda line: None)
    with pytest.raises(StudyError, match=r"stage 1 has gone on since stage 2 began.*--study\.name"):
        second_stage(more, second, Judged([]), lambda line: None)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=12))
def test_rank_correlation_is_spearmans(pairs):
    one, other = zip(*pairs, strict=True)
    if len(set(one)) == 1 or len(set(other)) == 1:
        assert math.isnan(rank_correlation(one, other))
        return
    assert rank_correlation(one, other) == pytest.approx(spearmanr(one, other).statistic, abs=1e-12)
