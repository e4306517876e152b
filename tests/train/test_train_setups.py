"""Trainings on systems that are not the reference's: atoms, maps and scores follow the setup."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
from tiny_backbone import TINY, build, tiny
from training_process import silent

from risfast.io.options_file import read_options
from risfast.io.toml_file import to_toml
from risfast.localize.localizer import OPTIONS_FILE, Localizer
from risfast.localize.pipeline import MapOptions, PipelineOptions
from risfast.models.atoms import AtomAxes
from risfast.setup import Setup
from risfast.simulate.system_file import SystemOptions
from risfast.train.backbone import made_backbone, train_backbone
from risfast.train.config import (
    BackboneOptions,
    DataOptions,
    MachineOptions,
    OptimiserOptions,
    RunConfig,
    ValidationOptions,
)

WAVEFRONTS = ("fresnel", "planar", "spherical")
SMALL = {"steps": 2, "width": 4, "head_width": 4, "columns": 12}


def config(wavefront: str, steps: int, scenes: int, **parts) -> RunConfig:
    """6 x 6 elements half a wavelength apart; everything else of the system is the reference's."""
    made = RunConfig(
        system=SystemOptions(n_h=6, n_v=6, n_sources=(1, 3), wavefront=wavefront),
        optimiser=OptimiserOptions(steps=steps, warmup=min(steps, 10)),
        validation=ValidationOptions(every=steps, snapshots=(16,), scenes=scenes, capon_scenes=scenes, test_scenes=0),
        machine=MachineOptions(threads=1),
    )
    return dataclasses.replace(made, **parts)


def validations(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["sets"]["L16"] for line in lines if line["kind"] == "validation"]


@pytest.mark.parametrize("wavefront", WAVEFRONTS)
def test_capon_on_the_true_covariance_finds_the_sources_of_any_system(wavefront: str, tmp_path: Path) -> None:
    made = config(wavefront, 3, 6, backbone=BackboneOptions("unrolled", SMALL))
    system = dataclasses.replace(made.system, min_separation_deg=20.0)
    few = PipelineOptions(map=MapOptions(points_per_beam=8.0))
    outcome = train_backbone(dataclasses.replace(made, system=system, pipeline=few), tmp_path / "run", silent)
    assert outcome is not None
    for figures in validations(tmp_path / "run"):
        assert figures["true_capon_f1"] >= 0.98
        assert all(math.isfinite(figures[name]) for name in ("f1", "capon_f1", "nmse_mean"))
    found = Localizer.load(outcome.model)
    assert found.setup == system.setup()
    assert found.options == few
    assert found.backbone.atoms.axes == AtomAxes.of(found.setup)


@pytest.mark.slow
@pytest.mark.parametrize("wavefront", WAVEFRONTS)
def test_sixty_steps_beat_the_untrained_fit_on_any_system(wavefront: str, tmp_path: Path) -> None:
    train_backbone(config(wavefront, 60, 64), tmp_path / "run", silent)
    before, after = validations(tmp_path / "run")
    assert after["true_capon_f1"] >= 0.98
    assert after["nmse_mean"] < before["nmse_mean"]
    assert after["capon_f1"] > before["capon_f1"]


def test_the_atoms_follow_the_region_of_the_system_and_at_home_are_as_ever() -> None:
    home = AtomAxes.of(SystemOptions().setup())
    assert home == AtomAxes()
    assert home.shape == (25, 15, 10)
    near = SystemOptions(n_h=5, n_v=4, range_m=(0.3, 3.0), azimuth_deg=(-20.0, 40.0)).setup()
    axes = made_backbone(BackboneOptions("unrolled", SMALL), near).atoms.axes
    assert axes.region == near.region
    assert axes == AtomAxes.of(near)


def test_axes_that_are_given_win_within_the_region_and_what_they_leave_out_follows_it() -> None:
    near = SystemOptions(n_h=5, n_v=4, range_m=(0.3, 3.0)).setup()
    options = {**SMALL, "axes": {"n_azimuth": 5, "range_m": [0.5, 2.0]}}
    axes = made_backbone(BackboneOptions("unrolled", options), near).atoms.axes
    assert axes == dataclasses.replace(AtomAxes.of(near), n_azimuth=5, range_m=(0.5, 2.0))
    for beyond in ({"range_m": [0.5, 10.0]}, {"azimuth_rad": [-1.2, 1.0]}, {"elevation_rad": 0.6}):
        with pytest.raises(ValueError, match="sources of the system come from"):
            made_backbone(BackboneOptions("unrolled", {**SMALL, "axes": beyond}), near)


def test_options_are_kept_with_the_model_where_they_are_not_the_defaults(tmp_path: Path) -> None:
    chosen = tiny(optimiser={"steps": 1, "warmup": 0}, validation={"capon_scenes": 0, "test_scenes": 0})
    outcome = train_backbone(chosen, tmp_path / "a", silent, build=build)
    assert outcome is not None
    assert read_options(outcome.model / OPTIONS_FILE) == TINY.pipeline
    assert Setup.from_json(json.loads((outcome.model / "model.json").read_text())["setup"]) == TINY.system.setup()
    usual = dataclasses.replace(chosen, pipeline=PipelineOptions())
    outcome = train_backbone(usual, tmp_path / "b", silent, build=build)
    assert outcome is not None
    assert not (outcome.model / OPTIONS_FILE).exists()


def test_a_run_of_an_earlier_version_is_refused_with_the_command_that_begins_it_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    earlier = to_toml(TINY).split("[pipeline")[0].replace("capon_scenes", 'capon_grid = "training"\ncapon_scenes')
    (folder / "config.toml").write_text(earlier)
    with pytest.raises(
        ValueError, match=r"earlier version.*`risfast backbone --config .*config\.toml --output FOLDER`"
    ):
        train_backbone(TINY, folder, silent, build=build)
    assert [p.name for p in folder.iterdir()] == ["config.toml"]


def test_weights_of_another_region_are_a_start_and_those_of_another_array_are_not(tmp_path: Path) -> None:
    chosen = config("spherical", 1, 2, backbone=BackboneOptions("unrolled", SMALL))
    chosen = dataclasses.replace(
        chosen,
        data=DataOptions(snapshots=(4,), weights=(1.0,)),
        optimiser=OptimiserOptions(steps=1, warmup=0, batch_size=2),
        validation=dataclasses.replace(chosen.validation, capon_scenes=0),
    )
    first = train_backbone(chosen, tmp_path / "first", silent)
    assert first is not None
    again = dataclasses.replace(
        chosen,
        backbone=dataclasses.replace(chosen.backbone, weights=str(first.model)),
        system=dataclasses.replace(chosen.system, range_m=(0.3, 2.0)),
    )
    second = train_backbone(again, tmp_path / "second", silent)
    assert second is not None
    assert Localizer.load(second.model).setup.region.range_m == (0.3, 2.0)
    other = dataclasses.replace(again, system=dataclasses.replace(again.system, n_h=7))
    with pytest.raises(ValueError, match="another array"):
        train_backbone(other, tmp_path / "other", silent)
