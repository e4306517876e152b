"""Configurations: TOML and back, and every value that cannot be met refused by name."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest
import torch
from tiny_backbone import TINY, tiny

from risfast.errors import FileFormatError
from risfast.geometry import PlanarArray
from risfast.io.toml_file import as_table, from_table, read_toml, to_toml
from risfast.localize.pipeline import CandidateOptions, DecisionOptions, MapOptions, PipelineOptions
from risfast.setup import Setup, Tolerance
from risfast.simulate import SystemConfig
from risfast.simulate.system_file import SystemOptions
from risfast.train.config import DataOptions, MachineOptions, OptimiserOptions, RunConfig, ValidationOptions


@pytest.mark.parametrize(
    "config",
    [
        RunConfig(),
        TINY,
        tiny(
            backbone={"options": {"width": 4, "axes": {"n_azimuth": 3}}}, system={"code_bits": 0, "snr_db": (1.0, 2.5)}
        ),
        dataclasses.replace(
            TINY,
            pipeline=PipelineOptions(
                map=MapOptions(points_per_beam=3.0, blend=0.2),
                candidates=CandidateOptions("capon", own={"threshold": 0.4}),
                decision=DecisionOptions(max_sources=3),
                noise_known=True,
            ),
        ),
    ],
)
def test_a_configuration_survives_toml(config: RunConfig, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config))
    assert read_toml(RunConfig, path) == config


def test_the_table_of_a_configuration_is_what_toml_reads() -> None:
    assert tomllib.loads(to_toml(TINY)) == as_table(TINY)


def test_missing_keys_keep_their_defaults() -> None:
    assert from_table(RunConfig, {"optimiser": {"lr": 1}}) == dataclasses.replace(
        RunConfig(), optimiser=OptimiserOptions(lr=1.0)
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer = {}", "optimizer is not an option"),
        ("[optimiser]\nrate = 1", "optimiser.rate is not an option"),
        ("[optimiser]\nsteps = 1.5", "optimiser.steps must be of type int"),
        ("[optimiser]\nsteps = true", "optimiser.steps must be of type int"),
        ("[optimiser]\nbetas = [0.9]", "optimiser.betas must hold 2 values"),
        ("[optimiser]\naveraging = 'mean'", "optimiser.averaging must be one of ema, swa, none"),
        ("[data]\nsnapshots = 16", "data.snapshots must be a list"),
        ("data = 3", "data must be a table"),
        ("[optimiser]\nlr = -1.0", "lr = -1.0"),
        ("seed = ", "Invalid value"),
        ("[pipeline]\nmaps = {}", "pipeline.maps is not an option"),
        ("[pipeline.map]\nblend = 2.0", "blend must lie in [0, 1]"),
    ],
)
def test_a_wrong_file_is_refused_by_key(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(FileFormatError) as caught:
        read_toml(RunConfig, path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (DataOptions, {"snapshots": ()}, "data.snapshots"),
        (DataOptions, {"snapshots": (0,), "weights": (1.0,)}, "data.snapshots"),
        (DataOptions, {"weights": (1.0,)}, "data.weights"),
        (DataOptions, {"weights": (0.0, 0.0, 0.0)}, "data.weights"),
        (DataOptions, {"noise_known": 1.1}, "data.noise_known"),
        (DataOptions, {"seed": -1}, "data.seed"),
        (DataOptions, {"pool": -1}, "data.pool"),
        (OptimiserOptions, {"steps": 0}, "optimiser.steps"),
        (OptimiserOptions, {"lr": float("inf")}, "optimiser needs"),
        (OptimiserOptions, {"min_lr": 1.0}, "optimiser needs"),
        (OptimiserOptions, {"warmup": 601}, "optimiser.warmup"),
        (OptimiserOptions, {"betas": (0.9, 1.0)}, "optimiser.betas"),
        (OptimiserOptions, {"clip_norm": -1.0}, "optimiser.clip_norm"),
        (OptimiserOptions, {"ema_decay": 1.0}, "optimiser.ema_decay"),
        (OptimiserOptions, {"accumulation": 3}, "optimiser.batch_size = 16"),
        (ValidationOptions, {"every": 0}, "validation.every"),
        (ValidationOptions, {"scenes": 1}, "validation.scenes"),
        (ValidationOptions, {"patience": -1}, "validation.patience"),
        (ValidationOptions, {"snapshots": ()}, "validation.snapshots"),
        (MachineOptions, {"keep": 0}, "machine.keep"),
        (MachineOptions, {"minutes": -1.0}, "machine.minutes"),
        (MachineOptions, {"amp": "bf16"}, "machine.amp"),
        (RunConfig, {"data": DataOptions(seed=ValidationOptions().seed)}, "must differ"),
        (RunConfig, {"data": DataOptions(code_kinds=("dft", "golay"))}, "code_kinds"),
        (RunConfig, {"system": SystemOptions(n_sources=(2, 1))}, "n_sources"),
        (RunConfig, {"system": SystemOptions(range_m=(3.0, 0.3))}, "range_m"),
        (RunConfig, {"pipeline": PipelineOptions(candidates=CandidateOptions("refined"))}, "has no refiner yet"),
    ],
)
def test_a_value_that_cannot_be_met_is_refused_by_name(kind: type, values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        kind(**values)


def test_the_default_system_is_the_reference_system() -> None:
    built = SystemOptions().system(64, ("dft", "random"))
    assert torch.equal(built.array.positions_m, PlanarArray.rectangular().positions_m)
    reference = SystemConfig()
    assert dataclasses.replace(built, array=reference.array) == reference


def test_the_setup_is_that_of_the_system() -> None:
    assert SystemOptions().setup() == SystemConfig().setup
    options = SystemOptions(n_h=5, range_m=(0.3, 3.0), azimuth_deg=(-20.0, 40.0), wavefront="fresnel")
    assert options.setup() == options.system(16, ("dft",)).setup
    assert options.setup().region.range_m == (0.3, 3.0)


OLD = "wavelength_m = 0.2\npositions_m = [[0.0, 0.0, 0.0], [0.1, 0.0, 0.0], [0.0, 0.3, 0.0]]\n"
NEW = "format = 1\n{top}[array]\nwavelength_m = 0.2\n[array.rectangular]\nn_h = 3\nn_v = 2\nspacing_m = 0.1\n{rest}"


def test_an_array_file_takes_the_place_of_the_rectangle(tmp_path: Path) -> None:
    path = tmp_path / "array.toml"
    path.write_text(OLD)
    setup = SystemOptions(array=str(path)).setup()
    assert (setup.array.n_elements, setup.array.wavelength_m) == (3, 0.2)
    assert setup.region == SystemOptions().setup().region
    assert SystemOptions(array=str(path)).system(4, ("dft",)).array == setup.array


def test_a_setup_file_gives_array_tolerance_and_speed(tmp_path: Path) -> None:
    path = tmp_path / "setup.toml"
    rest = "[tolerance]\nrange_m = 0.4\n[region]\nrange_m = [0.2, 5.0]\n"
    path.write_text(NEW.format(top='speed_m_s = 343.0\nwavefront = "fresnel"\n', rest=rest))
    options = SystemOptions(array=str(path), wavefront="fresnel", range_m=(0.5, 5.0))
    made = PlanarArray.rectangular(3, 2, 0.1, 0.2)
    expected = Setup(made, options.setup().region, "fresnel", speed_m_s=343.0, tolerance=Tolerance(range_m=0.4))
    assert options.setup() == expected
    assert options.setup().region.range_m == (0.5, 5.0)


@pytest.mark.parametrize(
    ("top", "rest", "message"),
    [
        ('wavefront = "planar"\n', "", r"says wavefront = planar, and system\.wavefront is spherical"),
        ('sampling = "direct"\n', "", "says sampling = direct"),
        ("", "[region]\nrange_m = [0.2, 5.0]\n", r"reach beyond the region of .*--system\.range-m"),
        ("", "[region]\nazimuth_deg = [-50.0, 60.0]\n", r"reach beyond the region of .*--system\.azimuth-deg"),
    ],
)
def test_a_setup_file_that_contradicts_the_options_is_refused(
    top: str, rest: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "setup.toml"
    path.write_text(NEW.format(top=top, rest=rest))
    with pytest.raises(ValueError, match=message):
        RunConfig(system=SystemOptions(array=str(path)))


def test_the_grid_of_an_earlier_version_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[validation]\nevery = 7\ncapon_grid = "training"\n')
    assert read_toml(RunConfig, path).validation == ValidationOptions(every=7)
