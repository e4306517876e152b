"""A study in its storage, with what it is made for, which who joins is held to; and the work on its trials."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState

from risfast import __version__
from risfast.io.durable import finite_json
from risfast.io.guard import short_text
from risfast.io.toml_file import as_table, from_table
from risfast.simulate.system_file import differing_fields
from risfast.train.loop import TrainingError
from risfast.tune.jobs import Job, Jobs, TrialLostError, slot_trials
from risfast.tune.options import HpoConfig, PrunerOptions, SamplerOptions, StudyError, TrialRejectedError
from risfast.tune.space import check_same_space, space_lines, study_space, untuned
from risfast.tune.storage import Opened, open_storage, quiet, reachable

_KEY = "risfast"
_FORMAT = 2  # 1: the localizer was told the noise power, and its options had other names
# What may differ between two workers of a study, or between its start and its continuation.
_FREE = ("trials", "storage", "base.machine", "beat_s", "attempts", "name")
# What ends a trial, not the study: its options were bad, or the machine too small for them.
_REJECTED = (TrialRejectedError, TrainingError, torch.OutOfMemoryError, torch.linalg.LinAlgError, FloatingPointError)
_POLL_S = 2.0


@dataclass
class OpenStudy:
    """A study that this worker takes part in."""

    config: HpoConfig
    study: optuna.Study
    opened: Opened
    jobs: Jobs
    folder: Path  # Where this worker keeps the folders of its trials, and the results

    def __enter__(self) -> OpenStudy:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the storage."""
        self.opened.close()


def finished_trials(opened: OpenStudy) -> list[FrozenTrial]:
    """The completed trials that count, best first; ties go to the lowest number."""
    counting = slot_trials(opened.study.get_trials(deepcopy=False)).values()
    trials = [t for t in counting if is_complete(t)]
    if not trials:
        pruned = sum(t.state == TrialState.PRUNED for t in counting)
        raise StudyError(
            f"no trial of {opened.config.name!r} has finished ({pruned} were pruned): run the same command without "
            "--report to go on, and if every trial is pruned see their reasons in the storage and widen the budget"
        )
    return sorted(trials, key=lambda t: (t.value, t.number))


def is_complete(trial: FrozenTrial) -> bool:
    """Whether it ended with a value."""
    return trial.state == TrialState.COMPLETE and trial.value is not None


def slot_seed(seed: int, slot: int) -> int:
    """The seed of a slot's parameters and weights."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{slot}".encode()).digest()[:4], "big") >> 1


def sampler_of(options: SamplerOptions, seed: int) -> optuna.samplers.BaseSampler:
    """A sampler with every option set by this package, not by the defaults of a version of Optuna."""
    with quiet():
        return optuna.samplers.TPESampler(
            n_startup_trials=options.startup,
            n_ei_candidates=options.candidates,
            multivariate=options.multivariate,
            group=False,
            constant_liar=options.constant_liar,
            seed=seed,
        )


def _pruner(options: PrunerOptions, config: HpoConfig) -> optuna.pruners.BasePruner:
    every, steps = config.base.validation.every, config.base.optimiser.steps
    if options.kind == "none":
        return optuna.pruners.NopPruner()
    if options.kind == "hyperband":
        return optuna.pruners.HyperbandPruner(
            min_resource=max(every, options.warmup), max_resource=steps, reduction_factor=options.reduction
        )
    return optuna.pruners.MedianPruner(
        n_startup_trials=options.startup, n_warmup_steps=options.warmup, interval_steps=1, n_min_trials=1
    )


def open_study(config: HpoConfig, folder: Path) -> OpenStudy:
    """Make a study, or go on with it."""
    space_lines(config)  # an unknown parameter, before anything is made
    opened = open_storage(config.storage, folder)
    try:
        study = _made(config, opened)
    except BaseException:
        opened.close()
        raise
    return OpenStudy(config, study, opened, Jobs(study, opened, config.beat_s, config.attempts), folder)


def _made(config: HpoConfig, opened: Opened) -> optuna.Study:
    """The study in its storage, new or as it is there."""
    with reachable(opened.where), opened.alone(), quiet():
        study = optuna.create_study(
            study_name=config.name,
            storage=opened.storage,
            sampler=sampler_of(config.sampler, config.seed),
            pruner=_pruner(config.pruner, config),
            direction="minimize",
            load_if_exists=True,
        )
        if _KEY not in study.user_attrs and not study.get_trials(deepcopy=False):
            study.set_user_attr(_KEY, _card(config))
        stored = _read_card(study, opened.where)
    _check_same(stored, config)
    return study


def join_study(storage: str, name: str, folder: Path, own: HpoConfig) -> OpenStudy:
    """Take part in a study that is there, as it was configured."""
    if storage in ("sqlite", "journal") and not (folder / _FILES[storage]).is_file():
        raise StudyError(
            f"{folder} holds no study ({_FILES[storage]} is missing): start one with risfast hpo --output {folder}, "
            "or give --storage with the URL of its database"
        )
    stored = _stored_card(storage, name, folder)
    _check_version(stored)
    try:
        config = from_table(HpoConfig, stored["config"])
        space_lines(config)
    except (ValueError, TypeError, OverflowError) as error:
        raise StudyError(f"the options that study {name!r} was made with are damaged: {short_text(error)}") from error
    base = replace(config.base, machine=own.base.machine)
    return open_study(replace(config, storage=storage, name=name, base=base), folder)


def _stored_card(storage: str, name: str, folder: Path) -> dict[str, Any]:
    opened = open_storage(storage, folder)
    with closing(opened), reachable(opened.where), quiet():
        known = optuna.get_all_study_names(opened.storage)
        if name not in known:
            raise StudyError(
                f"{opened.where} holds no study {name!r}; it holds {', '.join(sorted(known)) or 'none'}: give one of "
                "them with --name, or start this one without --join"
            )
        return _read_card(optuna.load_study(study_name=name, storage=opened.storage), opened.where)


_FILES = {"sqlite": "study.sqlite3", "journal": "study.journal"}


def _card(config: HpoConfig) -> str:
    # A password in a URL is not for everyone who can read the study.
    content = {"config": as_table(replace(config, storage="sqlite")), "space": space_lines(config)}
    return json.dumps({"format": _FORMAT, "version": __version__, **content})


def _read_card(study: optuna.Study, where: str) -> dict[str, Any]:
    text = study.user_attrs.get(_KEY)
    if text is None:
        raise StudyError(
            f"{where} holds a study {study.study_name!r} that was not made by this command; choose another --name"
        )
    card = json.loads(text) if isinstance(text, str) else None
    if not isinstance(card, dict) or not {"format", "version", "config", "space"} <= set(card):
        raise StudyError(f"{where}: what study {study.study_name!r} says of itself is damaged; choose another --name")
    return card


def _is_of_this_version(stored: dict[str, Any]) -> bool:
    return (stored["format"], stored["version"]) == (_FORMAT, __version__)


def _check_version(stored: dict[str, Any]) -> None:
    if not _is_of_this_version(stored):
        told = ", whose trials were told the noise power" if stored["format"] == 1 else ""
        raise StudyError(
            f"the study was made by version {stored['version']} of risfast (format {stored['format']}{told}), this is "
            f"{__version__} (format {_FORMAT}): trials of two versions cannot be compared; install that version, or "
            "give another --name"
        )


def _check_same(stored: dict[str, Any], config: HpoConfig) -> None:
    if not _is_of_this_version(stored):
        check_same_space(stored["space"], config)  # says more than the version does
    _check_version(stored)
    before, now = stored["config"], as_table(replace(config, storage="sqlite"))
    changed = differing_fields(before, now, _FREE)
    if changed:
        raise StudyError(
            f"the study {config.name!r} was made with other options ({', '.join(changed)}); give the same ones to go "
            "on with it, --join to take them from it, or another --name"
        )
    check_same_space(stored["space"], config)


@dataclass(frozen=True)
class Result:
    """What a trial ends with."""

    value: float  # What is minimised
    # JSON values that the study keeps: figures, times, what the bootstrap needs
    attributes: dict[str, Any] = field(default_factory=dict)


# What a trial does: it judges a choice of parameters, with a seed, in a folder of its own, and reports values at steps.
TrialObjective = Callable[[Mapping[str, Any], int, Path, Callable[[int, float], None]], Result]


def work(
    opened: OpenStudy,
    objective: TrialObjective,
    tell: Callable[[str], None],
    *,
    fixed: list[Mapping[str, Any] | None] | None = None,
) -> None:
    """Do trials until every slot of the study is done, by this worker or by others."""
    jobs, where = opened.jobs, opened.opened.where
    with reachable(where), quiet():
        jobs.plan(fixed if fixed is not None else _slots(opened.config))

    def prepare(slot: int) -> None:
        # The sampler is made for the slot, so that its parameters do not depend on who takes it.
        opened.study.sampler = sampler_of(opened.config.sampler, slot_seed(opened.config.seed, slot))

    while True:
        with reachable(where), quiet():
            job = jobs.claim(prepare)
            if job is None and not jobs.state()[1]:
                return
        if job is None:
            time.sleep(min(_POLL_S, opened.config.beat_s))
            continue
        _do(opened, objective, job, tell)


def _slots(config: HpoConfig) -> list[Mapping[str, Any] | None]:
    """The first slot is the configuration as it is, as far as it lies in the space."""
    now, space = untuned(config), study_space(config)
    return [{name: now[name] for name in space if space[name].holds(now[name])}, *[None] * (config.trials - 1)]


def _do(opened: OpenStudy, objective: TrialObjective, job: Job, tell: Callable[[str], None]) -> None:
    began, number = time.monotonic(), job.trial.number
    folder = opened.folder / "trials" / f"{opened.config.name}-{number:05d}"
    lost = f"trial {number}: another worker has taken it over; its result here is dropped"
    value: float | None = None
    stop: BaseException | None = None
    with quiet(), opened.jobs.beating(job):
        try:
            choice = {n: p.suggest(job.trial, n) for n, p in study_space(opened.config).items()}
            result = objective(choice, slot_seed(opened.config.seed, job.slot), folder, _reporter(job))
            if not math.isfinite(result.value):
                raise TrialRejectedError(f"its value is {result.value}")
            value, attributes, state = result.value, result.attributes, TrialState.COMPLETE
        except optuna.TrialPruned as error:
            state, attributes = TrialState.PRUNED, {"reason": str(error)}
        except _REJECTED as error:
            state, attributes = TrialState.PRUNED, {"reason": " ".join(str(error).split()), "rejected": True}
        except TrialLostError:
            tell(lost)
            return
        except BaseException as error:  # what is no fault of the trial ends this worker, and the trial waits again
            state, stop = TrialState.FAIL, error
            attributes = {"reason": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    seconds = round(time.monotonic() - began, 3)
    attributes = finite_json({**attributes, "seconds": seconds})
    if stop is not None:
        with suppress(RuntimeError, OSError):  # if the storage cannot be told, its silence will
            opened.jobs.finish(job, state, None, attributes)
        raise stop
    with reachable(opened.opened.where), quiet():
        kept = opened.jobs.finish(job, state, value, attributes)
    what = f"{value:.4f}" if value is not None else f"pruned, {attributes.get('reason', '')}"
    tell(f"trial {number} (slot {job.slot}): {what}, {seconds:.1f} s" if kept else lost)


def _reporter(job: Job) -> Callable[[int, float], None]:
    def report(step: int, value: float) -> None:
        if job.lost.is_set():
            raise TrialLostError
        if not math.isfinite(value):
            raise TrialRejectedError(f"its value at step {step} is {value}")
        job.trial.report(value, step)
        if job.trial.should_prune():
            raise optuna.TrialPruned(f"behind the others at step {step}")

    return report
