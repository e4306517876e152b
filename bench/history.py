"""One row a commit: times of a few works on one thread, in ``bench/results/history.csv``.

``python -m bench.history`` measures the checked-out commit, ``python -m bench.history REV ...`` earlier ones; a row
that is there is replaced. Only what every commit since 0.1 has is measured, and only rows of the same processor
compare. The checked-out tree is measured only where it is that of its commit: changes belong to no row.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HISTORY = ROOT / "bench" / "results" / "history.csv"
COLUMNS = ("date", "commit", "capon_fresnel_ms", "capon_spherical_ms", "capon_lowrank_ms", "detection_ms", "cpu")
# Run in a process of its own with the tree of the commit before everything else on the path.
MEASURED = """
import json, statistics, time
import torch
torch.set_num_threads(1)
from risfast import PlanarArray, SearchGrid, detect_sources
from risfast.ops import mvdr_spectrum, mvdr_spectrum_lowrank
from risfast.steering import steering_vectors

array, grid = PlanarArray.rectangular(12, 12), SearchGrid.reference()
where = [torch.tensor(v) for v in ([0.3, -0.5, 0.1], [0.1, -0.2, 0.25], [1.7, 4.2, 0.9])]
factor = steering_vectors(array, *where).to(torch.complex64).mT.contiguous()
noise = torch.randn(144, 160, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
R = factor @ factor.mH + 0.01 * noise @ noise.mH / 160
works = {
    "capon_fresnel_ms": lambda: mvdr_spectrum(R, array, grid, wavefront="fresnel"),
    "capon_spherical_ms": lambda: mvdr_spectrum(R, array, grid),
    "capon_lowrank_ms": lambda: mvdr_spectrum_lowrank(factor, array, grid),
    "detection_ms": lambda: detect_sources(R, array, grid),
}
found = {}
for name, work in works.items():
    work(), work()  # plans, caches
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    found[name] = round(1e3 * statistics.median(times), 2)
print(json.dumps(found))
"""


def measure(tree: Path, rounds: int) -> dict[str, float]:
    """Medians of processor times in milliseconds, by the risfast of a tree."""
    from bench.measure import THREAD_VARIABLES

    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, "1"), "PYTHONPATH": str(tree)}
    command = [sys.executable, "-c", MEASURED.replace("ROUNDS", str(rounds))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=tree)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def commit_of(revision: str) -> tuple[str, str]:
    """Time and short name of a commit."""
    command = ["git", "-C", str(ROOT), "show", "-s", "--format=%cI %h", revision]
    date, name = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return date, name


def is_clean(tree: Path) -> bool:
    """Whether no file under version control differs from the commit."""
    command = ["git", "-C", str(tree), "status", "--porcelain", "--untracked-files=no"]
    return not subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def updated(path: Path, rows: list[dict[str, str]]) -> None:
    """The file with these rows, each in place of an earlier one of the same commit, in the order of dates."""
    held: dict[str, dict[str, str]] = {}
    if path.exists():
        with path.open(newline="", encoding="utf-8") as stream:
            held = {row["commit"]: row for row in csv.DictReader(stream)}
    held |= {row["commit"]: row for row in rows}
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(held.values(), key=lambda row: row["date"]))


def main(arguments: list[str] | None = None) -> None:
    """Measure each commit, print and store its row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revisions", nargs="*", metavar="REV", help="earlier commits; by default the checked-out tree")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=HISTORY)
    options = parser.parse_args(arguments)
    if not options.revisions and not is_clean(ROOT):
        parser.error("the checked-out tree has changes that are in no commit; commit them, or name revisions")
    from bench.compare import earlier_tree
    from bench.measure import cpu_model

    rows = []
    for revision in options.revisions or ["HEAD"]:
        date, name = commit_of(revision)
        if options.revisions:
            with earlier_tree(revision) as tree:
                found = measure(tree, options.rounds)
        else:
            found = measure(ROOT, options.rounds)
        rows.append({"date": date, "commit": name, **{key: str(v) for key, v in found.items()}, "cpu": cpu_model()})
        print(rows[-1], flush=True)
    updated(options.output, rows)


if __name__ == "__main__":
    main()
