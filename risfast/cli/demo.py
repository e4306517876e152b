"""``risfast demo``: simulate, localise, compare, and say where the pictures are."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from risfast.cli.options import Command, Common, Flag, Flat, refuse_existing, usable_device
from risfast.cli.progress import ProgressBar
from risfast.evaluate.demo_options import DemoOptions

__all__ = ["DemoCommand"]


@dataclass(frozen=True)
class DemoCommand(Command):
    """Options of ``risfast demo``."""

    scenes: int = DemoOptions.scenes
    """Number of scenes."""
    seed: int = DemoOptions.seed
    """The same seed gives the same scenes; the shipped checkpoint was trained on none of them."""
    snapshots: int = DemoOptions.snapshots
    """Snapshots of each scene."""
    grid: Literal["reference", "training"] = "reference"
    """Search grid of Capon, and of the pictures."""
    device: str = "cpu"
    """Where to compute, cpu or cuda."""
    output: Path = DemoOptions.output
    """Folder for the pictures."""
    overwrite: Flag = False
    """Replace the pictures that are there."""
    common: Annotated[Common, Flat] = field(default_factory=Common)

    def run(self, progress: ProgressBar) -> int:
        """The demo."""
        from risfast.report.demo import explanation, format_scores, run_demo  # noqa: PLC0415

        usable_device(self.device)
        chosen = DemoOptions(self.scenes, self.seed, self.snapshots, self.grid, self.output, self.device)
        pictures = sorted(self.output.glob("*.png")) if self.output.is_dir() else []
        refuse_existing(pictures, "--output", overwrite=self.overwrite)
        report = run_demo(chosen, progress)
        progress.close()
        print(format_scores(report))
        print()
        print(explanation(report))
        print()
        for description, path in report.pictures.items():
            print(f"{description}: {path}")
        return 0
