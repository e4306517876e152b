"""Records the answers: ``python -m tests.net.record`` from the root of the source tree, about a minute.

With names of groups only those are recorded, so that a commit touches the answers that it changes. ``--compare`` only
tells how far today's answers are from the recorded ones, also where that is within the tolerances. ``--steady`` tells
which answers a little noise on the inputs moves by more than a third of their tolerance: none may.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # the oracles lie beside the tests

from .answers import GROUPS, Answers
from .comparison import RECORDED, compare, load, report
from .inputs import Shake

STEADY_SHARE, STEADY_TRIALS = 1 / 3, 3


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.net.record", description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"some of {', '.join(GROUPS)}; all by default")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--compare", action="store_true", help="record nothing, tell the largest deviations")
    only.add_argument("--steady", action="store_true", help="record nothing, tell what hangs on rounding")
    chosen = parser.parse_args(arguments)
    unknown = sorted(set(chosen.groups) - GROUPS.keys())
    if unknown:
        parser.error(f"unknown group {unknown[0]!r}; the groups are {', '.join(GROUPS)}")
    torch.set_num_threads(1)
    act = _compare if chosen.compare else _steady if chosen.steady else _record
    return int(any([act(name) for name in chosen.groups or GROUPS]))  # every group is done, whatever it says


def _answers(name: str) -> tuple[Answers, float]:
    began = time.perf_counter()
    found = GROUPS[name].answers()
    return found, time.perf_counter() - began


def _record(name: str) -> bool:
    found, seconds = _answers(name)
    path = RECORDED / f"{name}.npz"
    RECORDED.mkdir(exist_ok=True)
    said = (
        report(compare(name, load(name), found))
        if path.is_file()
        else f"{len(found)} arrays, recorded for the first time"
    )
    np.savez_compressed(path, **found)
    print(f"{name}: {path.stat().st_size / 1024:.0f} KiB, {seconds:.1f} s; {said}")
    return False


def _compare(name: str) -> bool:
    changes = compare(name, load(name), _answers(name)[0])
    print(f"{name}: {report(changes, len(changes))}")
    within = [change for change in changes if 0 < change.excess <= 1]
    print("".join(f"  within the tolerance, {change.key}: {change.text}\n" for change in within[:5]), end="")
    return any(change.excess > 1 for change in changes)


def _steady(name: str) -> bool:
    relative = GROUPS[name].shake
    if relative is None:
        return False
    still, loose = GROUPS[name].answers(), False
    for seed in range(STEADY_TRIALS):
        moved = compare(name, still, GROUPS[name].answers(shake=Shake(relative, seed)))
        beyond = [change for change in moved if change.excess > STEADY_SHARE]
        print(f"{name}: noise of {relative:g}, seed {seed}, moves {len(beyond)} arrays")
        print("".join(f"  {change.key}: {change.text}\n" for change in beyond), end="")
        loose |= bool(beyond)
    return loose


if __name__ == "__main__":
    sys.exit(main())
