"""The command line: what it prints, what it writes, and how it fails; most of it on ``risfast detect``."""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io

from risfast.cli import main, parse
from risfast.cli.options import in_options
from risfast.cli.progress import ProgressBar
from risfast.geometry import SearchGrid, SensorArray
from risfast.setup import Setup

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
    return ["detect", *arguments, "--setup", "array.toml", "--grid", "training", "--no-picture"]


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
        "prominence",
        "dB",
        "edge",
    ]
    rows = [[float(cell) for cell in line.split()[:-1]] for line in printed[1:3]]
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
    names = [*COLUMNS[:5], "x_m", "y_m", "z_m", "power_db", "confidence", "prominence_db", "at_edge"]
    assert lines[0] == ",".join(names)
    rows = [dict(zip(names[:9], map(float, line.split(",")[:9]), strict=True)) for line in lines[1:]]
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
        return {name: np.array([row[name] for row in rows]) for name in COLUMNS}
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed (pip install 'risfast[parquet]')")
    table = parquet.read_table(path)
    return {name: table[name].to_numpy() for name in COLUMNS}


COLUMNS = ["scene", "source", "azimuth_deg", "elevation_deg", "range_m", "power_db", "prominence_db"]


@pytest.mark.parametrize("suffix", [".json", ".csv", ".mat", ".parquet"])
def test_results_are_written_in_every_format_and_are_those_of_the_table(
    folder: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed (pip install 'risfast[parquet]')")
    np.savez("batch.npz", R=np.stack([covariance(SOURCES[:1]), covariance()]))
    assert main(detect("batch.npz", "--output", f"out{suffix}")) == 0
    lines = capsys.readouterr().out.splitlines()
    printed = np.array([[float(cell) for cell in line.split()[:-1]] for line in lines[1:4]])
    columns = columns_of(folder / f"out{suffix}")
    np.testing.assert_array_equal(columns["scene"], [0, 1, 1])
    # The table is rounded to so many digits.
    for index, (name, digits) in enumerate(zip(COLUMNS, (0, 0, 2, 2, 3, 1, 1), strict=True)):
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


def test_a_box_leaves_out_what_is_outside_and_x_y_and_z_are_printed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box = ["--box", "-3", "0", "-1", "1", "0.5", "3"]  # the second source has x > 0
    command = ["detect", "R.npz", "--setup", "array.toml", *box, "--xyz", "--no-picture", "--output", "out.json"]
    assert main(command) == 0
    header, row = capsys.readouterr().out.splitlines()[:2]
    assert header.split()[6:13] == ["range", "m", "x", "m", "y", "m", "z"]
    azimuth, elevation = np.radians(SOURCES[0, :2])
    across = 1.5 * np.cos(elevation)
    place = [across * np.sin(azimuth), 1.5 * np.sin(elevation), across * np.cos(azimuth)]
    np.testing.assert_allclose([float(cell) for cell in row.split()[5:8]], place, atol=5e-3)
    document = json.loads((folder / "out.json").read_text())
    assert len(document["scenes"][0]) == 1
    assert Setup.from_json(document["setup"]).region.box == ((-3, 0), (-1, 1), (0.5, 3))


def test_peaks_are_tested_against_noise_where_the_snapshots_are_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(2)
    points = np.array([[0.15 * (i - 3.5), 0.0, 0.0] for i in range(8)])
    white = random.standard_normal((50, 8, 2)) @ [1, 1j]
    (folder / "line.toml").write_text(
        "format = 1\n[array]\nwavelength_m = 0.3\n[array.linear]\nn = 8\nspacing_m = 0.15"
    )
    np.savez("noise.npz", R=white.T @ white.conj() / 50)
    np.savez("one.npz", R=covariance(np.array([[20.0, 0.0, 3.0]]), points) + white.T @ white.conj() / 5000)
    how = ["--setup", "line.toml", "--no-picture", "--snapshots", "50", "--false-alarm", "0.001"]
    assert main(["detect", "noise.npz", *how]) == 0
    printed = capsys.readouterr()
    assert "no sources in scene 0" in printed.out
    assert "simulating noise: 200/200" in printed.err
    assert "the array lies on a line" in printed.err
    assert main(["detect", "one.npz", *how]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main(["detect", "one.npz", "--setup", "line.toml", "--false-alarm", "0.1"]) == 2
    assert "--false-alarm needs --snapshots" in capsys.readouterr().err


def test_max_sources_keeps_the_strongest(folder: Path) -> None:
    np.savez("R.npz", R=covariance() + 3 * covariance(SOURCES[1:]))
    assert main(detect("R.npz", "--max-sources", "1", "--output", "out.json")) == 0
    assert_found(json.loads((folder / "out.json").read_text())["scenes"][0], SOURCES[1:])


def test_axes_given_in_degrees_bound_the_search(folder: Path) -> None:
    axes = ["--azimuth-deg", "0", "60", "31", "--elevation-deg", "-30", "30", "41", "--range-m", "1", "1.5", "2", "3"]
    given = ["detect", "R.npz", "--setup", "array.toml", "--no-picture", "--output", "out.json"]
    assert main([*given, *axes]) == 0
    for source in json.loads((folder / "out.json").read_text())["scenes"][0]:
        assert source["azimuth_deg"] >= -1e-9
    found = by_azimuth(json.loads((folder / "out.json").read_text())["scenes"][0])
    assert np.abs(found - SOURCES[1]).max(axis=1).min() < 0.3


def test_picture_of_the_spectrum_is_drawn(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [word for word in detect("R.npz") if word != "--no-picture"]
    assert main([*command, "--picture", "out.png"]) == 0
    assert (folder / "out.png").read_bytes().startswith(b"\x89PNG")
    assert "picture: out.png" in capsys.readouterr().out
    assert main(command) == 0
    assert (folder / "R.npz.sources.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["out.json", "R.npz.sources.png"])
def test_what_is_there_is_replaced_only_when_asked(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / name).write_text("mine")
    command = [word for word in detect("R.npz", "--output", "out.json") if word != "--no-picture"]
    assert main(command) == 2
    printed = capsys.readouterr()
    assert re.search(rf"{name} exists: give another --\w+.*, or --overwrite", printed.err)
    assert (folder / name).read_text() == "mine"
    assert printed.out == ""
    assert main([*command, "--overwrite"]) == 0
    assert (folder / name).read_bytes() != b"mine"


def test_a_covariance_of_its_own_array_needs_no_setup_and_locate_finds_the_same(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez("whole.npz", R=covariance(), positions_m=positions(), wavelength_m=0.3)
    region = ["--region", "-60", "60", "-30", "30", "0.5", "5", "--no-picture"]
    assert main(["detect", "whole.npz", *region, "--output", "out.json"]) == 0
    one = capsys.readouterr().out.splitlines()
    assert_found(json.loads((folder / "out.json").read_text())["scenes"][0])
    assert json.loads((folder / "out.json").read_text())["setup"]["region"]["range_m"] == [0.5, 5.0]
    assert main(["locate", "whole.npz", *region, "--output", "again.json"]) == 0
    other = capsys.readouterr().out.splitlines()
    assert one[:-1] == other[:-1]
    assert (folder / "out.json").read_bytes() == (folder / "again.json").read_bytes()


def test_sources_on_the_edge_of_the_region_are_said_to_be(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The source at 12.5 deg, -7 deg, 2.2 m lies beyond the azimuths that are searched.
    np.savez("one.npz", R=covariance(SOURCES[1:]) + 1e-3 * np.eye(56), positions_m=positions(), wavelength_m=0.3)
    assert (
        main(["locate", "one.npz", "--no-picture", "--sources", "1", "--region", "-60", "11", "-20", "20", "1", "5"])
        == 0
    )
    printed = capsys.readouterr()
    assert printed.out.splitlines()[1].split()[-1] == "yes"
    assert "1 of 1 sources lies on the edge of the region (azimuth 11.0 deg): widen it with --region" in printed.err


def test_quiet_prints_results_only(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (detect("R.npz", "--quiet"), ["--quiet", *detect("R.npz")]):
        assert main(command) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        assert len(printed.out.splitlines()) == 3


def searched(*arguments: str) -> tuple[Setup, SearchGrid]:
    return parse("detect", ["R.npz", *arguments])._search(Setup(SensorArray.rectangular(8, 7)))


def test_search_grid_is_the_named_one_in_radians_unless_an_axis_is_given() -> None:
    setup, grid = searched("--grid", "training", "--azimuth-deg", "-45", "90", "4", "--range-m", "1", "2.5")
    np.testing.assert_allclose(grid.azimuth_rad.numpy(), np.radians([-45, 0, 45, 90]))
    np.testing.assert_array_equal(grid.elevation_rad.numpy(), SearchGrid.training().elevation_rad.numpy())
    np.testing.assert_array_equal(grid.range_m.numpy(), [1.0, 2.5])
    np.testing.assert_allclose(setup.region.azimuth_rad, np.radians([-45, 90]))
    assert setup.region.range_m == (1.0, 2.5)
    setup, grid = searched("--elevation-deg", "3", "3", "1")
    np.testing.assert_allclose(grid.elevation_rad.numpy(), [math.radians(3)])
    whole = Setup(SensorArray.rectangular(8, 7))
    np.testing.assert_array_equal(grid.azimuth_rad.numpy(), whole.search_grid().azimuth_rad.numpy())
    assert setup.region.range_m == whole.region.range_m


WRONG = {
    "no covariance": (["detect", "none.npz", "--setup", "array.toml"], r"none\.npz: there is no such file"),
    "no array": (["detect", "R.npz", "--setup", "none.toml"], r"none\.toml: there is no such file"),
    "no key": (detect("R.npz", "--key", "Q"), "'Q'"),
    "other array": (detect("small.npz"), "3 x 3"),
    "no setup": (["detect", "R.npz"], r"positions of the elements are missing.*give the array with --setup"),
    "region inside out": (
        detect("R.npz", "--region", "9", "-9", "0", "1", "1", "2"),
        r"--region: the azimuth must be MIN MAX in degrees within \+-360, got 9 -9",
    ),
    "region from zero": (
        detect("R.npz", "--region", "-9", "9", "0", "1", "0", "2"),
        "--region: the range must be R_MIN R_MAX in metres, above 0, got 0 2",
    ),
    "region behind": (detect("R.npz", "--region", "170", "190", "0", "1", "1", "2"), "behind the array"),
    "two pictures": (detect("R.npz", "--picture", "x.png"), "give --picture or --no-picture, not both"),
    "azimuth in the wrong order": (
        detect("R.npz", "--azimuth-deg", "60", "-60", "11"),
        "--azimuth-deg: MIN must be below MAX",
    ),
    "azimuth beyond": (detect("R.npz", "--azimuth-deg", "-600", "60", "11"), "within .-180 degrees"),
    "azimuth nan": (detect("R.npz", "--azimuth-deg", "nan", "60", "11"), "within .-180 degrees"),
    "elevation beyond": (detect("R.npz", "--elevation-deg", "-91", "60", "11"), "within .-90 degrees"),
    "fraction of a point": (detect("R.npz", "--elevation-deg", "-9", "60", "1.5"), "COUNT must be a whole number"),
    "one point of two": (detect("R.npz", "--elevation-deg", "-9", "60", "1"), "MIN must be below MAX"),
    "range zero": (detect("R.npz", "--range-m", "0", "1"), "--range-m must be positive"),
    "range unsorted": (detect("R.npz", "--range-m", "2", "1"), "strictly increasing"),
    "loading": (detect("R.npz", "--loading", "-1"), "--loading must"),
    "lag needs fresnel": (detect("R.npz", "--method", "lag"), "lag"),
    "device unknown": (detect("R.npz", "--device", "abacus"), "--device 'abacus' cannot be used"),
    "device absent": (detect("R.npz", "--device", "cuda:77"), "--device 'cuda:77' cannot be used"),
    "output format": (
        detect("R.npz", "--output", "out.xlsx"),
        r"--output must end in \.json, \.csv, \.parquet or \.mat",
    ),
    "output folder": (detect("R.npz", "--output", "no/out.json"), "the folder no does not exist"),
    "picture format": (detect("R.npz", "--picture", "out.bmp")[:-1], r"--picture must end in \.png, \.pdf or \.svg"),
    "picture scene": (detect("R.npz", "--picture-scene", "1"), "--picture-scene must be from 0 to 0, got 1"),
    "no sources at most": (detect("R.npz", "--max-sources", "0"), "--max-sources must be at least 1"),
    "demo scenes": (["demo", "--scenes", "0"], "--scenes must be at least 1"),
    "demo snapshots": (["demo", "--snapshots", "0"], "--snapshots must be at least 1"),
    "demo output is a file": (["demo", "--output", "R.npz"], "R.npz"),
    "demo seed": (["demo", "--seed", "-1"], "--seed must be a whole number from 0 to 4294967295, got -1"),
    "demo seed beyond": (["demo", "--seed", "4294967296"], "--seed must be a whole number from 0 to 4294967295"),
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
    assert line.startswith(f"risfast {arguments[0]}: ")
    assert re.search(words, line)
    assert "Traceback" not in printed.err
    assert [path for path in sorted(folder.iterdir()) if path.is_file()] == before


@pytest.mark.parametrize("word", ["--verbose", "--debug"])
def test_verbose_shows_the_traceback(word: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*detect("none.npz"), word]) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.splitlines()[-1].startswith("risfast detect: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tune"], "risfast: there is no command 'tune'; there are demo, locate,"),
        (["locat"], "risfast: there is no command 'locat'; did you mean locate?"),
        (["detect"], "risfast detect: Missing from risfast detect: .*FILE"),
        (["demo", "--scenes", "many"], "risfast demo: Error parsing --scenes: invalid literal"),
        (["demo", "--grids", "training"], "risfast demo: Unrecognized options: --grids, training; did you mean --grid"),
        (["demo", "--grid", "fine"], "risfast demo: invalid choice 'fine' for argument '--grid'.*'training'"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert re.match(words, printed.err)


def test_without_a_command_the_list_of_commands_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "locate" in printed.err


@pytest.mark.parametrize(
    ("message", "spoken"),
    [
        ("max_sources must be at least 1", "--max-sources must be at least 1"),
        ("scenes must be at least 1", "--scenes must be at least 1"),
        ("x.toml: scenes must be 1", "x.toml: scenes must be 1"),
        ("leave it out with flagged=(3, 5)", "leave it out with --flagged 3 5"),
        ("give a.max_db, or --a.max-db", "give --a.max-db, or --a.max-db"),
        (
            "there is no range_m in it; give range_m, or a setup",
            "there is no range_m in it; give --range-m, or a setup",
        ),
        ("give fields={'R': NAME}", "give --field R=NAME"),
        ("/tmp/range_m/x.npz is empty", "/tmp/range_m/x.npz is empty"),
    ],
)
def test_messages_name_options_as_they_are_typed(message: str, spoken: str) -> None:
    names = {
        name: f"--{name}".replace("_", "-") for name in ("max_sources", "scenes", "flagged", "a.max_db", "range_m")
    }
    assert in_options(message, {**names, "fields": "--field"}) == spoken


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_bar_with_the_time_left_on_a_terminal() -> None:
    stream = Terminal()
    progress = ProgressBar(stream=stream)
    for done in range(5):
        progress("work", done, 4, unit="scenes", note=f"loss {done}")
    progress.say("a line that stays")
    progress.close()
    assert "work:" in stream.getvalue()
    assert re.search(r"0/4 \[00:00<", stream.getvalue())
    assert "a line that stays\n" in stream.getvalue()
    assert stream.getvalue().endswith("\r")  # the bar is taken away


def test_the_clock_of_a_bar_runs_on_between_two_reports_and_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("risfast.cli.progress._TICK_SECONDS", 0.01)
    stream = Terminal()
    progress = ProgressBar(stream=stream)
    for begin in (lambda: progress.waiting("loading"), lambda: progress("work", 1, 4)):
        begin()
        before, deadline = len(stream.getvalue()), time.monotonic() + 60
        while len(stream.getvalue()) == before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(stream.getvalue()) > before
    progress.close()
    after = stream.getvalue()
    assert after.endswith("\r")
    time.sleep(0.1)
    assert stream.getvalue() == after


def test_a_stage_without_steps_is_not_for_a_log() -> None:
    stream = io.StringIO()
    ProgressBar(stream=stream).waiting("loading")
    assert stream.getvalue() == ""


def test_progress_in_a_log_is_the_first_and_the_last_line_and_one_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream, now = io.StringIO(), [100.0]
    monkeypatch.setattr("risfast.cli.progress.time.monotonic", lambda: now[0])
    progress = ProgressBar(stream=stream)
    for done in range(11):
        now[0] += 5.0
        progress("work", done, 10)
    progress("rest", 0, 1)
    progress.close()
    lines = stream.getvalue().splitlines()
    assert [line.split(" [")[0] for line in lines] == [
        "work: 0/10",
        "work: 4/10",
        "work: 8/10",
        "work: 10/10",
        "rest: 0/1",
    ]
    assert "\r" not in stream.getvalue()


def test_what_an_earlier_run_did_does_not_count_for_the_time_left() -> None:
    stream = io.StringIO()
    progress = ProgressBar(stream=stream)
    progress("work", 90, 100)
    assert "90/100 [00:00<?" in stream.getvalue()


def test_quiet_progress_writes_nothing() -> None:
    stream = Terminal()
    progress = ProgressBar(quiet=True, stream=stream)
    progress("work", 1, 4)
    progress.say("a line")
    progress.close()
    assert stream.getvalue() == ""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["detect", "--help"], ["demo", "--help"]])
def test_help_and_version_are_printed_with_status_0(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith(("usage: risfast", "risfast 0"))


def test_module_runs_as_the_same_program(folder: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    command = [
        sys.executable,
        "-m",
        "risfast",
        "detect",
        str(folder / "none.npz"),
        "--setup",
        str(folder / "array.toml"),
    ]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("risfast detect: ")
