"""``risfast evaluate``: it does what it says, and errors are one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_suite import save_tiny_model

from risfast.cli import main, parse
from risfast.cli.evaluate import EvaluateCommand
from risfast.evaluate.methods import DEFAULT_METHODS
from risfast.evaluate.suite import SuiteConfig
from risfast.report.outcome import command_of


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def arguments(model: Path, out: Path, *more: str) -> list[str]:
    usual = ["--suite", "main", "--scenes", "3", "--snapshots", "5", "--methods", "localizer", "greedy_ml"]
    return ["evaluate", *usual, "--model", str(model), "--resamples", "5", "--output", str(out), *more]


def test_defaults_are_those_of_the_suite() -> None:
    options, config = EvaluateCommand(), SuiteConfig()
    for name in ("suite", "scenes", "snapshots", "seed"):
        assert getattr(options, name) == getattr(config, name)
    assert config.methods == DEFAULT_METHODS


def test_a_run_ends_with_the_headline_figures_a_report_and_tables(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, export = tmp_path / "out", tmp_path / "kept"
    assert main(arguments(model, out, "--export", str(export))) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].split() == ["L", "=", "5", "bound", "localizer", "greedy_ml"]
    (f1,) = [line for line in lines if line.startswith("F1  ")]
    assert all(0 <= float(v) <= 1 for v in f1.split()[1:])
    assert f"report: {out / 'report.html'}" in lines
    assert (out / "report.html").is_file()
    assert (out / "tables" / "headline.csv").is_file()
    assert (export / "suite.json").is_file()
    assert "scenes by methods: 6/6" in printed.err
    assert main(arguments(model, out)) == 0  # it goes on, with nothing left to do
    assert capsys.readouterr().out.splitlines()[:10] == lines[:10]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--methods", "magic"), "methods must be among"),
        (("--scenes", "0"), "scenes must be at least 1"),
        (("--workers", "0"), "workers must be at least 1"),
        (("--resamples", "0"), "--resamples must be at least 1"),
        (("--methods", "transformer_capon"), "--transformer"),
    ],
)
def test_errors_are_one_line_and_come_before_any_work(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], words: str
) -> None:
    assert main(arguments(model, tmp_path / "out", *more)) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("risfast evaluate: ")
    assert printed.err.count("\n") == 1
    assert words in printed.err
    assert not (tmp_path / "out").exists()


def test_another_seed_in_the_same_folder_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(model, tmp_path / "out")) == 0
    assert main(arguments(model, tmp_path / "out", "--seed", "9")) == 2
    assert "another configuration (seed)" in capsys.readouterr().err


def test_under_torchrun_only_the_first_process_speaks(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(arguments(model, tmp_path / "out")) == 0  # all records are there
    capsys.readouterr()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main(arguments(model, tmp_path / "out")) == 0
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("RANK", "0")
    assert main(arguments(model, tmp_path / "out")) == 0
    assert "report:" in capsys.readouterr().out


def test_copies_are_replaced_only_when_asked(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "suite.json").write_text("mine")
    given = arguments(model, tmp_path / "out", "--export", str(kept))
    assert main(given) == 2
    assert "suite.json exists: give another --export, or --overwrite" in capsys.readouterr().err
    assert (kept / "suite.json").read_text() == "mine"
    assert main([*given, "--overwrite"]) == 0
    assert (kept / "suite.json").read_text() != "mine"


def test_the_folder_has_its_older_spelling_too(model: Path, tmp_path: Path) -> None:
    old = ["--out" if word == "--output" else word for word in arguments(model, tmp_path / "out")]
    assert parse("evaluate", old[1:]) == parse("evaluate", arguments(model, tmp_path / "out")[1:])


def test_the_command_line_that_repeats_a_suite_names_what_differs_from_the_defaults(model: Path) -> None:
    assert command_of(SuiteConfig()) == (
        f"risfast evaluate --suite all --scenes 1000 --snapshots 64 16 --seed {SuiteConfig().seed}"
    )
    other = command_of(SuiteConfig(methods=("sbl",), model=model))
    assert other.endswith(f"--methods sbl --model {model.name}")
