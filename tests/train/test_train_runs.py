"""Whole runs in a folder: what they leave, how they go on, and how they end when something is wrong."""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import json
import math
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_backbone import TINY, TinyBackbone, build, tiny
from torch import nn
from training_process import config_of, silent

from risfast.errors import FileFormatError
from risfast.io.durable import OwnedError, finite_json, owned, write_synced
from risfast.losses import Terms
from risfast.models import build_backbone
from risfast.models.base import Measurement
from risfast.models.files import load_model, save_model
from risfast.setup import Setup
from risfast.simulate import generate_scenes
from risfast.train.backbone import train_backbone
from risfast.train.config import RunConfig
from risfast.train.loop import TrainingError
from risfast.train.runs import EventFile, MetricsFile, RunOutcome, RunProgress, _Best, _pictured, validation_scenes

PROCESS = Path(__file__).parents[1] / "helpers" / "training_process.py"


def train(config: RunConfig, folder: Path, **options: Any) -> RunOutcome:
    outcome = train_backbone(
        config, folder, options.pop("report", silent), build=options.pop("build", build), **options
    )
    assert outcome is not None
    return outcome


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Lines of the metrics without what the clock says."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("seconds")
    return lines


def last_tensors(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    last = folder / "checkpoints" / (folder / "checkpoints" / "LATEST").read_text().strip()
    return {path.stem: load_file(path) for path in sorted(last.glob("*.safetensors"))}


def assert_same_run(a: Path, b: Path) -> None:
    """Bit-identical weights, averages and optimiser memory, and the same metrics."""
    left, right = last_tensors(a), last_tensors(b)
    assert left.keys() == right.keys() >= {"weights", "average", "optimiser"}
    for name, group in left.items():
        assert group.keys() == right[name].keys()
        assert all(torch.equal(value, right[name][key]) for key, value in group.items()), name
    assert metrics(a) == metrics(b)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunOutcome, list[RunProgress]]:
    folder = tmp_path_factory.mktemp("run") / "tiny"
    seen: list[RunProgress] = []
    return folder, train(TINY, folder, report=seen.append), seen


def test_a_run_leaves_everything_that_it_promises(finished: tuple[Path, RunOutcome, list[RunProgress]]) -> None:
    folder, outcome, seen = finished
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert names >= {
        "config.toml",
        "environment.json",
        "metrics.jsonl",
        "curves.png",
        "localisation.png",
        "model/model.json",
        "model/model.safetensors",
        "checkpoints/LATEST",
    }
    assert not any(name.startswith(".") or ".tmp" in name for name in names)
    assert (outcome.complete, outcome.step, outcome.steps) == (True, 12, 12)
    assert outcome.figures.keys() == {"L6"}
    assert set(json.loads((folder / "environment.json").read_text())) >= {"risfast", "torch", "python", "device"}
    assert seen[-1].step == 12
    assert all(math.isfinite(v) for v in (seen[-1].loss, seen[-1].nmse, seen[-1].f1, seen[-1].scenes_per_s))


def test_the_metrics_tell_of_every_interval_and_validation(
    finished: tuple[Path, RunOutcome, list[RunProgress]],
) -> None:
    lines = metrics(finished[0])
    assert [line["step"] for line in lines if line["kind"] == "validation"] == [0, 4, 8, 12]
    steps = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in steps] == [3, 6, 9, 12]
    assert all(math.isfinite(line["loss"]) and line["scenes"] == 8 * line["step"] for line in steps)
    assert all(line["parts"]["nmse"] == pytest.approx(line["loss"]) for line in steps)
    assert lines[0]["sets"]["L6"].keys() >= {
        "nmse_mean",
        "nmse_median",
        "correlation",
        "f1",
        "capon_f1",
        "true_capon_f1",
    }


def test_the_model_is_the_best_average_and_says_what_made_it(
    finished: tuple[Path, RunOutcome, list[RunProgress]],
) -> None:
    folder, outcome, _ = finished
    module, card = load_model(outcome.model, build)
    assert card["name"] == "tiny"
    assert card["trained"]["best_step"] == outcome.best_step
    assert card["training"]["optimiser"]["lr"] == TINY.optimiser.lr
    assert card["test"]["sets"] == finite_json(outcome.figures)
    best = folder / "checkpoints" / f"ckpt-{outcome.best_step:08d}" / "average.safetensors"
    average = load_file(best)
    assert all(torch.equal(p, average[name]) for name, p in module.named_parameters())
    values = {line["step"]: line["sets"]["L6"]["nmse_mean"] for line in metrics(folder) if line["kind"] == "validation"}
    assert outcome.best_step == min(values, key=lambda step: values[step])


def test_training_lowers_the_error_on_unseen_scenes(finished: tuple[Path, RunOutcome, list[RunProgress]]) -> None:
    values = [line["sets"]["L6"]["nmse_mean"] for line in metrics(finished[0]) if line["kind"] == "validation"]
    assert min(values[1:]) < values[0]


def test_the_same_command_again_changes_nothing(
    finished: tuple[Path, RunOutcome, list[RunProgress]], tmp_path: Path
) -> None:
    folder, outcome, _ = finished
    before = last_tensors(folder)
    again = train(TINY, folder)
    assert finite_json(again.figures) == finite_json(outcome.figures)
    assert all(torch.equal(v, last_tensors(folder)[n][k]) for n, g in before.items() for k, v in g.items())


def test_a_run_stopped_by_the_time_limit_goes_on_as_if_it_had_not_been(
    finished: tuple[Path, RunOutcome, list[RunProgress]], tmp_path: Path
) -> None:
    config = tiny(machine={"minutes": 1e-6})
    stopped = train(config, tmp_path / "run")
    assert (stopped.complete, stopped.step) == (False, 1)
    assert not train(config, tmp_path / "run").complete
    assert train(TINY, tmp_path / "run").complete
    assert_same_run(tmp_path / "run", finished[0])


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


@pytest.mark.parametrize("at", [1, 2, 5, 7, 11])
def test_an_interrupted_run_goes_on_bit_for_bit(
    at: int, finished: tuple[Path, RunOutcome, list[RunProgress]], tmp_path: Path
) -> None:
    def die(progress: RunProgress) -> None:
        if progress.step == at and not progress.note:
            raise Killed

    with pytest.raises(Killed):
        train(TINY, tmp_path / "run", report=die)
    torch.rand(3)  # the global generator has moved on
    train(TINY, tmp_path / "run")
    assert_same_run(tmp_path / "run", finished[0])


def test_a_damaged_checkpoint_is_named_and_the_run_ends_the_same(
    finished: tuple[Path, RunOutcome, list[RunProgress]], tmp_path: Path
) -> None:
    def die(progress: RunProgress) -> None:
        if progress.step == 9:
            raise Killed

    with pytest.raises(Killed):
        train(TINY, tmp_path / "run", report=die)
    damaged = tmp_path / "run" / "checkpoints" / "ckpt-00000008" / "optimiser.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-3])
    outcome = train(TINY, tmp_path / "run")
    assert len(outcome.notes) == 1
    assert str(damaged) in outcome.notes[0]
    assert_same_run(tmp_path / "run", finished[0])


def run_process(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(PROCESS), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_instants_ends_with_the_same_bits(tmp_path: Path, kills: int) -> None:
    run_process("kill", str(tmp_path), str(kills), "4")
    assert metrics(tmp_path / "whole")[-1]["step"] == config_of(kills).optimiser.steps
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_second_process_in_a_folder_is_refused_and_changes_nothing(tmp_path: Path, rounds: int) -> None:
    run_process("both", str(tmp_path), str(rounds), "5")
    for number in range(rounds):
        assert_same_run(tmp_path / "whole", tmp_path / str(number))


def test_another_configuration_is_refused_by_the_options_that_differ(
    finished: tuple[Path, RunOutcome, list[RunProgress]],
) -> None:
    with pytest.raises(ValueError, match=r"optimiser\.lr, system\.wavelength_m"):
        train(tiny(optimiser={"lr": 1e-3}, system={"wavelength_m": 0.25}), finished[0])


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        train(TINY, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(OSError, match=r"thesis\.txt"):
        train(TINY, tmp_path / "thesis.txt" / "run")


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    train(tiny(optimiser={"steps": 4}, machine={"minutes": 1e-6}), tmp_path / "run")

    def wider(name: str, setup: Setup, options: dict[str, Any] | None = None) -> nn.Module:
        return build(name, setup, {"width": 9})

    with pytest.raises(ValueError, match=r"another architecture: hidden\.bias"):
        train(tiny(optimiser={"steps": 4}), tmp_path / "run", build=wider)


def test_a_disk_that_fills_up_ends_the_run_and_with_room_it_goes_on(
    finished: tuple[Path, RunOutcome, list[RunProgress]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        if "00000008" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_synced(path, data)

    with monkeypatch.context() as patch:
        patch.setattr("risfast.train.checkpoints.write_synced", full)
        with pytest.raises(OSError, match=r"checkpoint of step 8: No space left"):
            train(TINY, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "LATEST").read_text().strip() < "ckpt-00000008"
    assert not (tmp_path / "run" / "model").exists()
    train(TINY, tmp_path / "run")
    assert_same_run(tmp_path / "run", finished[0])


def test_more_sources_than_the_backbone_has_room_for_are_refused(tmp_path: Path) -> None:
    small = {"n_antennas": 4, "width": 8, "n_heads": 1, "n_layers": 1, "hidden": 8, "column_width": 4}
    config = tiny(backbone={"name": "transformer", "options": {**small, "max_sources": 1}})
    with pytest.raises(ValueError, match=r"system\.n_sources goes up to 2.* max_sources=2"):
        train(config, tmp_path / "run", build=build_backbone)
    assert not (tmp_path / "run").exists()


def test_the_scenes_that_are_drawn_are_the_clearest_a_middling_and_the_faintest() -> None:
    options = TINY.validation
    every = validation_scenes(TINY, options.snapshots[-1], options.test_seed, 16, torch.device("cpu"))
    snr = _pictured(TINY, torch.device("cpu")).snr_db
    assert len(snr) == 3
    assert snr[0] == every.snr_db.max()
    assert snr[2] == every.snr_db.min()
    assert snr[2] < snr[1] < snr[0]


def test_a_backbone_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="backbone must be"):
        train(tiny(backbone={"name": "resnet"}), tmp_path / "run")


def test_a_collapsed_backbone_is_stopped_with_a_reason(tmp_path: Path) -> None:
    config = tiny(backbone={"options": {"constant": True, "dropout": 0.0}})
    with pytest.raises(TrainingError, match="no longer depend on the scene"):
        train(config, tmp_path / "run")
    # two validations after the start, in the first ten steps of any length of run
    assert [line["step"] for line in metrics(tmp_path / "run") if line["kind"] == "validation"] == [0, 4, 8]
    going_on = dataclasses.replace(config, validation=dataclasses.replace(config.validation, stop_constant=False))
    assert train(going_on, tmp_path / "again").complete


def test_early_stopping_ends_a_run_that_no_longer_improves(tmp_path: Path) -> None:
    config = tiny(
        optimiser={"lr": 1e-30, "min_lr": 0.0, "steps": 100},
        validation={"every": 1, "patience": 3, "capon_scenes": 0},
    )
    outcome = train(config, tmp_path / "run")
    lines = [line for line in metrics(tmp_path / "run") if line["kind"] == "validation"]
    assert 3 <= lines[-1]["step"] < 10
    assert outcome.best_step == lines[-1]["step"]  # nothing was better, and of equal ones the last has learned most
    assert outcome.complete
    assert train(config, tmp_path / "run").step == outcome.step  # and does not start again


class BadObjective:
    """Covariance error, multiplied by ``bad`` in some steps."""

    def __init__(self, bad: float, steps: range) -> None:
        self.bad, self.steps, self.step = bad, steps, 0

    def __call__(self, estimate: Any, scenes: Any) -> Terms:
        self.step += 1
        error = (estimate.factor - 1).abs().square().mean()
        return Terms(error * self.bad if self.step in self.steps else error, {})


def test_a_step_without_a_finite_gradient_is_skipped_and_counted(tmp_path: Path) -> None:
    objective = BadObjective(math.nan, range(5, 8))
    assert train(TINY, tmp_path / "run", objective=objective).complete
    counts = {line["step"]: line["skipped"] for line in metrics(tmp_path / "run") if line["kind"] == "train"}
    assert counts == {3: 0, 6: 2, 9: 3, 12: 3}


@pytest.mark.parametrize(("bad", "message"), [(math.nan, "not finite"), (math.inf, "not finite"), (0.0, "zero")])
def test_too_many_bad_steps_end_the_run_with_the_good_checkpoint(bad: float, message: str, tmp_path: Path) -> None:
    config = tiny(optimiser={"max_skipped": 3})
    with pytest.raises(TrainingError, match=f"{message}.* in 3 steps in a row, up to step 9"):
        train(config, tmp_path / "run", objective=BadObjective(bad, range(7, 100)))
    kept = last_tensors(tmp_path / "run")["weights"]
    assert all(bool(value.isfinite().all()) for value in kept.values())
    # and with the fault mended it goes on from there to its end
    assert train(config, tmp_path / "run", objective=BadObjective(1.0, range(0))).complete


def test_a_loss_that_diverges_ends_the_run(tmp_path: Path) -> None:
    config = tiny(
        optimiser={"steps": 200, "lr": 30.0, "averaging": "none"},
        validation={"stop_constant": False, "capon_scenes": 0},
    )
    with pytest.raises(TrainingError, match=r"diverged|not finite|zero"):
        train(config, tmp_path / "run", objective=BadObjective(1.0, range(0)))
    latest = last_tensors(tmp_path / "run")
    assert all(bool(value.isfinite().all()) for value in latest["weights"].values())


def test_a_run_can_start_from_the_weights_of_another(
    finished: tuple[Path, RunOutcome, list[RunProgress]], tmp_path: Path
) -> None:
    model = finished[1].model
    config = tiny(
        backbone={"weights": str(model)},
        optimiser={"steps": 1, "warmup": 0, "lr": 1e-12, "min_lr": 0.0, "averaging": "none"},
    )
    train(config, tmp_path / "run")
    earlier = load_file(model / "model.safetensors")
    now = last_tensors(tmp_path / "run")["weights"]
    assert all(torch.allclose(now[name], value, atol=1e-9) for name, value in earlier.items())
    with pytest.raises(ValueError, match="another array"):
        train(dataclasses.replace(config, system=dataclasses.replace(config.system, n_h=5)), tmp_path / "other")


def test_a_loaded_model_answers_as_the_one_that_was_saved(tmp_path: Path) -> None:
    setup = TINY.system.setup()
    torch.manual_seed(3)
    module = TinyBackbone(setup, width=5).eval()
    save_model(tmp_path / "m", "tiny", module.state_dict(), setup, module.options(), {"test": {"f1": math.nan}})
    loaded, card = load_model(tmp_path / "m", build, setup=setup)
    assert card["test"] == {"f1": None}
    scenes = generate_scenes(TINY.system.system(6, ("random",)), 0, range(3))
    with torch.no_grad():
        assert torch.equal(loaded(Measurement.of(scenes)).factor, module(Measurement.of(scenes)).factor)


@pytest.mark.parametrize("damage", ["weights", "card", "no weights", "no card", "format"])
def test_a_damaged_model_is_refused_by_file(damage: str, tmp_path: Path) -> None:
    setup = TINY.system.setup()
    module = TinyBackbone(setup)
    save_model(tmp_path, "tiny", module.state_dict(), setup, module.options(), {})
    weights, card = tmp_path / "model.safetensors", tmp_path / "model.json"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    {
        "weights": lambda: weights.write_bytes(data),
        "card": lambda: card.write_text("{"),
        "no weights": weights.unlink,
        "no card": card.unlink,
        "format": lambda: card.write_text(card.read_text().replace('"format": 3', '"format": 7')),
    }[damage]()
    with pytest.raises(FileFormatError, match=r"model\.safetensors" if "weights" in damage else r"model\.json"):
        load_model(tmp_path, build)


def test_a_folder_that_another_process_works_in_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    config, folder = tiny(optimiser={"steps": 4}), tmp_path / "run"
    train(config, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with owned(folder):
        for changed in (config, tiny(optimiser={"steps": 4}, machine={"log_every": 2})):
            with pytest.raises(OwnedError, match=rf"at work in another process \(host .* pid {os.getpid()}\)"):
                train(changed, folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    train(config, folder)
    steps = [(line["kind"], line["step"]) for line in MetricsFile(folder / "metrics.jsonl").read()]
    assert len(steps) == len(set(steps))


def test_tensorboard_events_are_written_or_the_missing_package_is_named(tmp_path: Path) -> None:
    config = tiny(machine={"tensorboard": True}, optimiser={"steps": 4})
    if importlib.util.find_spec("tensorboard") is None:
        with pytest.raises(ValueError, match="needs the tensorboard package"):
            train(config, tmp_path / "run")
        return
    train(config, tmp_path / "run")
    assert list((tmp_path / "run" / "events").glob("events.*"))


class Recorder:
    """In place of TensorBoard's writer."""

    def __init__(self, folder: str, purge_step: int) -> None:
        self.purge_step, self.scalars = purge_step, {}

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars[name, step] = value

    def flush(self) -> None:
        pass


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    """The writers that are made, in place of TensorBoard's."""
    module, made = types.ModuleType("torch.utils.tensorboard"), []
    module.SummaryWriter = lambda *how, **more: made.append(Recorder(*how, **more)) or made[-1]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return made


def test_a_run_writes_its_training_and_its_validations_as_events(recorded: list[Recorder], tmp_path: Path) -> None:
    train(tiny(machine={"tensorboard": True}, optimiser={"steps": 4}), tmp_path / "run")
    assert {("train/loss", 3), ("validation/sets/L6/f1", 4)} <= set(recorded[0].scalars)


def test_events_hold_every_finite_figure_by_its_path(recorded: list[Recorder], tmp_path: Path) -> None:
    events = EventFile(tmp_path, 7)
    events.add({"train": {"loss": 0.5, "parts": {"nmse": 1}, "name": "x", "bad": math.nan, "none": None}}, 8)
    assert events._writer.purge_step == 8
    assert events._writer.scalars == {("train/loss", 8): 0.5, ("train/parts/nmse", 8): 1}


def test_of_equal_validations_the_later_is_kept_and_none_is_better() -> None:
    best = _Best()
    for step, value in enumerate((3.0, 2.0, 2.0, math.nan, 2.5, 2.0)):
        best.judge(value, step)
    assert (best.value, best.step, best.stale) == (2.0, 5, 4)
    best.judge(1.0, 6)
    assert (best.value, best.step, best.stale) == (1.0, 6, 0)
