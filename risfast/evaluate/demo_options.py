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
    """Options of the demo.

    Parameters
    ----------
    scenes : int
        Number of scenes, >= 1.
    seed : int in [0, 2^32)
        The same seed gives the same scenes; the shipped checkpoint was trained on none of them.
    snapshots : int
        L of each scene, >= 1.
    grid : {"reference", "training"}
        Whether the grid of Capon, and of the pictures, is as dense as for localisation or as for training.
    output : Path
        Folder for the pictures; made if it is not there.
    device : str
        Where everything is computed.

    Raises
    ------
    ValueError
        A count is below 1, the seed is out of its range, or the grid is unknown.
    """

    scenes: int = 60
    seed: int = 0
    snapshots: int = 64
    grid: str = "reference"
    output: Path = Path("risfast-demo")
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Check the counts, the seed and the grid."""
        for name in ("scenes", "snapshots"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.seed < SEEDS:
            raise ValueError(f"seed must be a whole number from 0 to {SEEDS - 1}, got {self.seed}")
        if self.grid not in GRIDS:
            raise ValueError(f"grid must be one of {', '.join(GRIDS)}; got {self.grid!r}")
