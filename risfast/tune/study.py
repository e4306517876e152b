"""A study in its storage: what it is made for is kept with it, and whoever joins is held to that."""

from __future__ import annotations

import hashlib
import json
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from risfast import __version__
from risfast.io.toml_file import as_table, from_table
from risfast.simulate.system_file import differing_fields
from risfast.tune.jobs import Jobs, slot_trials
from risfast.tune.options import HpoConfig, PrunerOptions, SamplerOptions, StudyError
from risfast.tune.space import check_same_space, space_lines
from risfast.tune.storage import Opened, open_storage, quiet, reachable

_KEY = "risfast"
_FORMAT = 2  # 1: the localizer was told the noise power, and its options had other names
# What may differ between two workers of a study, or between its start and its continuation.
_FREE = ("trials", "storage", "base.machine", "beat_s", "attempts", "name")


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
    config = from_table(HpoConfig, stored["config"])
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
    found: dict[str, Any] = json.loads(text)
    return found


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
    changed = [
        name
        for name in differing_fields(before, now)
        if not any(name == free or name.startswith(f"{free}.") for free in _FREE)
    ]
    if changed:
        raise StudyError(
            f"the study {config.name!r} was made with other options ({', '.join(changed)}); give the same ones to go "
            "on with it, --join to take them from it, or another --name"
        )
    check_same_space(stored["space"], config)
