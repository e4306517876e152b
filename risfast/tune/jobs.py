"""The trials of a study as jobs that are each done once, whatever happens to the workers.

A study of n trials is n numbered slots. Every slot waits in the storage from the start as an enqueued trial; a worker
takes one by turning it from waiting to running, which a storage lets only one worker do. A worker that dies leaves a
running trial without signs of life: whoever notices enqueues the slot again, with the same parameters and the next
attempt number, and only then marks the old trial as failed, so that dying in between loses nothing. Two workers may
both do so, and that doubles nothing: of the trials with the same slot and attempt only the one with the lowest number
counts, and before an attempt is begun, the attempt before it is failed for good or turns out to have been finished.

Optuna's own heartbeats are not used: the journal has none, and there a trial is failed first and enqueued afterwards.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from risfast.tune.options import StudyError
from risfast.tune.storage import Opened

_SILENT_BEATS = 4
_DONE = (TrialState.COMPLETE, TrialState.PRUNED)


class TrialLostError(Exception):
    """Another worker has taken this trial over, because this one gave no signs of life for too long."""


def _identity() -> str:
    """The machine since its last start, and this set of process numbers; empty where that cannot be known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process started, in the kernel's ticks; empty if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _worker() -> dict[str, Any]:
    return {"machine": _identity(), "pid": os.getpid(), "started": _started(os.getpid())}


def _is_dead(worker: Mapping[str, Any]) -> bool:
    """Whether a worker ran on this machine and does not any more."""
    return bool(worker["machine"]) and worker["machine"] == _identity() and _started(worker["pid"]) != worker["started"]


def slot_trials(trials: Sequence[FrozenTrial]) -> dict[int, FrozenTrial]:
    """The trial that counts of each slot: of its last attempt, the one with the lowest number."""
    found: dict[int, FrozenTrial] = {}
    for trial in sorted(trials, key=lambda t: t.number):
        if "slot" not in trial.user_attrs:
            continue
        slot, attempt = trial.user_attrs["slot"], trial.user_attrs["attempt"]
        if slot not in found or attempt > found[slot].user_attrs["attempt"]:
            found[slot] = trial
    return found


@dataclass(frozen=True)
class Job:
    """A slot that this worker has taken."""

    slot: int  # Which slot, and how often it was begun before
    attempt: int  # Which slot, and how often it was begun before
    trial: Trial  # That runs now
    lost: threading.Event  # Set when another worker has taken the slot over


class Jobs:
    """The slots of a study, as one worker sees them."""

    def __init__(self, study: optuna.Study, opened: Opened, beat_s: float, attempts: int) -> None:
        self.study, self._storage, self._alone = study, opened.storage, opened.alone
        self._beat_s, self._attempts = beat_s, attempts
        self._seen: dict[int, tuple[Any, float]] = {}

    def plan(self, slots: Sequence[Mapping[str, Any] | None]) -> None:
        """Make sure that every slot has a trial."""
        with self._alone():
            there = slot_trials(self._trials())
            for slot, parameters in enumerate(slots):
                if slot not in there:
                    self._enqueue(slot, 0, parameters)

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _enqueue(self, slot: int, attempt: int, parameters: Mapping[str, Any] | None) -> None:
        self.study.enqueue_trial(dict(parameters or {}), user_attrs={"slot": slot, "attempt": attempt})

    def _fail(self, trial: FrozenTrial) -> None:
        """Mark a trial as failed unless it is finished."""
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    def claim(self, prepare: Callable[[int], None] | None = None) -> Job | None:
        """Take the next slot."""
        with self._alone():
            self._revive()
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                if "slot" not in trial.user_attrs or not self._take(trial):
                    continue
                self._storage.set_trial_user_attr(trial._trial_id, "worker", _worker())
                slot, attempt = trial.user_attrs["slot"], trial.user_attrs["attempt"]
                if prepare is not None:
                    prepare(slot)
                return Job(slot, attempt, Trial(self.study, trial._trial_id), threading.Event())
        return None

    def _take(self, trial: FrozenTrial) -> bool:
        """Turn a waiting trial into a running one, unless another worker did or it does not count."""
        try:
            if not self._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                return False
        except optuna.exceptions.UpdateFinishedTrialError:
            return False
        if self._counts(trial):
            return True
        self._fail(trial)
        return False

    def _counts(self, trial: FrozenTrial) -> bool:
        """Whether no other trial stands for the same attempt, and the attempt before it has failed."""
        slot, attempt = trial.user_attrs["slot"], trial.user_attrs["attempt"]
        same = [t for t in self._trials() if t.user_attrs.get("slot") == slot]
        if any(t.number < trial.number and t.user_attrs["attempt"] == attempt for t in same):
            return False
        for earlier in same:
            if earlier.user_attrs["attempt"] < attempt:
                self._fail(earlier)
                if self._storage.get_trial(earlier._trial_id).state in _DONE:
                    return False
        return True

    def _revive(self) -> None:
        """Enqueue again what a dead worker, or an error, has left undone."""
        trials, seen = self._trials(), set()
        for trial in sorted(trials, key=lambda t: t.number):
            attempt_of = trial.user_attrs.get("slot"), trial.user_attrs.get("attempt")
            if attempt_of in seen and trial.state == TrialState.RUNNING and "slot" in trial.user_attrs:
                self._fail(trial)  # a double, whose worker died between taking it and seeing that
            seen.add(attempt_of)
        for slot, trial in slot_trials(trials).items():
            attempt = trial.user_attrs["attempt"] + 1
            silent = trial.state == TrialState.RUNNING and self._is_silent(trial)
            if not (silent or trial.state == TrialState.FAIL):
                continue
            if attempt < self._attempts:
                last = self._storage.get_trial(trial._trial_id)  # its worker may have told more before it died
                self._enqueue(slot, attempt, {**last.system_attrs.get("fixed_params", {}), **last.params})
            if silent:
                self._fail(trial)

    def _is_silent(self, trial: FrozenTrial) -> bool:
        worker = trial.user_attrs.get("worker")
        if worker is not None and _is_dead(worker):
            return True
        beat, now = trial.user_attrs.get("beat"), time.monotonic()
        before = self._seen.get(trial._trial_id)
        if before is None or before[0] != beat:
            self._seen[trial._trial_id] = (beat, now)
            return False
        return now - before[1] > _SILENT_BEATS * self._beat_s

    def finish(self, job: Job, state: TrialState, value: float | None, attributes: Mapping[str, Any]) -> bool:
        """Store what became of a job."""
        with self._alone():
            try:
                for name, attribute in attributes.items():
                    self._storage.set_trial_user_attr(job.trial._trial_id, name, attribute)
                self.study.tell(job.trial, value, state)
            except (optuna.exceptions.UpdateFinishedTrialError, ValueError) as error:
                if self._storage.get_trial(job.trial._trial_id).state == TrialState.RUNNING:
                    raise StudyError(f"trial {job.trial.number} cannot be stored: {error}") from error
                return False
        return True

    @contextmanager
    def beating(self, job: Job) -> Iterator[None]:
        """Give signs of life while a job runs: a thread counts up in the storage."""
        over = threading.Event()

        def beat() -> None:
            count = 0
            while not over.wait(self._beat_s):
                count += 1
                try:
                    self._storage.set_trial_user_attr(job.trial._trial_id, "beat", count)
                except optuna.exceptions.UpdateFinishedTrialError:
                    job.lost.set()
                    return
                except (optuna.exceptions.StorageInternalError, StudyError):
                    continue  # out of reach for now; the trial goes on, and its end will tell

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def state(self) -> tuple[int, int, int]:
        """How many slots are done, wait or run, and are given up."""
        trials = slot_trials(self._trials()).values()
        done = sum(t.state in _DONE for t in trials)
        dead = sum(t.state == TrialState.FAIL and t.user_attrs["attempt"] + 1 >= self._attempts for t in trials)
        return done, len(trials) - done - dead, dead
