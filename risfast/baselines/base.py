"""What every baseline takes and returns, and what they share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from risfast.covariance import check_measurements
from risfast.errors import ShapeError
from risfast.geometry import SensorArray
from risfast.models.base import Measurement
from risfast.setup import Setup
from risfast.sources import Sources


class Baseline(ABC):
    """A method that finds sources in measurements.

    Parameters
    ----------
    setup : Setup
        What it is for.
    options : dataclass, optional
        Of the class ``Options``; None is its defaults.
    """

    Options: ClassVar[type[Any]]
    """Its options, a frozen dataclass; without arguments, the defaults."""

    def __init__(self, setup: Setup, options: Any = None) -> None:
        # Measurements have the gains of the elements in their channel.
        self.setup, self.options = setup.replace(gains=None), self.Options() if options is None else options

    def localize(self, measurement: Measurement, n_sources: Tensor | None = None) -> list[Sources]:
        """Find the sources of B scenes.

        Parameters
        ----------
        measurement : Measurement
            Of B scenes.
        n_sources : int64 tensor, shape (B,), or None
            How many to report in each scene; None leaves that to the method.

        Returns
        -------
        list of B Sources
            Strongest first; exactly ``n_sources`` of them where that is given. ``confidence`` is NaN
            where the method does not say how probable a hit is.
        """
        check_request(measurement, self.setup.array, n_sources)
        if len(measurement) == 0:
            return []
        with torch.no_grad():
            return self.find(measurement, n_sources)

    @abstractmethod
    def find(self, measurement: Measurement, n_sources: Tensor | None) -> list[Sources]:
        """What :meth:`localize` returns, for a request that has been checked, of at least one scene.

        Parameters
        ----------
        measurement : Measurement
            Of B scenes.
        n_sources : int64 tensor, shape (B,), or None
            How many to report in each scene.

        Returns
        -------
        list of B Sources
        """


def check_request(measurement: Measurement, array: SensorArray, n_sources: Tensor | None) -> None:
    """Check a request for B scenes before any work.

    n_sources (B,)
    """
    shapes = {name: tuple(getattr(measurement, name).shape) for name in ("y", "codes", "channel")}
    if any(len(shape) != 3 for shape in shapes.values()):
        raise ShapeError(f"measurements must have a batch axis, (B, L, M), (B, L, N) and (B, M, N), got {shapes}")
    if shapes["channel"][2] != array.n_elements:
        raise ShapeError(
            f"channel must have N = {array.n_elements} columns, one for each element of the array, got "
            f"{shapes['channel']}"
        )
    if shapes["y"][1] == 0:
        raise ValueError("y holds no snapshot: L must be at least 1")
    check_measurements(measurement.y, measurement.codes, measurement.channel)
    silent = (measurement.y == 0).flatten(1).all(1).nonzero()
    if len(silent):
        raise ValueError(f"y[{int(silent[0, 0])}] is zero throughout: there is nothing to localise")
    if n_sources is None:
        return
    if n_sources.is_floating_point() or n_sources.is_complex() or n_sources.dtype == torch.bool:
        raise TypeError(f"n_sources must hold integers, got {n_sources.dtype}")
    if n_sources.shape != (len(measurement),):
        raise ShapeError(f"n_sources must have shape ({len(measurement)},), got {tuple(n_sources.shape)}")
    if len(n_sources) and int(n_sources.min()) < 0:
        raise ValueError(f"n_sources must be at least 0, got {int(n_sources.min())}")


def by_count(counts: Tensor, find: Callable[[Tensor, int], Sequence[Sources]]) -> list[Sources]:
    """Call ``find`` once for all scenes of equal count, and put the answers in order.

    counts (B,)
    """
    found = [Sources.empty()] * len(counts)
    for count in counts.unique().tolist():
        if count:
            scenes = (counts == count).nonzero()[:, 0]
            for scene, sources in zip(scenes.tolist(), find(scenes, count), strict=True):
                found[scene] = sources
    return found


def completed(
    found: Sources, count: int, axes: Sequence[Tensor], volume: Tensor, separation: tuple[float, float, float]
) -> Sources:
    """The ``count`` strongest of the sources found, and where there are fewer, the strongest points beside them.

    axes (G_az,), (G_el,), (G_r,), volume (G_az, G_el, G_r)
    """
    found = found[:count]
    if len(found) == count:
        return found
    missing = count - len(found)
    if volume.numel() < missing:
        raise ValueError(
            f"n_sources = {count} is more than the {len(found)} peaks and the {volume.numel()} points of the grid"
        )
    grid = torch.stack(torch.meshgrid(*(a.double().cpu() for a in axes), indexing="ij"), -1).reshape(-1, 3)
    power = volume.detach().double().cpu().flatten().clone()
    apart = torch.tensor(separation, dtype=torch.float64)
    crowded = torch.zeros(len(grid), dtype=torch.bool)
    for position in found.position.cpu():
        crowded |= _near(grid, position, apart)
    taken = torch.zeros_like(crowded)
    chosen: list[int] = []
    while len(chosen) < missing:
        free = ~(crowded | taken)
        pool = free if bool(free.any()) else ~taken
        best = int(torch.where(pool, power, -torch.inf).argmax())
        taken[best] = True
        chosen.append(best)
        crowded |= _near(grid, grid[best], apart)
    device = found.azimuth.device
    return Sources.stack([found, Sources.at(grid[chosen].to(device), power[chosen].to(device))])


def exactly(
    found: Sequence[Sources],
    counts: Sequence[int],
    axes: Sequence[Tensor],
    volume: Callable[[int], Tensor],
    separation: tuple[float, float, float],
) -> list[Sources]:
    """Of each scene as many sources as asked for; the volume over the axes is made where peaks are missing."""
    return [
        completed(sources, count, axes, volume(scene), separation) if len(sources) < count else sources[:count]
        for scene, (sources, count) in enumerate(zip(found, counts, strict=True))
    ]


def _near(grid: Tensor, position: Tensor, apart: Tensor) -> Tensor:
    """Which points are closer than ``apart`` in every coordinate; two at infinity are at one range."""
    same = grid == position
    return (same | ((grid - position).abs() < apart)).all(-1)


def reported(found: Sequence[Sources], setup: Setup) -> list[Sources]:
    """The sources as an answer: no range where waves are planar, and which lie on the edge of the region."""
    answers = []
    for sources in found:
        edge = setup.region.at_edge(sources.position).to(sources.azimuth.device)
        r = torch.full_like(sources.range, math.nan) if setup.wavefront == "planar" else sources.range
        answers.append(sources.replace(range=r, at_edge=edge))
    return answers
