"""``risfast backbone``: train a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from risfast.cli.options import Common, Flat, Opt, Whole
from risfast.cli.progress import Progress
from risfast.cli.training import ABOUT_CONFIG, ABOUT_RUN, from_file, on_machine, trained
from risfast.train.config import RunConfig

__all__ = ["Options", "defaults", "run"]

RESUMES = "; the same command goes on from the last checkpoint"


@dataclass(frozen=True)
class Options:
    """Options of ``risfast backbone``."""

    output: Annotated[Path, arg(help=ABOUT_RUN)] = Path("risfast-backbone")
    config: Annotated[Opt[Path], arg(help=ABOUT_CONFIG)] = None
    minutes: Opt[float] = None
    """Short for --machine.minutes."""
    device: Opt[str] = None
    """Short for --machine.device."""
    common: Annotated[Common, Flat] = field(default_factory=Common)
    run: Annotated[RunConfig, Flat, Whole] = field(default_factory=RunConfig)


def defaults(arguments: Sequence[str]) -> Options:
    """Those of the file that ``--config`` names."""
    return Options(run=from_file(RunConfig, arguments))


def run(options: Options, progress: Progress) -> int:
    """Train, or go on with it."""
    from risfast.train.backbone import train_backbone  # noqa: PLC0415 - help does not need it

    machine = on_machine(options.run.machine, options.device, options.minutes)
    trained(train_backbone, replace(options.run, machine=machine), options.output, progress)
    return 0
