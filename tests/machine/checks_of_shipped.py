"""What every machine's test file of shipped configurations asks: each case executed, right, and without spills."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests.machine.building import compiler
from tests.machine.gfx942.disassembly import OLDEST, disassembler
from tests.machine.shipped import CaseResult, cases_in, results, run_file


class ShippedConfigurations:
    """Tests of one file of cases on one machine; a subclass names both.

    The launches run in a process of their own (the file under tests/machine/plugin.py), in two orders of waves and
    programs, with garbage in registers and shared memory.
    """

    machine: str
    file: str
    most_registers: int

    @pytest.fixture(scope="class")
    @classmethod
    def run(cls, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], str]:
        """The log of the process, and what it printed."""
        if importlib.util.find_spec("triton") is None:
            pytest.skip("Triton is not installed: its kernels are optional")
        if compiler() is None:
            pytest.skip("no C compiler: the machine cannot be built")
        folder: Path = tmp_path_factory.mktemp("shipped")
        return run_file(cls.machine, cls.file, folder)

    @pytest.fixture(scope="class")
    @classmethod
    def found(cls, run: tuple[list[dict[str, Any]], str]) -> dict[str, CaseResult]:
        """The result of every case."""
        return results(run[0])

    def test_every_test_of_the_shipped_configurations_passes(self, run):
        rows, output = run
        assert rows
        assert not [row["test"] for row in rows if row["result"] == "failed"], output[-10000:]

    def test_every_case_is_launched_and_right(self, found):
        cases = [found[case.name] for case in cases_in(self.file)]
        names = [case.name for case in cases_in(self.file)]
        assert not [name for name, case in zip(names, cases, strict=True) if not case.tests], "see shipped.py"
        assert not [name for name, case in zip(names, cases, strict=True) if case.failed]

    def test_the_text_is_what_the_code_object_holds(self, found):
        if self.machine != "gfx942" or disassembler() is None:
            pytest.skip(f"for gfx942, and where there is an llvm-objdump of LLVM {OLDEST} or newer")
        assert not [line for case in found.values() for line in case.disagreements]

    def test_nothing_is_spilled(self, found):
        for case in cases_in(self.file):
            used = found[case.name].resources
            assert used["spills"] == 0, case.name
            assert 0 < used["registers"] <= self.most_registers, case.name
