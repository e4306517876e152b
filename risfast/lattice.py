"""Uniform rectangular lattices among sets of element positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Lattice", "find_lattice"]

# Positions closer to a lattice than this fraction of its spacing count as on it: far below any phase that matters
# (2e-6 rad at half a wavelength), far above the rounding of positions that were written to a file in float32.
_LATTICE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Lattice:
    """A uniform rectangular lattice that a set of elements fills completely.

    Attributes
    ----------
    n_h, n_v : int
        Elements along x and along y.
    spacing_h_m, spacing_v_m : float
        Spacing along x and along y in metres; 0 along a side with one element.
    order : tuple of int
        ``order[i_h * n_v + i_v]`` is the index, in the array's own order, of the element in column i_h and row i_v.
    """

    n_h: int
    n_v: int
    spacing_h_m: float
    spacing_v_m: float
    order: tuple[int, ...]


def _axis_steps(values: Tensor) -> tuple[Tensor, int, float] | None:
    """Index of each value on a uniform axis, the number of steps and the step; None if the axis is not uniform."""
    low, span = values.min(), float(values.max() - values.min())
    ordered = values.sort().values
    gaps = ordered[1:] - ordered[:-1]
    extent = float(values.abs().max())
    wide = gaps[gaps > max(span, extent) * _LATTICE_TOLERANCE]
    if wide.numel() == 0:
        return torch.zeros_like(values, dtype=torch.long), 1, 0.0
    count = round(span / float(wide.min())) + 1
    step = span / (count - 1)
    index = ((values - low) / step).round()
    if float(((values - low) - index * step).abs().max()) > _LATTICE_TOLERANCE * step:
        return None
    return index.long(), count, step


def find_lattice(positions_m: Tensor) -> Lattice | None:
    """Recognise a uniform planar (or linear) array parallel to the x-y plane, in any element order.

    Parameters
    ----------
    positions_m : real tensor, shape (N, 3)
        Element positions in metres.

    Returns
    -------
    Lattice or None
        None if the elements do not fill a uniform rectangular lattice with constant z = 0.
    """
    positions = positions_m.detach().double().cpu()
    n = positions.shape[0]
    aperture = float((positions - positions.mean(0)).abs().max())
    if float(positions[:, 2].abs().max()) > _LATTICE_TOLERANCE * max(aperture, 1e-12):
        return None
    horizontal, vertical = _axis_steps(positions[:, 0]), _axis_steps(positions[:, 1])
    if horizontal is None or vertical is None:
        return None
    (i_h, n_h, d_h), (i_v, n_v, d_v) = horizontal, vertical
    if n_h * n_v != n:
        return None
    cell = i_h * n_v + i_v
    if cell.unique().numel() != n:
        return None
    return Lattice(n_h, n_v, d_h, d_v, tuple(cell.argsort().tolist()))
