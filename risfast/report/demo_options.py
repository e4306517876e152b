"""Options of the demo; light, so that the command line can list them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

DemoGrid = Literal["reference", "training"]
SEEDS = 2**32


@dataclass(frozen=True)
class DemoOptions:
    """Options of the demo."""

    scenes: int = 60
    """Number of scenes."""
    seed: int = 0
    """The same seed gives the same scenes; the shipped checkpoint was trained on none of them."""
    snapshots: int = 64
    """Snapshots of each scene."""
    grid: DemoGrid = "reference"
    """Search grid of Capon, and of the pictures."""
    device: str = "cpu"
    """Where to compute, cpu or cuda."""
    output: Path = Path("risfast-demo")
    """Folder for the pictures."""

    def __post_init__(self) -> None:
        """Check the counts, the seed and the grid."""
        for name in ("scenes", "snapshots"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.seed < SEEDS:
            raise ValueError(f"seed must be a whole number from 0 to {SEEDS - 1}, got {self.seed}")
        if self.grid not in get_args(DemoGrid):
            raise ValueError(f"grid must be one of {', '.join(get_args(DemoGrid))}; got {self.grid!r}")
