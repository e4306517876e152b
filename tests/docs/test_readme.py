"""The README's promises: its code runs, its files exist, its commands are the ones that CI runs."""

import csv
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import wavfile
from wideband import spherical

from risfast.cli import main
from risfast.evaluate import match
from risfast.simulate import SystemConfig, generate_scenes

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def positions_printed_by(block):
    """Run a Python block of the README; the positions it prints, [K, 3], nearest first."""
    code = re.findall(r"```python\n(.*?)```", README, re.S)[block]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    numbers = torch.tensor([float(x) for x in re.findall(r"-?\d+\.\d+", done.stdout)], dtype=torch.float64)
    found = numbers.reshape(-1, 3)
    return found[found[:, 2].argsort()]


def test_the_sources_of_a_recording_are_found(tmp_path, monkeypatch):
    pytest.importorskip("soundfile", reason="sound files need: pip install 'risfast[audio]'")
    monkeypatch.chdir(tmp_path)
    microphones = np.random.default_rng(0).uniform(-0.2, 0.2, (16, 3)) * [1, 1, 0]
    places = [[0.3, 0.1, 0.9], [-0.5, -0.2, 1.4]]
    wavfile.write("recording.wav", 16000, spherical(microphones, places, 16000.0, 32000).astype(np.float32))
    np.savetxt("array.csv", microphones, delimiter=",")
    found = positions_printed_by(0)
    torch.testing.assert_close(found, torch.tensor(places).double(), atol=0.02, rtol=0)


def test_the_sources_before_a_surface_are_found():
    scene = generate_scenes(SystemConfig(n_sources=(2, 2), snr_db=(15.0, 15.0), range_m=(1.0, 4.0)), 3, [0])
    found = positions_printed_by(1)
    result = match(found, scene.position[0])
    assert (result.hits, result.ghosts) == (2, 0)
    assert float(result.distance_m.max()) < 0.2


def test_the_operator_finds_the_source_it_simulates():
    found = positions_printed_by(2)
    torch.testing.assert_close(found, torch.tensor([[0.3, 0.1, 1.7]]).double(), atol=1e-3, rtol=0)


def test_the_readme_is_short_and_speaks_no_private_language():
    assert len(README.split()) <= 900
    text = re.sub(r"`[^`]*`|```.*?```", "", README, flags=re.S).lower()
    assert not re.search(r"\b(ghosts?|births?|implied|kept|sbl|als|ls)\b", text)


def test_the_tables_hold_the_recorded_figures():
    recorded = json.loads((ROOT / "bench" / "results" / "cpu.json").read_text())["times"]
    ratios = [float(value) for value in re.findall(r"\| ([\d.]+) x \|", README)]
    measured = [ratio["cpu_median"] for entry in recorded for ratio in entry["ratios"].values()]
    assert len(ratios) == 5
    for ratio in ratios:
        assert min(abs(ratio / value - 1) for value in measured) < 0.02
    with (ROOT / "results" / "headline.csv").open() as stream:
        rows = {(row["name"], row["method"]): row for row in csv.DictReader(stream) if row["snapshots"] == "64"}
    for name, method in (("risfast", "localizer"), ("maximum", "greedy_ml"), ("sparse", "sbl"), ("Capon", "ls_capon")):
        (cells,) = re.findall(rf"^\| \**{name}[^|]*\| \**([\d.]+)\** \| ([\d.]+) \| ([\d.]+) m \|$", README, re.M)
        expected = [float(rows[figure, method]["value"]) for figure in ("f1", "ghosts", "median")]
        assert [float(cell) for cell in cells] == pytest.approx(expected, abs=6e-3)


def test_every_relative_link_and_picture_exists():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_the_first_screen_holds_the_demo_and_the_test_command():
    first, second = re.findall(r"```bash\n(.*?)```", README, re.S)[:2]
    assert "risfast demo" in first
    assert "pytest" in second


@pytest.mark.parametrize("command", sorted(set(re.findall(r"(?:^|`|&& )risfast ([a-z]\w+)", README, re.M))))
def test_every_command_of_the_program_in_the_readme_is_one(command, capsys):
    assert main([command, "--help"]) == 0
    assert f"risfast {command}" in capsys.readouterr().out


def test_the_kernels_are_installed_under_risfast_only():
    kernels = pytest.importorskip("risfast.kernels", reason="risfast is not installed, only on the path")
    assert Path(kernels.__file__).parent.name in ("kernels",)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert "kernels" not in packages
    listed = {"risfast"} | {
        "risfast." + str(p.parent.relative_to(ROOT / "risfast")).replace("/", ".")
        for p in (ROOT / "risfast").rglob("__init__.py")
        if p.parent != ROOT / "risfast"
    }
    assert set(packages) == listed | {"risfast.kernels"}, "a sub-package is missing from the wheel, or listed but gone"
