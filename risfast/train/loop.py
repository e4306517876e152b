"""The training loop: batches in, weights out, and a state that a checkpoint can hold."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from risfast.losses import Terms
from risfast.models.base import CovarianceEstimate, Measurement
from risfast.models.files import load_weights
from risfast.simulate.scenes import Scenes
from risfast.train.batches import Batch, SceneSource, plan_batch
from risfast.train.checkpoints import Checkpoint
from risfast.train.config import DataOptions, OptimiserOptions
from risfast.train.distributed import World
from risfast.train.optimisation import Optimiser, WeightAverage

_START_STEPS = 20  # steps whose mean loss is the start that divergence is measured from
_SMOOTHING = 0.95  # of the loss that is compared with it: a memory of about 20 steps


class TrainingError(RuntimeError):
    """A run cannot go on; the message says why, and the last good checkpoint is intact."""


class TrainingTask(Protocol):
    """What is trained, and what its loss is."""

    @property
    def module(self) -> nn.Module:
        """What is trained."""

    def loss(self, scenes: Scenes, noise_known: bool) -> Terms:
        """Mean loss over the scenes, and its parts."""


Objective = Callable[[CovarianceEstimate, Scenes], Terms]  # Mean loss of a backbone's estimate, and its parts


def autocast(amp: str) -> AbstractContextManager[Any]:
    """Mixed precision on cuda."""
    if amp == "off":
        return nullcontext()
    return torch.autocast("cuda", dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[amp])


@dataclass
class BackboneTask:
    """A backbone and the objective of its estimate."""

    module: nn.Module  # A :class:`risfast.models.Backbone`
    objective: Objective
    amp: str = "off"  # Mixed precision of the backbone; see :func:`autocast`

    def loss(self, scenes: Scenes, noise_known: bool) -> Terms:
        """Mean loss over the scenes; the objective is outside mixed precision."""
        with autocast(self.amp):
            estimate = self.module(Measurement.of(scenes, noise_known=noise_known))
        return self.objective(estimate, scenes)


class RunningMeans(dict[str, list[float]]):
    """Sums and counts of named figures since the last line; each figure has a count of its own."""

    def add(self, figures: Mapping[str, float]) -> None:
        """Take in one step."""
        for name, value in figures.items():
            if math.isfinite(value):
                total, count = self.get(name, (0.0, 0))
                self[name] = [total + value, count + 1]

    def take(self) -> dict[str, float]:
        """The means, and start afresh."""
        means = {name: total / count for name, (total, count) in self.items()}
        self.clear()
        return means


class StepReport(NamedTuple):
    """What one step did."""

    step: int  # Steps taken so far, this one included
    loss: float
    lr: float  # Learning rate of this step
    stop: float  # Share of the processes that asked to stop


class Trainer:
    """Steps of a task, one after the other."""

    def __init__(
        self,
        task: TrainingTask,
        source: SceneSource,
        data: DataOptions,
        options: OptimiserOptions,
        world: World,
        seed: int = 0,
        *,
        scaled: bool = False,
    ) -> None:
        if options.batch_size % (world.size * options.accumulation):
            raise ValueError(
                f"optimiser.batch_size = {options.batch_size} cannot be divided by {world.size} processes x "
                f"{options.accumulation} accumulated parts"
            )
        self.task, self.source, self.world = task, source, world
        self._data, self._options, self._seed = data, options, seed
        self.optimiser = Optimiser(task.module, options, scaled=scaled)
        self.average = WeightAverage(task.module, options)
        self.means = RunningMeans()
        self.step = 0
        self.skipped = 0
        self._skipped_in_row = 0
        self._start: list[float] = []
        self._smoothed = math.nan

    @property
    def scenes(self) -> int:
        """Scenes seen so far."""
        return self.step * self._options.batch_size

    def advance(self, stop: bool = False) -> StepReport:
        """Take one step."""
        batch = plan_batch(self._data, self._options.batch_size, self.step)
        torch.manual_seed(self._step_seed())  # a function of the step, so that a resumed run draws the same
        self.task.module.train()
        lr = self.optimiser.lr
        figures = self._gradients(batch)
        names = sorted(figures)
        exchanged = torch.tensor([figures[name] for name in names] + [float(stop)], dtype=torch.float64)
        *values, wish = self.world.mean_gradients(self.optimiser.parameters.values(), exchanged).tolist()
        figures = dict(zip(names, values, strict=True))
        norm, taken = self.optimiser.step(self.step, usable=math.isfinite(figures["loss"]))
        if taken:
            self.average.update(self.step)
        self.step += 1
        loss = figures.pop("loss")
        parts = {f"parts.{name}": v for name, v in figures.items()}
        norms = {f"grad_norm.{part}": v for part, v in self.optimiser.part_norms.items()}
        self.means.add({"loss": loss, "grad_norm": norm, **norms, **parts})
        self._watch(loss, norm, taken)
        return StepReport(self.step, loss, lr, wish)

    def _gradients(self, batch: Batch) -> dict[str, float]:
        """Gather the gradient of this process's share of a batch; returns its mean loss and parts."""
        parts = self._options.accumulation
        figures: dict[str, float] = {}
        for index in range(parts):
            share = batch.part(self.world.rank * parts + index, self.world.size * parts)
            scenes = self.source.scenes(share.n_snapshots, share.indices, self.world.device)
            terms = self.task.loss(scenes, share.noise_known)
            self.optimiser.backward(terms.total / parts)
            for name, value in {"loss": terms.total, **terms.parts}.items():
                figures[name] = figures.get(name, 0.0) + float(value.detach()) / parts
        return figures

    def _step_seed(self) -> int:
        text = f"{self._seed}/{self.step}/{self.world.rank}".encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:7], "big")

    def _watch(self, loss: float, norm: float, taken: bool) -> None:
        """End a run that has gone wrong."""
        lr = self.optimiser.lr
        if not taken:
            self.skipped += 1
            self._skipped_in_row += 1
            if self._skipped_in_row >= self._options.max_skipped:
                what = "gradient was zero" if norm == 0 else "loss or its gradient was not finite"
                if self.optimiser.not_finite:
                    what += f" ({self.optimiser.not_finite} first)"
                raise TrainingError(
                    f"the {what} in {self._skipped_in_row} steps in a row, up to step {self.step} "
                    f"(learning rate {lr:.3g}); a lower --optimiser.lr may help"
                )
            return
        self._skipped_in_row = 0
        if not all(bool(p.isfinite().all()) for p in self.optimiser.parameters.values()):
            raise TrainingError(
                f"the weights are not finite after step {self.step} (learning rate {lr:.3g}); lower --optimiser.lr"
            )
        if len(self._start) < _START_STEPS:
            self._start.append(loss)
            self._smoothed = sum(self._start) / len(self._start)
            return
        self._smoothed = _SMOOTHING * self._smoothed + (1 - _SMOOTHING) * loss
        start = sum(self._start) / len(self._start)
        if self._smoothed > start + self._options.divergence * abs(start):
            raise TrainingError(
                f"the loss has diverged: {self._smoothed:.4g} at step {self.step}, {start:.4g} in the first "
                f"{_START_STEPS} steps; lower --optimiser.lr"
            )

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything a checkpoint keeps as tensors."""
        return {
            "weights": dict(self.task.module.state_dict()),
            "average": self.average.tensors(),
            "optimiser": self.optimiser.tensors(),
        }

    def state(self) -> dict[str, Any]:
        """Everything else that a checkpoint keeps."""
        return {
            "step": self.step,
            "skipped": self.skipped,
            "skipped_in_row": self._skipped_in_row,
            "start": self._start,
            "smoothed": self._smoothed if math.isfinite(self._smoothed) else None,
            "means": dict(self.means),
            "average_count": self.average.count,
            "scaler": dict(self.optimiser.scaler.state_dict()),
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint."""
        state, tensors = checkpoint.state, checkpoint.tensors
        load_weights(self.task.module, tensors["weights"], str(checkpoint.path))
        self.average.load_tensors(tensors["average"], state["average_count"])
        self.optimiser.load_tensors(tensors.get("optimiser", {}))
        if state["scaler"]:  # empty where losses are not scaled
            self.optimiser.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.skipped, self._skipped_in_row = state["skipped"], state["skipped_in_row"]
        self._start = list(state["start"])
        self._smoothed = math.nan if state["smoothed"] is None else state["smoothed"]
        self.means = RunningMeans(state["means"])
        self.optimiser.schedule(self.step)
