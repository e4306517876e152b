"""``risfast demo``: simulate, localise, compare, and say where the pictures are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from risfast.cli.options import Command, Common, Flag, Flat, refuse_existing, usable_device
from risfast.cli.progress import ProgressBar
from risfast.report.demo_options import DemoOptions


@dataclass(frozen=True)
class DemoCommand(DemoOptions, Command):
    """Options of ``risfast demo``."""

    overwrite: Flag = False  # Replace the pictures that are there.
    common: Annotated[Common, Flat] = field(default_factory=Common)

    def run(self, progress: ProgressBar) -> int:
        """The demo."""
        from risfast.report.demo import explanation, format_scores, run_demo  # noqa: PLC0415

        usable_device(self.device)
        pictures = sorted(self.output.glob("*.png")) if self.output.is_dir() else []
        refuse_existing(pictures, "--output", overwrite=self.overwrite)
        report = run_demo(self, progress)
        progress.close()
        print(format_scores(report))
        print()
        print(explanation(report))
        print()
        for description, path in report.pictures.items():
            print(f"{description}: {path}")
        return 0
