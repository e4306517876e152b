"""A whole run in a folder: open or resume, train, validate, keep, and finish with a model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from risfast.io.durable import finite_json
from risfast.simulate.scenes import Scenes
from risfast.train.checkpoints import Checkpoint
from risfast.train.config import ValidationOptions
from risfast.train.distributed import World
from risfast.train.loop import StepReport, Trainer, TrainingError
from risfast.train.records import EventFile
from risfast.train.run_folder import RunFolder, validation_scenes

__all__ = ["Measured", "Progress", "Run"]

Figures = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Progress:
    """Where a run stands; NaN where it is not known yet."""

    step: int  # Taken so far, and of the whole run
    steps: int  # Taken so far, and of the whole run
    scenes: int  # Learned from so far
    loss: float  # Smoothed
    nmse: float  # Means over the sets of the latest validation
    f1: float  # Means over the sets of the latest validation
    scenes_per_s: float  # Since the run was started or went on; validation is left out
    seconds_left: float  # At that rate
    note: str = ""  # What the run does besides taking steps; empty where nothing


Report = Callable[[Progress], None]


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
class Run:
    """One run of a trainer in a folder."""

    folder: RunFolder
    trainer: Trainer
    module: nn.Module  # What is trained and kept
    world: World
    report: Report
    measure: Callable[[Scenes], Measured]  # How good the module is
    best: _Best = field(default_factory=_Best)  # The best validation so far, and how many have not been better since
    seconds: float = 0.0  # Spent in the run so far, its interruptions left out
    latest: Figures = field(default_factory=dict)  # Figures of the latest validation, by set
    notes: list[str] = field(default_factory=list)  # Damage that was found and what was done about it

    def __post_init__(self) -> None:
        """Make the validation scenes once."""
        config = self.folder.config
        self._options: ValidationOptions = config.validation
        self._sets = {
            f"L{n}": validation_scenes(config, n, self._options.seed, self._options.scenes, self.world.device)
            for n in self._options.snapshots
        }
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
        self.folder.metrics.append(
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
        self.best.stale = self._shared(self.best.stale)

    def _shared(self, value: int) -> int:
        """What the first process holds; early stopping must end all of them in the same step."""
        if self.world.size == 1:
            return value
        told = torch.tensor([value], device=self.world.device)
        torch.distributed.broadcast(told, src=0)
        return int(told.item())

    def _measure(self) -> bool:
        figures: Figures = {}
        constant = []
        with self.trainer.average.in_use():
            for name, scenes in self._sets.items():
                self._tell(f"validating {name}")
                figures[name], same = self.measure(scenes)
                constant.append(same)
        self.latest = finite_json(figures)
        self.folder.metrics.append(
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
        left = (self.folder.config.optimiser.steps - self.trainer.step) * self.folder.config.optimiser.batch_size
        self.report(
            Progress(
                self.trainer.step,
                self.folder.config.optimiser.steps,
                self.trainer.scenes,
                self._loss,
                self._mean("nmse_mean"),
                self._mean("f1"),
                self._rate,
                left / self._rate if self._rate > 0 else math.nan,
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
