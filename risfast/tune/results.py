"""What studies end with: the best configuration as files, tables, whether it holds, and the verdict of two stages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial
from scipy.stats import rankdata

from risfast.evaluate.figures import FIGURES, Interval, bootstrap_difference, figures
from risfast.evaluate.metrics import Scores
from risfast.io.durable import replace_file
from risfast.io.options_file import write_options
from risfast.io.toml_file import to_toml
from risfast.localize.localizer import OPTIONS_FILE
from risfast.tune.jobs import slot_trials
from risfast.tune.objectives import DetectionObjective, farthest_m, value_of_sums
from risfast.tune.options import Hpo2Config, HpoConfig, PrunerOptions, StudyError
from risfast.tune.pictures import draw_study
from risfast.tune.space import pipeline_options, study_space, trial_config, tunes_pipeline, untuned
from risfast.tune.storage import quiet, reachable
from risfast.tune.study import OpenStudy, TrialObjective, finished_trials, is_complete, slot_seed, work

_ROWS = 10  # trials in the table
_SHOWN = ("f1", "precision", "recall", "rmse_xyz_pairs_m")
_LEVEL = 0.95
_MOST_SCENES = 10**7  # beyond this the answer is that the candidates are the same


def write_best(opened: OpenStudy, trial: FrozenTrial, folder: Path) -> dict[str, Path]:
    """Write what a trial stands for."""
    # ``best.toml``, of a training, for ``risfast backbone --config``; ``options.toml``, where options of the pipeline
    # were tuned, for ``risfast locate --options`` and :meth:`risfast.Localizer.load`.
    folder.mkdir(parents=True, exist_ok=True)
    written: dict[str, Path] = {}
    if opened.config.what == "training":
        written["best"] = folder / "best.toml"
        replace_file(written["best"], to_toml(trial_config(opened.config, trial.params)).encode())
    if tunes_pipeline(opened.config):
        written["options"] = folder / OPTIONS_FILE
        write_options(written["options"], pipeline_options(opened.config, trial.params))
    return written


def write_study(opened: OpenStudy, folder: Path) -> dict[str, Path]:
    """Write the best configuration and the pictures; files by what they show or hold."""
    with reachable(opened.opened.where), quiet():
        return write_best(opened, finished_trials(opened)[0], folder) | draw_study(opened, folder)


def results_text(opened: OpenStudy, files: Mapping[str, Path]) -> str:
    """The best trials, the parameters of the best against those without tuning, and the files."""
    trials = finished_trials(opened)
    done, open_slots, dead = opened.jobs.state()
    given_up = f", {dead} given up" if dead else ""
    lines = [f"{done} trials done, {len(trials)} of them finished; {open_slots} to do{given_up}"]
    lines.append(f"{'trial':>6}  {'value':>8}  {'F1':>6}  {'rmse (m)':>8}  {'seconds':>8}")
    for trial in trials[:_ROWS]:
        found = trial.user_attrs.get("figures", {})
        cells = [_cell(found.get("f1"), 6), _cell(found.get("rmse_xyz_pairs_m"), 8)]
        seconds = trial.user_attrs.get("seconds", 0.0)
        lines.append(f"{trial.number:>6}  {trial.value:8.4f}  {'  '.join(cells)}  {seconds:8.1f}")
    before = untuned(opened.config)
    width = max(len(name) for name in before)
    lines.append(f"{'best':{width}}  {'value':>12}  {'untuned':>12}")
    best = trials[0].params
    lines += [f"{n:{width}}  {_short(best[n]):>12}  {_short(v):>12}" for n, v in before.items() if n in best]
    lines += [f"{name}: {path}" for name, path in files.items()]
    return "\n".join(lines)


def _cell(value: float | None, width: int) -> str:
    return f"{'-' if value is None else f'{value:.3f}':>{width}}"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class HeldOut:
    """Tuned and untuned detection on the same other scenes."""

    scenes: int  # Of all sets together
    tuned: dict[str, float]  # Figures of both; the keys of :data:`risfast.evaluate.figures.FIGURES`
    untuned: dict[str, float]  # Figures of both; the keys of :data:`risfast.evaluate.figures.FIGURES`
    # Tuned less untuned, with 95 % intervals over resampled scenes, the same ones for both
    difference: dict[str, Interval]


def require_detection(config: HpoConfig) -> None:
    """Refuse a study whose trials train."""
    if config.what != "detection":
        raise ValueError(
            "only a study of detection is checked on other scenes: train what the best configuration says and give "
            "its model to risfast evaluate"
        )


def held_out(config: HpoConfig, choice: Mapping[str, Any], scenes: int, folder: Path) -> HeldOut:
    """Judge a choice of detection options, and those without tuning, on scenes of another seed."""
    require_detection(config)
    # Any seed that follows from the study's and is not the study's own makes scenes that no trial has seen.
    score = replace(config.score, scenes=scenes, seed=slot_seed(config.score.seed, 0))
    objective = DetectionObjective(replace(config, score=score), folder)
    tuned, before = (Scores.joined(list(objective.judged(c)[0].values())) for c in (choice, {}))
    return HeldOut(len(tuned), figures(tuned), figures(before), bootstrap_difference(tuned, before))


def held_out_text(found: HeldOut) -> str:
    """A table of both, and of their difference with its interval."""
    width = max(map(len, _SHOWN))
    lines = [f"on {found.scenes} other scenes", f"{'':{width}}  {'tuned':>8}  {'untuned':>8}  tuned - untuned [95 %]"]
    for name in (n for n in FIGURES if n in _SHOWN):
        apart = found.difference[name]
        lines.append(
            f"{name:{width}}  {found.tuned[name]:8.4f}  {found.untuned[name]:8.4f}  "
            f"{apart.value:+.4f} [{apart.low:+.4f}, {apart.high:+.4f}]"
        )
    return "\n".join(lines)


def top_trials(first: OpenStudy, count: int) -> list[FrozenTrial]:
    """The best trials of stage 1."""
    found = [t for t in slot_trials(first.study.get_trials(deepcopy=False)).values() if is_complete(t)]
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


def second_stage(first: OpenStudy, second: OpenStudy, objective: TrialObjective, tell: Callable[[str], None]) -> None:
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
    a, b = (ranks - ranks.mean() for ranks in (rankdata(one), rankdata(other)))
    scale = math.sqrt(float((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / scale if scale > 0 else math.nan


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
    pairs = [(chosen[slot], t) for slot, t in again.items() if slot < len(chosen) and is_complete(t)]
    if len(pairs) < 2:
        raise StudyError(
            f"stage 2 has finished {len(pairs)} trials, and fewer than two cannot be compared: run the same command "
            "again, or give it more --top"
        )
    pairs.sort(key=lambda pair: (pair[1].value, pair[1].number))
    surrogate, values = [float(t.value or 0.0) for t, _ in pairs], np.array([t.value for _, t in pairs])
    deviations = _resampled(config, second, [t for _, t in pairs]) - values
    spreads = deviations.std(1, ddof=1)
    spread, noise = float(values.std(ddof=1)), float(np.quantile(spreads, _LEVEL))
    scenes = len(pairs[0][1].user_attrs["sums"]["sources"])
    needed = math.ceil(scenes * (noise / spread) ** 2) if spread > 0 else None
    rows = []
    for (a, b), before, value in zip(pairs, surrogate, values.tolist(), strict=True):
        f1, rmse = (b.user_attrs["figures"][name] for name in ("f1", "rmse_xyz_pairs_m"))
        rows.append((a.number, before, b.number, value, float(f1), float(rmse or math.nan)))
    correlation, winner = rank_correlation(surrogate, values.tolist()), pairs[0][1] if spread > noise else None
    if needed is not None and needed > _MOST_SCENES:
        needed = None
    return Verdict(rows, correlation, spread, noise, scenes, needed, winner)


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
