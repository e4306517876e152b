"""The training commands: they do what they say, and errors are one line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from risfast.cli import main, parse
from risfast.cli.training import progress_note
from risfast.io.toml_file import read_toml
from risfast.models import build_backbone
from risfast.models.files import load_model
from risfast.simulate.shards import ShardSet
from risfast.train.config import DataOptions, RunConfig, ValidationOptions
from risfast.train.runs import RunProgress

SYSTEM = ["--system.n-h", "8", "--system.n-v", "6", "--system.n-antennas", "8", "--system.n-sources", "1", "2"]
BACKBONE = [
    *("--backbone.options", "steps=3", "width=8", "head_width=8", "columns=16"),
    *("axes.n_azimuth=15", "axes.n_elevation=9", "axes.n_range=6"),
]
SHORT = [
    *("--optimiser.steps", "4", "--optimiser.batch-size", "4", "--optimiser.warmup", "1"),
    *("--data.snapshots", "8", "--data.weights", "1", "--validation.snapshots", "8", "--validation.scenes", "4"),
    *("--validation.every", "2", "--validation.capon-scenes", "1", "--pipeline.map.points-per-beam", "6"),
    *("--validation.test-scenes", "4", "--machine.log-every", "1", "--machine.threads", "1"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main(["backbone", "--output", str(folder), *SYSTEM, *BACKBONE, *SHORT]) == 0
    return folder


def test_backbone_ends_with_a_table_and_files(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The same command again trains nothing more and shows the table once more.
    assert main(["backbone", "--output", str(run), *SYSTEM, *BACKBONE, *SHORT]) == 0
    shown = capsys.readouterr()
    assert "4 steps" in shown.out
    for word in (
        "NMSE mean",
        "F1",
        "precision",
        "recall",
        "range RMSE",
        "L8",
        "curves.png",
        "localisation.png",
        "model",
    ):
        assert word in shown.out
    assert (run / "curves.png").is_file()
    assert (run / "localisation.png").is_file()
    module, card = load_model(run / "model", build_backbone)
    assert card["options"]["axes"]["n_azimuth"] == 15
    assert sum(p.numel() for p in module.parameters()) == card["parameters"]


def test_the_resolved_configuration_repeats_the_run(run: Path, tmp_path: Path) -> None:
    assert read_toml(RunConfig, run / "config.toml").backbone.options["axes"] == {
        "n_azimuth": 15,
        "n_elevation": 9,
        "n_range": 6,
    }
    assert main(["backbone", "--config", str(run / "config.toml"), "--output", str(tmp_path / "again")]) == 0
    one, two = ((folder / "model" / "model.safetensors").read_bytes() for folder in (run, tmp_path / "again"))
    assert one == two


def test_an_option_wins_over_the_file(run: Path, tmp_path: Path) -> None:
    given = ["backbone", "--config", str(run / "config.toml"), "--output", str(tmp_path / "r"), "--minutes", "0.0001"]
    assert main([*given, "--optimiser.lr", "0.005"]) == 0
    config = read_toml(RunConfig, tmp_path / "r" / "config.toml")
    assert (config.optimiser.lr, config.machine.minutes, config.optimiser.steps) == (0.005, 0.0001, 4)


def test_a_run_that_ran_out_of_time_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["backbone", "--output", str(tmp_path / "run"), *SYSTEM, *BACKBONE, *SHORT]
    assert main([*command, "--minutes", "0.00001"]) == 0
    assert "the same command goes on" in capsys.readouterr().out
    assert main(command) == 0
    assert "4 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbone.name", "resnet"], "unrolled, transformer"),
        (["--backbone.options", "stages=3"], "unknown field"),
        (["--machine.device", "cuda"], "no CUDA device"),
        (["--data.source", "nowhere"], "manifest.json: missing"),
        (["--config", "nowhere.toml"], "nowhere.toml"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_model(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if message == "no CUDA device" and torch.cuda.is_available():
        pytest.skip("this machine has one")
    assert main(["backbone", "--output", str(tmp_path / "run"), *arguments]) == 2
    err = capsys.readouterr().err.strip()
    assert message in err
    assert len(err.splitlines()) == 1
    assert err.startswith("risfast backbone: ")
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimiser.rate", "1"], "--optimiser.rate"),
        (["--optimiser.steps", "few"], "few"),
        (["stray"], "stray"),
        (["--backbone.options", "steps"], "NAME=VALUE"),
        (["--optimiser.lr", "-1"], "min_lr <= lr"),
        (["--data.seed", str(ValidationOptions().seed)], "must differ"),
        (["--optimiser.accumulation", "3"], "cannot be divided"),
    ],
)
def test_options_that_cannot_be_met_end_with_status_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["backbone", "--output", str(tmp_path / "run"), *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("risfast backbone: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "run").exists()


def test_debug_shows_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backbone", "--debug", "--output", str(tmp_path), "--backbone.name", "resnet"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_interruption_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("risfast.train.backbone.train_backbone", interrupt)
    assert main(["backbone", "--output", str(tmp_path / "run")]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_shards_are_made_once_and_trained_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["shards", "--output", str(tmp_path / "data"), *SYSTEM, "--snapshots", "8", "--shard-size", "5"]
    command += ["--train", "12", "--val", "3", "--test", "0"]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "train" in shown.out
    assert "12 scenes" in shown.out
    assert "train L8: 12/12" in shown.err
    made = ShardSet(tmp_path / "data" / "train" / "L8")
    assert (len(made), made.seed) == (12, DataOptions().seed)
    assert len(ShardSet(tmp_path / "data" / "val" / "L8")) == 3
    assert not (tmp_path / "data" / "test").exists()
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*.npy"))
    assert main(command) == 0
    assert sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*.npy")) == before
    source = ["--data.source", str(tmp_path / "data")]
    assert main(["backbone", "--output", str(tmp_path / "run"), *SYSTEM, *BACKBONE, *SHORT, *source]) == 0
    capsys.readouterr()
    other = ["--output", str(tmp_path / "other"), "--system.n-sources", "1", "3"]
    assert main(["backbone", *SYSTEM[:-3], *other, *BACKBONE, *SHORT, *source]) == 2
    assert "another system: n_sources" in capsys.readouterr().err


def test_shards_without_scenes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shards", "--output", str(tmp_path), "--train", "0", "--val", "0", "--test", "0"]) == 2
    assert "make no scenes" in capsys.readouterr().err


def test_the_default_backbone_passes_the_overfit_gate_in_small(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--scenes", "16", "--batch-size", "8", "--steps", "120", "--every", "30", "--lr", "0.01"]
    assert main(["overfit", "--output", str(tmp_path), *SYSTEM, *BACKBONE, *small, "--threads", "1"]) == 0
    assert "below the gate of 0.1" in capsys.readouterr().out
    assert json.loads((tmp_path / "overfit.json").read_text())["nmse_mean"] < 0.1


def test_a_backbone_that_fails_the_gate_ends_with_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    little = ["--scenes", "4", "--batch-size", "4", "--steps", "1", "--gate", "1e-6"]
    assert main(["overfit", "--output", str(tmp_path), *SYSTEM, *BACKBONE, *little]) == 1
    assert "NOT below the gate" in capsys.readouterr().out


def test_what_is_known_stands_beside_the_bar() -> None:
    nothing = RunProgress(0, 600, math.nan, math.nan, math.nan, math.nan, "validating L16")
    assert progress_note(nothing) == "validating L16"
    there = RunProgress(60, 600, 0.51234, 0.2, 0.634, 17.25)
    assert progress_note(there) == "loss 0.5123  NMSE 0.200  F1 0.634  scenes/s 17.2"


def test_short_options_stand_for_the_longer_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("risfast.train.backbone.train_backbone", lambda config, *_: seen.append(config))
    assert main(["backbone", "--run", str(tmp_path), "--minutes", "3", "--device", "cuda"]) == 0
    assert (seen[0].machine.minutes, seen[0].machine.device) == (3, "cuda")


def test_older_spellings_are_the_same_options(tmp_path: Path) -> None:
    for command in ("backbone", "shards"):
        assert parse(command, ["--run=a", "--debug"]) == parse(command, ["--output", "a", "--verbose"])


def test_an_overfit_result_is_replaced_only_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "overfit.json").write_text("mine")
    little = ["--scenes", "4", "--batch-size", "4", "--steps", "1", "--gate", "1e9"]
    command = ["overfit", "--output", str(tmp_path), *SYSTEM, *BACKBONE, *little]
    assert main(command) == 2
    assert "overfit.json exists: give another --output, or --overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    assert json.loads((tmp_path / "overfit.json").read_text())["passed"]
