"""A planar surface as two linear arrays: cuts of its covariance, and pairing of what is found in them.

The elements of a row see a source at azimuth, elevation and range r as those of a linear array do at the angle
asin(sin az cos el) and the range r, those of a column at the angle asin(sin el): only the direction cosine counts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from risfast.baselines.music import leading
from risfast.geometry import Lattice, SensorArray
from risfast.sources import Sources
from risfast.steering import steering_vectors

__all__ = ["LineSources", "central_cuts", "paired_sources", "square_lattice"]

_CENTRED = 1e-6  # of the spacing; far below any phase that matters
_HALF_WAVELENGTH = 1e-3  # relative; over 12 elements 0.02 rad
_SWEEP = 64  # ranges of the sweep that tells pairs, uniform in 1/range


class LineSources(NamedTuple):
    """What was found along a line, in no particular order."""

    angle: Tensor  # (K,) From broadside, radians
    range_m: Tensor  # (K,) From the centre, metres


def square_lattice(array: SensorArray, n_elements: int) -> Lattice:
    """The lattice of a surface whose rows and columns are lines of ``n_elements`` at half a wavelength."""
    lattice = array.lattice
    if lattice is None or (lattice.n_h, lattice.n_v) != (n_elements, n_elements):
        raise ValueError(f"array must be a lattice of {n_elements} x {n_elements} elements, got {array!r}")
    for spacing in (lattice.spacing_h_m, lattice.spacing_v_m):
        if abs(spacing / array.wavelength_m - 0.5) > 0.5 * _HALF_WAVELENGTH:
            raise ValueError(
                f"array must have half a wavelength between elements, {array.wavelength_m / 2:g} m; got {spacing:g} m"
            )
    if float(array.positions_m.mean(0).abs().max()) > _CENTRED * lattice.spacing_h_m:
        raise ValueError("array must be centred on the origin")
    return lattice


def central_cuts(covariance: Tensor, lattice: Lattice) -> tuple[Tensor, Tensor]:
    """Covariances of the central row and of the central column.

    covariance (B, N, N) -> horizontal (B, n_h, n_h), vertical (B, n_v, n_v)
    """
    order = torch.tensor(lattice.order, device=covariance.device)
    n_h, n_v = lattice.n_h, lattice.n_v
    r = covariance[:, order][:, :, order].reshape(-1, n_h, n_v, n_h, n_v)
    rows, columns = {(n_v - 1) // 2, n_v // 2}, {(n_h - 1) // 2, n_h // 2}
    horizontal = torch.stack([r[:, :, i, :, i] for i in sorted(rows)]).mean(0)
    vertical = torch.stack([r[:, i, :, i, :] for i in sorted(columns)]).mean(0)
    return horizontal, vertical


def paired_sources(
    covariance: Tensor,
    array: SensorArray,
    horizontal: LineSources,
    vertical: LineSources,
    range_m: tuple[float, float],
) -> Sources:
    """The sources of one scene from those found in its row and in its column.

    Parameters
    ----------
    covariance : complex tensor, shape (N, N)
        Of the surface.
    array : SensorArray
        N elements.
    horizontal, vertical : LineSources
        K each, K < N.
    range_m : (float, float)
        Nearest and farthest source, metres.

    Returns
    -------
    Sources
        K, the deepest null first. ``power`` is the mean power of an element over K, the same for all.

    Notes
    -----
    Every angle of the row with every angle of the column is a direction. Its null, 1 - |U^H a|^2 / N for the leading K
    eigenvectors U of the covariance, is the deepest along its ranges; the pairs are those with the least sum of nulls.
    The curvature along a line is cos^2(angle) / range, so a row and a column with equal errors of phase know 1 / range
    with weights cos^4(angle): their weighted mean is the range of the pair.
    """
    count, n = len(horizontal.angle), array.n_elements
    subspace = leading(covariance[None], count)[0].mH.to("cpu", torch.complex128)
    along, up = horizontal.angle.double().cpu().sin(), vertical.angle.double().cpu()
    azimuth = (along[:, None] / up.cos().clamp_min(1e-12)).clamp(-1, 1).asin()  # [K rows, K columns]
    elevation = up.expand_as(azimuth)
    inverse = torch.linspace(1 / range_m[1], 1 / range_m[0], _SWEEP, dtype=torch.float64)
    a = steering_vectors(array, azimuth[..., None], elevation[..., None], 1 / inverse, dtype=torch.complex128)
    null = (1 - (a.to("cpu") @ subspace.mT).abs().square().sum(-1) / n).amin(-1)
    row, column = (torch.as_tensor(index) for index in linear_sum_assignment(null.numpy()))
    weight_h, weight_v = (1 - along.square()).square()[row], up.cos()[column] ** 4
    range_h, range_v = horizontal.range_m.double().cpu()[row], vertical.range_m.double().cpu()[column]
    r = (weight_h + weight_v) / (weight_h / range_h + weight_v / range_v)
    by_depth = null[row, column].argsort(stable=True)
    power = float(covariance.diagonal().real.mean()) / count
    position = torch.stack([azimuth[row, column], elevation[row, column], r], -1)[by_depth]
    return Sources.at(position, torch.full_like(position[:, 0], power))
