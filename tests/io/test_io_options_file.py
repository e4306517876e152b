"""Options as files: what is written is read as it was, and every wrong file gets its own sentence."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from risfast.detect import DetectionOptions
from risfast.errors import FileFormatError
from risfast.io import read_options, write_options
from risfast.io.options_file import read_options_as
from risfast.localize.pipeline import CandidateOptions, PipelineOptions


@dataclass(frozen=True)
class Inner:
    limit: float | None = 5.0
    most: int | None = None
    window: tuple[int, int] = (3, 5)
    kind: Literal["own", "capon"] = "own"
    free: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 0:
            raise ValueError(f"limit must be at least 0, got {self.limit!r}")


@dataclass(frozen=True)
class Outer:
    first: Inner = field(default_factory=Inner)
    second: Inner = field(default_factory=lambda: Inner(limit=12.0, most=7))
    on: bool = True
    name: str = "x"


OUTERS = {
    "defaults": Outer(),
    "None where the default is none, and where it is not": Outer(Inner(None, 3), Inner(None, None)),
    "other values": Outer(Inner(0.1, 1, (1, 2), "capon", {"a": 1, "b": [1.5, "c"]}), on=False, name="none"),
}


@pytest.mark.parametrize("options", OUTERS.values(), ids=OUTERS.keys())
def test_options_survive_their_file(options: Outer, tmp_path: Path) -> None:
    write_options(tmp_path / "options.toml", options)
    assert read_options_as(Outer(), tmp_path / "options.toml") == options
    assert (tmp_path / "options.toml").read_text().startswith("format = 1\n")


def test_options_of_the_pipeline_survive_their_file(tmp_path: Path) -> None:
    detection = DetectionOptions(mad_z=None, max_sources=3, window=(5, 5, 3))
    candidates = CandidateOptions(source="capon", own={"least_count": 0.5}, detection=detection)
    for options in (PipelineOptions(), PipelineOptions(candidates=candidates, polished=False)):
        write_options(tmp_path / "options.toml", options)
        assert read_options(tmp_path / "options.toml") == options


def test_a_key_that_is_left_out_keeps_the_default_of_its_place(tmp_path: Path) -> None:
    path = tmp_path / "options.toml"
    path.write_text("format = 1\n[first]\nmost = 2\n[second]\nlimit = 1\n")
    assert read_options_as(Outer(), path) == Outer(Inner(most=2), Inner(limit=1.0, most=7))


GOOD = "format = 1\n[first]\n[second]\n"
WRONG = {
    "empty": ("", "the file is empty"),
    "not toml": ("format: 1\n", "not valid TOML"),
    "no format": ("[first]\n[second]\n", "the key format is missing, and this version reads options with format = 1"),
    "other format": (
        GOOD.replace("1", "2"),
        "format 2, and this version reads options with format = 1; write them again",
    ),
    "unknown": (
        GOOD.replace("[first]", "[first]\nwindows = 3"),
        "first.windows is not an option; did you mean window?",
    ),
    "unknown above": ("format = 1\noff = 1\n[first]\n[second]\n", "off is not an option"),
    "missing table": ("format = 1\n[first]\n", r"the table \[second\] is missing"),
    "not a table": ("format = 1\nfirst = 3\n[second]\n", "first must be a table, got 3"),
    "text for a number": (GOOD + "limit = 'a'\n", "second.limit must be of type float, got 'a'"),
    "fraction for a count": (GOOD + "most = 1.5\n", "second.most must be of type int, got 1.5"),
    "bool for a count": (GOOD + "most = true\n", "second.most must be of type int, got True"),
    "none where there is none": ("format = 1\non = 'none'\n[first]\n[second]\n", "on must be of type bool, got 'none'"),
    "too short": (GOOD + "window = [1]\n", r"second.window must hold 2 values, got \[1\]"),
    "not one of": (GOOD + "kind = 'music'\n", "second.kind must be one of own, capon; got 'music'"),
    "out of range": (GOOD + "limit = -1\n", r"limit must be at least 0, got -1.0 \(in \[second\]\)"),
}


@pytest.mark.parametrize(("text", "words"), WRONG.values(), ids=WRONG.keys())
def test_each_wrong_file_gets_its_own_sentence(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "options.toml"
    path.write_text(text)
    with pytest.raises(FileFormatError, match=words) as caught:
        read_options_as(Outer(), path)
    assert str(caught.value).startswith(str(path))


def test_files_that_are_not_there_or_not_toml_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="there is no such file"):
        read_options(tmp_path / "none.toml")
    with pytest.raises(FileFormatError, match=r"options are written as \.toml"):
        write_options(tmp_path / "options.json", Outer())
    with pytest.raises(ValueError, match=r"free.a is None, which TOML cannot hold"):
        write_options(tmp_path / "options.toml", Outer(Inner(free={"a": None})))
    assert not list(tmp_path.iterdir())


def test_every_field_is_written(tmp_path: Path) -> None:
    write_options(tmp_path / "options.toml", PipelineOptions())
    text = (tmp_path / "options.toml").read_text()
    for item in dataclasses.fields(DetectionOptions):
        assert text.count(f"\n{item.name} = ") >= 2, item.name
