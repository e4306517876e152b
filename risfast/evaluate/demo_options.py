"""Options of the demo, and the search grids by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from risfast.geometry import SearchGrid

__all__ = ["GRIDS", "SEEDS", "DemoOptions"]

GRIDS: dict[str, Callable[[], SearchGrid]] = {"reference": SearchGrid.reference, "training": SearchGrid.training}
SEEDS = 2**32


@dataclass(frozen=True)
class DemoOptions:
    """Options of the demo."""

    scenes: int = 60  # Number of scenes, >= 1
    seed: int = 0  # The same seed gives the same scenes; the shipped checkpoint was trained on none of them
    snapshots: int = 64  # L of each scene, >= 1
    # Whether the grid of Capon, and of the pictures, is as dense as for localisation or as for training
    grid: str = "reference"
    output: Path = Path("risfast-demo")  # Folder for the pictures; made if it is not there
    device: str = "cpu"  # Where everything is computed

    def __post_init__(self) -> None:
        """Check the counts, the seed and the grid."""
        for name in ("scenes", "snapshots"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.seed < SEEDS:
            raise ValueError(f"seed must be a whole number from 0 to {SEEDS - 1}, got {self.seed}")
        if self.grid not in GRIDS:
            raise ValueError(f"grid must be one of {', '.join(GRIDS)}; got {self.grid!r}")
