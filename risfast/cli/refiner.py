"""``risfast refiner``: train a refiner on the maps of a trained backbone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from risfast.cli.options import Common, Flat, Opt, Whole
from risfast.cli.progress import Progress
from risfast.cli.training import ABOUT_CONFIG, ABOUT_RUN, from_file, on_machine, trained
from risfast.train.refiner import RefinerConfig, helps, train_refiner

__all__ = ["Options", "defaults", "run"]

RESUMES = "; the same command goes on from the last checkpoint"


@dataclass(frozen=True)
class Options:
    """Options of ``risfast refiner``."""

    output: Annotated[Path, arg(help=ABOUT_RUN)] = Path("risfast-refiner")
    config: Annotated[Opt[Path], arg(help=ABOUT_CONFIG)] = None
    minutes: Opt[float] = None
    """Short for --machine.minutes."""
    device: Opt[str] = None
    """Short for --machine.device."""
    common: Annotated[Common, Flat] = field(default_factory=Common)
    run: Annotated[RefinerConfig, Flat, Whole] = field(default_factory=RefinerConfig)


def defaults(arguments: Sequence[str]) -> Options:
    """Those of the file that ``--config`` names."""
    return Options(run=from_file(RefinerConfig, arguments))


def run(options: Options, progress: Progress) -> int:
    """Train, or go on with it, and say whether it helps."""
    machine = on_machine(options.run.machine, options.device, options.minutes)
    outcome = trained(train_refiner, replace(options.run, machine=machine), options.output, progress)
    if outcome is not None:
        verdict = "helps" if helps(outcome.figures) else "does not help, and is marked so in its card"
        print(f"against the backbone's own sources and Capon on the same covariances it {verdict}")
    return 0
