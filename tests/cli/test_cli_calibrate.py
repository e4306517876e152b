"""``risfast calibrate``: from recordings to a setup with gains, and on to positions of sources."""

from __future__ import annotations

import math
import re

import numpy as np
import oracles
import pytest

from risfast.cli import main
from risfast.geometry import Region, SensorArray
from risfast.io import read_setup, write_setup
from risfast.setup import Setup

ARRAY = SensorArray.circular(8, 0.08, 0.1)
PLACES = [(-100.0, 0.0, 2.0), (-20.0, 0.0, 1.0), (50.0, 0.0, 0.7), (140.0, 0.0, math.inf)]


@pytest.fixture
def gains():
    rng = np.random.default_rng(1)
    return np.exp(0.1 * rng.standard_normal(8) + 0.6j * rng.standard_normal(8))


@pytest.fixture
def folder(tmp_path, gains):
    rng = np.random.default_rng(2)
    region = Region((-math.pi, math.pi), (0.0, 0.0), (0.2, math.inf))
    write_setup(tmp_path / "array.toml", Setup(ARRAY, region, sampling="direct"))
    for number, (azimuth, elevation, r) in enumerate(PLACES):
        place = [(math.radians(azimuth), math.radians(elevation), min(r, 1e6))]
        a = oracles.steering(ARRAY.positions_m.numpy(), ARRAY.wavelength_m, np.array(place))
        x = (oracles.complex_normal(rng, 200, 1) @ a) * gains
        np.savez(tmp_path / f"{number}.npz", snapshots=x + 0.1 * oracles.complex_normal(rng, *x.shape))
    return tmp_path


def command(folder, *more):
    files = [str(folder / f"{number}.npz") for number in range(len(PLACES))]
    return ["calibrate", *files, "--setup", str(folder / "array.toml"), *map(str, more)]


def test_gains_go_into_the_setup_and_locate_reads_them(folder, gains, capsys):
    at = [value for place in PLACES for value in place]
    output = folder / "calibrated.toml"
    assert main(command(folder, "--at", *at, "--output", output)) == 0
    text = capsys.readouterr().out
    rows = re.findall(r"^ +(\d+) +(-?[\d.]+) +([\d.]+) +(-?[\d.]+) +([\d.]+)$", text, re.M)
    assert [int(row[0]) for row in rows] == list(range(8))
    found = np.array(read_setup(output).gains)
    np.testing.assert_allclose([float(row[1]) for row in rows], 20 * np.log10(np.abs(found)), atol=6e-4)
    ratio = found / gains
    assert np.abs(ratio / ratio.mean() - 1).max() < 0.03
    assert (folder / "calibrated.toml.png").read_bytes().startswith(b"\x89PNG")
    places = folder / "sources.csv"
    locate = ["locate", str(folder / "1.npz"), "--setup", str(output), "--model", "none", "--no-picture"]
    assert main([*locate, "--output", str(places)]) == 0
    header, *lines = places.read_text().splitlines()
    assert len(lines) == 1
    row = dict(zip(header.split(","), lines[0].split(","), strict=True))
    assert float(row["azimuth_deg"]) == pytest.approx(-20, abs=1)


def test_places_and_positions_are_sought_where_they_are_not_told(folder, gains, capsys):
    output = folder / "calibrated.toml"
    assert main(command(folder, "--positions", "--sources", 1, "--output", output, "--picture", folder / "p.svg")) == 0
    out, err = capsys.readouterr()
    assert "x (mm)" in out
    assert "positions along y are not determined" in err
    assert read_setup(output).array != ARRAY
    assert (folder / "p.svg").is_file()


def test_covariances_need_their_number_of_snapshots(folder, capsys):
    x = np.load(folder / "0.npz")["snapshots"]
    np.savez(folder / "covariance.npz", covariance=x.T @ x.conj() / len(x))
    arguments = ["calibrate", str(folder / "covariance.npz"), "--setup", str(folder / "array.toml")]
    assert main(arguments) == 2
    assert "give --snapshots" in capsys.readouterr().err
    assert main([*arguments, "--snapshots", "200", "--at", "-100", "0", "2"]) == 0
    assert "cannot be told from so few recordings" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--at", "0", "0", "1"], "--at must be AZ EL R for each of 4 files"),
        (["--at", *["0", "100", "1"] * 4], "--at must be an azimuth and an elevation in degrees"),
        (["--at", *["0", "0", "1"] * 4, "--sources", "1"], "give one"),
        (["--output", "gains.csv"], "--output must end in .toml"),
        (["--snapshots", "10"], "--snapshots goes with a covariance"),
    ],
)
def test_what_cannot_be_is_refused(folder, capsys, more, told):
    assert main(command(folder, *more)) == 2
    assert told in capsys.readouterr().err


def test_a_calibration_without_files_is_refused(capsys):
    assert main(["calibrate"]) == 2
    assert "at least one FILE" in capsys.readouterr().err
