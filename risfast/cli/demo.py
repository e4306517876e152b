"""``risfast demo``: simulate, localise, compare, and say where the pictures are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from risfast.cli.options import Common, Flag, Flat, check_device, refuse_existing
from risfast.cli.progress import Progress
from risfast.report.demo_options import DemoOptions

__all__ = ["Options", "run"]


@dataclass(frozen=True)
class Options(DemoOptions):
    """Options of ``risfast demo``."""

    overwrite: Flag = False
    """Replace the pictures that are there."""
    common: Annotated[Common, Flat] = field(default_factory=Common)


def run(options: Options, progress: Progress) -> int:
    """The demo."""
    from risfast.report.demo import explanation, format_scores, run_demo  # noqa: PLC0415

    check_device(options.device)
    pictures = sorted(options.output.glob("*.png")) if options.output.is_dir() else []
    refuse_existing(pictures, "--output", overwrite=options.overwrite)
    report = run_demo(options, progress)
    progress.close()
    print(format_scores(report))
    print()
    print(explanation(report))
    print()
    for description, path in report.pictures.items():
        print(f"{description}: {path}")
    return 0
