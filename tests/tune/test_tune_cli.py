"""The tuning commands: what they print and write, and one line for each error."""

from __future__ import annotations

import pytest
from test_tune_cached import model  # noqa: F401 - a fixture
from tuning_process import without_pictures

from risfast.cli import COMMANDS, main
from risfast.io import read_options
from risfast.io.toml_file import read_toml, to_toml
from risfast.localize import Localizer
from risfast.train.config import RunConfig
from risfast.tune.options import PRESETS, Hpo2Config, HpoConfig
from risfast.tune.study import join_study, open_study

MACHINE = ("--base.machine.threads", "1")
TINY = [
    *("--base.system.n-h", "5", "--base.system.n-v", "4", "--base.system.n-antennas", "4"),
    *("--base.system.n-sources", "1", "2", "--base.data.snapshots", "8", "--base.data.weights", "1"),
    *("--base.validation.snapshots", "8", "--base.validation.scenes", "4", "--base.validation.every", "2"),
    *("--base.optimiser.steps", "4", "--base.optimiser.batch-size", "4", "--base.optimiser.warmup", "1"),
    *("--base.system.azimuth-deg", "-50", "40", "--base.system.range-m", "0.4", "6"),
    *("--base.system.wavefront", "fresnel", "--base.pipeline.map.points-per-beam", "6"),
    *("--base.backbone.options", "steps=2", "width=4", "head_width=4", "range_cells=2", "columns=8"),
    *MACHINE,
]


def run(*arguments):
    return main([str(item) for item in arguments])


def test_show_space_prints_every_parameter_and_makes_nothing(tmp_path, capsys):
    assert run("hpo", "--output", tmp_path / "run", "--show-space") == 0
    text = capsys.readouterr().out
    assert "optimiser.lr" in text
    assert "0.0002 .. 0.01, logarithmic" in text
    assert not (tmp_path / "run").exists()
    assert run("hpo2", "--preset", "quick", "--show-space") == 0
    assert "optimiser.lr" in capsys.readouterr().out


def test_detection_is_tuned_reported_joined_and_gone_on_with(model, tmp_path, capsys):  # noqa: F811
    options = ["--what", "detection", "--model", model, "--score.scenes", "3", *TINY, "--output", tmp_path / "run"]
    options += ["--base.pipeline.candidates.source", "capon", "--base.pipeline.polished", "False"]
    assert run("hpo", *options, "--trials", "4") == 0
    text = capsys.readouterr().out
    assert "4 trials done" in text
    results = tmp_path / "run" / "results"
    found = read_options(results / "options.toml")
    assert (found.candidates.source, found.polished, found.map.points_per_beam) == ("capon", False, 6.0)
    assert Localizer.load(model, options=results / "options.toml").options == found
    assert not (results / "best.toml").exists()  # nothing was trained
    for picture in ("history", "parallel"):
        assert (results / f"{picture}.png").stat().st_size > 5000
    assert run("hpo", *options, "--trials", "9") == 0
    assert "9 trials done" in capsys.readouterr().out
    assert (results / "importance.png").stat().st_size > 5000
    assert run("hpo", "--join", tmp_path / "run", "--report", "--check", "2", *MACHINE) == 0
    text = capsys.readouterr().out
    assert "9 trials done" in text
    assert "on 2 other scenes" in text
    assert any(line.startswith("f1 ") for line in text.splitlines())


def test_the_best_training_is_a_configuration_that_training_takes(tmp_path, monkeypatch, capsys):
    without_pictures(monkeypatch)
    options = [*TINY, "--output", tmp_path / "run", "--parameters", "optimiser.lr", "objective"]
    assert run("hpo", *options, "--trials", "2", "--storage", "journal") == 0
    assert "best" in capsys.readouterr().out
    best = tmp_path / "run" / "results" / "best.toml"
    config = read_toml(RunConfig, best)
    assert config.optimiser.steps == 4
    status = main(["backbone", "--config", str(best), "--output", str(tmp_path / "again"),
                   "--validation.test-scenes", "2", "--validation.capon-scenes", "0"])  # fmt: skip
    assert status == 0
    assert read_toml(RunConfig, tmp_path / "again" / "config.toml").optimiser == config.optimiser


def test_both_stages_run_on_the_whole_space_and_crown_or_refuse(tmp_path, monkeypatch, capsys):
    without_pictures(monkeypatch)
    monkeypatch.setattr("risfast.tune.pictures.draw_study", lambda *arguments: {})
    both = ["hpo2", "--output", tmp_path / "run", "--top", "3", "--budget", "2", "--study.trials", "3"]
    both += [a.replace("--base.", "--study.base.") for a in TINY] + ["--study.score.scenes", "3"]
    # Narrow networks are not in the space of widths, but the first trial keeps what it can.
    status = run(*both, "--study.base.pipeline.polished", "False", "--study.pruner.kind", "none")
    text = capsys.readouterr().out
    assert "rank correlation of the stages" in text
    assert status == (1 if "no winner" in text else 0)
    best = tmp_path / "run" / "results" / "best.toml"
    assert best.exists() == (status == 0)
    with open_study(stored_config(tmp_path / "run", "risfast"), tmp_path / "run") as first:
        one = [t.params for t in first.study.trials]
    with open_study(stored_config(tmp_path / "run", "risfast.final"), tmp_path / "run") as second:
        two = [t.params for t in second.study.trials]
    assert len(one) == len(two) == 3
    assert all(params in one for params in two)
    if status == 0:
        assert read_toml(RunConfig, best).optimiser.steps == 8
    by_surrogate = read_toml(RunConfig, tmp_path / "run" / "results" / "stage1" / "best.toml")
    assert by_surrogate.optimiser.steps == 4
    assert any(by_surrogate.optimiser.lr == params["optimiser.lr"] for params in one)


def stored_config(folder, name):
    """The configuration that a study was made with."""
    return join_study("sqlite", name, folder, HpoConfig()).config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hpo", "--parameters", "optimiser.momentum"], "'optimiser.momentum' is not a parameter of this study"),
        (["hpo", "--storage", "postgresql://nobody@127.0.0.1:1/x"], "cannot be reached"),
        (["hpo", "--storage", "redis"], "give sqlite, journal, or a URL"),
        (["hpo", "--join", "nowhere"], "nowhere holds no study"),
        (["hpo", "--report"], "no trial of 'risfast' has finished"),
        (["hpo", "--check", "-1"], "--check must be at least 2, got -1"),
        (["hpo", "--check", "9"], "only a study of detection is checked on other scenes"),
        (["hpo2", "--preset", "huge"], "--preset must be one of quick, reference; got 'huge'"),
        (["hpo2", "--preset", "quick", "--config", "x.toml"], "give --preset or --config, not both"),
        (["hpo2", "--preset", "quick", "--stages", "second"], "stage 2 takes the best 4 trials of stage 1"),
        (["hpo2", "--preset", "quick", "--report"], "stage 2 takes the best 4 trials of stage 1"),
    ],
)
def test_an_error_is_one_line_with_its_mend(arguments, message, tmp_path, monkeypatch, capsys):
    pytest.importorskip("psycopg")
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_an_unknown_objective_is_refused_with_those_that_there_are(tmp_path, capsys):
    assert run("hpo", "--output", tmp_path, "--objective", "f1") == 2
    text = capsys.readouterr().err
    assert "surrogate" in text
    assert "mvdr_final" in text
    path = tmp_path / "study.toml"
    path.write_text('objective = "f1"\n')
    assert run("hpo", "--config", path) == 2
    assert "objective must be one of surrogate, mvdr_final" in capsys.readouterr().err


def test_a_worker_under_torchrun_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run("hpo", "--output", tmp_path) == 2
    assert "--device cuda:N, and not torchrun" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [HpoConfig, Hpo2Config])
def test_configurations_survive_toml(kind, tmp_path):
    for config in (kind(), *((p() for p in PRESETS.values()) if kind is Hpo2Config else ())):
        path = tmp_path / "config.toml"
        path.write_text(to_toml(config))
        assert read_toml(kind, path) == config


def test_both_commands_are_listed(capsys):
    assert {"hpo", "hpo2"} <= set(COMMANDS)
    assert main(["--help"]) == 0
    assert "hpo2" in capsys.readouterr().out
