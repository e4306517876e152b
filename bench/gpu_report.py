"""The table, the JSON file and the chart of a run on a GPU."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import math
import platform
import re
from pathlib import Path
from typing import Any

import torch

from bench.gpu_measure import Ceilings


def environment(device: torch.device) -> dict[str, Any]:
    """What the run was made on."""
    found: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__}
    try:
        found["triton"] = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        found["triton"] = "not installed"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
            "cuda": torch.version.cuda,
        }
    else:
        found["device"] = "no GPU: Triton's interpreter"
    return found


def file_stem(name: str) -> str:
    """A file name for a device: NVIDIA H200 becomes nvidia-h200."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def fractions(row: dict[str, Any], limits: Ceilings) -> dict[str, float | None]:
    """Bytes and flops a second over what the device reaches."""
    seconds = row["best_s"]
    if seconds is None:
        return {"of_copy": None, "of_fp32": None, "of_tf32": None}
    rates = {
        "of_copy": (row["bytes"], limits.copy_bytes_per_s),
        "of_fp32": (row["flops"], limits.fp32_flops_per_s),
        "of_tf32": (row["flops"], limits.tf32_flops_per_s),
    }
    return {name: work / seconds / limit if limit else None for name, (work, limit) in rates.items()}


def _number(value: float | None, scale: float = 1.0, form: str = "9.3g") -> str:
    return f"{'-':>9s}" if value is None else format(value * scale, form)


def table(report: dict[str, Any]) -> list[str]:
    """Lines to print."""
    lines = [
        f"{report['environment']['device']}, torch {report['environment']['torch']}, "
        f"triton {report['environment']['triton']}" + (", DRY RUN: nothing was measured" if report["dry_run"] else "")
    ]
    limits = report["ceilings"]
    lines.append(
        f"ceilings: copy {_number(limits['copy_bytes_per_s'], 1e-12)} TB/s, float32 GEMM "
        f"{_number(limits['fp32_flops_per_s'], 1e-12)} Tflop/s, tf32 GEMM {_number(limits['tf32_flops_per_s'], 1e-12)}"
    )
    lines.extend(f"{name}: {check['state']} {check.get('summary', '')}" for name, check in report["checks"].items())
    lines.append(
        f"{'work':44s}{'B':>4s}{'us/scene':>10s}{'p20':>10s}{'p80':>10s}{'eager':>10s}{'must':>7s}{'Gpt/s':>10s}"
        f"{'copy':>10s}{'fp32':>10s}{'peak MB':>10s}{'dB':>10s}  against (times as fast, times the memory)"
    )
    for row in report["rows"]:
        if "state" in row:
            lines.append(f"{row['title']:44s}{row['batch']:4d}  {row['state']}")
            continue
        per_scene = 1e6 / row["batch"]
        chosen = row["graph"] if row["graph"]["p50_s"] is not None else row["eager"]
        cells = (
            _number(chosen["p50_s"], per_scene),
            _number(chosen["p20_s"], per_scene),
            _number(chosen["p80_s"], per_scene),
            _number(row["eager"]["p50_s"], per_scene),
            f"{row['must_us']:6g}" if row["batch"] == 256 else f"{'':6s}",
            _number(row["points_per_s"], 1e-9),
            _number(row["fractions"]["of_copy"]),
            _number(row["fractions"]["of_fp32"]),
            _number(row["peak_bytes"], 1e-6),
            _number(row["error_db"], form="9.2g"),
        )
        against = "; ".join(
            f"{name} {_number(peer['ratio']).strip()} x, {_number(peer['memory_ratio']).strip()}"
            for name, peer in row["peers"].items()
        )
        lines.append(f"{row['title']:44s}{row['batch']:4d} {' '.join(cells)}  {against}")
    return lines


def write(report: dict[str, Any], folder: Path) -> list[Path]:
    """The JSON file, and a chart where matplotlib is installed and something was measured."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = "dry-run" if report["dry_run"] else file_stem(report["environment"]["device"])
    path = folder / f"{stem}.json"
    path.write_text(json.dumps(report, indent=1, default=_plain) + "\n")
    if importlib.util.find_spec("matplotlib") is None:
        return [path]
    chart = folder / f"{stem}.png"
    _chart(report, chart)
    return [path, chart]


def _plain(value: Any) -> Any:
    """Infinity and paths have no JSON of their own."""
    return str(value)


def _chart(report: dict[str, Any], path: Path) -> None:
    """Microseconds a scene at the largest batch of each work, beside what it must reach and its floor."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    rows = {row["title"]: row for row in report["rows"] if "state" not in row}  # the last batch of each stays
    titles = list(rows)[::-1]
    figure, axes = pyplot.subplots(figsize=(9, 0.6 * max(len(titles), 1) + 1.6), layout="constrained")
    bars = [rows[t]["best_s"] for t in titles]
    measured = [math.nan if b is None else 1e6 * b / rows[t]["batch"] for b, t in zip(bars, titles, strict=True)]
    places = range(len(titles))
    axes.barh(places, measured, color="#4477aa", label="measured")
    axes.scatter([rows[t]["must_us"] for t in titles], places, marker="|", s=220, color="#cc3311", label="at most")
    floors = [(rows[t]["floor_us"], i) for i, t in enumerate(titles) if rows[t]["floor_us"] is not None]
    if floors:
        axes.scatter(*zip(*floors, strict=True), marker="|", s=220, color="#117733", label="floor on paper")
    axes.set(xscale="log", xlabel="microseconds a scene, largest batch", yticks=list(places), yticklabels=titles)
    note = "dry run: nothing was measured" if report["dry_run"] else report["environment"]["device"]
    axes.set_title(f"risfast, {note}", fontsize=10)
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
