"""Tests and measurements on a GPU, in one command: ``python bench/gpu.py``.

It needs torch, triton, numpy, scipy and pytest, no network and nothing installed; it runs the kernel tests on the GPU,
measures the scenarios of :mod:`bench.gpu_scenarios`, prints one table and writes ``bench/results/<device>.json`` and a
chart. ``--dry-run`` goes the same way without a GPU, at tiny sizes in Triton's interpreter, and measures nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.gpu_scenarios import Scenario, Setting

ROOT = Path(__file__).resolve().parents[1]
_MOST_SECONDS = 500.0  # of the whole run; what does not fit is named, not run
_TEST_SECONDS = 170.0
_CHECKER_SECONDS = 60.0
_PEER_BATCHES = (1, 256)  # where the peers are timed too; most of them take one scene at a time


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="without a GPU: every scenario once, nothing measured")
    parser.add_argument("--output", type=Path, help="folder of the results; bench/results, or a temporary one if dry")
    parser.add_argument("--no-tests", action="store_true", help="leave out kernel tests, checks and memory checker")
    parser.add_argument("--only", nargs="*", help="names of scenarios")
    return parser.parse_args(given)


def _prepare(dry_run: bool) -> None:
    """Find the checkout, and choose the interpreter before Triton and risfast are imported."""
    sys.path.insert(0, str(ROOT))
    if dry_run:
        os.environ["TRITON_INTERPRET"] = "1"
        os.environ["RISFAST_TRITON"] = "interpret"
    if importlib.util.find_spec("risfast.kernels") is None:  # not installed: the folder beside the package is it
        spec = importlib.util.spec_from_file_location(
            "risfast.kernels", ROOT / "kernels/__init__.py", submodule_search_locations=[str(ROOT / "kernels")]
        )
        assert spec is not None
        sys.modules["risfast.kernels"] = importlib.util.module_from_spec(spec)
    if dry_run:
        from bench.gpu_interpreter import patch_once_a_launch

        patch_once_a_launch()


def _peer_rows(work: Any, ours: float | None, peak: int | None, batch: int) -> dict[str, Any]:
    """Time, peak memory and ratios of every peer."""
    from bench.gpu_measure import measure

    rows = {}
    for name, call in work.peers.items():
        measured = measure(call, work.peer_inputs, capture=False, seconds=0.5)
        seconds = measured.eager.p50_s
        per_scene = None if seconds is None else seconds / work.peer_scenes
        ratio = None if per_scene is None or not ours else per_scene / (ours / batch)
        memory = None
        if measured.peak_bytes and peak:
            memory = (measured.peak_bytes / work.peer_scenes) / (peak / batch)
        rows[name] = {
            "eager": measured.eager.as_dict(),
            "scenes": work.peer_scenes,
            "us_per_scene": None if per_scene is None else per_scene * 1e6,
            "peak_bytes": measured.peak_bytes,
            "ratio": ratio,
            "memory_ratio": memory,
        }
    return rows


def _cpu_row(work: Any, dry_run: bool) -> dict[str, Any] | None:
    if work.cpu is None or dry_run:
        return None
    work.cpu()  # plans
    start = time.perf_counter()
    work.cpu()
    return {"seconds_a_scene": time.perf_counter() - start}


def _row(setting: Setting, name: str, scenario: Scenario, batch: int, dry_run: bool) -> dict[str, Any]:
    """Everything that is known of one scenario at one batch size."""
    from bench.gpu_measure import measure

    work = scenario.make(setting, batch)
    error = work.error_db(work.call(*work.inputs))
    measured = measure(work.call, work.inputs, capture=work.capture)
    best = measured.best_s
    return {
        "name": name,
        "title": scenario.title,
        "batch": batch,
        "must_us": scenario.must_us,
        "floor_us": scenario.floor_us,
        "eager": measured.eager.as_dict(),
        "graph": measured.graph.as_dict(),
        "best_s": best,
        "first_call_s": measured.first_s,
        "us_per_scene": None if best is None else 1e6 * best / batch,
        "points_per_s": None if best is None else batch * setting.points / best,
        "flops": work.flops,
        "bytes": work.bytes,
        "peak_bytes": measured.peak_bytes,
        "error_db": error,
        "peers": _peer_rows(work, best, measured.peak_bytes, batch) if batch in _PEER_BATCHES else {},
        "cpu": _cpu_row(work, dry_run) if batch == 1 else None,
    }


def _rows(setting: Setting, names: list[str], deadline: float, dry_run: bool) -> list[dict[str, Any]]:
    """Rows of all scenarios, the largest batch first, because it decides; until the time is used up."""
    import torch

    from bench.gpu_scenarios import SCENARIOS

    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for batch in sorted(setting.batches, reverse=True):
        for name in names:
            scenario = SCENARIOS[name]
            known = {"name": name, "title": scenario.title, "batch": batch}
            if time.monotonic() > deadline:
                rows[name, batch] = {**known, "state": "not run: out of time"}
                continue
            try:
                rows[name, batch] = _row(setting, name, scenario, batch, dry_run)
            except torch.cuda.OutOfMemoryError as error:
                rows[name, batch] = {**known, "state": f"out of memory: {str(error).splitlines()[0]}"}
            if setting.device.type == "cuda":
                torch.cuda.empty_cache()
    return [rows[name, batch] for name in names for batch in setting.batches]


def run(dry_run: bool, names: list[str] | None, tests: bool) -> dict[str, Any]:
    """The whole run; a report that :mod:`bench.gpu_report` prints and writes."""
    import torch

    from bench import gpu_checks, gpu_measure, gpu_report, gpu_scenarios

    start = time.monotonic()
    device = torch.device("cpu" if dry_run else "cuda:0")
    make = gpu_scenarios.tiny_setting if dry_run else gpu_scenarios.reference_setting
    setting = make(device)
    checks: dict[str, Any] = {}
    if tests:
        checks["kernel tests"] = gpu_checks.kernel_tests(_TEST_SECONDS, dry_run)
        checks |= {name: check(setting) for name, check in gpu_checks.CHECKS.items()}
    limits = gpu_measure.ceilings(device)
    reserved = _CHECKER_SECONDS if tests else 0.0
    chosen = names or list(gpu_scenarios.SCENARIOS)
    rows = _rows(setting, chosen, start + _MOST_SECONDS - reserved, dry_run)
    for row in rows:
        if "state" not in row:
            row["fractions"] = gpu_report.fractions(row, limits)
    left = start + _MOST_SECONDS - time.monotonic()
    if tests:
        checks["memcheck"] = gpu_checks.memory_checker(min(_CHECKER_SECONDS, left), dry_run)
    return {
        "dry_run": dry_run,
        "environment": gpu_report.environment(device),
        "setting": {
            "elements": setting.array.n_elements,
            "grid": list(setting.grid.shape),
            "columns": setting.columns,
            "loading": gpu_scenarios.LOADING,
        },
        "ceilings": asdict(limits),
        "checks": checks,
        "rows": rows,
        "seconds": time.monotonic() - start,
    }


def main(given: list[str] | None = None) -> int:
    """Run, print, write; 1 where a check failed."""
    arguments = _arguments(given)
    _prepare(arguments.dry_run)
    import torch

    if not arguments.dry_run and not torch.cuda.is_available():
        print("there is no CUDA device; `python bench/gpu.py --dry-run` goes through everything without one")
        return 2
    from bench import gpu_report

    report = run(arguments.dry_run, arguments.only, not arguments.no_tests)
    folder = arguments.output
    if folder is None:
        dry = arguments.dry_run
        folder = Path(tempfile.mkdtemp(prefix="risfast-gpu-")) if dry else ROOT / "bench/results"
    print("\n".join(gpu_report.table(report)))
    for path in gpu_report.write(report, folder):
        print(f"wrote {path}")
    bad = [name for name, check in report["checks"].items() if check["state"] in ("FAILED", "DIFFERENT")]
    if bad:
        print(f"failed: {', '.join(bad)}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
