"""The shipped configurations and the files that run them; the table of what ran is complete."""

from __future__ import annotations

from bench.gpu_cases import CASES
from tests.machine.outcome import FAULT_NAMES
from tests.machine.shipped import FILES, HERE, cases_in


def test_every_case_belongs_to_one_file():
    assert sorted(case.name for file in FILES for case in cases_in(file)) == sorted(case.name for case in CASES)
    assert sorted(path.name for path in HERE.glob("shipped_*.py")) == sorted(FILES)


def test_the_names_of_faults_are_those_of_the_header():
    header = (HERE / "memory.h").read_text(encoding="utf-8")
    names = header.partition("fault_names[FAULTS] = {")[2].partition("};")[0]
    assert tuple(name.strip().strip('"') for name in names.split(",") if name.strip()) == FAULT_NAMES
