"""The shipped configurations and the files that run them; the table of what ran is complete."""

from __future__ import annotations

from bench.gpu_cases import CASES
from bench.gpu_compiled import README, section
from tests.machine.outcome import FAULT_NAMES
from tests.machine.shipped import FILES, HERE, cases_in
from tests.machine.table import HEAD, MARK


def test_every_case_belongs_to_one_file():
    assert sorted(case.name for file in FILES for case in cases_in(file)) == sorted(case.name for case in CASES)
    assert sorted(path.name for path in HERE.glob("shipped_*.py")) == sorted(FILES)


def test_the_names_of_faults_are_those_of_the_header():
    header = (HERE / "memory.h").read_text(encoding="utf-8")
    names = header.partition("fault_names[FAULTS] = {")[2].partition("};")[0]
    assert tuple(name.strip().strip('"') for name in names.split(",") if name.strip()) == FAULT_NAMES


def test_the_table_has_every_case_and_every_machine_executed_all():
    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section(README.read_text(encoding="utf-8"), MARK)
    ]
    assert head == HEAD
    assert [row[HEAD.index("configuration")] for row in rows] == [case.name for case in CASES]
    assert {row[HEAD.index(machine)] for row in rows for machine in ("interpreter", "gfx942", "sm_80")} == {"passed"}
    assert all(all(row) for row in rows)
