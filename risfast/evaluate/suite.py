"""Runs methods over fixed scenes, chunk by chunk, in one process or several, and keeps every result in a folder."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from risfast.evaluate.bounds import scene_bound
from risfast.evaluate.methods import DEFAULT_METHODS, Found, Method, Methods, measurement_of
from risfast.evaluate.mismatched import mismatched_bound
from risfast.evaluate.records import RecordPlace, ResultsFolder
from risfast.evaluate.scenarios import CHUNK, SUITES, SceneSet, scene_sets
from risfast.models.pretrained import DEFAULT_MODEL
from risfast.setup import Setup, Tolerance
from risfast.simulate.impairments import Impairments
from risfast.simulate.scenes import Scenes, SystemConfig, generate_scenes
from risfast.simulate.system_file import system_of, system_to_json
from risfast.sources import Sources

TRUTH = "truth"  # the record that holds the answer and the bound


@dataclass(frozen=True)
class SuiteConfig:
    """What the results of a suite depend on."""

    suite: str = "all"  # One of :data:`risfast.evaluate.scenarios.SUITES`
    scenes: int = 1000  # Of the main set; the others follow from it
    snapshots: tuple[int, ...] = (64, 16)  # L, each at least 1
    methods: tuple[str, ...] = DEFAULT_METHODS  # Among :data:`risfast.evaluate.methods.SUITE_METHODS`
    seed: int = 0x6576616C  # Of the scenes. The default is none that training, validation or test of the trainer uses
    # Model folder of the localizer; None is the classical fit, which needs no training
    model: Path | None = DEFAULT_MODEL
    # What is simulated; by default the reference distribution on the array and in the region of the setup
    system: SystemConfig | None = None
    # The problem: region, wavefront and tolerance of every method and every score. By default that of the system, and
    # without one that of the model
    setup: Setup | None = None
    device: str = "cpu"  # Of the localizer
    transformer: Path | None = None  # Model folder of the transformer backbone
    refiner: Path | None = None  # Model folder of a refiner behind the model, whether it helps or not
    # Of the localizer, a file as tuning writes it; by default those that are stored with the model
    options: Path | None = None

    def __post_init__(self) -> None:
        """Check every value that needs no file."""
        if self.suite not in SUITES:
            raise ValueError(f"suite must be one of {', '.join(SUITES)}; got {self.suite!r}")
        if self.scenes < 1:
            raise ValueError(f"scenes must be at least 1, got {self.scenes}")
        if not self.snapshots or min(self.snapshots) < 1 or len(set(self.snapshots)) != len(self.snapshots):
            raise ValueError(f"snapshots must be different numbers of at least 1, got {self.snapshots}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must lie in [0, 2^64), got {self.seed}")
        if self.model is None and self.system is None and self.setup is None:
            raise ValueError("without a model, a setup or a system says what the problem is")
        if self.system is not None and self.setup is not None:
            for name in ("array", "wavefront", "wavelengths_m"):
                one, other = getattr(self.system.setup, name), getattr(self.setup, name)
                if one != other:
                    raise ValueError(f"system and setup contradict each other: {name} is {one} and {other}")

    def build_methods(self) -> Methods:
        """What makes the methods, from the files that this names."""
        setup = self.setup or (None if self.system is None else self.system.setup)
        more = {"refiner": self.refiner, "options": self.options}
        return Methods(self.model, self.transformer, setup=setup, device=self.device, **more)

    def nominal(self, methods: Methods) -> SystemConfig:
        """The system that is simulated, for the problem of the methods."""
        return self.system or system_of(methods.setup)

    def sets(self, methods: Methods) -> tuple[SceneSet, ...]:
        """The scenes and the runs over them, for the problem of the methods."""
        return scene_sets(self.suite, self.scenes, self.methods, self.nominal(methods))


class Task(NamedTuple):
    """One chunk of scenes with everything that runs over it."""

    scene_set: str
    cell: int
    snapshots: int
    start: int
    stop: int
    labels: tuple[str, ...]  # Of the runs; the truth comes first

    def place(self, label: str) -> RecordPlace:
        """Where the record of one run belongs."""
        return RecordPlace(self.scene_set, self.cell, self.snapshots, label, self.start, self.stop)


def tasks_of(sets: Sequence[SceneSet], snapshots: Sequence[int]) -> list[Task]:
    """Every chunk of every set, in the order of the sets."""
    tasks = []
    for scene_set in sets:
        starts = range(0, scene_set.scenes, CHUNK)
        for length, cell, start in itertools.product(snapshots, range(len(scene_set.cells)), starts):
            labels = (TRUTH, *(run.label for run in scene_set.runs if run.scenes > start))
            stop = min(start + CHUNK, scene_set.scenes)
            tasks.append(Task(scene_set.name, cell, length, start, stop, labels))
    return tasks


_FORMAT = 2
_WARM_SCENES = 2  # enough to build every table that a method keeps
_POLL_S = 0.5


SuiteReport = Callable[[int, int, str], None]  # scenes by methods that are done, of how many, and what runs


def open_results(config: SuiteConfig, folder: Path, methods: Methods, *, leads: bool = True) -> ResultsFolder:
    """The results folder of a configuration."""
    names = dict.fromkeys(run.method for scene_set in config.sets(methods) for run in scene_set.runs)
    described = {
        "format": _FORMAT,
        "suite": config.suite,
        "scenes": config.scenes,
        "snapshots": list(config.snapshots),
        "seed": config.seed,
        "setup": methods.setup.to_json(),
        "system": system_to_json(config.nominal(methods)),
        "device": config.device,
        "methods": {name: methods.identity(name) for name in names},
    }
    results = ResultsFolder(folder, described)
    results.open(leads=leads)
    return results


def run_suite(
    config: SuiteConfig,
    folder: Path,
    *,
    workers: int = 1,
    rank: int = 0,
    world: int = 1,
    report: SuiteReport | None = None,
) -> ResultsFolder:
    """Make every record that the folder lacks."""
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if not 0 <= rank < world:
        raise ValueError(f"rank must lie in [0, {world}), got {rank}")
    methods = config.build_methods()
    methods.check(config.methods)
    results = open_results(config, folder, methods, leads=rank == 0)
    every = tasks_of(config.sets(methods), config.snapshots)
    own = [task for task in every[rank::world] if not _complete(results, task)]
    counter = _Counter(results, every, report or (lambda *_: None))
    counter.tell()
    if workers == 1:
        with _one_thread():
            bench = _Bench(config, methods, results)
            for task in own:
                bench.run(task)
                counter.finished(task)
    elif own:
        _run_in_processes(config, folder, own, min(workers, len(own)), counter)
    while rank == 0 and world > 1 and not counter.all_there():
        time.sleep(_POLL_S)
    return results


def _complete(results: ResultsFolder, task: Task) -> bool:
    return all(results.has(task.place(label)) for label in task.labels)


class _Counter:
    """Progress of all processes together: what the others have done is seen in the folder."""

    def __init__(self, results: ResultsFolder, tasks: Sequence[Task], report: SuiteReport) -> None:
        self._results, self._report = results, report
        self._open = {task for task in tasks if not _complete(results, task)}
        self._total = sum(_runs(task) for task in tasks)

    def finished(self, task: Task) -> None:
        self._open.discard(task)
        self.tell(f"{task.scene_set}, L = {task.snapshots}")

    def all_there(self) -> bool:
        self._open = {task for task in self._open if not _complete(self._results, task)}
        self.tell("waiting for the other processes" if self._open else "")
        return not self._open

    def tell(self, note: str = "") -> None:
        self._report(self._total - sum(_runs(task) for task in self._open), self._total, note)


def _runs(task: Task) -> int:
    return (task.stop - task.start) * (len(task.labels) - 1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Times a scene mean one thread, however many processes there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Bench:
    """Makes the records of tasks."""

    def __init__(self, config: SuiteConfig, methods: Methods, results: ResultsFolder) -> None:
        self.config, self.methods, self.results = config, methods, results
        self._sets = {scene_set.name: scene_set for scene_set in config.sets(methods)}
        self._warm: set[tuple[str, int]] = set()

    def run(self, task: Task) -> None:
        """Every record of one chunk that is not there yet."""
        scene_set = self._sets[task.scene_set]
        system = replace(scene_set.cells[task.cell], n_snapshots=task.snapshots)
        scenes = generate_scenes(system, self.config.seed, range(task.start, task.stop))
        runs = {run.label: run for run in scene_set.runs}
        for label in task.labels:
            place = task.place(label)
            if self.results.has(place):
                continue
            if label == TRUTH:
                self.results.write(place, truth_record(scenes, self.config.seed, self.methods.setup.tolerance))
            else:
                self.results.write(place, self._found(runs[label].method, runs[label].knowledge, scenes))

    def _found(self, name: str, knowledge: str, scenes: Scenes) -> dict[str, Any]:
        method = self.methods[name]
        key = (f"{name}@{knowledge}", scenes.config.n_snapshots)
        if key not in self._warm:  # tables that are built once would count as time of the first scenes
            few = generate_scenes(scenes.config, self.config.seed, scenes.indices[:_WARM_SCENES])
            self._tried(method, few, knowledge)
            self._warm.add(key)
        found, failed = self._tried(method, scenes, knowledge)
        stages = {f"stage_{stage}": np.array(value) for stage, value in found.stages.items()}
        record = {**_flat(found.sources), "failed": failed, "seconds": np.array(found.seconds), **stages}
        if found.count_probability is not None:
            record["count_probability"] = found.count_probability.cpu().numpy()
        return record

    def _tried(self, method: Method, scenes: Scenes, knowledge: str) -> tuple[Found, np.ndarray[Any, Any]]:
        """What a method finds; a scene that it fails on has no estimates, and is counted."""
        count = len(scenes)
        try:
            with torch.no_grad():
                return _in_processor_time(method, scenes, knowledge), np.zeros(count, dtype=bool)
        except (ValueError, RuntimeError):  # such as a spectrum that holds NaN, or a matrix without a factor
            if count == 1:
                return Found([Sources.empty()], math.nan, {}), np.ones(1, dtype=bool)
        single = [
            self._tried(method, generate_scenes(scenes.config, self.config.seed, [index]), knowledge)
            for index in scenes.indices.tolist()
        ]
        found = [one for one, _ in single]
        # The others tell nothing of the time of a whole chunk.
        told = [f.count_probability for f in found if f.count_probability is not None]
        counts = None
        if told:
            none = torch.full_like(told[0], torch.nan)
            counts = torch.cat([none if f.count_probability is None else f.count_probability for f in found])
        sources = [f.sources[0] for f in found]
        return Found(sources, math.nan, {}, counts), np.concatenate([failed for _, failed in single])


def _in_processor_time(method: Method, scenes: Scenes, knowledge: str) -> Found:
    """What a method finds, its times less what other programs took of the core; on an idle machine that is nothing."""
    given = measurement_of(scenes, knowledge)
    wall, own = time.perf_counter(), time.process_time()
    found = method.find(scenes, *given)
    own, wall = time.process_time() - own, time.perf_counter() - wall
    share = min(own / wall, 1.0)
    stages = {name: seconds * share for name, seconds in found.stages.items()}
    return found._replace(seconds=found.seconds * share, stages=stages)


def _flat(found: Sequence[Sources]) -> dict[str, Any]:
    """Counts [B] and rows [T, 5]: azimuth, elevation, range, power, confidence."""
    rows = [torch.stack([s.azimuth, s.elevation, s.range, s.power, s.confidence], -1).double().cpu() for s in found]
    return {
        "count": np.array([len(s) for s in found], dtype=np.int64),
        "sources": torch.cat([*rows, torch.zeros(0, 5, dtype=torch.float64)]).numpy(),
    }


def truth_record(scenes: Scenes, seed: int, tolerance: Tolerance) -> dict[str, Any]:
    """The answer and the bound of every source on the nominal system; where the true one is another, its bound too."""
    bound = scene_bound(scenes)
    mask = scenes.mask.cpu()
    record = {
        "snr_db": scenes.snr_db.cpu().double().numpy(),
        "count": mask.sum(1).numpy(),
        "position": scenes.position.cpu()[mask].double().numpy(),
        "covariance": bound.covariance.cpu()[mask].numpy(),
        "position_m": bound.position_m.cpu()[mask].numpy(),
        "implied": bound.implied_recall(tolerance).cpu()[mask].numpy(),
    }
    if scenes.config.impairments != Impairments() and scenes.config.wavelengths_m is None:
        mismatched = mismatched_bound(scenes, seed)
        record["mismatched_position_m"] = mismatched.position_m.cpu()[mask].numpy()
        record["mismatched_implied"] = mismatched.implied_recall(tolerance).cpu()[mask].numpy()
    return record


_worker: list[_Bench] = []  # the bench of a worker process, made once when it starts


def _start_worker(config: SuiteConfig, folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops the work
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:  # a parent that was killed leaves no worker behind
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    methods = config.build_methods()
    _worker.append(_Bench(config, methods, open_results(config, folder, methods, leads=False)))


def _run_in_worker(task: Task) -> Task:
    _worker[0].run(task)
    return task


def _run_in_processes(
    config: SuiteConfig, folder: Path, tasks: Sequence[Task], workers: int, counter: _Counter
) -> None:
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(config, folder)
    )
    try:
        futures: list[Future[Task]] = [pool.submit(_run_in_worker, task) for task in tasks]
        for future in as_completed(futures):
            counter.finished(future.result())
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process ended unexpectedly (out of memory, or killed); the same command goes on, with fewer "
            "--workers if memory is short"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
