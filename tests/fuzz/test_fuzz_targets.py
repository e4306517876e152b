"""Mutants of every format but recordings, a few of each; ``python -m tests.fuzz.mutate`` reads thousands of all."""

from __future__ import annotations

import mmap
import os
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.mutate import bytes_changed, document_changed, mutate, outcome
from fuzz.seeds import NO_FAULT_OF_SAMPLES, TARGETS

SETTINGS = settings(
    max_examples=int(os.environ.get("RISFAST_FUZZ_EXAMPLES", "12")),
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
RECORDINGS = {name for name, target in TARGETS.items() if "read_whole" in target.read.__code__.co_names}
SLOW = {"study, SQLite"}  # seconds a mutant: with the thousands only


@pytest.fixture(params=sorted(TARGETS.keys() - RECORDINGS - SLOW))
def good(request, tmp_path):
    target, folder = TARGETS[request.param], tmp_path / "case"
    folder.mkdir()
    made = target.make(folder)
    files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    target.read(folder, made)
    return target, folder, made, files


@SETTINGS
@given(seed=st.integers(0, 1 << 40))
def test_a_mutant_is_read_or_refused_with_one_clear_error(good, seed):
    target, folder, made, files = good
    for name, data in files.items():
        (folder / name).write_bytes(data)
    mutate(target, folder, random.Random(seed))
    found = outcome(lambda: target.read(folder, made), target.no_fault)
    assert found.kind in ("answer", "refused"), found.detail
    assert found.grown < 1 << 30


def test_recordings_are_told_apart_from_what_is_tried_here():
    assert "SigMF archive" in RECORDINGS
    assert "setup" not in RECORDINGS


def test_mutants_differ_from_what_they_are_made_of_and_are_the_same_each_time():
    data = bytes(range(200))
    many = [bytes_changed(data, random.Random(seed), 40) for seed in range(300)]
    assert many == [bytes_changed(data, random.Random(seed), 40) for seed in range(300)]
    assert sum(mutant != data for mutant in many) > 280
    lengths = {len(mutant) for mutant in many}
    assert min(lengths) < 200 < max(lengths)
    document = {"a": [1, {"b": 2}], "c": "x"}
    changed = [document_changed({"a": [1, {"b": 2}], "c": "x"}, random.Random(seed)) for seed in range(100)]
    assert sum(one != document for one in changed) > 80


def test_what_breaks_is_counted_as_such():
    """The judge itself: what is not a FileFormatError, or has two lines, or asks for too much memory, is a finding."""

    def wrong(error):
        def read():
            raise error

        return read

    assert outcome(lambda: 1).kind == "answer"
    assert outcome(wrong(KeyError("x"))).kind == "raw"
    assert outcome(wrong(ValueError("something else")), NO_FAULT_OF_SAMPLES).kind == "raw"
    beyond = wrong(ValueError("frequency_hz must lie within 1 .. 2 Hz"))
    assert outcome(beyond, NO_FAULT_OF_SAMPLES).kind == "refused"
    assert outcome(beyond, TARGETS["npz"].no_fault).kind == "raw"
    assert outcome(wrong(MemoryError())).grown > 1 << 30

    def touched():  # of the system: what malloc gives may be there from before
        with mmap.mmap(-1, 50 << 20) as pages:
            pages[:] = bytes(len(pages))

    assert outcome(touched).grown > 40 << 20
