"""``risfast import``, from the command line to the detector."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import oracles
import pytest
import scipy.io
import torch

from risfast.cli import main
from risfast.geometry import PlanarArray
from risfast.io import read_setup
from risfast.simulate import read

HERA = Path(__file__).parents[1] / "data" / "hera19.uvh5"


@pytest.fixture
def matlab(tmp_path):
    """A MATLAB user's file: snapshots X (N x L), positions P (3 x N), wavelength; one source at a known place."""
    array = PlanarArray.rectangular(5, 4)
    place = np.array([[0.2, -0.1, 1.6]])
    a = oracles.steering(array.positions_m.numpy(), array.wavelength_m, place)[0]
    rng = np.random.default_rng(0)
    X = np.outer(a, oracles.complex_normal(rng, 200)) + 0.1 * oracles.complex_normal(rng, 20, 200)
    path = tmp_path / "measured.mat"
    scipy.io.savemat(path, {"data": X, "P": array.positions_m.numpy().T, "lambda": array.wavelength_m})
    return path


FIELDS = ["--field", "snapshots=data", "positions_m=P", "wavelength_m=lambda"]


def test_from_matlab_through_import_to_detect(matlab, tmp_path, capsys):
    R, toml, found = tmp_path / "R.mat", tmp_path / "array.toml", tmp_path / "found.json"
    assert main(["import", str(matlab), str(R), "--covariance", "--setup-output", str(toml), *FIELDS]) == 0
    printed = capsys.readouterr().out
    assert "covariance: 1 x 20 x 20" in printed
    assert "note: data was 20 x 200 and is turned to 200 x 20" in printed
    assert read_setup(toml).array.lattice is not None
    assert main(["detect", str(R), "--setup", str(toml), "--grid", "training", "--output", str(found)]) == 0
    import json

    first = json.loads(found.read_text())["scenes"][0][0]
    assert abs(first["azimuth_deg"] - np.degrees(0.2)) < 1
    assert abs(first["elevation_deg"] - np.degrees(-0.1)) < 1


def test_without_output_it_only_says_what_is_there(capsys, tmp_path):
    assert main(["import", str(HERA), "--frequency-hz", "150.78e6"]) == 0
    printed = capsys.readouterr().out
    assert "format: UVH5" in printed
    assert "telescope_name: HERA" in printed


def test_converting_keeps_the_measurement(tmp_path):
    out = tmp_path / "out.h5"
    assert main(["import", str(HERA), str(out), "--frequency-hz", "150.78e6", "--flagged", "3"]) == 0
    direct, again = read(HERA, frequency_hz=150.78e6, flagged=[3]), read(out)
    assert torch.equal(again.covariance, direct.covariance)
    assert torch.equal(again.array.positions_m, direct.array.positions_m)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.npz"], "there is no such file"),
        ([str(HERA)], "choose one with --frequency-hz"),
        ([str(HERA), "out.xyz"], "OUTPUT must end in"),
        ([str(HERA), "no/folder/out.h5"], "the folder no/folder does not exist"),
        ([str(HERA), "out.h5", "--output", "out.h5"], "give OUTPUT or --output, not both"),
        ([str(HERA), "--field", "covariance"], "--field must be FIELD=NAME"),
    ],
)
def test_errors_are_one_line_and_nothing_is_written(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["import", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_source_is_never_overwritten(matlab):
    before = matlab.read_bytes()
    assert main(["import", str(matlab), str(matlab), *FIELDS]) == 2
    assert matlab.read_bytes() == before


def test_an_output_is_replaced_only_when_asked(matlab, tmp_path, capsys):
    out = tmp_path / "out.npz"
    out.write_text("mine")
    given = ["import", str(matlab), "--output", str(out), *FIELDS]
    assert main(given) == 2
    assert "out.npz exists: give another OUTPUT, or --overwrite" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert main([*given, "--overwrite"]) == 0
    assert read(out).array == read(matlab, fields=dict(pair.split("=") for pair in FIELDS[1:])).array


def test_options_of_the_reader_are_named_as_they_are_typed(matlab, capsys):
    assert main(["import", str(matlab), *FIELDS[:2]]) == 2
    error = capsys.readouterr().err
    assert "--positions" in error
    assert "--field positions_m=NAME" in error
    assert "fields=" not in error
