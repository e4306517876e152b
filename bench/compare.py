"""One interleaved run on one thread: the table of ratios, its picture, and the record of both.

``python -m bench.compare`` (or ``python bench/compare.py``) writes ``bench/results/cpu.json`` and ``cpu.png``;
``--rounds 0.3`` is a quick look, ``--against REV`` times an earlier commit in the same turns, and writes nothing.
``--only NAME`` measures the rows of that name; with ``--into-record`` they replace those of the record.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"


@contextmanager
def earlier_tree(revision: str) -> Iterator[Path]:
    """A worktree of a commit in a temporary folder, with the kernels where an installed risfast has them."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder).resolve() / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), revision], check=True)
        try:
            (tree / "risfast" / "kernels").symlink_to(tree / "kernels")
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def charted(results: list[dict[str, Any]]) -> dict[str, list[tuple[str, float, str]]]:
    """What :func:`bench.contest.draw` takes: medians, with risfast's advantage beside each."""
    groups = {}
    for result in results:
        ratios = {name: f"{ratio['cpu_median']:.3g}" for name, ratio in result["ratios"].items()}
        groups[result["work"]] = [
            (name, entry["cpu_median_s"] / result["batch"], ratios.get(name, ""))
            for name, entry in result["contestants"].items()
        ]
    return groups


def _put_into_record(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The record in a file with newly measured rows in place of its own; each of them says what it was measured on."""
    from bench import rows

    known = json.loads(path.read_text())
    own = {key: record[key] for key in ("recorded", "cpu", "versions")}
    times = {result["work"]: result for result in known["times"]}
    times |= {result["work"]: {**result, "measured": own} for result in record["times"]}
    return {**known, "times": [times[row.work] for row in rows.rows() if row.work in times]}


def compare(options: argparse.Namespace, trees: dict[str, Path]) -> int:
    """Measure, print, draw, record; 1 if a target was missed."""
    from bench import checks, rows
    from bench.contest import draw
    from bench.measure import cpu_model, versions

    results = []
    for row in rows.rows():
        if any(name in row.work for name in options.only or [""]) and row.table and (options.full or not row.full):
            results.append(rows.measure_row(row, options.rounds, trees))
            print(rows.times_table(results[-1:]), flush=True)
    checked: dict[str, Any] = {"memory": [], "accuracy": []}
    if not options.only:
        checked = checks.measure_checks(trees)
        print(checks.checks_table(checked), flush=True)

    record = {
        "recorded": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": cpu_model(),
        "threads": 1,
        "versions": versions(),
        "grid": "361 azimuth x 181 elevation x 7 range planes",
        "clock": "ratios are of median processor times of the one thread; wall-clock times stand beside them",
        "times": results,
    }
    path = options.output / "cpu.json"
    record = _put_into_record(path, record) if options.only and options.into_record else {**record, **checked}
    written = options.into_record if options.only else options.against is None or options.output != RESULTS
    if written:
        options.output.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows.round_figures(record), indent=1) + "\n")
        cpus = [record["cpu"], *(result["measured"]["cpu"] for result in record["times"] if "measured" in result)]
        draw(
            charted(record["times"]),
            f"risfast beside its peers, reference grid, {' and '.join(dict.fromkeys(cpus))}",
            options.output / "cpu.png",
        )
    return int(any(entry["met"] is False for entry in (*results, *checked["memory"], *checked["accuracy"])))


def main(arguments: list[str] | None = None) -> int:
    """Take the arguments and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=float, default=1.0, help="scale of the number of interleaved rounds")
    parser.add_argument("--only", nargs="+", help="only rows whose name holds one of these, and no checks")
    parser.add_argument("--into-record", action="store_true", help="put the rows of --only into the record")
    parser.add_argument("--full", action="store_true", help="64 x 64 elements too, ten seconds a call")
    parser.add_argument("--against", metavar="REV", help="an earlier commit to time in the same turns")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of cpu.json and cpu.png")
    options = parser.parse_args(arguments)
    if options.into_record and (not options.only or options.against):
        parser.error("--into-record puts the rows of --only into the record, and none of an earlier commit")
    if options.into_record and not (options.output / "cpu.json").is_file():
        parser.error(f"there is no record in {options.output} to put rows into")

    # Run as a script, the folder of this file is on the path and the repository is not.
    sys.path.append(str(ROOT))
    from bench.measure import limit_threads, risfast_tree

    limit_threads(1)  # before anything imports torch or numba
    from bench.rows import EARLIER, OWN

    trees = {OWN: risfast_tree()}
    if options.against is None:
        return compare(options, trees)
    with earlier_tree(options.against) as tree:
        return compare(options, {**trees, EARLIER: tree})


if __name__ == "__main__":
    raise SystemExit(main())
