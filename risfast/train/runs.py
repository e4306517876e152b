"""A whole run in a folder, whatever is trained: open or resume, train, validate, keep, and finish with a model."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from risfast import __version__
from risfast.errors import FileFormatError
from risfast.io.durable import finite_json, owned, replace_file
from risfast.io.guard import finite_number, inside, naming, read_whole, short_text
from risfast.io.toml_file import as_table, load_toml, read_toml, to_toml
from risfast.models.base import CovarianceEstimate
from risfast.simulate.scenes import Scenes, generate_scenes
from risfast.simulate.system_file import differing_fields
from risfast.sources import Sources
from risfast.train.batches import FlySource, SceneSource, ShardSource
from risfast.train.checkpoints import CheckpointFolder
from risfast.train.config import RunOptions
from risfast.train.distributed import World, machine_settings, open_world
from risfast.train.loop import StepReport, Trainer, TrainingError, TrainingTask
from risfast.train.optimisation import check_moves
from risfast.train.pictures import draw_curves, draw_localisation
from risfast.train.validation import scene_slice

_METRICS_BYTES = 1 << 30
_FREE = ("machine",)  # parts of the configuration that may change between the start of a run and its resumption
_PICTURED = 16  # test scenes of which those of the highest, the middle and the lowest SNR are drawn at the end

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
        path = inside(self.path.parent, self.path.name)
        lines = read_whole(path, "metrics of a run", _METRICS_BYTES).decode("utf-8", "replace").splitlines()
        found = []
        for number, line in enumerate(lines, 1):
            try:
                values = json.loads(line, parse_float=finite_number, parse_constant=finite_number)
                if not isinstance(values, dict) or type(values.get("step")) is not int:
                    raise ValueError("it holds no step")
                found.append(values)
            except (ValueError, RecursionError) as error:
                if number < len(lines):
                    raise FileFormatError(
                        f"{self.path}: line {number} is damaged ({short_text(error)}); remove that line, or begin the "
                        "run again in another folder"
                    ) from error
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


@contextmanager
def open_folder(folder: Path, config: RunOptions) -> Iterator[None]:
    """Make the folder of a run, or check that it holds this very run; for the time of a block it is this process's."""
    _check_folder(folder, config)
    folder.mkdir(parents=True, exist_ok=True)
    with owned(folder):
        _check_folder(folder, config)  # again: another process may have begun a run in between
        replace_file(folder / "config.toml", to_toml(config).encode())
        replace_file(folder / "environment.json", _environment(config).encode())
        yield


def _check_folder(folder: Path, config: RunOptions) -> None:
    """Refuse a folder that holds something else than this run."""
    path = inside(folder, "config.toml")
    if path.is_file():
        table = load_toml(path, "options")
        if "pipeline" not in table:
            # A version that validated in another way: its best checkpoint was chosen by other figures.
            command = "refiner" if "network" in table else "backbone"
            raise ValueError(
                f"{folder} holds a run of an earlier version, whose validation was told the noise power; its "
                f"model can be used as it is. Begin the run again in another folder: "
                f"`risfast {command} --config {path} --output FOLDER`"
            )
        changed = differing_fields(as_table(read_toml(type(config), path)), as_table(config), _FREE)
        if changed:
            raise ValueError(
                f"{folder} holds a run with other options ({', '.join(changed)}); give the same ones to go "
                "on with it, or another folder"
            )
    elif folder.is_dir() and any(p for p in folder.iterdir() if not p.name.startswith(".")):
        raise ValueError(f"{folder} is not empty and holds no run; choose another folder")


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
        """Take in a validation; lower is better, and of equal ones the later, which has learned more."""
        better = math.isfinite(value) and (self.value is None or value < self.value)
        if better or value == self.value:
            self.value, self.step = value, step
        self.stale = 0 if better else self.stale + 1


@dataclass(frozen=True)
class RunOutcome:
    """What a run ended with."""

    complete: bool  # False where the time limit ended it; the same command goes on
    step: int  # Steps taken, and of the whole run
    steps: int  # Steps taken, and of the whole run
    best_step: int  # Whose averaged weights are in the model folder
    figures: Figures  # On the test scenes, by set
    model: Path  # The model folder
    pictures: dict[str, Path]
    notes: list[str]  # Damage that was found and what was done about it


class Stage(TrainingTask, Protocol):
    """What one training has that others have not: a module with its loss, how it is judged, and what is kept of it."""

    def measure(self, scenes: Scenes) -> Measured:
        """How good the module is, as validation and the final test take it."""

    def locate(self, scenes: Scenes) -> tuple[CovarianceEstimate, list[Sources]]:
        """Estimate and sources of a few scenes."""

    def save(self, folder: Path, card: dict[str, Any], figures: Figures) -> None:
        """Write the model folder."""


class TrainingRun:
    """One run of a trainer in a folder: metrics, checkpoints and what it ends with."""

    def __init__(self, config: RunOptions, folder: Path, trainer: Trainer, stage: Stage, report: RunReport) -> None:
        self.config, self.folder, self.trainer, self.stage, self.report = config, folder, trainer, stage, report
        self.metrics = MetricsFile(folder / "metrics.jsonl")
        self.checkpoints = CheckpointFolder(folder / "checkpoints", config.machine.keep)
        self.world, self._options = trainer.world, config.validation
        self._sets = validation_sets(config, self._options.seed, self._options.scenes, self.world.device)
        self.best = _Best()  # The best validation so far, and how many have not been better since
        self.seconds = 0.0  # Spent in the run so far, its interruptions left out
        self.latest: Figures = {}  # Figures of the latest validation, by set
        self.notes: list[str] = []  # Damage that was found and what was done about it
        self._fresh, self._rate, self._loss = True, math.nan, math.nan
        self._events: EventFile | None = None

    def resume(self) -> None:
        """Go on from the latest intact checkpoint, or start."""
        found, problems = self.checkpoints.read_latest()
        self._fresh = found is None
        self.notes += [f"{problem}; the checkpoint before it is used" for problem in problems]
        if found is not None:
            with naming(found.path, "a checkpoint of this run"):
                self.trainer.restore(found)
                self.best = _Best(**found.state["best"])
                self.seconds, self.latest = found.state["seconds"], found.state["latest"]
        if self.world.leads:
            self.metrics.cut(-1 if found is None else found.step)
            if self.config.machine.tensorboard:
                self._events = EventFile(self.folder / "events", self.trainer.step)

    def train(self) -> bool:
        """Take steps until the last one, the time limit, or early stopping."""
        config, steps = self.config, self.config.optimiser.steps
        began, seconds_before, first = time.monotonic(), self.seconds, self.trainer.step
        limit = config.machine.minutes * 60
        if self._fresh:  # what the untrained one does is the start of every curve, and the first checkpoint
            self._validate()
            self._save()
        train_time = 0.0
        while self.trainer.step < steps and not (0 < self._options.patience <= self.best.stale):
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

    def _log(self, taken: StepReport) -> None:
        self._loss = taken.loss if math.isnan(self._loss) else 0.9 * self._loss + 0.1 * taken.loss
        if taken.step % self.config.machine.log_every or not self.world.leads:
            return
        means = self.trainer.means.take()
        parts = {name[6:]: means.pop(name) for name in list(means) if name.startswith("parts.")}
        self._record("train", {**means, "parts": parts, "lr": taken.lr, "skipped": self.trainer.skipped})

    def _record(self, kind: str, figures: dict[str, Any]) -> None:
        """A line of metrics, and the same as events."""
        step, seconds = self.trainer.step, round(self.seconds, 2)
        line = {"scenes": self.trainer.scenes, **figures, "seconds": seconds}
        self.metrics.append({"kind": kind, "step": step, **line})
        if self._events is not None:
            self._events.add({kind: line}, step)

    def _validate(self) -> None:
        """Measure the averaged weights on every set; the first process does, the others hear whether to go on."""
        if self.world.agree(self.world.leads and self._measure()):
            raise TrainingError(
                f"the predictions no longer depend on the scene (step {self.trainer.step}): their variance over "
                f"scenes is below a fiftieth of the true covariances' in two validations in a row. The run has "
                "collapsed to a constant; change the backbone or the learning rate, or pass "
                "--validation.stop-constant False to go on regardless"
            )
        self.best.stale = self.world.agree(self.best.stale)  # early stopping ends all processes in the same step

    def _measure(self) -> bool:
        """Whether the run has collapsed to a constant."""
        found: dict[str, Measured] = {}
        with self.trainer.average.in_use():
            for name, scenes in self._sets.items():
                self._tell(f"validating {name}")
                found[name] = self.stage.measure(scenes)
        figures = {name: measured.figures for name, measured in found.items()}
        self.latest = finite_json(figures)
        self._record("validation", {"sets": figures})
        value = self._mean("nmse_mean") if self._options.metric == "nmse" else -self._mean("f1")
        self.best.judge(value, self.trainer.step)
        if not self._options.stop_constant or self.trainer.step == 0:  # an untrained one may well be constant
            return False
        self.best.constant = self.best.constant + 1 if all(measured.constant for measured in found.values()) else 0
        return self.best.constant >= 2

    def _mean(self, name: str) -> float:
        known = [figures[name] for figures in self.latest.values() if figures.get(name) is not None]
        return sum(known) / len(known) if known else math.nan

    def _save(self) -> None:
        if not self.world.leads:
            return
        self.metrics.sync()
        own = {"best": vars(self.best), "seconds": self.seconds, "latest": self.latest}
        state, protect = {**self.trainer.state(), **own}, frozenset({self.best.step})
        self.checkpoints.save(self.trainer.step, self.trainer.tensors(), state, protect)

    def _tell(self, note: str = "") -> None:
        nmse, f1, steps = self._mean("nmse_mean"), self._mean("f1"), self.config.optimiser.steps
        self.report(RunProgress(self.trainer.step, steps, self._loss, nmse, f1, self._rate, note))

    def _use_best(self) -> int:
        """Put the averaged weights of the best checkpoint into the module."""
        step = self.best.step if self.best.step >= 0 else self.trainer.step
        checkpoint = self.checkpoints.read(step)
        with torch.no_grad():
            own = dict(self.stage.module.named_parameters())
            self.stage.module.load_state_dict(dict(checkpoint.tensors["weights"]))
            for name, value in checkpoint.tensors["average"].items():
                own[name].copy_(value)
        return step

    def finish(self, complete: bool) -> RunOutcome:
        """Test the best weights, and write the model, its card, the curves and the pictures."""
        best_step, config, options = self._use_best(), self.config, self._options
        folder, device = self.folder, self.world.device
        tests = validation_sets(config, options.test_seed, options.test_scenes, device) if options.test_scenes else {}
        figures = {name: self.stage.measure(scenes).figures for name, scenes in tests.items()}
        self.stage.save(folder / "model", self._card(best_step, figures), figures)
        pictures = {"curves": folder / "curves.png", "localisation": folder / "localisation.png"}
        draw_curves(self.metrics.read(), pictures["curves"])
        scenes = _pictured(config, device)
        self.stage.module.eval()
        with torch.no_grad():
            estimate, sources = self.stage.locate(scenes)
        draw_localisation(scenes, estimate, sources, config.system.setup(), config.pipeline, pictures["localisation"])
        step, steps = self.trainer.step, config.optimiser.steps
        return RunOutcome(complete, step, steps, best_step, figures, folder / "model", pictures, self.notes)

    def _card(self, best_step: int, figures: Figures) -> dict[str, Any]:
        """What made the model, and how good it is."""
        options = self._options
        return {
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "training": as_table(self.config),
            "trained": {
                "steps": self.trainer.step,
                "scenes": self.trainer.scenes,
                "best_step": best_step,
                "seconds": round(self.seconds, 1),
                "device": str(self.world.device),
                "processes": self.world.size,
                "skipped_steps": self.trainer.skipped,
            },
            "parameters": sum(p.numel() for p in self.stage.module.parameters()),
            "test": {"scenes": options.test_scenes, "seed": options.test_seed, "sets": figures},
        }


def _pictured(config: RunOptions, device: torch.device) -> Scenes:
    """Test scenes to draw: picked by their SNR alone, the clearest first, before anything is found in them."""
    options = config.validation
    scenes = validation_scenes(config, options.snapshots[-1], options.test_seed, _PICTURED, device)
    order = scenes.snr_db.argsort(descending=True)
    return scene_slice(scenes, order[[0, _PICTURED // 2, -1]])


def train_stage(
    config: RunOptions, folder: Path, report: RunReport, make: Callable[[World], Stage]
) -> RunOutcome | None:
    """Train what ``make`` makes, or go on with a run that was interrupted."""
    machine, data, options = config.machine, config.data, config.optimiser
    with open_world(machine.device) as world, machine_settings(machine.threads, machine.deterministic):
        stage, source = make(world), _scene_source(config)
        check_moves(stage.module, config.optimiser)
        with open_folder(folder, config) if world.leads else nullcontext():
            trainer = Trainer(stage, source, data, options, world, config.seed, scaled=machine.amp == "fp16")
            run = TrainingRun(config, folder, trainer, stage, report)
            run.resume()
            complete = run.train()
            return run.finish(complete) if world.leads else None


def _scene_source(config: RunOptions) -> SceneSource:
    """Scenes made on the fly, or those of a folder of shards."""
    data, judged_on = config.data, (config.validation.seed, config.validation.test_seed)
    system = partial(config.system.system, code_kinds=data.code_kinds)
    if data.source == "fly":
        return FlySource(system, data.seed)
    return ShardSource(Path(data.source), system, data.snapshots, judged_on)
