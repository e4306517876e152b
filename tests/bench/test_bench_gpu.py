"""The GPU benchmark without a GPU: every scenario end to end in the interpreter, and what it writes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: its kernels are optional")

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))
BOUND_DB = {"lag": 1e-2, "chebyshev": 5e-3, "chebyshev_lowrank": 1e-2, "dense_lowrank": 1e-2, "inverse": 1e-9}


def bench(*arguments, module=False):
    start = ["-m", "bench.gpu"] if module else [str(ROOT / "bench/gpu.py")]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RISFAST_", "TRITON_"))}
    return subprocess.run(
        [sys.executable, *start, *arguments], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )


def recorded():
    return {path.name: path.stat().st_mtime_ns for path in (ROOT / "bench/results").iterdir()}


def test_a_dry_run_goes_through_every_scenario_and_records_no_time(tmp_path):
    before = recorded()
    done = bench("--dry-run", "--output", str(tmp_path))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "DRY RUN" in done.stdout
    assert recorded() == before
    report = json.loads((tmp_path / "dry-run.json").read_text())
    assert report["dry_run"] is True
    assert {row["name"] for row in report["rows"]} == {*BOUND_DB, "maxima", "detection"}
    assert {row["batch"] for row in report["rows"]} == {1, 2}
    for row in report["rows"]:
        assert row["error_db"] <= BOUND_DB.get(row["name"], 1e-3), row["title"]
        assert row["best_s"] is row["us_per_scene"] is row["peak_bytes"] is None
        assert all(row[clock]["p50_s"] is None for clock in ("eager", "graph"))
        assert all(value is None for value in row["fractions"].values())
        assert row["flops"] > 0
        assert row["bytes"] > 0
    assert all(value is None for value in report["ceilings"].values())
    assert report["checks"]["CUDA graph"]["state"] == report["checks"]["two streams"]["state"] == "same"


def test_as_a_module_it_takes_single_scenarios(tmp_path):
    done = bench("--dry-run", "--no-tests", "--only", "inverse", "--output", str(tmp_path), module=True)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "dry-run.json").read_text())
    assert {row["name"] for row in report["rows"]} == {"inverse"}
    assert report["checks"] == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_without_a_gpu_and_without_dry_run_it_says_what_to_do():
    done = bench()
    assert done.returncode == 2
    assert "--dry-run" in done.stdout


def test_the_counted_work_of_the_reference_system_is_that_of_the_formulas():
    from bench.gpu_scenarios import chebyshev_flops, lag_flops, reference_setting

    setting = reference_setting(torch.device("cpu"))
    # N = 144, 12 x 12, 361 x 181 x 7: half of N^2 entries on every plane with two complex products (16 flops), one
    # complex product a vertical lag, coefficient and elevation (8), 11 fused operations a point.
    expected = 16 * 144 * 144 / 2 * 7 + 8 * 23 * 181 * 7 * 12 + 22 * 361 * 181 * 7
    assert lag_flops(setting) == expected
    nodes = 60 * 36 * 7
    products = 2 * 7 * (361 * 60 * 36 + 361 * 36 * 181)
    assert math.isclose(chebyshev_flops(setting, (60, 36), 10), nodes * (8 * 144 * 10 + 40) + products)


def test_fractions_are_of_what_the_device_reaches():
    from bench.gpu_measure import Ceilings
    from bench.gpu_report import file_stem, fractions

    row = {"best_s": 2.0, "bytes": 6.0, "flops": 8.0}
    found = fractions(row, Ceilings(30.0, 40.0, None))
    assert found == {"of_copy": 0.1, "of_fp32": 0.1, "of_tf32": None}
    assert file_stem("NVIDIA H200 (MIG 1g)") == "nvidia-h200-mig-1g"
