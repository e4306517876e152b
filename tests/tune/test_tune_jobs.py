"""Every slot of a study is done once, whatever its workers do."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from tuning_process import Waiting, config

from risfast.tune.jobs import Jobs, slot_trials
from risfast.tune.options import TrialRejectedError
from risfast.tune.storage import quiet
from risfast.tune.study import Result, open_study, work

PROGRAM = Path(__file__).parents[1] / "helpers" / "tuning_process.py"
STORAGES = ("sqlite", "journal")


def trials_of(opened):
    return opened.study.get_trials(deepcopy=False)


def finished(opened):
    return [t for t in trials_of(opened) if t.state == TrialState.COMPLETE]


def other_worker(opened, storage, folder):
    """The same study through a connection of its own, as another process has it."""
    return open_study(opened.config, folder)


def assert_each_slot_is_done_once(opened, count):
    assert sorted(t.user_attrs["slot"] for t in finished(opened)) == list(range(count))
    assert not [t for t in trials_of(opened) if t.state in (TrialState.RUNNING, TrialState.WAITING)]


@pytest.mark.parametrize("storage", STORAGES)
def test_a_worker_does_every_slot_and_the_first_is_the_base_configuration(storage, tmp_path):
    opened = open_study(config(storage, 5), tmp_path)
    lines = []
    work(opened, Waiting(0.0), lines.append)
    assert_each_slot_is_done_once(opened, 5)
    assert len(lines) == 5
    base = opened.config.base.optimiser
    assert finished(opened)[0].params == {"optimiser.lr": base.lr, "optimiser.weight_decay": base.weight_decay}


@pytest.mark.parametrize("storage", STORAGES)
def test_more_trials_go_on_with_the_same_study(storage, tmp_path):
    work(open_study(config(storage, 2), tmp_path), Waiting(0.0), lambda line: None)
    opened = open_study(config(storage, 4), tmp_path)
    work(opened, Waiting(0.0), lambda line: None)
    assert_each_slot_is_done_once(opened, 4)


def test_parameters_and_seeds_of_a_slot_do_not_depend_on_who_takes_it(tmp_path):
    seen = []
    for name in ("one", "other"):
        opened = open_study(config("journal", 6), tmp_path / name)
        work(opened, Waiting(0.0), lambda line: None)
        seen.append([(t.user_attrs["slot"], t.params, t.user_attrs["seed"]) for t in finished(opened)])
    assert seen[0] == seen[1]
    assert len({seed for _, _, seed in seen[0]}) == 6


@pytest.mark.parametrize("storage", STORAGES)
def test_a_waiting_trial_is_taken_by_one_worker_only(storage, tmp_path):
    opened = open_study(config(storage, 3), tmp_path)
    second = other_worker(opened, storage, tmp_path)
    with quiet():
        opened.jobs.plan([None] * 3)
        taken = [jobs.claim() for jobs in (opened.jobs, second.jobs) * 3]
    assert sorted(job.slot for job in taken if job is not None) == [0, 1, 2]


@pytest.mark.parametrize("storage", STORAGES)
def test_a_slot_that_two_workers_enqueued_is_done_once(storage, tmp_path):
    opened = open_study(config(storage, 1), tmp_path)
    with quiet():
        for _ in range(2):
            opened.study.enqueue_trial({}, user_attrs={"slot": 0, "attempt": 0})
    work(opened, Waiting(0.0), lambda line: None)
    assert_each_slot_is_done_once(opened, 1)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_double_whose_worker_died_before_it_saw_that_does_not_run_for_ever(storage, tmp_path):
    opened = open_study(config(storage, 1), tmp_path)
    with quiet():
        opened.jobs.plan([None])
        opened.study.enqueue_trial({}, user_attrs={"slot": 0, "attempt": 0})
        double = trials_of(opened)[1]
        assert opened.opened.storage.set_trial_state_values(double._trial_id, TrialState.RUNNING)
    work(opened, Waiting(0.0), lambda line: None)
    assert_each_slot_is_done_once(opened, 1)


def silent_jobs(opened):
    """A worker's view that calls anything dead that has not moved since the last look."""
    return Jobs(opened.study, opened.opened, 1e-9, 5)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_silent_trial_is_tried_again_with_its_parameters_and_its_own_result_is_dropped(storage, tmp_path):
    opened = open_study(config(storage, 1), tmp_path)
    second = other_worker(opened, storage, tmp_path)
    with quiet():
        opened.jobs.plan([None])
        lost = opened.jobs.claim()
        value = lost.trial.suggest_float("optimiser.lr", 1e-3, 1e-2)
        jobs = silent_jobs(second)
        assert jobs.claim() is None  # the first look only notes what it sees
        again = jobs.claim()
        assert (again.slot, again.attempt) == (0, 1)
        assert again.trial.suggest_float("optimiser.lr", 1e-3, 1e-2) == value
        assert not opened.jobs.finish(lost, TrialState.COMPLETE, 1.0, {"late": True})
        assert jobs.finish(again, TrialState.COMPLETE, 2.0, {})
    assert [t.value for t in finished(opened)] == [2.0]


@pytest.mark.parametrize("storage", STORAGES)
def test_parameters_that_were_told_after_the_last_look_are_tried_again_too(storage, tmp_path, monkeypatch):
    opened = open_study(config(storage, 1), tmp_path)
    second = other_worker(opened, storage, tmp_path)
    with quiet():
        opened.jobs.plan([None])
        lost = opened.jobs.claim()
        opened.study.sampler = optuna.samplers.RandomSampler(seed=99)  # not that of the second worker
        jobs, told = silent_jobs(second), []

        def dies(trial):  # between the look at all trials and that at its worker
            told.append(lost.trial.suggest_float("optimiser.lr", 1e-3, 1e-2))
            return True

        monkeypatch.setattr(jobs, "_is_silent", dies)
        again = jobs.claim()
        assert again.attempt == 1
        assert again.trial.suggest_float("optimiser.lr", 1e-3, 1e-2) == told[0]


def test_a_sign_of_life_keeps_a_trial(tmp_path):
    opened = open_study(config("sqlite", 1, beat_s=0.02), tmp_path)
    with quiet():
        opened.jobs.plan([None])
        job = opened.jobs.claim()
        watcher = Jobs(opened.study, opened.opened, 0.5, 5)
        with opened.jobs.beating(job):
            counts = []
            for _ in range(3):
                time.sleep(0.3)
                assert watcher.claim() is None
                counts.append(trials_of(opened)[0].user_attrs["beat"])
    assert counts == sorted(set(counts))


def test_a_trial_that_was_finished_after_it_was_enqueued_again_is_not_done_twice(tmp_path):
    opened = open_study(config("journal", 1), tmp_path)
    with quiet():
        opened.jobs.plan([None])
        slow = opened.jobs.claim()
        # Another worker found it silent and died between enqueueing it again and marking it as failed.
        opened.study.enqueue_trial({}, user_attrs={"slot": 0, "attempt": 1})
        assert opened.jobs.finish(slow, TrialState.COMPLETE, 1.0, {})
        assert opened.jobs.claim() is None
    assert_each_slot_is_done_once(opened, 1)


def test_a_trial_of_a_dead_process_of_this_machine_is_taken_over_at_once(tmp_path):
    with open_study(config("journal", 1), tmp_path) as opened, Workers("journal", tmp_path, 1, 600.0) as workers:
        number = workers.start()
        assert wait_until_at_work(workers, opened, number)
        os.kill(number, signal.SIGKILL)
        assert workers.wait(number) == -signal.SIGKILL
        with quiet():
            patient = Jobs(opened.study, opened.opened, 1e9, 5)
            job = patient.claim()
    assert (job.slot, job.attempt) == (0, 1)


def test_a_slot_that_kills_its_workers_is_given_up(tmp_path):
    opened = open_study(config("journal", 1, attempts=2), tmp_path)
    with quiet():
        opened.jobs.plan([None])
        jobs = Jobs(opened.study, opened.opened, 1e-9, 2)
        for _ in range(2):
            assert jobs.claim() is not None
            jobs.claim()  # notes the trial that has just been begun
        assert jobs.claim() is None
        assert jobs.state() == (0, 0, 1)
    work(opened, Waiting(0.0), lambda line: None)  # nothing is left to do
    assert not finished(opened)


def test_rejected_and_non_finite_trials_are_pruned_and_the_study_goes_on(tmp_path):
    opened = open_study(config("journal", 4), tmp_path)

    def objective(choice, seed, folder, report):
        slot = next(t for t in trials_of(opened) if t.state == TrialState.RUNNING).user_attrs["slot"]
        if slot == 0:
            raise TrialRejectedError("the loss has diverged")
        if slot == 1:
            return Result(float("nan"))
        if slot == 2:
            report(1, float("inf"))
        return Result(1.0)

    lines = []
    work(opened, objective, lines.append)
    states = {slot: t for slot, t in slot_trials(trials_of(opened)).items()}
    assert [states[i].state for i in range(4)] == [TrialState.PRUNED] * 3 + [TrialState.COMPLETE]
    assert "diverged" in states[0].user_attrs["reason"]
    assert "nan" in states[1].user_attrs["reason"]
    assert "inf" in states[2].user_attrs["reason"]


def test_an_error_that_is_no_fault_of_the_trial_ends_the_worker_and_the_trial_waits_again(tmp_path):
    opened = open_study(config("journal", 2), tmp_path)

    def broken(choice, seed, folder, report):
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk is full"):
        work(opened, broken, lambda line: None)
    first = trials_of(opened)[0]
    assert first.state == TrialState.FAIL
    assert "disk is full" in first.user_attrs["reason"]
    work(opened, Waiting(0.0), lambda line: None)
    assert_each_slot_is_done_once(opened, 2)
    again = next(t for t in finished(opened) if t.user_attrs["slot"] == 0)
    assert again.params == first.params


def test_a_trial_that_falls_behind_is_pruned(tmp_path):
    from risfast.tune.options import PrunerOptions

    opened = open_study(config("journal", 8, pruner=PrunerOptions(startup=2)), tmp_path)
    slots = iter(range(8))

    def objective(choice, seed, folder, report):
        level = float(next(slots))
        for step in range(3):
            report(step, level)
        return Result(level)

    work(opened, objective, lambda line: None)
    pruned = [t for t in trials_of(opened) if t.state == TrialState.PRUNED]
    assert pruned
    assert all("behind the others" in t.user_attrs["reason"] for t in pruned)
    assert all(t.user_attrs["slot"] >= 2 for t in pruned)


class Workers:
    """Processes that work on one study, and can be killed."""

    def __init__(self, storage, folder, trials, pause_s):
        command = [sys.executable, str(PROGRAM), storage, str(folder), str(trials), str(pause_s)]
        self._parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._running = set()

    def _ask(self, question):
        self._parent.stdin.write(f"{question}\n")
        self._parent.stdin.flush()
        return self._parent.stdout.readline().strip()

    def start(self):
        number = int(self._ask("start"))
        self._running.add(number)
        return number

    def ended(self, number):
        """Exit status of a worker, None while it runs."""
        answer = self._ask(f"state {number}")
        if answer == "running":
            return None
        self._running.remove(number)
        return int(answer)

    def alive(self, number):
        """Whether a worker runs; its exit status stays to be asked for."""
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"

    def wait(self, number, timeout_s=120.0):
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            status = self.ended(number)
            if status is not None:
                return status
            time.sleep(0.02)
        raise AssertionError(f"worker {number} still runs after {timeout_s:g} s")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for number in self._running:
            os.kill(number, signal.SIGKILL)
        self._parent.stdin.close()
        self._parent.stdout.close()
        self._parent.wait()


@pytest.mark.slow
@pytest.mark.parametrize("storage", STORAGES)
def test_four_workers_killed_at_random_lose_and_double_no_trial(storage, tmp_path):
    kill_workers(storage, tmp_path, trials=80, kills=20, seed=1)


def kill_workers(storage, folder, trials, kills, seed):
    """Four workers on one study; one of them is killed every so often and replaced."""
    with open_study(config(storage, trials), folder) as opened, Workers(storage, folder, trials, 1.0) as workers:
        killed = killed_and_replaced(workers, opened, kills, seed)
        assert killed == kills, "the study was through before enough workers had been killed"
        assert_each_slot_is_done_once(opened, trials)
        assert opened.jobs.state() == (trials, 0, 0)
        assert_lost_trials_were_tried_again(opened)


def assert_lost_trials_were_tried_again(opened):
    trials = trials_of(opened)
    lost = [t for t in trials if t.state == TrialState.FAIL and "worker" in t.user_attrs]
    assert lost, "no worker was killed in the middle of a trial"
    for trial in lost:
        slot, attempt = trial.user_attrs["slot"], trial.user_attrs["attempt"]
        again = [t for t in trials if (t.user_attrs["slot"], t.user_attrs["attempt"]) == (slot, attempt + 1)]
        assert any(trial.params.items() <= t.params.items() for t in again)


def killed_and_replaced(workers, opened, kills, seed):
    """Run four workers to their end; returns how many were killed.

    Two of three are killed in the middle of a trial, the third at any moment: while it starts, takes or stores one.
    """
    rng = random.Random(seed)
    four = [workers.start() for _ in range(4)]
    for done in range(kills):
        victim = rng.randrange(4)
        if done % 3 and not wait_until_at_work(workers, opened, four[victim]):
            return done  # the study is through
        time.sleep(rng.uniform(0.0, 0.5))
        if workers.ended(four[victim]) is not None:
            return done
        os.kill(four[victim], signal.SIGKILL)
        assert workers.wait(four[victim]) == -signal.SIGKILL
        four[victim] = workers.start()
    assert [workers.wait(number) for number in four] == [0] * 4
    return kills


def wait_until_at_work(workers, opened, number, timeout_s=120.0):
    """Whether a worker has a trial, or has come to its end without another."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        running = (t.user_attrs.get("worker", {}) for t in trials_of(opened) if t.state == TrialState.RUNNING)
        if any(worker.get("pid") == number for worker in running):
            return True
        if not workers.alive(number):
            return False
        time.sleep(0.02)
    raise AssertionError(f"worker {number} has not begun a trial after {timeout_s:g} s")
