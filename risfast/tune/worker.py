"""A worker of a study: takes one trial after the other until all are done."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import optuna
import torch
from optuna.trial import TrialState

from risfast.io.durable import finite_json
from risfast.train.loop import TrainingError
from risfast.tune.jobs import Job, TrialLostError
from risfast.tune.options import HpoConfig, TrialRejectedError
from risfast.tune.space import study_space, untuned
from risfast.tune.storage import quiet, reachable
from risfast.tune.study import OpenStudy, sampler_of, slot_seed

# What ends a trial, not the study: its options were bad, or the machine too small for them.
_REJECTED = (TrialRejectedError, TrainingError, torch.OutOfMemoryError, torch.linalg.LinAlgError, FloatingPointError)
_POLL_S = 2.0


@dataclass(frozen=True)
class Result:
    """What a trial ends with."""

    value: float  # What is minimised
    # JSON values that the study keeps: figures, times, what the bootstrap needs
    attributes: dict[str, Any] = field(default_factory=dict)


class TrialObjective(Protocol):
    """What a trial does."""

    def __call__(
        self, choice: Mapping[str, Any], seed: int, folder: Path, report: Callable[[int, float], None]
    ) -> Result:
        """Judge a choice of parameters."""


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
    began = time.monotonic()
    folder = opened.folder / "trials" / f"{opened.config.name}-{job.trial.number:05d}"
    value: float | None = None
    attributes: dict[str, Any] = {}
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
            tell(f"trial {job.trial.number}: another worker has taken it over; its result here is dropped")
            return
        except BaseException as error:  # what is no fault of the trial ends this worker, and the trial waits again
            state, stop = TrialState.FAIL, error
            attributes = {"reason": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    attributes = {**attributes, "seconds": round(time.monotonic() - began, 3)}
    if stop is not None:
        with suppress(RuntimeError, OSError):  # if the storage cannot be told, its silence will
            opened.jobs.finish(job, TrialState.FAIL, None, finite_json(attributes))
        raise stop
    with reachable(opened.opened.where), quiet():
        kept = opened.jobs.finish(job, state, value, finite_json(attributes))
    tell(_line(job, state, value, attributes, kept))


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


def _line(job: Job, state: TrialState, value: float | None, attributes: Mapping[str, Any], kept: bool) -> str:
    if not kept:
        return f"trial {job.trial.number}: another worker has taken it over; its result here is dropped"
    what = f"{value:.4f}" if value is not None else f"pruned, {attributes.get('reason', '')}"
    return f"trial {job.trial.number} (slot {job.slot}): {what}, {attributes['seconds']:.1f} s"
