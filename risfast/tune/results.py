"""What a study ends with: the best configuration as files that the other commands take, a table, and pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from optuna.trial import FrozenTrial

from risfast.io.durable import replace_file
from risfast.io.options_file import write_options
from risfast.io.toml_file import to_toml
from risfast.localize.localizer import OPTIONS_FILE
from risfast.tune.pictures import draw_study
from risfast.tune.space import pipeline_options, trial_config, tunes_pipeline, untuned
from risfast.tune.stages import finished_trials
from risfast.tune.storage import quiet, reachable
from risfast.tune.study import OpenStudy

__all__ = ["Results", "results_text", "write_best", "write_results"]

_ROWS = 10


@dataclass(frozen=True)
class Results:
    """Files of a study."""

    best: FrozenTrial  # The finished trial with the lowest value
    files: dict[str, Path]  # By what they show or hold


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


def write_results(opened: OpenStudy, folder: Path) -> Results:
    """Write the best configuration and the pictures."""
    with reachable(opened.opened.where), quiet():
        best = finished_trials(opened)[0]
        files = write_best(opened, best, folder)
        return Results(best, files | draw_study(opened, folder))


def results_text(opened: OpenStudy, results: Results) -> str:
    """The best trials, the parameters of the best against those without tuning, and the files."""
    trials = finished_trials(opened)
    done, open_slots, dead = opened.jobs.state()
    lines = [
        f"{done} trials done, {len(trials)} of them finished; {open_slots} to do"
        + (f", {dead} given up" if dead else "")
    ]
    lines.append(f"{'trial':>6}  {'value':>8}  {'F1':>6}  {'rmse (m)':>8}  {'seconds':>8}")
    for trial in trials[:_ROWS]:
        found = trial.user_attrs.get("figures", {})
        cells = [_cell(found.get("f1"), 6), _cell(found.get("rmse_xyz_pairs_m"), 8)]
        seconds = trial.user_attrs.get("seconds", 0.0)
        lines.append(f"{trial.number:>6}  {trial.value:8.4f}  {'  '.join(cells)}  {seconds:8.1f}")
    before = untuned(opened.config)
    width = max(len(name) for name in before)
    lines.append(f"{'best':{width}}  {'value':>12}  {'untuned':>12}")
    lines += [
        f"{name:{width}}  {_short(results.best.params[name]):>12}  {_short(value):>12}"
        for name, value in before.items()
        if name in results.best.params
    ]
    lines += [f"{name}: {path}" for name, path in results.files.items()]
    return "\n".join(lines)


def _cell(value: float | None, width: int) -> str:
    return f"{'-' if value is None else f'{value:.3f}':>{width}}"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
