"""What a suite runs: its configuration, and the chunks of scenes that it is cut into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from risfast.evaluate.methods import DEFAULT_METHODS, Methods
from risfast.evaluate.records import Place
from risfast.evaluate.scenarios import CHUNK, SUITES, SceneSet, scene_sets
from risfast.models.pretrained import DEFAULT_MODEL
from risfast.setup import Setup
from risfast.simulate.scenes import SystemConfig
from risfast.simulate.system_file import system_of

__all__ = ["TRUTH", "SuiteConfig", "Task", "tasks_of"]

TRUTH = "truth"  # the record that holds the answer and the bound


@dataclass(frozen=True)
class SuiteConfig:
    """What the results of a suite depend on."""

    suite: str = "all"  # One of :data:`risfast.evaluate.scenarios.SUITES`
    scenes: int = 1000  # Of the main set; the others follow from it
    snapshots: tuple[int, ...] = (64, 16)  # L, each at least 1
    methods: tuple[str, ...] = DEFAULT_METHODS  # Among :data:`risfast.evaluate.methods.METHODS`
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
            for name in ("array", "wavefront"):
                one, other = getattr(self.system, name), getattr(self.setup, name)
                if one != other:
                    raise ValueError(f"system and setup contradict each other: {name} is {one} and {other}")

    def build_methods(self) -> Methods:
        """What makes the methods, from the files that this names."""
        setup = self.setup
        if setup is None and self.system is not None:
            setup = self.system.setup
        return Methods(self.model, self.transformer, setup=setup, device=self.device)

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

    def place(self, label: str) -> Place:
        """Where the record of one run belongs."""
        return Place(self.scene_set, self.cell, self.snapshots, label, self.start, self.stop)

    @property
    def work(self) -> float:
        """Relative cost: scenes and runs, most of which grow with the number of snapshots."""
        return (self.stop - self.start) * len(self.labels) * (self.snapshots + 16)


def tasks_of(sets: Sequence[SceneSet], snapshots: Sequence[int]) -> list[Task]:
    """Every chunk of every set, in the order of the sets."""
    tasks = []
    for scene_set in sets:
        for length in snapshots:
            for cell in range(len(scene_set.cells)):
                for start in range(0, scene_set.scenes, CHUNK):
                    labels = (TRUTH, *(run.label for run in scene_set.runs if run.scenes > start))
                    stop = min(start + CHUNK, scene_set.scenes)
                    tasks.append(Task(scene_set.name, cell, length, start, stop, labels))
    return tasks
