"""Stage 2: the refiner learns, the backbone does not move, and the card says whether it helps."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_process import silent

from risfast.cli import main
from risfast.io.options_file import read_options
from risfast.io.toml_file import read_toml, to_toml
from risfast.localize import Localizer
from risfast.localize.localizer import OPTIONS_FILE, REFINER_FOLDER
from risfast.localize.pipeline import MapOptions, PipelineOptions
from risfast.localize.refiner import RefinedOptions, build_refiner
from risfast.models import build_backbone
from risfast.models.files import _write_card, load_model, read_card, save_model
from risfast.models.pretrained import DEFAULT_MODEL
from risfast.models.refiner import RefinerOptions, SpectrumRefiner
from risfast.setup import Setup
from risfast.simulate import generate_scenes
from risfast.simulate.system_file import SystemOptions
from risfast.sources import Sources
from risfast.train.config import DataOptions, MachineOptions, OptimiserOptions, ValidationOptions
from risfast.train.optimisation import Optimiser
from risfast.train.refiner import RefinerConfig, RefinerStage, helps, install, train_refiner
from risfast.train.runs import RunProgress

SYSTEM = SystemOptions(n_h=6, n_v=5, n_antennas=6, n_sources=(1, 2))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an untrained backbone: the classical fit, with a head that expects sources evenly."""
    folder = tmp_path_factory.mktemp("backbone")
    setup = SYSTEM.setup()
    torch.manual_seed(0)
    options = {"steps": 2, "width": 4, "head_width": 4, "columns": 12}
    options["axes"] = {"n_azimuth": 11, "n_elevation": 7, "n_range": 4}
    made = build_backbone("unrolled", setup, options)
    save_model(folder, "unrolled", made.state_dict(), setup, made.options(), {})
    return folder


def config(backbone: Path, **parts) -> RefinerConfig:
    made = RefinerConfig(
        backbone=str(backbone),
        network=RefinerOptions(channels=(8, 16), dilations=(2,)),
        system=SYSTEM,
        data=DataOptions(snapshots=(6,), weights=(1.0,), code_kinds=("random",)),
        optimiser=OptimiserOptions(steps=6, batch_size=4, warmup=2, lr=3e-3, averaging="none"),
        validation=ValidationOptions(every=3, snapshots=(6,), scenes=4, test_scenes=4, batch_size=4, metric="f1"),
        pipeline=PipelineOptions(map=MapOptions(points_per_beam=8.0)),
        points_per_beam=6.0,
        machine=MachineOptions(log_every=2, checkpoint_every=2, threads=1),
    )
    return dataclasses.replace(made, **parts)


@pytest.fixture(scope="module")
def finished(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refiner") / "run"
    assert train_refiner(config(backbone), folder, silent) is not None
    return folder


def test_a_run_leaves_a_model_that_says_what_it_was_made_for(finished: Path, backbone: Path) -> None:
    module, card = load_model(finished / "model", build_refiner)
    assert isinstance(module, SpectrumRefiner)
    assert card["backbone"]["sha256"] == json.loads((backbone / "model.json").read_text())["sha256"]
    assert card["reading"]["maps"] == ["capon"]
    assert card["helps"] is helps(card["test"]["sets"])
    assert Setup.from_json(card["setup"]) == SYSTEM.setup()
    shape = tuple(map(len, card["grid"].values()))
    assert shape == SYSTEM.setup().search_grid(6.0).shape
    assert read_options(finished / "model" / OPTIONS_FILE) == config(backbone).pipeline
    figures = card["test"]["sets"]["L6"]
    assert {"f1", "own_f1", "capon_f1", "ghosts_per_scene", "own_ghosts_per_scene", "guard_accepts"} <= figures.keys()
    assert (finished / "curves.png").is_file()
    assert (finished / "localisation.png").is_file()


def test_figures_of_the_backbone_do_not_change_while_the_refiner_learns(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    sets = [line["sets"]["L6"] for line in lines if line["kind"] == "validation"]
    assert len(sets) == 3
    for name in ("own_f1", "capon_f1"):
        assert len({figures[name] for figures in sets}) == 1


class Killed(BaseException):
    """Stands for the end of the process."""


def test_an_interrupted_run_goes_on_bit_for_bit(backbone: Path, finished: Path, tmp_path: Path) -> None:
    def die(progress: RunProgress) -> None:
        if progress.step == 5:
            raise Killed

    with pytest.raises(Killed):
        train_refiner(config(backbone), tmp_path / "run", die)
    assert train_refiner(config(backbone), tmp_path / "run", silent) is not None
    last = Path("checkpoints") / "ckpt-00000006" / "weights.safetensors"
    one, two = (load_file(folder / last) for folder in (finished, tmp_path / "run"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("maps", [("capon",), ("capon", "intensity")])
def test_the_loss_falls_and_the_backbone_stays(maps: tuple[str, ...], backbone: Path) -> None:
    chosen = config(backbone, reading=RefinedOptions(maps=maps), network=RefinerOptions(channels=(8, 16)))
    module, _ = load_model(backbone, build_backbone)
    torch.manual_seed(0)
    network = SpectrumRefiner(RefinerOptions(len(maps), (8, 16), (2,)))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    task = RefinerStage(network, module, SYSTEM.setup(), chosen)
    scenes = generate_scenes(SYSTEM.system(6, ("random",)), 0, range(4))
    optimiser = Optimiser(network, dataclasses.replace(chosen.optimiser, steps=80))
    losses = []
    for step in range(80):
        terms = task.loss(scenes, noise_known=True)
        losses.append(float(terms.total.detach()))
        optimiser.backward(terms.total)
        optimiser.step(step)
    assert losses[-1] < 0.6 * losses[0]
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert not module.training
    assert all(p.grad is None for p in module.parameters())


def figures(f1: float, recall: float, ghosts: float, prefix: str = "") -> dict[str, float]:
    return {f"{prefix}f1": f1, f"{prefix}recall": recall, f"{prefix}ghosts_per_scene": ghosts}


@pytest.mark.parametrize(
    ("refined", "expected"),
    [
        ((0.8, 0.7, 0.5), True),  # more F1 than both
        ((0.65, 0.7, 0.2), True),  # at no less recall, fewer ghosts
        ((0.65, 0.5, 0.2), False),  # fewer ghosts, but less recall
        ((0.65, 0.7, 0.6), False),  # more ghosts
    ],
)
def test_it_helps_with_more_f1_or_with_fewer_ghosts_at_no_less_recall(
    refined: tuple[float, float, float], expected: bool
) -> None:
    one = {**figures(*refined), **figures(0.7, 0.6, 0.4, "own_"), **figures(0.5, 0.6, 0.9, "capon_")}
    assert helps({"L16": one}) is expected
    assert helps({"L16": one, "L64": one}) is expected


def test_without_figures_it_is_not_known_to_help() -> None:
    assert helps({}) is False


def test_the_package_holds_no_refiner_whose_own_test_does_not_say_that_it_helps() -> None:
    # The localizer would leave it out: it would be weight without use.
    within = DEFAULT_MODEL / REFINER_FOLDER
    assert not within.exists() or read_card(within)["helps"] is True
    assert (Localizer.from_pretrained().parts.refiner is not None) == within.exists()


def test_a_configuration_survives_toml(backbone: Path, tmp_path: Path) -> None:
    made = config(backbone, reading=RefinedOptions(maps=("capon", "intensity")))
    path = tmp_path / "config.toml"
    path.write_text(to_toml(made))
    assert read_toml(RefinerConfig, path) == made


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"network": RefinerOptions(n_maps=3)}, "n_maps"),
        ({"points_per_beam": 0.0}, "points_per_beam"),
        ({"validation": ValidationOptions()}, "must be f1"),
        ({"data": DataOptions(seed=ValidationOptions().seed)}, "must differ"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts: dict, message: str, backbone: Path) -> None:
    with pytest.raises(ValueError, match=message):
        config(backbone, **parts)


def test_a_backbone_of_another_array_is_refused(backbone: Path, tmp_path: Path) -> None:
    other = dataclasses.replace(SYSTEM, n_h=7)
    with pytest.raises(ValueError, match="another array"):
        train_refiner(config(backbone, system=other), tmp_path / "run", silent)
    assert not (tmp_path / "run").exists()


def test_the_command_says_whether_it_helps(finished: Path, backbone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["refiner", "--run", str(finished), "--config", str(finished / "config.toml")]) == 0
    out = capsys.readouterr().out
    assert "F1 of the backbone's own" in out
    assert "helps" in out or "does not help" in out


def test_the_command_names_a_backbone_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["refiner", "--run", str(tmp_path / "run"), "--backbone", str(tmp_path / "none")]) == 2
    assert "model.json: missing" in capsys.readouterr().err


@pytest.mark.parametrize("helpful", [True, False])
def test_a_refiner_that_helps_stands_behind_its_backbone(
    helpful: bool, finished: Path, backbone: Path, tmp_path: Path
) -> None:
    own, model = tmp_path / "backbone", tmp_path / "refiner"
    shutil.copytree(backbone, own, ignore=shutil.ignore_patterns(REFINER_FOLDER))
    shutil.copytree(finished / "model", model)
    _write_card(model, read_card(model) | {"helps": helpful})
    said = install(model, config(own))
    assert ("does not say that it helps" in said) is not helpful
    assert (Localizer.load(own).parts.refiner is not None) is helpful


def test_a_network_that_no_map_is_believed_of_scores_nothing(backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = SpectrumRefiner(RefinerOptions(channels=(8, 16), dilations=(2,)))
    with torch.no_grad():
        list(network.parameters())[-1].fill_(50.0)  # the last bias: every direction holds a source
    module, _ = load_model(backbone, build_backbone)
    stage = RefinerStage(network, module, SYSTEM.setup(), config(backbone))
    scenes = generate_scenes(SYSTEM.system(6, ("random",)), 3, range(4))
    rows = zip(scenes.position, scenes.power, scenes.mask, strict=True)
    true = [Sources.at(place[mask], power[mask]) for place, power, mask in rows]
    monkeypatch.setattr("risfast.train.refiner.capon_answers", lambda *_: true)
    found = stage.measure(scenes).figures
    assert found["guard_accepts"] == 0
    assert found["f1"] == 0
    assert found["capon_f1"] == 1  # what stands in for it in use does not hide that
