"""Systems of a user's own: TOML files in degrees, and setups alone."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from risfast.errors import FileFormatError
from risfast.geometry import Region, SensorArray
from risfast.io.setup_file import write_setup
from risfast.setup import Setup, Tolerance
from risfast.simulate.scenes import SystemConfig
from risfast.simulate.system_file import read_system, system_from_json, system_of, system_to_json


def written(folder: Path, text: str) -> Path:
    path = folder / "system.toml"
    path.write_text("format = 1\n" + text)
    return path


def test_a_file_that_says_nothing_is_the_reference_system(tmp_path: Path) -> None:
    assert read_system(written(tmp_path, "")) == SystemConfig()


def test_every_key_is_that_of_the_system_in_degrees(tmp_path: Path) -> None:
    text = """
n_h = 16
n_v = 8
spacing_m = 0.005
wavelength_m = 0.01
n_antennas = 8
n_snapshots = 40
azimuth_deg = [-50, 40.0]
elevation_deg = [-20.0, 25.0]
range_m = [0.15, 0.4]
n_sources = [1, 3]
snr_db = [15.0, 15.0]
code_kinds = ["random"]
code_bits = "none"
gain = "inverse_range"
min_separation_deg = 4.0
wavefront = "fresnel"
[impairments]
dropped_elements = 0.1
[coherence]
probability = 0.5
"""
    system = read_system(written(tmp_path, text))
    usual = SystemConfig()
    assert system == SystemConfig(
        SensorArray.rectangular(16, 8, 0.005, 0.01),
        8,
        40,
        (math.radians(-50), math.radians(40)),
        (math.radians(-20), math.radians(25)),
        (0.15, 0.4),
        (1, 3),
        (15.0, 15.0),
        ("random",),
        None,
        gain="inverse_range",
        min_separation_rad=math.radians(4),
        wavefront="fresnel",
        impairments=dataclasses.replace(usual.impairments, dropped_elements=0.1),
        coherence=dataclasses.replace(usual.coherence, probability=0.5),
    )


def test_a_setup_beside_the_file_says_array_region_and_wavefront(tmp_path: Path) -> None:
    ring = SensorArray.circular(12, 0.2, 0.1, "xy")
    setup = Setup(ring, Region((-0.5, 0.7), (0.0, 0.3), (1.0, 2.0)), "fresnel")
    write_setup(tmp_path / "mine.toml", setup)
    system = read_system(written(tmp_path, 'setup = "mine.toml"\nrange_m = [1.2, 1.8]\nn_antennas = 3\n'))
    assert system.setup == setup.replace(region=Region((-0.5, 0.7), (0.0, 0.3), (1.2, 1.8)))
    assert system.n_antennas == 3
    with pytest.raises(FileFormatError, match="setup and n_h are both there"):
        read_system(written(tmp_path, 'setup = "mine.toml"\nn_h = 4\n'))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("n_antenas = 3", "n_antenas is not an option; did you mean n_antennas"),
        ("n_antennas = 0", "n_antennas must be at least 1"),
        ("range_m = [2.0, 1.0]", "range_m must be"),
        ("azimuth_deg = [-400.0, 10.0]", "azimuth_rad must be"),
        ("snr_db = 3.0", "snr_db must be a list"),
        ('setup = "missing.toml"', "missing.toml"),
        ("n_h = [", "not valid TOML"),
    ],
)
def test_what_describes_no_system_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(FileFormatError, match=words):
        read_system(written(tmp_path, text))


def test_a_file_of_another_format_or_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "system.toml"
    for text, words in (("n_h = 3", "format is missing"), ("format = 2", "format 2"), ("format = true", "format True")):
        path.write_text(text)
        with pytest.raises(FileFormatError, match=words):
            read_system(path)
    with pytest.raises(FileFormatError, match=r"nothing\.toml"):
        read_system(tmp_path / "nothing.toml")


def test_a_setup_alone_is_the_reference_distribution_in_its_region() -> None:
    assert system_of(SystemConfig().setup) == SystemConfig()
    array = SensorArray.rectangular(8, 8, 0.005, 0.01)
    endless = Setup(array, Region((-0.5, 0.5), (-0.2, 0.2), (0.05, math.inf)), tolerance=Tolerance(0.1, 0.1, 0.02))
    system = system_of(endless)
    assert system.range_m == (0.05, max(array.fraunhofer_distance_m, 0.1))
    assert system.azimuth_rad == (-0.5, 0.5)
    direct = system_of(endless.replace(sampling="direct"))
    assert direct == dataclasses.replace(system, sampling="direct")
    assert direct.setup.sampling == "direct"
    assert system_from_json(json.loads(json.dumps(system_to_json(direct)))) == direct


def test_a_setup_of_several_bands_is_a_system_of_them() -> None:
    setup = Setup(SensorArray.rectangular(4, 4), sampling="direct", wavelengths_m=(0.3, 0.4))
    system = system_of(setup)
    assert system.wavelengths_m == (0.3, 0.4)
    description = json.loads(json.dumps(system_to_json(system)))
    assert system_from_json(description) == system
    assert "wavelengths_m" not in system_to_json(SystemConfig())
