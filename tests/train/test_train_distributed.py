"""Several processes, or a batch in several parts, learn what one process learns from the whole batch."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_backbone import TinyBackbone, build
from training_process import SAME, silent

from risfast.losses import BackboneObjective, ObjectiveOptions
from risfast.models import build_backbone
from risfast.setup import Setup
from risfast.train.backbone import backbone_objective, train_backbone
from risfast.train.batches import FlySource, plan_batch
from risfast.train.config import RunConfig
from risfast.train.distributed import World, open_world
from risfast.train.loop import BackboneTask, Trainer

PROCESS = Path(__file__).parents[1] / "helpers" / "training_process.py"
# Sums of 8 scenes in another order, in float32: a few units of the last place of the loss, and what twelve steps of
# AdamW, which divides by the size of the gradient, make of it.
ROUNDING = 1e-5


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    train_backbone(SAME, folder, silent, build=build)
    return folder


def start_processes(count: int, folder: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROCESS.parent)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    done = subprocess.run(
        [*command, str(PROCESS), "same", str(folder)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_two_processes_learn_what_one_learns(alone: Path, tmp_path: Path) -> None:
    start_processes(2, tmp_path / "run")
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), rel=ROUNDING)
    one, two = (load_file(folder / "model" / "model.safetensors") for folder in (alone, tmp_path / "run"))
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)
    card = json.loads((tmp_path / "run" / "model" / "model.json").read_text())
    assert card["trained"]["processes"] == 2


def small_unrolled(setup: Setup) -> torch.nn.Module:
    axes = {"n_azimuth": 7, "n_elevation": 5, "n_range": 4}
    return build_backbone("unrolled", setup, {"steps": 2, "width": 4, "head_width": 4, "columns": 8, "axes": axes})


@pytest.mark.parametrize("make", [lambda setup: TinyBackbone(setup, dropout=0.0), small_unrolled])
def test_a_batch_in_parts_gives_the_gradient_of_the_whole(make: Callable[[Setup], torch.nn.Module]) -> None:
    data = SAME.data
    setup = SAME.system.setup()
    source = FlySource(lambda n: SAME.system.system(n, data.code_kinds), data.seed)

    def first_gradient(parts: int) -> tuple[float, list[torch.Tensor]]:
        torch.manual_seed(0)
        module = make(setup)
        options = dataclasses.replace(SAME.optimiser, accumulation=parts)
        task = BackboneTask(module, backbone_objective(ObjectiveOptions(), module))
        trainer = Trainer(task, source, data, options, World())
        figures = trainer._gradients(plan_batch(data, options.batch_size, 0))
        return figures["loss"], [p.grad for p in module.parameters() if p.grad is not None]

    loss, whole = first_gradient(1)
    for parts in (2, 4, 8):
        other, summed = first_gradient(parts)
        assert other == pytest.approx(loss, rel=1e-6)
        one, two = (torch.cat([g.flatten() for g in gradients]) for gradients in (whole, summed))
        assert float((one - two).norm()) <= 1e-5 * float(one.norm())


def test_a_batch_that_cannot_be_divided_is_refused() -> None:
    module = TinyBackbone(SAME.system.setup())
    source = FlySource(lambda n: SAME.system.system(n, SAME.data.code_kinds), 0)
    with pytest.raises(ValueError, match="8 cannot be divided by 3 processes"):
        Trainer(BackboneTask(module, BackboneObjective()), source, SAME.data, SAME.optimiser, World(size=3))


def test_one_process_exchanges_nothing() -> None:
    world = World()
    parameter = torch.nn.Parameter(torch.zeros(2))
    figures = torch.tensor([1.0, 2.0]).double()
    assert world.mean_gradients([parameter], figures) is figures
    assert parameter.grad is None
    assert world.agree(True)
    assert not world.agree(False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="no CUDA device"), open_world("cuda"):
        pass


def test_a_configuration_for_a_gpu_may_use_mixed_precision() -> None:
    machine = dataclasses.replace(RunConfig().machine, device="cuda", amp="bf16")
    assert machine.amp == "bf16"
