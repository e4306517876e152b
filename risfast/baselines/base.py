"""What every baseline takes and returns, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from risfast.detect import Sources
from risfast.errors import ShapeError
from risfast.geometry import PlanarArray
from risfast.models.base import Measurement

__all__ = ["Baseline", "by_count", "check_request", "completed"]


class Baseline(Protocol):
    """A method that finds sources in measurements."""

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
            Strongest first; exactly ``n_sources`` of them where that is given.
        """
        ...


def check_request(measurement: Measurement, array: PlanarArray, n_sources: Tensor | None) -> None:
    """Check a request for B scenes before any work.

    Parameters
    ----------
    measurement : Measurement
        Of B scenes: complex ``y`` (B, L, M), ``codes`` (B, L, N), ``channel`` (B, M, N).
    array : PlanarArray
        The surface, N elements.
    n_sources : int tensor, shape (B,), or None
        How many sources are asked for in each scene, >= 0.

    Raises
    ------
    ShapeError, TypeError, ValueError
        No batch axis, no snapshot, a channel for another array, values that are not finite, silence, or counts that
        are not integers >= 0, one a scene.
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
    for name in shapes:
        if not bool(torch.isfinite(torch.view_as_real(getattr(measurement, name).resolve_conj())).all()):
            raise ValueError(f"{name} must be finite; it holds NaN or infinite values")
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

    Parameters
    ----------
    counts : int64 tensor, shape (B,)
        On the CPU; scenes of count 0 get no sources without a call.
    find : callable of (int64 tensor of scene indices, int) to a sequence of Sources
        The sources of those scenes, in their order.

    Returns
    -------
    list of B Sources
    """
    nothing = torch.zeros(0, dtype=torch.float64)
    found = [Sources(nothing, nothing, nothing, nothing, nothing)] * len(counts)
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

    Parameters
    ----------
    found : Sources
        Strongest first.
    count : int
        Sources wanted, >= 0.
    axes : three real tensors, shapes (G_az,), (G_el,), (G_r,)
        Azimuths and elevations in radians and ranges in metres of the volume.
    volume : real tensor, shape (G_az, G_el, G_r)
        Powers of the points that fill up, linear; not looked at where ``found`` suffices.
    separation : (float, float, float)
        Closer than all of these in azimuth, elevation (radians) and range (metres) to a stronger source, a point is
        taken only when no other is left.

    Returns
    -------
    Sources
        ``confidence`` 0 for those that were filled up.

    Raises
    ------
    ValueError
        The volume has too few points.
    """
    rows = torch.stack([found.azimuth, found.elevation, found.range, found.power, found.confidence], -1)[:count]
    if len(rows) == count:
        return Sources(*rows.unbind(-1))
    if volume.numel() < count - len(rows):
        raise ValueError(
            f"n_sources = {count} is more than the {len(rows)} peaks and the {volume.numel()} points of the grid"
        )
    grid = torch.stack(torch.meshgrid(*(a.double().cpu() for a in axes), indexing="ij"), -1).reshape(-1, 3)
    power = volume.detach().double().cpu().flatten().clone()
    apart = torch.tensor(separation, dtype=torch.float64)
    crowded = torch.zeros(len(grid), dtype=torch.bool)
    for row in rows:
        crowded |= ((grid - row[:3]).abs() < apart).all(-1)
    taken = torch.zeros_like(crowded)
    while len(rows) < count:
        free = ~(crowded | taken)
        pool = free if bool(free.any()) else ~taken
        best = int(torch.where(pool, power, -torch.inf).argmax())
        taken[best] = True
        crowded |= ((grid - grid[best]).abs() < apart).all(-1)
        rows = torch.cat([rows, torch.cat([grid[best], power[best, None], power.new_zeros(1)])[None]])
    return Sources(*rows.unbind(-1))
