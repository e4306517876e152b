"""The suite: what it runs over, that it can be interrupted anywhere, and that a folder belongs to one configuration."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
import threading
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import suite_process
import torch
from tiny_suite import ARRAY, save_tiny_model, tiny_config

from risfast.baselines import BASELINES
from risfast.errors import FileFormatError
from risfast.evaluate.figures import figures
from risfast.evaluate.methods import (
    DEFAULT_METHODS,
    KNOWLEDGE,
    METHOD_TITLES,
    SUITE_METHODS,
    VARIANTS,
    Methods,
    measurement_of,
)
from risfast.evaluate.metrics import score_scenes
from risfast.evaluate.records import RecordPlace, ResultsFolder
from risfast.evaluate.scenarios import CHUNK, SUITES, scene_sets
from risfast.evaluate.suite import TRUTH, SuiteConfig, run_suite, tasks_of
from risfast.geometry import SensorArray
from risfast.io.options_file import write_options
from risfast.localize import Localizer, pipeline
from risfast.localize.pipeline import DecisionOptions, PipelineOptions
from risfast.localize.refiner import estimate_maps, refined_sources
from risfast.models import Measurement
from risfast.models.files import read_card, save_model
from risfast.models.refiner import RefinerOptions, SpectrumRefiner
from risfast.report.outcome import command_of, finish
from risfast.report.style import number
from risfast.setup import Setup, Tolerance
from risfast.simulate.scenes import SystemConfig, generate_scenes
from risfast.simulate.system_file import differing_fields, system_from_json

HELPERS = Path(__file__).parents[1] / "helpers"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> ResultsFolder:
    return run_suite(tiny_config(model), tmp_path_factory.mktemp("whole") / "out")


def records(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Every record but its times, by its path."""
    found = {}
    for path in sorted((folder / "records").rglob("*.npz")):
        with np.load(path) as file:
            values = {n: file[n] for n in file.files if n != "seconds" and not n.startswith("stage_")}
        found[str(path.relative_to(folder))] = values
    return found


def assert_same_records(one: Path, other: Path) -> None:
    first, second = records(one), records(other)
    assert list(first) == list(second)
    for name, values in first.items():
        for key, value in values.items():
            np.testing.assert_array_equal(value, second[name][key], err_msg=f"{name}: {key}")


# ---- what it runs over


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("scenes", [1, 8, 100, 1000])
def test_sets_cover_what_the_suite_says_in_whole_chunks(suite: str, scenes: int) -> None:
    sets = scene_sets(suite, scenes, ("localizer", "greedy_ml", "sbl"))
    assert sets[0].name == "main"
    assert len({s.name for s in sets}) == len(sets)
    names = {s.name for s in sets}
    assert ("map" in names) == (suite in ("all", "map"))
    assert ("coherent" in names) == (suite in ("all", "robustness"))
    for scene_set in sets:
        assert 1 <= scene_set.scenes <= scenes
        labels = [run.label for run in scene_set.runs]
        assert len(set(labels)) == len(labels)
        for run in scene_set.runs:
            assert run.knowledge in KNOWLEDGE
            assert run.scenes == scene_set.scenes or run.scenes % CHUNK == 0
    if suite == "frozen":
        assert sets[0].scenes <= 8


def test_every_scene_of_a_set_is_in_one_chunk_of_each_run() -> None:
    sets = scene_sets("all", 70, ("localizer", "greedy_ml", "sbl"))
    tasks = tasks_of(sets, (64, 16))
    for scene_set in sets:
        for length in (64, 16):
            for cell in range(len(scene_set.cells)):
                own = [t for t in tasks if (t.scene_set, t.snapshots, t.cell) == (scene_set.name, length, cell)]
                for run in scene_set.runs:
                    seen = [i for t in own if run.label in t.labels for i in range(t.start, t.stop)]
                    assert seen == list(range(run.scenes))
                assert [i for t in own if TRUTH in t.labels for i in range(t.start, t.stop)] == list(
                    range(scene_set.scenes)
                )


def test_a_mismatch_changes_the_measurements_and_nothing_else() -> None:
    sets = {s.name: s for s in scene_sets("robustness", 64, ("localizer",))}
    nominal = generate_scenes(sets["main"].cells[0], 5, range(4))
    impaired = [n for n, s in sets.items() if s.cells[0].impairments != SystemConfig().impairments]
    assert len(impaired) == 8
    for name in impaired:
        scenes = generate_scenes(sets[name].cells[0], 5, range(4))
        assert torch.equal(scenes.position, nominal.position), name
        assert torch.equal(scenes.codes, nominal.codes), name
        assert torch.equal(scenes.snr_db, nominal.snr_db), name
        assert not torch.allclose(scenes.y, nominal.y), name


@pytest.mark.parametrize("width", [4, 8])
def test_close_pairs_are_two_sources_in_a_small_box(width: int) -> None:
    sets = {s.name: s for s in scene_sets("robustness", 64, ("localizer",))}
    for system in sets[f"close_{width}_deg"].cells:
        scenes = generate_scenes(system, 5, range(20))
        assert (scenes.n_sources == 2).all()
        apart = (scenes.position[:, 0, :2] - scenes.position[:, 1, :2]).abs().rad2deg()
        assert float(apart.max()) <= width
        assert float(apart.max()) > width / 2  # and not closer than the box makes them


def test_cells_of_the_map_hold_their_number_of_sources_and_their_snr() -> None:
    cells = scene_sets("map", 64, ("localizer",))[1].cells
    seen = set()
    for system in cells:
        scenes = generate_scenes(system, 1, range(3))
        assert len(scenes.n_sources.unique()) == len(scenes.snr_db.round(decimals=3).unique()) == 1
        seen.add((int(scenes.n_sources[0]), round(float(scenes.snr_db[0]), 3)))
    assert seen == {(k, snr) for k in range(1, 6) for snr in (-5.0, 0.0, 5.0, 10.0, 15.0, 20.0)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"suite": "most"}, "suite must be one of"),
        ({"scenes": 0}, "scenes must be at least 1"),
        ({"snapshots": ()}, "snapshots must be different numbers"),
        ({"snapshots": (16, 16)}, "snapshots must be different numbers"),
        ({"seed": -1}, "seed must lie in"),
        ({"methods": ("magic",)}, "methods must be among"),
        ({"methods": ("sbl", "sbl")}, "must not repeat"),
        ({"methods": ("transformer_capon",)}, "--transformer"),
    ],
)
def test_what_cannot_be_run_is_refused_before_any_work(
    model: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        run_suite(tiny_config(model, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- methods


@pytest.mark.parametrize("name", [m for m in (*DEFAULT_METHODS[:2], *BASELINES) if m != "transformer_capon"])
def test_a_method_that_is_told_the_number_of_sources_reports_that_many(model: Path, name: str) -> None:
    methods = Methods(model)
    scenes = generate_scenes(SystemConfig(array=ARRAY, n_snapshots=6), 0, range(4))
    found = methods[name].find(scenes, *measurement_of(scenes, "count"))
    counts = scenes.n_sources.tolist()
    if name == "localizer_raw":  # it can only leave sources out
        assert all(len(s) <= k for s, k in zip(found.sources, counts, strict=True))
    else:
        assert [len(s) for s in found.sources] == counts
    assert found.seconds > 0


BY_NAME = ("refined", "localizer_count")  # what the ablation leaves out unless it is named


@pytest.mark.parametrize("name", [n for n in VARIANTS if n != "localizer" and not n.startswith("refined")])
def test_a_variant_is_the_localizer_with_one_thing_changed(model: Path, name: str) -> None:
    methods = Methods(model)
    options, variant = methods.localizer.options, VARIANTS[name]
    assert set(differing_fields(asdict(options), asdict(variant.of(options)))) == set(variant.changes)
    made = methods[name]
    assert made.options == variant.of(PipelineOptions() if variant.classical else options)
    assert (made.parts is methods.localizer.parts) is not variant.classical
    identities = [json.dumps(methods.identity(other)) for other in VARIANTS]
    assert identities.count(json.dumps(methods.identity(name))) == 1  # records of one are never taken for another's
    scenes = generate_scenes(SystemConfig(array=ARRAY, n_snapshots=6), 0, range(2))
    found = methods[name].find(scenes, *measurement_of(scenes, "blind"))
    assert len(found.sources) == 2
    assert ("polish" in found.stages) is variant.of(options).polished


def test_the_ablation_is_over_scenes_of_the_main_set(model: Path) -> None:
    sets = {s.name: s for s in scene_sets("ablation", 64, ("localizer", "greedy_ml"))}
    assert sets["ablation"].cells == sets["main"].cells
    assert sets["ablation"].scenes == 32
    assert {run.method for run in sets["ablation"].runs} == {n for n in VARIANTS if not n.startswith(BY_NAME)}
    named = {s.name: s for s in scene_sets("ablation", 64, ("localizer", "refined_raw"))}
    assert "refined_raw" in {run.method for run in named["ablation"].runs}
    assert [s.name for s in scene_sets("ablation", 64, ("greedy_ml",))] == ["main"]  # nothing to take apart


def test_a_refiner_is_measured_whether_it_helps_or_not_and_its_rows_need_one(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="refined_raw needs a refiner behind the model: give"):
        Methods(model).check(("refined_raw",))
    card = read_card(model)
    setup, network = Setup.from_json(card["setup"]), SpectrumRefiner(RefinerOptions(channels=(8, 16), dilations=(2,)))
    grid = {name: axis.tolist() for name, axis in vars(setup.search_grid(4.0)).items()}
    of = {"helps": False, "reading": {}, "grid": grid, "backbone": {"sha256": card["sha256"]}}
    save_model(tmp_path, "refiner", network.state_dict(), setup, network.options(), of)
    methods = Methods(model, refiner=tmp_path)
    methods.check(("refined", "refined_raw"))
    scenes = generate_scenes(SystemConfig(array=ARRAY, n_snapshots=6), 0, range(2))
    with pytest.warns(UserWarning, match="cannot be believed") if _unbelieved(methods, scenes) else nullcontext():
        found = methods["refined_raw"].find(scenes, *measurement_of(scenes, "blind"))
    assert len(found.sources) == 2
    assert methods.identity("refined_raw") != Methods(model).identity("refined_raw")


def _unbelieved(methods: Methods, scenes) -> bool:
    parts = methods.localizer.parts
    measurement, _ = measurement_of(scenes, "blind")
    estimate = pipeline.estimate(parts, measurement)
    given = estimate_maps(estimate, parts.backbone, parts.setup, parts.refiner.grid, parts.refiner.reading)
    return not bool(refined_sources(parts.refiner, given, estimate.factor, parts.setup)[1].ok.all())


def test_options_of_a_file_are_those_of_the_localizer(model: Path, tmp_path: Path) -> None:
    chosen = PipelineOptions(decision=DecisionOptions(least_confidence=0.45))
    write_options(tmp_path / "options.toml", chosen)
    assert Methods(model, options=tmp_path / "options.toml").localizer.options == chosen
    config = SuiteConfig(model=model, options=tmp_path / "options.toml")
    assert config.build_methods().localizer.options == chosen
    assert "--options options.toml" in command_of(config)


def test_only_the_knowledge_that_is_named_is_handed_over() -> None:
    scenes = generate_scenes(SystemConfig(array=ARRAY, n_snapshots=3), 0, range(2))
    for knowledge in KNOWLEDGE:
        measurement, counts = measurement_of(scenes, knowledge)
        assert (measurement.noise_power is not None) == (knowledge in ("noise", "count_noise"))
        assert (counts is not None) == (knowledge in ("count", "count_noise"))
    with pytest.raises(ValueError, match="knowledge must be one of"):
        measurement_of(scenes, "everything")


def test_every_method_has_a_title_and_an_identity(model: Path) -> None:
    methods = Methods(model)
    for name in (m for m in SUITE_METHODS if m != "transformer_capon"):
        assert name in METHOD_TITLES
        assert methods.identity(name) == Methods(model).identity(name)
    assert methods.identity("localizer")["weights"] != ""


# ---- a system of its own

OWN = SystemConfig(
    array=ARRAY,
    n_antennas=5,
    n_snapshots=7,
    azimuth_rad=(0.0, 0.8),
    elevation_rad=(-0.3, 0.1),
    range_m=(0.3, 0.9),
    n_sources=(1, 2),
    snr_db=(10.0, 20.0),
    wavefront="fresnel",
)


def test_a_system_of_its_own_is_run_and_scored_on_its_own_setup(tmp_path: Path) -> None:
    setup = OWN.setup.replace(tolerance=Tolerance(0.2, 0.2, 0.1))
    config = tiny_config(None, scenes=4, system=OWN, setup=setup, methods=("localizer", "greedy_ml", "ls_capon"))
    results = run_suite(config, tmp_path / "out")
    described = json.loads((tmp_path / "out" / "config.json").read_text())
    assert Setup.from_json(described["setup"]) == setup
    assert system_from_json(described["system"]) == OWN
    assert described["methods"]["localizer"]["weights"] is None
    scenes = generate_scenes(dataclasses.replace(OWN, n_snapshots=6), config.seed, range(4))
    answers = Localizer.classical(setup).localize(Measurement.of(scenes))
    record = results.read(RecordPlace("main", 0, 6, "localizer", 0, 4))
    np.testing.assert_array_equal(record["sources"][:, :3], torch.cat([s.position for s in answers]).numpy())
    outcome = finish(config, results, resamples=2)
    scored = score_scenes(answers, scenes, tolerance=setup.tolerance)
    (f1,) = [r for r in outcome.headline if (r["name"], r["method"]) == ("f1", "localizer")]
    assert f1["value"] == figures(scored)["f1"]
    page = outcome.report.read_text()
    assert "0.1 m in range" in page
    assert f"azimuth 0° … {number(math.degrees(0.8))}°" in page
    with pytest.raises(ValueError, match=r"another configuration \(setup\.tolerance"):
        run_suite(dataclasses.replace(config, setup=OWN.setup), tmp_path / "out")


def test_an_array_that_is_sampled_directly_is_run_beside_its_baselines(tmp_path: Path) -> None:
    system = SystemConfig(
        array=SensorArray.rectangular(6, 6),
        range_m=(0.5, 1.5),
        n_sources=(1, 2),
        snr_db=(15.0, 20.0),
        sampling="direct",
    )
    names = ("localizer", "greedy_ml", "ls_capon", "ls_music", "bartlett")
    config = SuiteConfig(suite="main", scenes=8, snapshots=(50,), methods=names, model=None, system=system)
    results = run_suite(config, tmp_path / "out")
    outcome = finish(config, results, resamples=10)
    score = {row["method"]: row["value"] for row in outcome.headline if row["name"] == "f1"}
    assert score["localizer"] >= max(score["ls_capon"], score["bartlett"])
    assert min(score["localizer"], score["greedy_ml"]) > 0.9


def test_several_bands_are_run_by_what_takes_them(tmp_path: Path) -> None:
    system = SystemConfig(
        array=SensorArray.rectangular(4, 4),
        range_m=(0.5, 1.5),
        n_sources=(1, 2),
        snr_db=(15.0, 20.0),
        sampling="direct",
        wavelengths_m=(0.3, 0.34, 0.4),
    )
    names = ("localizer", "greedy_ml")
    config = SuiteConfig(suite="main", scenes=6, snapshots=(40,), methods=names, model=None, system=system)
    outcome = finish(config, run_suite(config, tmp_path / "out"), resamples=10)
    score = {row["method"]: row["value"] for row in outcome.headline if row["name"] == "f1"}
    assert min(score["localizer"], score["greedy_ml"]) > 0.9
    assert "16 elements of an array in 3 narrow bands" in outcome.report.read_text()
    with pytest.raises(ValueError, match=r"sbl takes one band, and the setup has 3.*greedy_ml"):
        run_suite(dataclasses.replace(config, methods=("localizer", "sbl")), tmp_path / "other")
    one = Setup(system.array, system.setup.region, sampling="direct")
    with pytest.raises(ValueError, match="wavelengths_m is"):
        dataclasses.replace(config, setup=one)
    every = dataclasses.replace(config, suite="all")
    ran = {run.method for part in every.sets(every.build_methods()) for run in part.runs}
    assert "ml_from_truth" in ran
    assert not ran & {"true_capon", "capon_polish", "capon_raw"}


def test_where_no_range_is_determined_directions_are_scored(tmp_path: Path) -> None:
    plane = dataclasses.replace(OWN, wavefront="planar", n_sources=(1, 1), snr_db=(25.0, 25.0))
    config = tiny_config(None, scenes=4, system=plane, methods=("localizer", "ls_capon"))
    outcome = finish(config, run_suite(config, tmp_path), resamples=2)
    found = {r["method"]: r["value"] for r in outcome.headline if r["name"] == "f1"}
    assert found["localizer"] > 0.7
    assert "whatever the range" in outcome.report.read_text()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"array": SensorArray.rectangular(5, 4)}, "the model is for the array.*--model none"),
        ({"wavefront": "fresnel"}, "the model is for the wavefront spherical.*--model none"),
        ({"range_m": (0.5, 30.0)}, r"range_m in 0\.5 \.\. 10, and the system has them in 0\.5 \.\. 30"),
    ],
)
def test_a_model_of_another_problem_is_refused(
    model: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        run_suite(tiny_config(model, system=dataclasses.replace(SystemConfig(array=ARRAY), **changes)), tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_what_contradicts_itself_is_refused(model: Path) -> None:
    with pytest.raises(ValueError, match="wavefront is fresnel and spherical"):
        tiny_config(None, system=OWN, setup=SystemConfig(array=ARRAY).setup)
    with pytest.raises(ValueError, match="without a model, a setup or a system"):
        tiny_config(None)


# ---- records


def test_records_hold_the_truth_of_the_scenes_and_what_the_methods_find(model: Path, whole: ResultsFolder) -> None:
    config = tiny_config(model)
    methods = Methods(model)
    system = SystemConfig(array=ARRAY, n_snapshots=6)
    scenes = generate_scenes(system, config.seed, range(16, 18))
    truth = whole.read(RecordPlace("main", 0, 6, TRUTH, 16, 18))
    np.testing.assert_array_equal(truth["position"], scenes.position[scenes.mask].double().numpy())
    np.testing.assert_array_equal(truth["snr_db"], scenes.snr_db.double().numpy())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = methods["greedy_ml"].find(scenes, *measurement_of(scenes, "blind")).sources
    finally:
        torch.set_num_threads(threads)
    record = whole.read(RecordPlace("main", 0, 6, "greedy_ml", 16, 18))
    np.testing.assert_array_equal(record["count"], [len(s) for s in found])
    np.testing.assert_array_equal(record["sources"][:, :3], torch.cat([s.position for s in found]).numpy())
    assert float(record["seconds"]) > 0


def test_a_finished_folder_is_left_as_it_is(model: Path, whole: ResultsFolder) -> None:
    before = {p: p.stat().st_mtime_ns for p in (whole.folder / "records").rglob("*.npz")}
    seen: list[tuple[int, int, str]] = []
    run_suite(tiny_config(model), whole.folder, report=lambda *now: seen.append(now))
    assert {p: p.stat().st_mtime_ns for p in (whole.folder / "records").rglob("*.npz")} == before
    assert seen[-1][:2] == (36, 36)


def test_progress_counts_scenes_by_methods_and_ends_complete(model: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    run_suite(tiny_config(model, methods=("localizer_raw",)), tmp_path, report=lambda *now: seen.append(now))
    assert [now[:2] for now in seen] == [(0, 18), (16, 18), (18, 18)]


def test_missing_records_are_made_again_the_same(model: Path, whole: ResultsFolder, tmp_path: Path) -> None:
    config = tiny_config(model)
    run_suite(config, tmp_path)
    lost = [RecordPlace("main", 0, 6, "greedy_ml", 0, 16), RecordPlace("main", 0, 6, TRUTH, 16, 18)]
    for place in lost:
        (tmp_path / "records" / place.file).unlink()
    results = run_suite(config, tmp_path)
    assert all(results.has(place) for place in lost)
    assert_same_records(tmp_path, whole.folder)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are killed through fork")
def test_killed_at_any_instant_it_goes_on_to_the_same_records(model: Path, tmp_path: Path) -> None:
    script = [sys.executable, str(HELPERS / "suite_process.py"), str(model), str(tmp_path / "killed"), "6", "1"]
    environment = {**os.environ, "PYTHONPATH": str(HELPERS)}
    done = subprocess.run(script, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    run_suite(suite_process.config_of(model), tmp_path / "whole")
    assert_same_records(tmp_path / "killed", tmp_path / "whole")
    assert not list((tmp_path / "killed").rglob(".*.tmp"))


def test_several_workers_make_the_same_records(model: Path, whole: ResultsFolder, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    run_suite(tiny_config(model), tmp_path, workers=2, report=lambda *now: seen.append(now))
    assert_same_records(tmp_path, whole.folder)
    assert seen[-1][0] == seen[-1][1]


def test_two_processes_started_together_share_the_work(model: Path, whole: ResultsFolder, tmp_path: Path) -> None:
    config = tiny_config(model)
    other = threading.Thread(target=run_suite, args=(config, tmp_path), kwargs={"rank": 1, "world": 2})
    other.start()
    seen: list[tuple[int, int, str]] = []
    run_suite(config, tmp_path, rank=0, world=2, report=lambda *now: seen.append(now))
    assert seen[-1][0] == seen[-1][1]  # the first returns when all are through
    other.join()
    assert_same_records(tmp_path, whole.folder)


def test_bad_counts_of_processes_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="workers must be at least 1"):
        run_suite(tiny_config(model), tmp_path / "out", workers=0)
    with pytest.raises(ValueError, match="rank must lie in"):
        run_suite(tiny_config(model), tmp_path / "out", rank=2, world=2)
    assert not (tmp_path / "out").exists()


# ---- the folder belongs to one configuration


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 4}, "seed"),
        ({"scenes": 17}, "scenes"),
        ({"snapshots": (6, 7)}, "snapshots"),
        ({"suite": "map"}, "suite"),
    ],
)
def test_a_folder_of_another_configuration_is_refused_by_name(
    model: Path, whole: ResultsFolder, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=f"another configuration.*{named}"):
        run_suite(tiny_config(model, **changes), whole.folder)


def test_a_folder_of_another_model_is_refused(model: Path, whole: ResultsFolder, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other")  # fresh, and so different, weights
    assert Methods(other).identity("localizer") != Methods(model).identity("localizer")
    with pytest.raises(ValueError, match=r"another configuration.*methods\.localizer_raw\.weights"):
        run_suite(tiny_config(other), whole.folder)


def test_methods_may_be_added_to_a_folder(model: Path, tmp_path: Path) -> None:
    run_suite(tiny_config(model, methods=("localizer_raw",)), tmp_path)
    before = records(tmp_path)
    run_suite(tiny_config(model), tmp_path)
    run_suite(tiny_config(model, methods=("localizer_raw",)), tmp_path)
    after = records(tmp_path)
    assert set(before) < set(after)
    assert any("greedy_ml" in name for name in after)


def test_a_folder_that_holds_something_else_is_left_alone(model: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no results"):
        run_suite(tiny_config(model), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_damaged_configuration_is_named(model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(FileFormatError, match=r"config\.json"):
        run_suite(tiny_config(model), tmp_path)


def test_a_damaged_missing_or_misplaced_record_is_named(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path / "out", {"methods": {}})
    folder.open()
    place, other = RecordPlace("main", 0, 6, "sbl", 0, 16), RecordPlace("main", 0, 6, "sbl", 16, 32)
    folder.write(place, {"count": np.arange(3)})
    np.testing.assert_array_equal(folder.read(place)["count"], np.arange(3))
    with pytest.raises(FileFormatError, match="missing"):
        folder.read(other)
    path = tmp_path / "out" / "records" / place.file
    data = path.read_bytes()
    (tmp_path / "out" / "records" / other.file).write_bytes(data)
    with pytest.raises(FileFormatError, match="holds the record of"):
        folder.read(other)
    for damaged in (data[: len(data) // 2], b"", bytes([*data[:60], data[60] ^ 1, *data[61:]])):
        path.write_bytes(damaged)
        with pytest.raises(FileFormatError, match="damaged"):
            folder.read(place)


def test_the_configuration_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SuiteConfig().scenes = 3  # type: ignore[misc]
