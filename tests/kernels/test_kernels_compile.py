"""Every shipped kernel configuration compiled for three GPUs, without one: no spills, and the right instructions.

Each target is compiled in a process of its own, because the interpreter that the other kernel tests use cannot be left
once Triton is imported. ``python -m bench.gpu_compiled --write`` makes the tables of
kernels/README.md from the same.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed: its kernels are optional")

sys.path.append(str(Path(__file__).resolve().parents[2]))
from bench.gpu_cases import CASES  # noqa: E402
from bench.gpu_compiled import (  # noqa: E402
    MOST_SHARED,
    ONES_TARGETS,
    README,
    TARGETS,
    generated,
    kernel_module,
    report,
    section,
)
from bench.gpu_floors import floor_table  # noqa: E402

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def of_targets(*targets):
    """Parameters; slow where tests/machine executes what launches compile, and holds it to no spills."""
    chosen = [target if target == "sm_90" else pytest.param(target, marks=pytest.mark.slow) for target in targets]
    return pytest.mark.parametrize("target", chosen)


def test_every_kernel_has_a_case():
    modules = [path.stem for path in (README.parent).glob("*.py") if path.stem != "__init__"]
    shipped = {name for module in modules for name in vars(kernel_module(module)) if name.endswith("_kernel")}
    assert shipped == {case.kernel for case in CASES}
    assert len({case.name for case in CASES}) == len(CASES)


@of_targets(*TARGETS)
@every_case
def test_compiles_without_spills_or_stack(target, case):
    used = report(target)[case.name]
    assert used["stack"] == 0, used
    assert 0 < used["registers"] <= (512 if target == "gfx942" else 255), used
    assert used["shared"] <= MOST_SHARED[target], used


@of_targets(*TARGETS)
@every_case
def test_runs_on_the_units_it_is_made_for(target, case):
    used = report(target)[case.name]
    units = case.runs_on
    if units == "ieee":  # matrix units of float32 are AMD's alone
        units = "matrix" if target == "gfx942" else "fused"
    assert (used["matrix"] > 0) == (units == "matrix"), used
    if units == "fused":
        assert used["double" if case.computes_in_double else "fused"] > 0, used
    if not case.computes_in_double:
        assert used["double"] == 0, f"it computes in float64: {used}"


@of_targets("sm_80", "sm_90")
@pytest.mark.parametrize("case", [case for case in CASES if case.module == "nms"], ids=lambda case: case.name)
def test_suppression_rounds_every_product_as_the_cpu_does(target, case):
    # On gfx942 divisions are made of fused operations, so that none to be seen cannot be asked for.
    assert report(target)[case.name]["fused"] == report(target)[case.name]["double"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("target", ONES_TARGETS)
def test_compiles_where_every_size_is_one(target):
    assert set(report(target, "--ones")) == {
        next(case.name for case in CASES if case.kernel == kernel) for kernel in {case.kernel for case in CASES}
    }


def test_the_readme_has_a_line_for_every_case_and_the_floors():
    text = README.read_text(encoding="utf-8")
    lines = section(text, "compiled")
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[4:]] == [case.name for case in CASES]
    assert section(text, "floors") == floor_table()


@pytest.mark.slow
def test_the_readme_holds_what_this_compiler_makes():
    lines = section(README.read_text(encoding="utf-8"), "compiled")
    if lines[0] != f"Triton {triton.__version__}.":
        pytest.skip(f"the table is that of another compiler: {lines[0]}")
    assert lines == generated()["compiled"], "run python -m bench.gpu_compiled --write"
