"""What executed every shipped configuration, as the table of kernels/README.md: ``python -m tests.machine.table``.

Runs the shipped configurations on every machine and in Triton's interpreter, and prints the table; ``--write`` puts it
into the README. With ``--folder`` the logs are kept there, and those that are there already are read, not made again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from bench.gpu_cases import CASES
from bench.gpu_compiled import README, replaced
from tests.machine.shipped import FILES, CaseResult, log_of, results, rows_of, run_file

MARK = "executed"
INTERPRETER = "interpreter"
COMPILED = ("gfx942", "sm_80")
HEAD = ["kernel", "configuration", INTERPRETER, *COMPILED, "hardware"]
HEAD += ["largest error against float64", "registers", "spills"]


def found_on(machine: str, folder: Path) -> dict[str, CaseResult]:
    """The result of every case on a machine, from its logs or from a run."""
    rows = []
    for file in FILES:
        log = log_of(machine, file, folder)
        rows += rows_of(log) if log.exists() else run_file(machine, file, folder)[0]
    return results(rows)


def verdict(result: CaseResult) -> str:
    """A cell: whether every test of a case passed, some did not, or there is none."""
    if not result.tests:
        return "not run"
    return "failed" if result.failed else "passed"


def magnitude(error: float) -> str:
    """An error to one digit."""
    return f"{error:.0e}" if error else "equal"


def table(found: dict[str, dict[str, CaseResult]]) -> list[str]:
    """The lines of the table: pairs of numbers are those of gfx942 and sm_80."""
    lines = [f"| {' | '.join(HEAD)} |", "| " + " | ".join("---" for _ in HEAD) + " |"]
    for case in CASES:
        on = {machine: cases[case.name] for machine, cases in found.items()}
        compiled = [on[machine] for machine in COMPILED if machine in on and on[machine].tests]
        cells = [case.kernel.removesuffix("_kernel"), case.name]
        cells += [verdict(on[machine]) if machine in on else "not run" for machine in (INTERPRETER, *COMPILED)]
        cells.append("not run")
        cells.append(" / ".join(magnitude(result.error) for result in compiled))
        cells += [" / ".join(str(result.resources[name]) for result in compiled) for name in ("registers", "spills")]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main(given: list[str] | None = None) -> int:
    """Run or read, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into kernels/README.md")
    parser.add_argument("--folder", type=Path, help="where logs are kept")
    parser.add_argument("--machines", nargs="+", default=[INTERPRETER, *COMPILED], help="all but some")
    arguments = parser.parse_args(given)
    with ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        lines = table({machine: found_on(machine, folder) for machine in arguments.machines})
    print("\n".join(lines))
    if arguments.write:
        README.write_text(replaced(README.read_text(encoding="utf-8"), MARK, lines), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
