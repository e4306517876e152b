"""Runs the shipped configurations on a machine, and says of each case of ``bench/gpu_cases.py`` what came of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from bench.gpu_cases import CASES, Case
from bench.gpu_compiled import kernel_module
from tests.machine.outcome import LARGEST_ERROR

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# The files that run them, and the modules of kernels that each is for; they take about the same time.
FILES = {
    "shipped_maps.py": ("dense", "interpolate", "lag", "lag_evaluate", "lowrank"),
    "shipped_points.py": (
        "descent",
        "forms",
        "interpolate_adjoint",
        "inverse",
        "lag_adjoint",
        "nms",
        "peaks",
        "refine",
        "synthesis",
    ),
}
# What "products" stands for where the interpreter runs: torch is then NVIDIA's.
PRODUCTS = {"gfx942": "ieee", "sm_80": "tf32x3", "interpreter": "tf32x3"}
POINTERS = {"*fp32": "float32", "*fp64": "float64", "*i8": "int8", "*i32": "int32", "*i64": "int64"}
# Operands that a launcher stands in for by another one where the kernel does not look at them.
STOOD_IN_FOR = {"plane_ptr"}
OPTIONS = {"num_warps", "num_stages", "enable_fp_fusion"}


@dataclass
class CaseResult:
    """What the tests say that launched a case.

    Attributes
    ----------
    tests : list of str
        That launched it; empty: it was not run.
    failed : list of str
        Those of them that failed.
    error : float
        The largest error of their results against float64, relative to the largest entry.
    resources : dict
        Registers and spills, the most of all its binaries.
    disagreements : list of str
        Where the text that was executed is not what the code objects hold, if there was a disassembler to look.
    """

    tests: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    error: float = 0.0
    resources: dict[str, int] = field(default_factory=dict)
    disagreements: list[str] = field(default_factory=list)


def run_file(machine: str, file: str, folder: Path, *options: str) -> tuple[list[dict[str, Any]], str]:
    """Run one file of shipped configurations in a process of its own: the rows of its log, and what it printed."""
    log = log_of(machine, file, folder)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.machine.plugin"]
    command += ["--machine", machine, "--machine-log", str(log), *options, str(HERE / file)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment_of_a_run(), cwd=ROOT, check=False)
    if not log.exists() or done.returncode not in (0, 1):  # 1: tests failed, and the log says which
        raise RuntimeError(f"{file} on {machine} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return rows_of(log), done.stdout


def environment_of_a_run() -> dict[str, str]:
    """This process's, without what is meant for this process alone: options of pytest, a GPU."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "RISFAST_TEST_"))}
    return kept | {"PYTHONPATH": str(ROOT)}


def log_of(machine: str, file: str, folder: Path) -> Path:
    """Where the log of a file's run is."""
    return folder / f"{machine}-{file}.jsonl"


def rows_of(log: Path) -> list[dict[str, Any]]:
    """The lines of a log."""
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def cases_in(file: str) -> list[Case]:
    """The cases that a file of shipped configurations is for."""
    return [case for case in CASES if case.module in FILES[file]]


def results(rows: list[dict[str, Any]]) -> dict[str, CaseResult]:
    """The result of every case, by its name."""
    found = {case.name: CaseResult() for case in CASES}
    for row in rows:
        for case in CASES:
            launches = [launch for launch in row["launches"] if case.name in launch["cases"]]
            if not launches:
                continue
            result = found[case.name]
            result.tests.append(row["test"])
            if row["result"] != "passed":
                result.failed.append(row["test"])
            result.error = max(result.error, row["properties"].get(LARGEST_ERROR, 0.0))
            for launch in launches:
                result.disagreements += launch["disagreements"]
                for name, number in launch["resources"].items():
                    result.resources[name] = max(number, result.resources.get(name, 0))
    return found


@lru_cache(maxsize=512)
def _constants(name: str, machine: str) -> dict[str, Any]:
    """What the launch of a case has compiled in, by the names of the kernel's arguments."""
    import torch

    case = next(case for case in CASES if case.name == name)
    module = kernel_module(case.module)
    choose, *arguments = (getattr(torch, x) if x in ("float32", "float64") else x for x in case.chosen)
    found = dict(case.constants) | dict(getattr(module, choose)(*arguments))
    for argument, value in found.items():
        if value == "products":
            found[argument] = PRODUCTS[machine]
        elif isinstance(value, str) and value.startswith("_"):
            found[argument] = getattr(module, value)
    if case.module in ("dense", "lowrank"):
        found["K"] = case.chosen[1]
    return {argument: value for argument, value in found.items() if argument not in OPTIONS}


def cases_of(launch: dict[str, Any], machine: str) -> list[str]:
    """Names of the cases that a launch is of. Where Triton is imported already: kernels are looked into."""
    return [case.name for case in CASES if _is_case(case, launch, machine)]


def _is_case(case: Case, launch: dict[str, Any], machine: str) -> bool:
    """Whether a launch is of this kernel in this configuration."""
    if launch["kernel"] != case.kernel:
        return False
    pointers = {name: POINTERS[case.types.get(name, case.pointer)] for name in launch["dtypes"]}
    same = all(dtype == pointers[name] for name, dtype in launch["dtypes"].items() if name not in STOOD_IN_FOR)
    given = launch["constants"]
    return same and all(given.get(name) == value for name, value in _constants(case.name, machine).items())
