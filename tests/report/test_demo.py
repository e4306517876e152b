"""The demo: its scenes are nobody's training, its table is what the methods did, its pictures show what was found."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from risfast import Localizer, SearchGrid, SensorArray
from risfast.cli import main
from risfast.evaluate import match, summarise
from risfast.evaluate.bounds import scene_bound
from risfast.report.demo import DemoOptions, DemoReport, demo_scenes, illustrative_scene, run_demo
from risfast.report.demo_pictures import LOCALIZER, Answer, Illustration, confidence_ellipse, localizer_figure
from risfast.setup import Setup
from risfast.simulate import SystemConfig, generate_scenes
from risfast.sources import Sources
from risfast.steering import steering_vectors
from risfast.train.config import DataOptions, ValidationOptions

METHODS = [
    "risfast Localizer",
    "Cramer-Rao bound",
    "Capon, true covariance",
    "Capon, least squares",
    "Capon, alternating fit",
]


def demo_arguments(output: str) -> list[str]:
    return ["demo", "--scenes", "3", "--snapshots", "16", "--grid", "training", "--output", output]


def table(printed: str) -> dict[str, list[str]]:
    """The figures of each method that depend on the scenes alone, not on the clock."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in printed.splitlines()]
    return {cells[0]: cells[1:-1] for cells in lines if len(cells) == 9 and cells[0] != "method"}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> DemoReport:
    folder = tmp_path_factory.mktemp("demo") / "a" / "b"
    return run_demo(DemoOptions(scenes=3, snapshots=16, grid="training", output=folder))


def test_demo_prints_a_table_and_ends_with_the_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(demo_arguments("pictures")) == 0
    printed = capsys.readouterr().out
    rows = table(printed)
    assert list(rows) == METHODS
    scenes = demo_scenes(DemoOptions(snapshots=16), range(3))
    truth = [scenes.position[b][scenes.mask[b]] for b in range(3)]
    assert int(re.search(r"(\d+) sources", printed).group(1)) == sum(map(len, truth))
    found = Localizer.from_pretrained().localize(scenes.y, scenes.codes, scenes.channel)
    expected = summarise([match(f.position, t) for f, t in zip(found, truth, strict=True)])
    count, f1, interval, recall, ghosts, error_m, right = rows[LOCALIZER]
    low, high = map(float, interval.split("-"))
    assert int(count) == 3
    assert low - 0.005 <= float(f1) <= high + 0.005
    figures = [expected.f1, expected.recall, expected.ghosts_per_scene, expected.median_xyz_pairs_m]
    for cell, value, digits in zip((f1, recall, ghosts, error_m), figures, (3, 3, 2, 3), strict=True):
        assert float(cell) == pytest.approx(value, abs=0.5001 * 10.0**-digits)
    assert float(right) == pytest.approx(expected.count_accuracy, abs=0.0051)
    named = [line.rpartition(": ")[2] for line in printed.splitlines()[-4:]]
    assert named == [f"pictures/{stem}.png" for stem in ("spectrum", "capon", "range", "errors")]
    for name in named:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / name).stat().st_size < 300_000


def test_same_seed_gives_the_same_demo_and_another_seed_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = []
    for seed in ("0", "0", "1"):
        assert main([*demo_arguments(str(tmp_path)), "--overwrite", "--scenes", "1", "--seed", seed]) == 0
        tables.append(table(capsys.readouterr().out))
    assert tables[0] == tables[1] != tables[2]


def test_demo_as_a_library_prints_nothing_and_reports_its_stages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages: list[str] = []
    options = DemoOptions(scenes=1, snapshots=3, grid="training", output=tmp_path / "a" / "b")
    run_demo(options, lambda stage, done, total: stages.append(stage))
    assert capsys.readouterr() == ("", "")
    methods = [name for name in METHODS if name != "Cramer-Rao bound"]
    assert list(dict.fromkeys(stages)) == ["simulating", "preparing", *methods, "drawing"]


def test_the_bound_is_that_of_the_scenes(report: DemoReport) -> None:
    scenes = demo_scenes(report.options, range(3))
    bound = scene_bound(scenes)
    implied = bound.implied_recall()[scenes.mask]
    assert report.bound.implied_recall.value == pytest.approx(float(implied.mean()), abs=1e-9)
    assert len(report.bound.error_m) == int(scenes.mask.sum())
    # Each draw's squared distance has mean 1 and, along one coordinate at the most, variance 2; five deviations of all.
    squares = np.square(report.bound.error_m) / bound.position_m[scenes.mask].square().numpy()[:, None]
    assert squares.mean() == pytest.approx(1, abs=5 * math.sqrt(2 / squares.size))


def test_no_training_draws_the_scenes_of_the_demo() -> None:
    trained = {DataOptions().seed, ValidationOptions().seed, ValidationOptions().test_seed, 0, 1}
    for seed in (0, 1, 2**32 - 1):
        own = demo_scenes(DemoOptions(seed=seed, snapshots=2), range(2))
        block = 0x64656D6F * 2**32
        again = generate_scenes(SystemConfig(n_snapshots=2), block + seed, range(2))
        torch.testing.assert_close(own.y, again.y, rtol=0, atol=0)
        assert block + seed not in trained


def separation(position: np.ndarray) -> float:
    """Least angle between two of the directions, by the spherical law of cosines; half a turn for a single one."""
    angles = [
        math.acos(min(1.0, math.sin(a[1]) * math.sin(b[1]) + math.cos(a[1]) * math.cos(b[1]) * math.cos(a[0] - b[0])))
        for a, b in itertools.combinations(position, 2)
    ]
    return min(angles, default=math.pi)


@pytest.mark.parametrize("seed", range(4))
def test_drawn_scene_has_the_most_sources_of_those_with_typical_noise_and_legible_markers(seed: int) -> None:
    scenes = generate_scenes(SystemConfig(n_snapshots=2), seed, range(24))
    truth = [scenes.position[b][scenes.mask[b]].double().numpy() for b in range(24)]
    eligible = [
        b for b in range(24) if separation(truth[b]) >= math.radians(8) and 4.5 <= float(scenes.snr_db[b]) <= 10.5
    ]
    most = max(len(truth[b]) for b in eligible)
    expected = max((b for b in eligible if len(truth[b]) == most), key=lambda b: separation(truth[b]))
    halves = [generate_scenes(SystemConfig(n_snapshots=2), seed, part) for part in (range(7), range(7, 24))]
    assert illustrative_scene(halves) == expected


@pytest.mark.parametrize("probability", [0.5, 0.95])
def test_a_gaussian_lies_in_its_ellipse_as_often_as_it_says(probability: float) -> None:
    covariance = torch.tensor([[4.0, -1.5], [-1.5, 1.0]], dtype=torch.float64)
    centre = torch.tensor([3.0, -7.0], dtype=torch.float64)
    border = confidence_ellipse(centre, covariance, probability) - centre.numpy()
    inverse = np.linalg.inv(covariance.numpy())
    squared = np.einsum("pi,ij,pj->p", border, inverse, border)
    np.testing.assert_allclose(squared, squared[0])
    np.testing.assert_allclose(border[0], border[-1], atol=1e-12)
    draws = np.random.default_rng(0).multivariate_normal([0, 0], covariance.numpy(), 20_000)
    inside = np.einsum("pi,ij,pj->p", draws, inverse, draws) <= squared[0]
    assert inside.mean() == pytest.approx(probability, abs=5 * math.sqrt(probability * (1 - probability) / 20_000))


TRUE = torch.tensor([[-0.5, 0.1, 1.5], [0.2, -0.3, 4.0]], dtype=torch.float64)
# The first is found, the second is missed, and there is a ghost.
FOUND = torch.tensor([[-0.49, 0.11, 1.6], [0.7, 0.2, 2.0]], dtype=torch.float64)
SPREAD = torch.diag(torch.tensor([0.02, 0.01, 0.25], dtype=torch.float64).square()).expand(2, 3, 3)


@pytest.fixture(scope="module")
def figure() -> Any:
    array = SensorArray.rectangular(6, 5, spacing_m=0.15, wavelength_m=0.3)
    a = steering_vectors(array, *TRUE.T, dtype=torch.complex128)
    covariance = (a.mT @ a.conj() + 0.01 * torch.eye(30))[None]
    sources = Sources.at(FOUND, torch.ones(2).double(), torch.tensor([0.9, 0.4]).double())
    answer = Answer([sources], covariance, [SPREAD])
    scene = Illustration(3, {LOCALIZER: "8 snapshots"}, TRUE, {LOCALIZER: answer}, {LOCALIZER: match(FOUND, TRUE)})
    return localizer_figure(scene, Setup(array), SearchGrid.box(31, 21, (1.0, 2.0, 4.0), 1.0, 0.5))


def lines_of(axes: Any) -> dict[str, np.ndarray]:
    return {line.get_label(): np.stack(line.get_data(), -1) for line in axes.lines}


def test_sources_stand_at_their_angles_and_ranges_in_both_maps(figure: Any) -> None:
    above, below = figure.axes[:2]
    for axes, up in ((above, np.degrees(TRUE[:, 1].numpy())), (below, TRUE[:, 2].numpy())):
        np.testing.assert_allclose(lines_of(axes)["true source"], np.stack([np.degrees(TRUE[:, 0].numpy()), up], -1))
    for axes, up in ((above, np.degrees(FOUND[:, 1].numpy())), (below, FOUND[:, 2].numpy())):
        np.testing.assert_allclose(lines_of(axes)["found"], np.stack([np.degrees(FOUND[:, 0].numpy()), up], -1))
    assert above.get_title(loc="left") == "8 snapshots: 1 of 2 sources found, 1 false alarms"
    assert [text.get_text() for text in above.texts] == ["A", "B", "false alarm, 0.40"]
    assert (above.get_ylabel(), below.get_ylabel(), below.get_xlabel()) == (
        "elevation (deg)",
        "range (m)",
        "azimuth (deg)",
    )


def test_ellipses_are_as_wide_as_the_deviations_in_each_map(figure: Any) -> None:
    above, below = figure.axes[:2]
    half = math.sqrt(-2 * math.log(0.05))
    label = "95 % region of the position"
    for axes, deviation in ((above, np.degrees([0.02, 0.01])), (below, [math.degrees(0.02), 0.25])):
        border = lines_of(axes)[label]
        np.testing.assert_allclose(np.ptp(border, axis=0) / 2, half * np.asarray(deviation), rtol=1e-3)


def test_every_true_source_has_a_zoom_that_says_what_was_found(figure: Any) -> None:
    zooms = figure.axes[2:4]
    assert zooms[0].get_title().splitlines() == [
        r"$\bf{A}$  true 1.50 m",
        "found 1.60 ± 0.25 m",
        "confidence 0.90",
    ]
    assert zooms[1].get_title().splitlines() == [r"$\bf{B}$  true 4.00 m", "missed"]
    for axes, position in zip(zooms, np.degrees(TRUE[:, :2].numpy()), strict=True):
        np.testing.assert_allclose([np.mean(axes.get_xlim()), np.mean(axes.get_ylim())], position)
