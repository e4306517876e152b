"""``risfast locate``: recordings of every kind end with a table, a picture and a file of their sources."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
import scipy.io
from wideband import spherical

from risfast.cli import main
from risfast.geometry import Region, SensorArray
from risfast.io import write_options, write_setup
from risfast.localize import DecisionOptions, PipelineOptions
from risfast.setup import Setup

HOME = [(0.3, -0.1, 2.0), (-0.5, 0.2, 3.5)]  # rad, rad, m: on the reference surface
OWN = SensorArray.rectangular(6, 5, 0.05, 0.1)
NEAR = [(0.35, -0.1, 0.35), (-0.45, 0.2, 0.6)]
REGION = ["--region", "-45", "45", "-25", "25", "0.2", "2"]


def received(array: SensorArray, sources: list[tuple[float, float, float]], antennas: int, snapshots: int, seed: int):
    """y, codes and channel at 25 dB, from the formula."""
    rng = np.random.default_rng(seed)
    n = array.n_elements
    steering = oracles.steering(array.positions_m.numpy(), array.wavelength_m, np.array(sources)).T
    symbols = oracles.complex_normal(rng, len(sources), snapshots)
    codes = np.exp(1j * math.pi / 2 * rng.integers(0, 4, (snapshots, n)))
    channel = oracles.complex_normal(rng, antennas, n)
    y = ((codes * (steering @ symbols).T) @ channel.T).astype(np.complex128)
    noise = math.sqrt((np.abs(y) ** 2).mean() / 10**2.5)
    return y + noise * oracles.complex_normal(rng, snapshots, antennas), codes, channel


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the reference surface, of another one, and of an array that is sampled itself."""
    folder = tmp_path_factory.mktemp("recordings")
    home = SensorArray.rectangular()
    positions = home.positions_m.numpy()
    y, codes, channel = received(home, HOME, 16, 64, 0)
    np.savez(folder / "home.npz", y=y, codes=codes, channel=channel, positions_m=positions, wavelength_m=0.3)
    np.savez(folder / "bare.npz", y=y, codes=codes, channel=channel)
    order = np.random.default_rng(1).permutation(144)
    scaled = {"positions_m": positions[order] / 10, "wavelength_m": 0.03}
    np.savez(folder / "moved.npz", y=y, codes=codes[:, order], channel=channel[:, order], **scaled)
    y, codes, channel = received(OWN, NEAR, 8, 20, 2)
    own = {"positions_m": OWN.positions_m.numpy(), "wavelength_m": OWN.wavelength_m}
    scipy.io.savemat(folder / "own.mat", {"y": y, "codes": codes, "H": channel, **own})
    rng = np.random.default_rng(3)
    steering = oracles.steering(own["positions_m"], OWN.wavelength_m, np.array(NEAR)).T
    x = (steering @ oracles.complex_normal(rng, 2, 40)).T + 0.05 * oracles.complex_normal(rng, 40, 30)
    np.savez(folder / "direct.npz", X=x, **own)
    np.savez(folder / "covariance.npz", covariance=x.T @ x.conj() / len(x), **own)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own with these files."""
    for path in made.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(path: Path) -> np.ndarray:
    """Azimuth and elevation in radians, range in metres of the first scene, by azimuth."""
    (scene,) = json.loads(path.read_text())["scenes"]
    rows = [[math.radians(s["azimuth_deg"]), math.radians(s["elevation_deg"]), s["range_m"]] for s in scene]
    return np.array(sorted(rows))


def assert_near(path: Path, sources: list[tuple[float, float, float]], scale: float = 1.0) -> None:
    expected = np.array(sorted(sources)) * [1, 1, scale]
    assert found(path).shape == expected.shape
    np.testing.assert_allclose(found(path)[:, :2], expected[:, :2], atol=0.02)
    np.testing.assert_allclose(found(path)[:, 2], expected[:, 2], rtol=0.1)


def test_the_reference_surface_goes_to_the_default_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["locate", "home.npz", "--output", "out.json"]) == 0
    printed = capsys.readouterr()
    assert "classical" not in printed.err
    assert printed.out.splitlines()[0].split()[-2:] == ["confidence", "edge"]
    assert printed.out.splitlines()[-2:] == ["results: out.json", "picture: home.npz.sources.png"]
    assert (folder / "home.npz.sources.png").read_bytes().startswith(b"\x89PNG")
    assert_near(folder / "out.json", HOME)
    assert json.loads((folder / "out.json").read_text())["setup"]["region"]["range_m"] == [0.5, 10.0]


def test_its_own_at_another_scale_and_in_another_order_too_and_that_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["locate", "moved.npz", "--no-picture", "--output", "out.json"]) == 0
    printed = capsys.readouterr().err
    assert "rescaled: " in printed
    assert "reordered: " in printed
    assert_near(folder / "out.json", HOME, 0.1)
    assert not list(folder.glob("*.png"))


def test_a_file_without_positions_is_the_models_only_where_the_model_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["locate", "bare.npz", "--no-picture"]) == 2
    error = capsys.readouterr().err
    assert "the positions of the elements are missing" in error
    assert "--setup" in error
    assert main(["locate", "bare.npz", "--no-picture", "--model", "default", "--output", "out.json"]) == 0
    assert "the array is taken to be the model's" in capsys.readouterr().err
    assert_near(folder / "out.json", HOME)


def test_another_surface_goes_to_the_classical_fit_and_that_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["locate", "own.mat", *REGION, "--output", "out.json", "--picture", "map.svg"]) == 0
    printed = capsys.readouterr().err
    assert "30 elements, the model is of 144: the classical fit is used (--model none)" in printed
    assert_near(folder / "out.json", NEAR)
    assert "<svg" in (folder / "map.svg").read_text()
    assert main(["locate", "own.mat", *REGION, "--no-picture", "--model", "none", "--output", "again.json"]) == 0
    assert "classical" not in capsys.readouterr().err
    assert (folder / "out.json").read_bytes() == (folder / "again.json").read_bytes()


def test_a_setup_file_says_what_the_recording_does_not(folder: Path) -> None:
    region = Region((math.radians(-45), math.radians(45)), (math.radians(-25), math.radians(25)), (0.2, 2.0))
    write_setup(folder / "setup.toml", Setup(OWN, region))
    y, codes, channel = received(OWN, NEAR, 8, 20, 2)
    np.savez("own.npz", Y=y, C=codes, G=channel)
    names = ["--field", "snapshots=Y", "codes=C", "channel=G"]
    assert main(["locate", "own.npz", *names, "--setup", "setup.toml", "--no-picture", "--output", "out.json"]) == 0
    assert main(["locate", "own.mat", *REGION, "--no-picture", "--output", "again.json"]) == 0
    np.testing.assert_allclose(found(folder / "out.json"), found(folder / "again.json"), atol=1e-6)


def test_snapshots_of_an_array_that_is_sampled_itself(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["locate", "direct.npz", *REGION, "--no-picture", "--output", "out.json"]) == 0
    assert "is sampled directly, and the default model is not for that" in capsys.readouterr().err
    assert_near(folder / "out.json", NEAR)


def test_a_known_number_and_thresholds_decide_what_is_reported(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def lines(*more: str) -> int:
        assert main(["locate", "home.npz", "--no-picture", "--quiet", *more]) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        return len([line for line in printed.out.splitlines()[1:] if line.strip()[0] == "0"])

    assert lines() == 2
    assert lines("--max-sources", "1") == 1
    assert lines("--sources", "3") == 3
    assert lines("--least-confidence", "0.9999999") == 0
    write_options(folder / "options.toml", PipelineOptions(decision=DecisionOptions(max_sources=1)))
    assert lines("--options", "options.toml") == 1
    assert lines("--options", "options.toml", "--max-sources", "2") == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["own.mat", "--model", "default"], "30 elements, the model is of 144; take --model none"),
        (["direct.npz", "--model", "default"], "is sampled directly, and the default model is not for that; take"),
        (
            ["home.npz", "--model", "default", "--region", "-50", "50", "-20", "20", "1", "5"],
            r"the region is not the one that the default model was trained for \(-60 60 -30 30 0.5 10\); take",
        ),
        (["home.npz", "--model", "nowhere"], r"nowhere/model\.json: missing"),
        (["home.npz", "--sources", "0"], "--sources must be at least 1, got 0"),
        (["home.npz", "--max-sources", "0"], "--max-sources must be at least 1"),
        (["home.npz", "--least-confidence", "2"], r"--least-confidence must lie in \[0, 1\)"),
        (["home.npz", "--picture-scene", "1"], "--picture-scene must be from 0 to 0, got 1"),
        (["home.npz", "--options", "nowhere.toml"], r"nowhere\.toml: there is no such file"),
        (["home.npz", "--field", "y"], "--field must be FIELD=NAME"),
        (["R.npz", "--model", "default"], "holds a covariance, which no model reads"),
        (["R.npz", "--least-confidence", "0.5"], "the peaks of a covariance have no confidence"),
        (["home.npz", "--region", "-1", "1", "-1", "1", "1"], "--region"),
        (["nowhere.npz"], r"nowhere\.npz: there is no such file"),
        (["direct.npz", *REGION, "--snapshots", "40"], "--snapshots goes with a covariance"),
    ],
)
def test_what_cannot_be_done_is_one_line_with_the_mend(
    arguments: list[str], words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez("R.npz", R=np.eye(30), positions_m=OWN.positions_m.numpy(), wavelength_m=0.1)
    before = sorted(folder.iterdir())
    assert main(["locate", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.search(words, printed.err.splitlines()[-1])
    assert printed.err.splitlines()[-1].startswith("risfast locate: ")
    assert sorted(folder.iterdir()) == before


@pytest.fixture
def sound(folder: Path) -> list[str]:
    """A second of one source before twelve microphones, as options: the file and the positions."""
    soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed (pip install soundfile)")
    positions = np.random.default_rng(6).uniform(-0.1, 0.1, (12, 3)) * [1, 1, 0]
    values = spherical(positions, [(0.4, 0.2, 1.1)], 16000.0, 16000)
    values[:, 3] = 0
    soundfile.write("recording.wav", values, 16000)
    np.savetxt("array.csv", positions, delimiter=",")
    return ["recording.wav", "--positions", "array.csv"]


PLACE = (
    math.atan2(0.4, 1.1),
    math.asin(0.2 / math.sqrt(0.4**2 + 0.2**2 + 1.1**2)),
    math.sqrt(0.4**2 + 0.2**2 + 1.1**2),
)


@pytest.mark.parametrize(
    ("band", "note"),
    [
        (["--band", "800", "5000"], "covariances by Welch in 32 bands from"),
        (["--third-octave", "1600", "2000", "--segment", "512"], "segments of 512"),
        (["--frequency-hz", "2000", "3000"], "covariances by Welch in 2 bands from 2000 to 3000 Hz"),
        (["--frequency-hz", "3000"], "covariance by Welch at 3000 Hz"),
    ],
)
def test_a_sound_recording_is_localised_in_its_bands_and_drawn(
    folder: Path, sound: list[str], capsys: pytest.CaptureFixture[str], band: list[str], note: str
) -> None:
    assert main(["locate", *sound, *band, "--sources", "1", "--output", "out.json"]) == 0
    printed = capsys.readouterr()
    assert f"recording.wav: {note}" in printed.err or note in printed.err
    assert "recording.wav: left out: 3, no power" in printed.err
    assert "confidence" in printed.out
    np.testing.assert_allclose(found(folder / "out.json")[0, :2], PLACE[:2], atol=0.02)
    np.testing.assert_allclose(found(folder / "out.json")[0, 2], PLACE[2], rtol=0.1)
    assert (folder / "recording.wav.sources.png").read_bytes().startswith(b"\x89PNG")


def test_bands_are_imported_and_localised_from_the_file(folder: Path, sound: list[str], capsys: Any) -> None:
    bands = ["--band", "2000", "3000"]
    assert main(["import", *sound, *bands, "--output", "bands.h5"]) == 0
    printed = capsys.readouterr().out
    assert "frequencies: 17 from 2000 to 3000 Hz" in printed
    assert "worth 117.5 independent snapshots" in printed
    same = ["--sources", "1", "--no-picture", "--output"]
    assert main(["locate", *sound, *bands, *same, "one.json"]) == 0
    assert main(["locate", "bands.h5", *same, "other.json"]) == 0
    np.testing.assert_allclose(found(folder / "one.json"), found(folder / "other.json"), rtol=1e-6)
    assert main(["detect", "bands.h5"]) == 2
    assert "bands, and a map is of one: take risfast locate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--band", "800", "5000", "--frequency-hz", "1000"],
            "give one of --frequency-hz, --band, --third-octave, got",
        ),
        (["--band", "5000", "800"], "--band must be LOW HIGH with LOW below HIGH, got 5000 800"),
        (["--third-octave", "1100"], "the nearest is 1000"),
        (["--band", "9000", "9900"], "must lie within .* got 9000 .. 9900"),
        (["--band", "800", "5000", "--segment", "0"], "--segment must be a whole number of at least 1"),
        ([], "choose the frequency of the covariance, several, or a band with --frequency-hz or --third-octave"),
    ],
)
def test_bands_that_cannot_be_are_one_line(
    sound: list[str], options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["locate", *sound, *options]) == 2
    assert re.search(words, capsys.readouterr().err.splitlines()[-1])


def test_a_covariance_that_knows_its_snapshots_is_localised_without_being_told(folder: Path) -> None:
    same = [*REGION, "--model", "none", "--no-picture", "--output"]
    assert main(["import", "direct.npz", "own.h5", "--covariance"]) == 0
    assert main(["locate", "own.h5", *same, "one.json"]) == 0
    assert main(["locate", "covariance.npz", "--snapshots", "40", *same, "other.json"]) == 0
    np.testing.assert_allclose(found(folder / "one.json"), found(folder / "other.json"), rtol=1e-6)
    assert main(["locate", "own.h5", "--snapshots", "3", *same, "fewer.json"]) == 0
    assert (folder / "fewer.json").read_bytes() != (folder / "one.json").read_bytes()


def test_a_covariance_with_its_snapshots_is_localised_as_they_are(folder: Path) -> None:
    same = [*REGION, "--model", "none", "--no-picture", "--output"]
    assert main(["locate", "direct.npz", *same, "one.json"]) == 0
    assert main(["locate", "covariance.npz", "--snapshots", "40", *same, "other.json"]) == 0
    np.testing.assert_allclose(found(folder / "one.json"), found(folder / "other.json"), rtol=1e-3)
    assert_near(folder / "one.json", NEAR)
