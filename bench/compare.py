"""One interleaved run on one thread: the table of ratios, its picture, and the record of both.

``python -m bench.compare`` (or ``python bench/compare.py``) writes ``bench/results/cpu.json`` and ``cpu.png``;
``--rounds 0.3`` is a quick look.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def draw(results: list[dict[str, Any]], title: str, path: Path) -> None:
    """Bars of the median time of every contestant, on a logarithmic axis, with risfast's advantage beside each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    height = 0.32 * sum(len(r["contestants"]) + 1 for r in results) + 1.2
    figure, axes = pyplot.subplots(figsize=(10, height), layout="constrained")
    ticks, labels, y = [], [], 0.0
    for result in results:
        target = "" if result["target"] is None else f"   (to reach: {result['target']:g} x {result['against']})"
        axes.text(0.0, y, result["work"] + target, transform=axes.get_yaxis_transform(), weight="bold", va="center")
        y += 1
        for i, (name, times) in enumerate(result["contestants"].items()):
            milliseconds = times["cpu_median_s"] * 1e3
            axes.barh(y, milliseconds, color="tab:blue" if i == 0 else "0.75", height=0.8)
            ratio = result["ratios"].get(name)
            beside = f" {milliseconds:.3g} ms" + ("" if ratio is None else f"   {ratio['cpu_median']:.3g} x")
            axes.text(milliseconds, y, beside, va="center", fontsize=9)
            ticks.append(y)
            labels.append(name)
            y += 1
    axes.set_xscale("log")
    axes.set_xlim(0.5, axes.get_xlim()[1] * 8)
    axes.set_yticks(ticks, labels, fontsize=9)
    axes.set_ylim(y - 0.3, -0.7)
    axes.set_xlabel("median processor time of a call, milliseconds (one thread)")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, draw, record; 1 if a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=float, default=1.0, help="scale of the number of interleaved rounds")
    parser.add_argument("--only", default="", help="only rows whose name holds this")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "bench" / "results", help="folder of cpu.json and cpu.png"
    )
    options = parser.parse_args(arguments)

    # Run as a script, the folder of this file is on the path and the repository is not.
    sys.path.append(str(ROOT))
    from bench.measure import cpu_model, limit_threads, versions

    limit_threads(1)  # before anything imports torch or numba
    from bench import rows

    chosen = [row for row in rows.rows() if options.only in row.work]
    results = []
    for row in chosen:
        results.append(rows.measure_row(row, options.rounds))
        print(rows.times_table(results[-1:]), flush=True)
    memory = [] if options.only else list(rows.measure_memory())
    accuracy = [] if options.only else list(rows.measure_accuracy())
    print(rows.checks_table(memory, accuracy), flush=True)

    record = {
        "recorded": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": cpu_model(),
        "threads": 1,
        "versions": versions(),
        "grid": "361 azimuth x 181 elevation x 7 range planes",
        "clock": "ratios are of median processor times of the one thread; wall-clock times stand beside them",
        "times": results,
        "memory": memory,
        "accuracy": accuracy,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "cpu.json").write_text(json.dumps(rows.round_figures(record), indent=1) + "\n")
    draw(results, f"risfast beside its peers, reference grid, B = 1, {record['cpu']}", options.output / "cpu.png")
    return int(not all(entry["met"] in (True, None) for entry in (*results, *memory, *accuracy)))


if __name__ == "__main__":
    raise SystemExit(main())
