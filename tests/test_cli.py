"""The command line: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import argparse
import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
from risfast.cli_train import COMMANDS

from risfast.cli import DetectCommand, Progress, build_parser, main, search_grid
from risfast.geometry import SearchGrid

ARRAY = "[rectangular]\nn_h = 8\nn_v = 7\nspacing_m = 0.15\nwavelength_m = 0.3\n"
# azimuth and elevation in degrees, range in metres
SOURCES = np.array([[-30.0, 10.0, 1.5], [12.5, -7.0, 2.2]])


def positions() -> np.ndarray:
    """The elements of ARRAY, from its definition."""
    return np.array([[0.15 * (h - 3.5), 0.15 * (v - 3.0), 0.0] for h in range(8) for v in range(7)])


def covariance(sources: np.ndarray = SOURCES, points: np.ndarray | None = None) -> np.ndarray:
    """sum_k a_k a_k^H of exact spherical waves, from the formulas."""
    points = positions() if points is None else points
    result = np.zeros((len(points), len(points)), dtype=np.complex128)
    for azimuth_deg, elevation_deg, r in sources:
        azimuth, elevation = math.radians(azimuth_deg), math.radians(elevation_deg)
        u = np.array(
            [math.sin(azimuth) * math.cos(elevation), math.sin(elevation), math.cos(azimuth) * math.cos(elevation)]
        )
        a = np.exp(1j * 2 * math.pi / 0.3 * (r - np.linalg.norm(r * u - points, axis=1)))
        result += np.outer(a, a.conj())
    return result


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with an array and a covariance of two sources."""
    (tmp_path / "array.toml").write_text(ARRAY)
    np.savez(tmp_path / "R.npz", R=covariance())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def detect(*arguments: str) -> list[str]:
    return ["detect", *arguments, "--array", "array.toml", "--grid", "training"]


def by_azimuth(scene: list[dict[str, float]]) -> np.ndarray:
    ordered = sorted(scene, key=lambda source: source["azimuth_deg"])
    return np.array([[source["azimuth_deg"], source["elevation_deg"], source["range_m"]] for source in ordered])


def assert_found(scene: list[dict[str, float]], expected: np.ndarray = SOURCES) -> None:
    found = by_azimuth(scene)
    assert found.shape == expected.shape
    assert np.abs(found - expected)[:, :2].max() < 0.3
    assert np.abs(found - expected)[:, 2].max() < 0.1


def write_matlab_73(path: Path, values: np.ndarray) -> None:
    record = np.empty(values.T.shape, [("real", "<f8"), ("imag", "<f8")])
    record["real"], record["imag"] = values.T.real, values.T.imag
    with h5py.File(path, "w", userblock_size=512) as file:
        file["R"] = record


def test_detect_prints_and_writes_the_sources_of_the_covariance(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(detect("R.npz", "--output", "out.json")) == 0
    printed = capsys.readouterr().out.splitlines()
    scenes = json.loads((folder / "out.json").read_text())["scenes"]
    assert len(scenes) == 1
    assert_found(scenes[0])
    assert printed[0].split() == [
        "scene",
        "source",
        "azimuth",
        "deg",
        "elevation",
        "deg",
        "range",
        "m",
        "power",
        "dB",
        "confidence",
    ]
    rows = [[float(cell) for cell in line.split()] for line in printed[1:3]]
    for row, source in zip(rows, scenes[0], strict=True):
        np.testing.assert_allclose(
            row[2:5], [source["azimuth_deg"], source["elevation_deg"], source["range_m"]], atol=0.01
        )
        assert row[5] == pytest.approx(source["power_db"], abs=0.06)
    assert printed[-1] == "results: out.json"


@pytest.mark.parametrize("suffix", ["npz", "mat", "7.3.mat", "h5"])
def test_every_file_format_gives_the_same_sources(folder: Path, suffix: str) -> None:
    name = f"x.{suffix}"
    if suffix == "npz":
        np.savez(name, R=covariance())
    elif suffix == "mat":
        scipy.io.savemat(name, {"R": covariance()})
    elif suffix == "7.3.mat":
        write_matlab_73(folder / name, covariance())
    else:
        with h5py.File(name, "w") as file:
            file["R"] = covariance()
    assert main(detect(name, "--output", "out.json")) == 0
    assert_found(json.loads((folder / "out.json").read_text())["scenes"][0])


def test_a_batch_gives_one_scene_each_in_order(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batch = np.stack([covariance(SOURCES[:1]), covariance(SOURCES[1:]), *[covariance()] * 8])
    np.savez("batch.npz", S=batch)
    assert main(detect("batch.npz", "--key", "S", "--output", "out.csv")) == 0
    lines = (folder / "out.csv").read_text().splitlines()
    assert lines[0] == "scene,source,azimuth_deg,elevation_deg,range_m,power_db,confidence,prominence_db,at_edge"
    numbers = [[float(cell or "nan") for cell in line.split(",")] for line in lines[1:]]
    rows = [dict(zip(lines[0].split(","), row, strict=True)) for row in numbers]
    scenes = [[row for row in rows if row["scene"] == scene] for scene in range(10)]
    assert_found(scenes[0], SOURCES[:1])
    assert_found(scenes[1], SOURCES[1:])
    assert all(by_azimuth(scene).shape == (2, 3) for scene in scenes[2:])
    assert "detecting: 10/10" in capsys.readouterr().err


def columns_of(path: Path) -> dict[str, np.ndarray]:
    """The columns of a results file, by the reader of its format."""
    if path.suffix == ".mat":
        return {name: v[:, 0] for name, v in scipy.io.loadmat(path).items() if name in COLUMNS}
    if path.suffix == ".csv":
        table = np.genfromtxt(path, delimiter=",", names=True)
        return {name: table[name] for name in COLUMNS}
    if path.suffix == ".json":
        rows = [row for scene in json.loads(path.read_text())["scenes"] for row in scene]
        return {name: np.array([row[name] for row in rows], float) for name in COLUMNS}
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed (pip install 'risfast[parquet]')")
    table = parquet.read_table(path)
    return {name: table[name].to_numpy() for name in COLUMNS}


COLUMNS = ["scene", "source", "azimuth_deg", "elevation_deg", "range_m", "power_db", "confidence"]


@pytest.mark.parametrize("suffix", [".json", ".csv", ".mat", ".parquet"])
def test_results_are_written_in_every_format_and_are_those_of_the_table(
    folder: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed (pip install 'risfast[parquet]')")
    np.savez("batch.npz", R=np.stack([covariance(SOURCES[:1]), covariance()]))
    assert main(detect("batch.npz", "--output", f"out{suffix}")) == 0
    lines = capsys.readouterr().out.splitlines()
    printed = np.array([[float(cell) for cell in line.split()] for line in lines[1:4]])
    columns = columns_of(folder / f"out{suffix}")
    np.testing.assert_array_equal(columns["scene"], [0, 1, 1])
    # The table is rounded to so many digits.
    for index, (name, digits) in enumerate(zip(COLUMNS, (0, 0, 2, 2, 3, 1, 3), strict=True)):
        np.testing.assert_allclose(columns[name], printed[:, index], rtol=0, atol=0.5001 * 10.0**-digits)


def test_parquet_without_its_package_is_refused_before_the_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(detect("R.npz", "--output", "out.parquet")) == 2
    printed = capsys.readouterr()
    assert "pip install 'risfast[parquet]'" in printed.err
    assert "detecting" not in printed.err
    assert not (folder / "out.parquet").exists()


def test_an_irregular_array_is_taken_in_the_order_of_its_file(folder: Path) -> None:
    rng = np.random.default_rng(0)
    points = positions()[rng.permutation(56)[:40]] + rng.normal(0, 0.02, (40, 3))
    np.savetxt("points.csv", points, delimiter=",")
    (folder / "array.toml").write_text("wavelength_m = 0.3\npositions_file = 'points.csv'\n")
    np.savez("R.npz", covariance=covariance(points=points))
    assert main(detect("R.npz", "--max-sources", "2", "--output", "out.json")) == 0
    assert_found(json.loads((folder / "out.json").read_text())["scenes"][0])


def test_max_sources_keeps_the_strongest(folder: Path) -> None:
    np.savez("R.npz", R=covariance() + 3 * covariance(SOURCES[1:]))
    assert main(detect("R.npz", "--max-sources", "1", "--output", "out.json")) == 0
    assert_found(json.loads((folder / "out.json").read_text())["scenes"][0], SOURCES[1:])


def test_axes_given_in_degrees_bound_the_search(folder: Path) -> None:
    region = ["--azimuth-deg", "0", "60", "31", "--elevation-deg", "-30", "30", "41", "--range-m", "1", "1.5", "2", "3"]
    assert main([*detect("R.npz", "--output", "out.json"), *region]) == 0
    for source in json.loads((folder / "out.json").read_text())["scenes"][0]:
        assert source["azimuth_deg"] >= -1
    found = by_azimuth(json.loads((folder / "out.json").read_text())["scenes"][0])
    assert np.abs(found - SOURCES[1]).max(axis=1).min() < 0.3


def test_picture_of_the_spectrum_is_drawn(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(detect("R.npz", "--picture", "out.png")) == 0
    assert (folder / "out.png").read_bytes().startswith(b"\x89PNG")
    assert "picture: out.png" in capsys.readouterr().out


def test_search_grid_is_the_named_one_in_radians_unless_an_axis_is_given() -> None:
    options = DetectCommand(Path(), Path(), grid="training", azimuth_deg=(-45.0, 90.0, 4.0), range_m=(1.0, 2.5))
    grid = search_grid(options)
    np.testing.assert_allclose(grid.azimuth_rad.numpy(), np.radians([-45, 0, 45, 90]))
    np.testing.assert_array_equal(grid.elevation_rad.numpy(), SearchGrid.training().elevation_rad.numpy())
    np.testing.assert_array_equal(grid.range_m.numpy(), [1.0, 2.5])
    single = search_grid(DetectCommand(Path(), Path(), elevation_deg=(3.0, 3.0, 1.0)))
    np.testing.assert_allclose(single.elevation_rad.numpy(), [math.radians(3)])


WRONG = {
    "no covariance": (["detect", "none.npz", "--array", "array.toml"], r"none\.npz: there is no such file"),
    "no array": (["detect", "R.npz", "--array", "none.toml"], r"none\.toml: there is no such file"),
    "no key": (detect("R.npz", "--key", "Q"), "covariance is mapped to 'Q', which is not there"),
    "other array": (detect("small.npz"), "3 x 3 matrices, but the array has 56 elements"),
    "azimuth in the wrong order": (
        detect("R.npz", "--azimuth-deg", "60", "-60", "11"),
        "--azimuth-deg: MIN must be below MAX",
    ),
    "azimuth beyond": (detect("R.npz", "--azimuth-deg", "-600", "60", "11"), "within .-180 degrees"),
    "azimuth nan": (detect("R.npz", "--azimuth-deg", "nan", "60", "11"), "within .-180 degrees"),
    "elevation beyond": (detect("R.npz", "--elevation-deg", "-91", "60", "11"), "within .-90 degrees"),
    "fraction of a point": (detect("R.npz", "--elevation-deg", "-9", "60", "1.5"), "COUNT must be a whole number"),
    "one point of two": (detect("R.npz", "--elevation-deg", "-9", "60", "1"), "MIN must be below MAX"),
    "range zero": (detect("R.npz", "--range-m", "0", "1"), "range_m must be positive"),
    "range unsorted": (detect("R.npz", "--range-m", "2", "1"), "strictly increasing"),
    "loading": (detect("R.npz", "--loading", "-1"), "loading"),
    "lag needs fresnel": (detect("R.npz", "--method", "lag"), "lag"),
    "device unknown": (detect("R.npz", "--device", "abacus"), "--device 'abacus' cannot be used"),
    "device absent": (detect("R.npz", "--device", "cuda:77"), "--device 'cuda:77' cannot be used"),
    "output format": (
        detect("R.npz", "--output", "out.xlsx"),
        r"--output must end in \.json, \.csv, \.parquet or \.mat",
    ),
    "output folder": (detect("R.npz", "--output", "no/out.json"), "the folder no does not exist"),
    "picture format": (detect("R.npz", "--picture", "out.bmp"), r"--picture must end in \.png, \.pdf or \.svg"),
    "picture scene": (detect("R.npz", "--picture-scene", "1"), "--picture-scene must be from 0 to 0, got 1"),
    "no sources at most": (detect("R.npz", "--max-sources", "0"), "max_sources"),
    "demo scenes": (["demo", "--scenes", "0"], "scenes must be at least 1"),
    "demo snapshots": (["demo", "--snapshots", "0"], "snapshots must be at least 1"),
    "demo output is a file": (["demo", "--output", "R.npz"], "R.npz"),
    "demo seed": (["demo", "--seed", "-1"], "seed must be a whole number from 0 to 4294967295, got -1"),
    "demo seed beyond": (["demo", "--seed", "4294967296"], "seed must be a whole number from 0 to 4294967295"),
}


@pytest.mark.parametrize(("arguments", "words"), WRONG.values(), ids=WRONG.keys())
def test_errors_are_one_line_on_stderr_and_status_2(
    arguments: list[str], words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez("small.npz", R=np.eye(3))
    before = sorted(folder.iterdir())
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    line = printed.err.splitlines()[-1]
    assert line.startswith(f"risfast-train {arguments[0]}: ")
    assert re.search(words, line)
    assert "Traceback" not in printed.err
    assert [path for path in sorted(folder.iterdir()) if path.is_file()] == before


def test_debug_shows_the_traceback(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*detect("none.npz"), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["tune"], ["detect"], ["detect", "R.npz"], ["demo", "--scenes", "many"]])
def test_wrong_usage_ends_with_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_options_of_every_subcommand_are_these() -> None:
    commands = next(
        action.choices for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)
    )
    options = {
        name: {action.option_strings[-1] for action in parser._actions if action.option_strings}
        for name, parser in commands.items()
    }
    common = {"--help", "--debug"}
    assert options == {
        "demo": common | {"--scenes", "--seed", "--snapshots", "--grid", "--output", "--device"},
        "detect": common
        | {"--array", "--key", "--grid", "--azimuth-deg", "--elevation-deg", "--range-m", "--wavefront", "--loading"}
        | {"--method", "--max-sources", "--device", "--output", "--picture", "--picture-scene"},
        "import": common
        | {"--array-output", "--format", "--field", "--array", "--positions", "--wavelength-m", "--frequency-hz"}
        | {"--speed-m-s", "--sample-rate-hz", "--polarization", "--block-size", "--flagged", "--covariance"},
        "doctor": common | {"--folder", "--device"},
        # Generated from the configuration classes: tests/test_cli_train.py holds their options.
        **{name: {"--debug"} for name in COMMANDS},
    }


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "written"), [(Terminal(), 5), (io.StringIO(), 2)])
def test_progress_overwrites_its_line_on_a_terminal_and_is_brief_in_a_log(stream: Any, written: int) -> None:
    progress = Progress(stream)
    for done in range(5):
        progress("work", done, 4)
    assert len(re.findall(r"work: \d/4", stream.getvalue())) == written
    assert ("\n" in stream.getvalue()) != stream.isatty()
    progress.close()
    assert stream.getvalue().endswith("\r\x1b[K" if stream.isatty() else "\n")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["detect", "--help"], ["demo", "--help"]])
def test_help_and_version_are_printed_with_status_0(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(("usage: risfast-train", "risfast"))


def test_module_runs_as_the_same_program(folder: Path) -> None:
    root = Path(__file__).resolve().parents[1]
    command = [
        sys.executable,
        "-m",
        "risfast",
        "detect",
        str(folder / "none.npz"),
        "--array",
        str(folder / "array.toml"),
    ]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("risfast-train detect: ")
