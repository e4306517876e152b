"""The examples run, and say what is true."""

from __future__ import annotations

import importlib.util
import re
import runpy
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from scipy.io import wavfile

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run an example as a program in an empty folder; what it prints."""

    def call(name, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        with warnings.catch_warnings():
            if name == "microphone_array.py":
                warnings.simplefilter("ignore")  # deprecations inside acoular's dependencies
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return call


def numbers(line):
    return [float(text) for text in re.findall(r"-?\d+\.\d+", line)]


@pytest.mark.skipif(
    importlib.util.find_spec("acoular") is None, reason="acoular is not installed (pip install 'risfast[bench]')"
)
def test_the_microphone_array_agrees_with_acoular_and_finds_its_sources(run):
    lines = run("microphone_array.py", "--picture", "maps.png").splitlines()
    found = sorted(numbers(line) for line in lines if line.startswith("source at"))
    np.testing.assert_allclose(found, [[-0.15, -0.1, 0.6], [0.1, 0.05, 0.5]], atol=0.02)
    (difference,) = [numbers(line)[0] for line in lines if line.startswith("largest difference")]
    assert difference < 0.01
    assert Path("maps.png").read_bytes().startswith(b"\x89PNG")


def test_training_through_the_spectrum_finds_the_phases(run):
    lines = run("torch_training.py").splitlines()
    errors = [numbers(line)[-1] for line in lines]
    assert errors[-1] < 0.1 * errors[0]


def test_the_live_loop_follows_the_source(run, tmp_path):
    frames = [numbers(line) for line in run("live_loop.py").splitlines() if line.startswith("frame")]
    track = np.array(frames)
    assert len(track) == 20
    expected = np.degrees(np.linspace(-0.5, 0.5, 20))
    np.testing.assert_allclose(track[:, 0], expected, atol=1.5)  # the covariance remembers a fifth of the frame before
    np.testing.assert_allclose(track[:, 1], np.degrees(0.1), atol=1.5)
    assert list(tmp_path.iterdir()) == []


def test_from_matlab_and_back(run, tmp_path):
    printed = run("matlab.py", str(tmp_path / "measured.mat"))
    assert "note: data was 64 x 400 and is turned to 400 x 64" in printed
    sources = scipy.io.loadmat(tmp_path / "sources.mat")
    found = np.hstack([sources["azimuth_deg"], sources["elevation_deg"], sources["range_m"]])
    expected = [[*np.degrees([-0.4, -0.1]), 2.5], [*np.degrees([0.3, 0.1]), 1.5]]
    np.testing.assert_allclose(found[found[:, 0].argsort()], expected, atol=0.2)
    measured, covariance = (scipy.io.loadmat(tmp_path / name) for name in ("measured.mat", "covariance.mat"))
    X = measured["data"]
    np.testing.assert_allclose(covariance["covariance"], X @ X.conj().T / X.shape[1], rtol=1e-10, atol=1e-12)


def test_the_bearing_of_one_emitter_and_of_two(run, tmp_path):
    first, second, *_ = run("direction_finding.py").splitlines()
    bearing, deviation = numbers(first)[:2]
    assert bearing == pytest.approx(62.0, abs=5 * deviation)
    assert 0 < deviation < 0.1
    assert second == "no second emitter"
    lines = run("direction_finding.py", "--second-deg", "170", "--picture", "two.png").splitlines()
    bearings = sorted(numbers(line)[0] for line in lines if line.startswith("emitter at"))
    assert bearings == pytest.approx([62.0, 170.0], abs=0.5)
    for name in ("bearings.png", "two.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_antennas_that_go_round_the_other_way_see_the_mirror_image(run, tmp_path):
    (tmp_path / "there").mkdir()
    example = runpy.run_path(str(EXAMPLES / "direction_finding.py"))
    path = tmp_path / "there" / "mine.sigmf-meta"
    example["simulate"](path, example["circle"](0.28, 20.0), [(100.0, 15.0)])
    told = {}
    for name, more in (("right", []), ("wrong", ["--counterclockwise"])):
        printed = run("direction_finding.py", str(path), "--first-deg", "20", "--picture", f"{name}.png", *more)
        told[name] = numbers(printed.splitlines()[0])[0]
    assert told["right"] == pytest.approx(100.0, abs=0.5)
    assert told["wrong"] == pytest.approx(20.0 - (100.0 - 20.0) + 360.0, abs=0.5)


def simulated_checkout(folder, places):
    """Files with the names of the example's repository: impulse responses without a room, and noise for speech."""
    random = np.random.default_rng(0)
    rate, length = 48000, 1024
    (folder / "data" / "sources").mkdir(parents=True)
    microphones = 0.03 * np.arange(32)
    for number, (before, along) in enumerate(places, 1):
        distance = np.hypot(before, along - microphones)
        phase = np.exp(-2j * np.pi * np.fft.rfftfreq(length, 1 / rate)[:, None] * (distance / 343 + 1e-3))
        response = np.fft.irfft(phase / distance, length, axis=0)
        stored = np.round(8000 * response / np.abs(response).max()).astype(np.int16)
        wavfile.write(folder / "data" / "sources" / f"rir_source_{number}.wav", rate, stored)
    scipy.io.savemat(folder / "data" / "sources" / "source_location.mat", {"sourceLocation": np.array(places)})
    for kind in ("female", "male"):
        (folder / "data" / "audio" / kind).mkdir(parents=True)
        for number in (1, 2, 3):
            voice = (3000 * random.standard_normal(16000 * 3)).astype(np.int16)
            wavfile.write(folder / "data" / "audio" / kind / f"{number}.wav", 16000, voice)


def test_loudspeakers_are_found_one_by_one_and_together(run, tmp_path):
    simulated_checkout(tmp_path / "made", [(0.5, 0.2), (0.8, 0.7)])
    for number, talkers in ((1, "noise"), (2, "speech")):
        given = ["--at-once", str(number), "--mixtures", "1", "--talkers", talkers, "--picture", f"{talkers}.png"]
        lines = run("loudspeakers.py", str(tmp_path / "made"), *given).splitlines()
        (line,) = [line for line in lines if line.startswith(f"{number} at once, 1 scenes: ")]
        assert f"found {number} of {number}, false alarms 0" in line
        assert numbers(line)[0] < 0.02
        assert (tmp_path / f"{talkers}.png").read_bytes().startswith(b"\x89PNG")


def test_hits_are_as_many_pairs_as_there_can_be(tmp_path):
    hits = runpy.run_path(str(EXAMPLES / "loudspeakers.py"))["hits"]
    true = np.array([[0.0, 0.0, 1.0], [0.3, 0.0, 1.0]])
    found = np.array([[0.1, 0.0, 1.0], [-0.2, 0.0, 1.0], [np.nan] * 3])
    np.testing.assert_allclose(np.sort(hits(found, true)), [0.2, 0.2])
    assert len(hits(found[2:], true)) == len(hits(found[:0], true)) == 0
    np.testing.assert_allclose(hits(found, true[:1]), [0.1])
