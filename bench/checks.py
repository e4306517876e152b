"""What is checked beside the times: memory, errors, the first call, two threads, and the size of the code."""

from __future__ import annotations

import ast
import importlib.util
import io
import statistics
import subprocess
import sys
import tokenize
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.accuracy import measure_errors
from bench.measure import Worker, interleaved, saved
from bench.rows import MAP, OWN, job_of
from bench.scenarios import LOADING, Scenario, operator_call, our_bound_db, problem_of, sampled_problem
from risfast.geometry import PlanarArray, SearchGrid
from risfast.ops import plan

Trees = Mapping[str, Path]


def measure_memory(tree: Path) -> Iterator[dict[str, Any]]:
    """Peak memory of maps of 32 scenes, each the first call of its own process, in MiB.

    By default at most 400 MB above the inputs; with a budget, working memory (without the two output maps, as the
    budget is documented) within the budget.
    """
    # Dense works through the training grid: its memory follows the tile, not the grid.
    cases = [
        (wavefront, method, grid, budget)
        for wavefront, method, grid, budgets in (
            ("spherical", "auto", "reference", (None, 64, 128)),
            ("fresnel", "auto", "reference", (None, 64, 128)),
            ("spherical", "dense", "training", (None, 64)),
        )
        for budget in budgets
    ]
    for operation in ("mvdr", "mvdr_lowrank"):
        for wavefront, method, grid, budget in cases:
            options = {"method": method, "byte_budget": None if budget is None else budget << 20}
            small = job_of(problem_of(Scenario(operation, wavefront, "training", 1)), options={"method": method})
            job = job_of(problem_of(Scenario(operation, wavefront, grid, 32)), options=options, warm=small)
            with saved(job) as path, Worker(path, tree) as process:
                peak, outputs = process.first["first_mib"], process.first["outputs_mib"]
            allowed = budget or 400 / 1.048576
            yield {
                "operation": operation,
                "wavefront": wavefront,
                "grid": grid,
                "method": method,
                "budget_mb": budget,
                "peak_mb": peak,
                "outputs_mb": outputs,
                "met": peak - (outputs if budget else 0.0) <= allowed,
            }


def measure_accuracy() -> Iterator[dict[str, Any]]:
    """Errors of what ``auto`` chooses on the reference grid; at loading 1e-4 ten times as much is allowed."""
    for dtype in (torch.complex64, torch.complex128):
        for operation in ("mvdr", "mvdr_lowrank"):
            for wavefront in ("spherical", "fresnel"):
                for loading in (LOADING, 1e-4):
                    problem = problem_of(Scenario(operation, wavefront, "reference", 4, dtype, loading=loading))
                    errors, bound = measure_errors(problem, operator_call(problem)()), our_bound_db(problem)
                    made = plan(
                        PlanarArray.rectangular(),
                        SearchGrid.reference(),
                        operation=operation,
                        batch=4,
                        rank=problem.matrix.shape[-1] if operation == "mvdr_lowrank" else None,
                        wavefront=wavefront,
                        loading=loading,
                        dtype=dtype,
                    )
                    yield {
                        "operation": operation,
                        "wavefront": wavefront,
                        "dtype": str(dtype).removeprefix("torch."),
                        "loading": loading,
                        "method": made.method,
                        "peaks_db": errors.peaks_db,
                        "random_db": errors.random_db,
                        "bound_db": bound,
                        "met": errors.worst_db <= bound,
                    }


def _map_job(wavefront: str) -> AbstractContextManager[Path]:
    """One full-rank map on the reference grid."""
    return saved(MAP.job(sampled_problem(PlanarArray.rectangular().positions_m, wavefront)))


def measure_first_call(trees: Trees, processes: int = 5) -> list[dict[str, Any]]:
    """What the first map of a process costs beyond ``import torch``: medians over fresh processes, taking turns."""
    firsts: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
    with _map_job("spherical") as job:
        for _ in range(processes):
            for name, tree in trees.items():
                with Worker(job, tree) as process:
                    firsts[name].append(process.first)
    return [
        {"tree": name, **{key: statistics.median(first[key] for first in found) for key in ("first_s", "first_mib")}}
        for name, found in firsts.items()
    ]


@contextmanager
def _every_core_busy(cores: int) -> Iterator[None]:
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def measure_two_threads(trees: Trees, calls: int = 20) -> list[dict[str, Any]]:
    """Wall clock of two threads over that of one, while other processes keep two cores busy; worst and median."""
    found = []
    for wavefront in ("fresnel", "spherical"):
        with ExitStack() as stack:
            job = stack.enter_context(_map_job(wavefront))
            workers = {
                (name, threads): (stack.enter_context(Worker(job, tree, threads)), 1)
                for name, tree in trees.items()
                for threads in (1, 2)
            }
            stack.enter_context(_every_core_busy(2))
            times = interleaved(workers, calls)
        for name in trees:
            one, two = times[name, 1].wall, times[name, 2].wall
            medians = statistics.median(two) / statistics.median(one)
            found.append({"tree": name, "wavefront": wavefront, "worst": max(two) / max(one), "median": medians})
    return found


def measure_files(trees: Trees) -> list[dict[str, Any]]:
    """Which files of risfast and its kernels a map passes from the call to a launch, in Triton's interpreter."""
    found = []
    for wavefront in ("fresnel", "spherical"):
        # Small, since an interpreter runs it: the way is the same.
        problem = sampled_problem(PlanarArray.rectangular(4, 4).positions_m, wavefront)
        coarse = {name: getattr(problem, name)[::20] for name in ("azimuth_rad", "elevation_rad")}
        with saved(MAP.job(replace(problem, **coarse))) as job:
            for name, tree in trees.items():
                with Worker(job, tree, RISFAST_TRITON="interpret", TRITON_INTERPRET="1") as process:
                    found.append({"tree": name, "wavefront": wavefront, "files": process.order("files")})
    return found


def code_lines(folder: Path) -> int:
    """Lines of Python under a folder that hold code: no blank lines, comments or docstrings."""
    count = 0
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for path in folder.rglob("*.py"):
        source = path.read_text()
        lines: set[int] = set()
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type not in silent:
                lines.update(range(token.start[0], token.end[0] + 1))
        for node in ast.walk(ast.parse(source)):
            is_documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            if is_documented and ast.get_docstring(node) is not None:
                lines.difference_update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
        count += len(lines)
    return count


def checks_table(checks: Mapping[str, list[dict[str, Any]]]) -> str:
    """Every check as text of at most 100 columns."""
    verdict = {True: "met", False: "MISSED"}
    lines = ["peak memory above the inputs, B = 32"]
    for m in checks["memory"]:
        asked = "default budget" if m["budget_mb"] is None else f"budget {m['budget_mb']} MB"
        lines.append(
            f"  {m['operation']:13s} {m['wavefront']:10s} {m['method']:6s} {m['grid']:10s} {asked:15s}"
            f"{m['peak_mb']:7.1f} MiB, {m['outputs_mb']:5.1f} MiB of it outputs  {verdict[m['met']]}"
        )
    lines.append("error against float64, B = 4, sources on grid points")
    lines += [
        f"  {a['operation']:13s} {a['wavefront']:10s} {a['dtype']:10s} {a['method']:10s} loading {a['loading']:g}: "
        f"{max(a['peaks_db'], a['random_db']):.1e} dB, bound {a['bound_db']:g} dB  {verdict[a['met']]}"
        for a in checks["accuracy"]
    ]
    lines.append("first map of a process, beyond import torch")
    lines += [f"  {c['tree']:24s} {c['first_s']:.2f} s, {c['first_mib']:.0f} MiB" for c in checks["first_call"]]
    lines.append("two threads over one, both cores busy, wall clock: worst over worst of 20, and medians")
    for t in checks["two_threads"]:
        lines.append(f"  {t['tree']:24s} {t['wavefront']:10s} {t['worst']:6.2f} x, {t['median']:6.2f} x")
    lines.append("files that a call of mvdr_spectrum passes to its first launch")
    lines += [f"  {f['tree']:24s} {f['wavefront']:10s} {len(f['files'])}" for f in checks["files"]]
    lines.append("code lines of risfast/ops")
    lines += [f"  {c['tree']:24s} {c['lines']}" for c in checks["code"]]
    return "\n".join(lines)


def measure_checks(trees: Trees) -> dict[str, list[dict[str, Any]]]:
    """All of them; memory and errors are of the present tree."""
    return {
        "memory": list(measure_memory(trees[OWN])),
        "accuracy": list(measure_accuracy()),
        "first_call": measure_first_call(trees),
        "two_threads": measure_two_threads(trees),
        "files": measure_files(trees) if importlib.util.find_spec("triton") else [],
        "code": [{"tree": name, "lines": code_lines(tree / "risfast" / "ops")} for name, tree in trees.items()],
    }
