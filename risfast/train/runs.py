"""A whole run in a folder: its files; open or resume, train, validate, keep, and finish with a model."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from risfast import __version__
from risfast.errors import FileFormatError
from risfast.io.durable import finite_json, replace_file
from risfast.io.toml_file import as_table, read_toml, to_toml
from risfast.simulate.scenes import Scenes, generate_scenes
from risfast.simulate.system_file import differing_fields
from risfast.train.checkpoints import Checkpoint, CheckpointFolder
from risfast.train.config import RunOptions, ValidationOptions
from risfast.train.distributed import World
from risfast.train.loop import StepReport, Trainer, TrainingError

_FREE = ("machine",)  # parts of the configuration that may change between the start of a run and its resumption

Figures = dict[str, dict[str, float]]


class MetricsFile:
    """``metrics.jsonl``: appended to during the run, cut back to a checkpoint when the run goes on from it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, line: Mapping[str, Any]) -> None:
        """Write one line. It lasts once :meth:`sync` has been called."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(finite_json(line), allow_nan=False) + "\n")

    def sync(self) -> None:
        """Make what has been written last."""
        if self.path.exists():
            with self.path.open("rb") as stream:
                os.fsync(stream.fileno())

    def read(self) -> list[dict[str, Any]]:
        """Every line; a last one that a kill cut short is left out."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        found = []
        for number, line in enumerate(lines, 1):
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError as error:
                if number < len(lines):
                    raise FileFormatError(f"{self.path}: line {number} is not JSON") from error
        return found

    def cut(self, step: int) -> None:
        """Drop the lines of later steps."""
        kept = [line for line in self.read() if line["step"] <= step]
        replace_file(self.path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in kept).encode())


class EventFile:
    """The same figures as TensorBoard events."""

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  (an extra, and slow to import)
        except ImportError as error:
            raise ValueError(
                "machine.tensorboard needs the tensorboard package: pip install 'risfast[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def add(self, figures: Mapping[str, Any], step: int, prefix: str = "") -> None:
        """Write every number of nested figures; its name is the path to it."""
        for name, value in figures.items():
            if isinstance(value, Mapping):
                self.add(value, step, f"{prefix}{name}/")
            elif isinstance(value, int | float) and math.isfinite(value):
                self._writer.add_scalar(f"{prefix}{name}", value, step)
        self._writer.flush()


def validation_sets(config: RunOptions, seed: int, count: int, device: torch.device) -> dict[str, Scenes]:
    """The fixed scenes that a run is judged on, one set for each L that it validates at, by name."""
    return {f"L{n}": validation_scenes(config, n, seed, count, device) for n in config.validation.snapshots}


def validation_scenes(config: RunOptions, n_snapshots: int, seed: int, count: int, device: torch.device) -> Scenes:
    """The fixed scenes of one L that a run is judged on."""
    system = config.system.system(n_snapshots, config.data.code_kinds)
    return generate_scenes(system, seed, range(count), device)


class RunFolder:
    """config.toml, environment.json, metrics.jsonl, checkpoints and what a run ends with."""

    def __init__(self, folder: Path, config: RunOptions) -> None:
        self.folder, self.config = folder, config
        self.metrics = MetricsFile(folder / "metrics.jsonl")
        self.checkpoints = CheckpointFolder(folder / "checkpoints", config.machine.keep)

    def open(self) -> None:
        """Make the folder, or check that it holds this very run."""
        path = self.folder / "config.toml"
        if path.is_file():
            self._refuse_earlier(path)
            before = read_toml(type(self.config), path)
            changed = [
                name
                for name in differing_fields(as_table(before), as_table(self.config))
                if name.split(".")[0] not in _FREE
            ]
            if changed:
                raise ValueError(
                    f"{self.folder} holds a run with other options ({', '.join(changed)}); give the same ones to go "
                    "on with it, or another folder"
                )
        elif self.folder.is_dir() and any(p for p in self.folder.iterdir() if not p.name.startswith(".")):
            raise ValueError(f"{self.folder} is not empty and holds no run; choose another folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(path, to_toml(self.config).encode())
        replace_file(self.folder / "environment.json", _environment(self.config).encode())

    def _refuse_earlier(self, path: Path) -> None:
        """Refuse a run of a version that validated in another way: its best checkpoint was chosen by other figures."""
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise FileFormatError(f"{path}: {error}") from error
        if "pipeline" not in table:
            command = "refiner" if "network" in table else "backbone"
            raise ValueError(
                f"{self.folder} holds a run of an earlier version, whose validation was told the noise power; its "
                f"model can be used as it is. Begin the run again in another folder: "
                f"`risfast {command} --config {path} --output FOLDER`"
            )


def _environment(config: RunOptions) -> str:
    found = {
        "risfast": __version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "platform": platform.platform(),
        "device": config.machine.device,
        "gpu": torch.cuda.get_device_name() if config.machine.device.startswith("cuda") else None,
        "threads": torch.get_num_threads(),
    }
    return json.dumps(found, indent=1) + "\n"


@dataclass(frozen=True)
class RunProgress:
    """Where a run stands; NaN where it is not known yet."""

    step: int  # Taken so far, and of the whole run
    steps: int  # Taken so far, and of the whole run
    loss: float  # Smoothed
    nmse: float  # Means over the sets of the latest validation
    f1: float  # Means over the sets of the latest validation
    scenes_per_s: float  # Since the run was started or went on; validation is left out
    note: str = ""  # What the run does besides taking steps; empty where nothing


RunReport = Callable[[RunProgress], None]


class Measured(NamedTuple):
    """How good a module is on a set of scenes."""

    figures: dict[str, float]
    constant: bool  # Whether it gives all of them the same answer


@dataclass
class _Best:
    """The best validation so far, and how many have not been better since."""

    value: float | None = None
    step: int = -1
    stale: int = 0
    constant: int = 0

    def judge(self, value: float, step: int) -> None:
        """Take in a validation; lower is better."""
        if math.isfinite(value) and (self.value is None or value < self.value):
            self.value, self.step, self.stale = value, step, 0
        else:
            self.stale += 1


@dataclass
class TrainingRun:
    """One run of a trainer in a folder."""

    folder: RunFolder
    trainer: Trainer
    module: nn.Module  # What is trained and kept
    world: World
    report: RunReport
    measure: Callable[[Scenes], Measured]  # How good the module is
    best: _Best = field(default_factory=_Best)  # The best validation so far, and how many have not been better since
    seconds: float = 0.0  # Spent in the run so far, its interruptions left out
    latest: Figures = field(default_factory=dict)  # Figures of the latest validation, by set
    notes: list[str] = field(default_factory=list)  # Damage that was found and what was done about it

    def __post_init__(self) -> None:
        """Make the validation scenes once."""
        config = self.folder.config
        self._options: ValidationOptions = config.validation
        self._sets = validation_sets(config, self._options.seed, self._options.scenes, self.world.device)
        self._fresh = True
        self._events: EventFile | None = None
        self._rate = math.nan
        self._loss = math.nan

    def resume(self) -> None:
        """Go on from the latest intact checkpoint, or start."""
        found, problems = self.folder.checkpoints.read_latest()
        self._fresh = found is None
        self.notes += [f"{problem}; the checkpoint before it is used" for problem in problems]
        if found is not None:
            self._restore(found)
        if self.world.leads:
            self.folder.metrics.cut(-1 if found is None else found.step)
            if self.folder.config.machine.tensorboard:
                self._events = EventFile(self.folder.folder / "events", self.trainer.step)

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.trainer.restore(checkpoint)
        self.best = _Best(**checkpoint.state["best"])
        self.seconds = checkpoint.state["seconds"]
        self.latest = checkpoint.state["latest"]

    def train(self) -> bool:
        """Take steps until the last one, the time limit, or early stopping."""
        config, steps = self.folder.config, self.folder.config.optimiser.steps
        began, seconds_before, first = time.monotonic(), self.seconds, self.trainer.step
        limit = config.machine.minutes * 60
        if self._fresh:  # what the untrained one does is the start of every curve, and the first checkpoint
            self._validate()
            self._save()
        train_time = 0.0
        while self.trainer.step < steps and not self._stale():
            step_began = time.monotonic()
            late = bool(limit) and step_began - began >= limit
            taken = self.trainer.advance(stop=late)
            train_time += time.monotonic() - step_began
            self.seconds = seconds_before + time.monotonic() - began
            self._rate = (self.trainer.step - first) * config.optimiser.batch_size / train_time
            self._log(taken)
            stop = taken.stop > 0
            validated = self.trainer.step % self._options.every == 0 or self.trainer.step == steps
            if validated:
                self._validate()
            if validated or stop or self.trainer.step % config.machine.checkpoint_every == 0:
                self._save()
            self._tell()
            if stop:
                return False
        return True

    def _stale(self) -> bool:
        return bool(self._options.patience) and self.best.stale >= self._options.patience

    def _log(self, taken: StepReport) -> None:
        self._loss = taken.loss if math.isnan(self._loss) else 0.9 * self._loss + 0.1 * taken.loss
        if taken.step % self.folder.config.machine.log_every or not self.world.leads:
            return
        means = self.trainer.means.take()
        parts = {name[6:]: means.pop(name) for name in list(means) if name.startswith("parts.")}
        self._record(
            {
                "kind": "train",
                "step": taken.step,
                "scenes": self.trainer.scenes,
                **means,
                "parts": parts,
                "lr": taken.lr,
                "skipped": self.trainer.skipped,
                "seconds": round(self.seconds, 2),
            }
        )

    def _record(self, line: dict[str, Any]) -> None:
        self.folder.metrics.append(line)
        if self._events is not None:
            figures = {name: value for name, value in line.items() if name not in ("kind", "step")}
            self._events.add({line["kind"]: figures}, line["step"])

    def _validate(self) -> None:
        """Measure the averaged weights on every set; the first process does, the others hear whether to go on."""
        dead = False
        if self.world.leads:
            dead = self._measure()
        if self.world.agree(dead):
            raise TrainingError(
                f"the predictions no longer depend on the scene (step {self.trainer.step}): their variance over "
                f"scenes is below a fiftieth of the true covariances' in two validations in a row. The run has "
                "collapsed to a constant; change the backbone or the learning rate, or pass "
                "--validation.stop-constant False to go on regardless"
            )
        self.best.stale = self.world.agree(self.best.stale)  # early stopping ends all processes in the same step

    def _measure(self) -> bool:
        figures: Figures = {}
        constant = []
        with self.trainer.average.in_use():
            for name, scenes in self._sets.items():
                self._tell(f"validating {name}")
                figures[name], same = self.measure(scenes)
                constant.append(same)
        self.latest = finite_json(figures)
        self._record(
            {
                "kind": "validation",
                "step": self.trainer.step,
                "scenes": self.trainer.scenes,
                "sets": figures,
                "seconds": round(self.seconds, 2),
            }
        )
        self.best.judge(self._value(), self.trainer.step)
        if not self._options.stop_constant or self.trainer.step == 0:  # an untrained one may well be constant
            return False
        self.best.constant = self.best.constant + 1 if all(constant) else 0
        return self.best.constant >= 2

    def _mean(self, name: str) -> float:
        values = [figures.get(name) for figures in self.latest.values()]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else math.nan

    def _value(self) -> float:
        return self._mean("nmse_mean") if self._options.metric == "nmse" else -self._mean("f1")

    def _save(self) -> None:
        if not self.world.leads:
            return
        self.folder.metrics.sync()
        state = {
            **self.trainer.state(),
            "best": vars(self.best),
            "seconds": self.seconds,
            "latest": self.latest,
        }
        protect = frozenset({self.best.step})
        self.folder.checkpoints.save(self.trainer.step, self.trainer.tensors(), state, protect)

    def _tell(self, note: str = "") -> None:
        self.report(
            RunProgress(
                self.trainer.step,
                self.folder.config.optimiser.steps,
                self._loss,
                self._mean("nmse_mean"),
                self._mean("f1"),
                self._rate,
                note,
            )
        )

    def use_best(self) -> int:
        """Put the averaged weights of the best checkpoint into the module."""
        step = self.best.step if self.best.step >= 0 else self.trainer.step
        checkpoint = self.folder.checkpoints.read(step)
        with torch.no_grad():
            own = dict(self.module.named_parameters())
            self.module.load_state_dict(dict(checkpoint.tensors["weights"]))
            for name, value in checkpoint.tensors["average"].items():
                own[name].copy_(value)
        return step
