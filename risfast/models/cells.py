"""Cells of range that the atoms of a grid are divided into, and the counts of sources in them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from risfast.models.atoms import AtomAxes

__all__ = ["CellTargets", "RangeCells"]

_FAR = 1e6  # nearest ranges that a single atom of a region without end stands at


class CellTargets(NamedTuple):
    """Where the true sources of a batch fall."""

    cell: Tensor  # (B, K) Flat index of the cell in (azimuth, elevation, range cell)
    # (B, K, 2) Position of the source relative to its atom, in spacings of the axes' coordinates, within +-1/2
    offset: Tensor


class RangeCells(nn.Module):
    """Each atom's interval of 1/range, divided into cells of equal length in range.

    edges, centres (cells + 1,) and (cells,)
    """

    # Far out a step of 1/range is metres long: the cells resolve there what a tolerance in metres asks for.

    edges: Tensor
    centres: Tensor

    def __init__(self, axes: AtomAxes, per_atom: int) -> None:
        super().__init__()
        self.axes, self.per_atom = axes, per_atom
        inverse = axes.inverse_range
        middle = 1 / ((inverse[1:] + inverse[:-1]) / 2)
        bounds = torch.cat([1 / inverse[:1], middle, 1 / inverse[-1:]])  # [G_r + 1], increasing
        if bounds[0].isinf():  # one atom, at infinity; a difference of places must be a number
            bounds = torch.full_like(bounds, _FAR * axes.range_m[0])
        fraction = torch.arange(per_atom, dtype=torch.float64) / per_atom
        edges = bounds[:-1, None] + fraction * bounds.diff()[:, None]
        if bounds[-1].isinf():  # an interval without end has cells of equal length in 1/range
            edges[-1] = bounds[-2] / (1 - fraction)
        edges = torch.cat([edges.flatten(), bounds[-1:]])
        centres = (edges[1:] + edges[:-1]) / 2
        centres[-1] = centres[-1].clamp_max(2 * edges[-2])
        self.register_buffer("edges", edges, persistent=False)
        self.register_buffer("centres", centres, persistent=False)

    def __len__(self) -> int:
        """Cells of range."""
        return self.axes.n_range * self.per_atom

    def targets(self, position: Tensor) -> CellTargets:
        """Cells that sources fall in; those outside the grid go to the nearest cell.

        position (B, K, 3)
        """
        position = position.double()
        n_az, n_el, _ = self.axes.shape
        index, offset = [], []
        coordinates = self.axes.coordinates_of(position)
        for i, n in enumerate((n_az, n_el)):
            first = self.axes.coordinates[i][0].to(position.device)
            place = (coordinates[i] - first) / self.axes.spacing[i]
            nearest = place.round().clamp(0, n - 1)
            index.append(nearest.long())
            offset.append((place - nearest).clamp(-0.5, 0.5))
        cell = torch.bucketize(position[..., 2].contiguous(), self.edges[1:-1])
        flat = (index[0] * n_el + index[1]) * len(self) + cell
        return CellTargets(flat, torch.stack(offset, -1).float())
