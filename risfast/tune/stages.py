"""Two stages: whether the best by the surrogate are the best by what production does, and which of them wins."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from risfast.tune.errors import StudyError
from risfast.tune.jobs import slot_trials
from risfast.tune.objectives import farthest_m, value_of_sums
from risfast.tune.options import Hpo2Config, HpoConfig, PrunerOptions
from risfast.tune.space import study_space
from risfast.tune.study import OpenStudy
from risfast.tune.worker import Objective, work

__all__ = ["Verdict", "finished_trials", "rank_correlation", "second_config", "second_stage", "top_trials", "verdict"]

_LEVEL = 0.95
_MOST_SCENES = 10**7  # beyond this the answer is that the candidates are the same


def finished_trials(opened: OpenStudy) -> list[FrozenTrial]:
    """The completed trials that count, best first; ties go to the lowest number."""
    trials = [t for t in slot_trials(opened.study.get_trials(deepcopy=False)).values() if _is_complete(t)]
    if not trials:
        pruned = sum(
            t.state == TrialState.PRUNED for t in slot_trials(opened.study.get_trials(deepcopy=False)).values()
        )
        raise StudyError(
            f"no trial of {opened.config.name!r} has finished ({pruned} were pruned): run the same command without "
            "--report to go on, and if every trial is pruned see their reasons in the storage and widen the budget"
        )
    return sorted(trials, key=lambda t: (t.value, t.number))


def _is_complete(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE and trial.value is not None


def top_trials(first: OpenStudy, count: int) -> list[FrozenTrial]:
    """The best trials of stage 1."""
    found = [t for t in slot_trials(first.study.get_trials(deepcopy=False)).values() if _is_complete(t)]
    if len(found) < count:
        raise StudyError(
            f"stage 2 takes the best {count} trials of stage 1, which has finished {len(found)} "
            f"(of {first.config.trials}; pruned ones do not count): run stage 1 to its end (--stages first), give it "
            "more --study.trials, or lower --top"
        )
    return finished_trials(first)[:count]


def second_config(config: Hpo2Config) -> HpoConfig:
    """The study of stage 2."""
    study, base = config.study, config.study.base
    longer = replace(base.optimiser, steps=round(base.optimiser.steps * config.budget))
    seldom = replace(base.validation, every=max(1, round(base.validation.every * config.budget)))
    return replace(
        study,
        name=f"{study.name}.final",
        objective="mvdr_final",
        parameters=tuple(study_space(study)),
        trials=config.top,
        pruner=PrunerOptions(kind="none"),
        base=replace(base, optimiser=longer, validation=seldom),
    )


def second_stage(first: OpenStudy, second: OpenStudy, objective: Objective, tell: Callable[[str], None]) -> None:
    """Do the best of stage 1 again, their parameters unchanged."""
    chosen = top_trials(first, second.config.trials)
    work(second, objective, tell, fixed=[dict(t.params) for t in chosen])
    for slot, trial in slot_trials(second.study.get_trials(deepcopy=False)).items():
        if slot < len(chosen) and trial.params and trial.params != chosen[slot].params:
            raise StudyError(
                "stage 1 has gone on since stage 2 began, and its best are others now; give --study.name for a new one"
            )


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's rank correlation; ties share their mean rank."""
    a, b = _ranks(one), _ranks(other)
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / scale if scale > 0 else math.nan


def _ranks(values: Sequence[float]) -> Any:
    v = np.asarray(values, float)
    below = (v[None] < v[:, None]).sum(1)
    return below + ((v[None] == v[:, None]).sum(1) + 1) / 2


@dataclass(frozen=True)
class Verdict:
    """What the two stages say together."""

    # (number in stage 1, value there, number in stage 2, value there, F1, rmse of all pairs in metres), best of stage 2
    # first; those that stage 2 rejected are left out
    rows: list[tuple[int, float, int, float, float, float]]
    correlation: float  # Spearman's, between the values of the stages
    spread: float  # Standard deviation of the values of stage 2
    noise: float  # What that spread is below in 95 of 100 resamples of the scenes, if all candidates are equally good
    scenes: int  # Scenes that stage 2 judged by
    scenes_needed: int | None  # As many would bring the noise down to the spread; None where no number would
    winner: FrozenTrial | None  # None where stage 2 is flat

    @property
    def flat(self) -> bool:
        """Whether stage 2 cannot tell its candidates apart."""
        return self.winner is None


def verdict(config: Hpo2Config, first: OpenStudy, second: OpenStudy) -> Verdict:
    """Compare the stages, and crown a winner if stage 2 can tell its candidates apart."""
    # Scenes are resampled, the same ones for every candidate, so that what they share cancels (the paired bootstrap).
    # The deviations of the resampled values from the values themselves are what equally good candidates would show; the
    # spread of the values is held against the 95 % point of the spread of these.
    again = slot_trials(second.study.get_trials(deepcopy=False))
    chosen = top_trials(first, config.top)
    pairs = [(chosen[slot], t) for slot, t in again.items() if slot < len(chosen) and _is_complete(t)]
    if len(pairs) < 2:
        raise StudyError(
            f"stage 2 has finished {len(pairs)} trials, and fewer than two cannot be compared: run the same command "
            "again, or give it more --top"
        )
    pairs.sort(key=lambda pair: (pair[1].value, pair[1].number))
    values = np.array([t.value for _, t in pairs])
    deviations = _resampled(config, second, [t for _, t in pairs]) - values
    spreads = deviations.std(1, ddof=1)
    spread, noise = float(values.std(ddof=1)), float(np.quantile(spreads, _LEVEL))
    scenes = len(pairs[0][1].user_attrs["sums"]["sources"])
    needed = math.ceil(scenes * (noise / spread) ** 2) if spread > 0 else None
    rows = [
        (
            a.number,
            float(a.value or 0.0),
            b.number,
            float(b.value or 0.0),
            float(b.user_attrs["figures"]["f1"]),
            float(b.user_attrs["figures"]["rmse_xyz_pairs_m"] or math.nan),
        )
        for a, b in pairs
    ]
    return Verdict(
        rows,
        rank_correlation([a.value or 0.0 for a, _ in pairs], values.tolist()),
        spread,
        noise,
        scenes,
        needed if needed is not None and needed <= _MOST_SCENES else None,
        pairs[0][1] if spread > noise else None,
    )


def _resampled(config: Hpo2Config, second: OpenStudy, trials: Sequence[FrozenTrial]) -> Any:
    """The value of every trial [R, T] on resampled scenes, the same ones for all."""
    farthest = farthest_m(second.config.base.system.setup())
    count = len(trials[0].user_attrs["sums"]["sources"])
    weights = np.random.default_rng(config.study.seed).multinomial(
        count, np.full(count, 1 / count), size=config.resamples
    )
    columns = []
    for trial in trials:
        totals = {name: weights @ np.asarray(values, float) for name, values in trial.user_attrs["sums"].items()}
        columns.append(value_of_sums(totals, second.config.score, farthest))
    return np.stack(columns, 1)


def verdict_text(found: Verdict) -> str:
    """The table of both stages, and the verdict in words."""
    lines = ["stage 1  surrogate  stage 2  mvdr_final     F1  rmse (m)"]
    lines += [f"{a:>7}  {x:>9.4f}  {b:>7}  {y:>10.4f}  {f1:>5.3f}  {rmse:>8.3f}" for a, x, b, y, f1, rmse in found.rows]
    lines.append(f"rank correlation of the stages: {found.correlation:.2f} over {len(found.rows)} trials")
    lines.append(
        f"spread of stage 2: {found.spread:.4f}; equally good trials would show up to {found.noise:.4f} on "
        f"{found.scenes} scenes"
    )
    if found.winner is not None:
        lines.append(f"winner: trial {found.winner.number} of stage 2")
    elif found.scenes_needed is not None:
        lines.append(
            f"no winner: stage 2 is flat, its spread lies within the noise of its scenes; about {found.scenes_needed} "
            "scenes in all (--study.score.scenes, for each L) would tell these trials apart if the spread is real"
        )
    else:
        lines.append("no winner: the trials of stage 2 are the same; no number of scenes would tell them apart")
    return "\n".join(lines)
