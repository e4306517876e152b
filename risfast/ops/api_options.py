"""What every public operator checks and hands on: options, and the arguments that describe the geometry."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from risfast.geometry import PlanarArray, SearchGrid
from risfast.ops import checks
from risfast.ops.choice import DEFAULT_BYTE_BUDGET, METHODS, MINIMUM_BYTE_BUDGET
from risfast.ops.devices import PRECISIONS
from risfast.steering import WAVEFRONTS

__all__ = ["axes_of", "byte_budget_of", "geometry_arguments"]


def byte_budget_of(wavefront: str, method: str, byte_budget: int | None, precision: str) -> int:
    """Check the options that every operator takes, and say how many bytes it may work in.

    Parameters
    ----------
    wavefront : {"spherical", "fresnel", "planar"}
    method : {"auto", "dense", "chebyshev", "lag"}
    byte_budget : int or None
        Bytes; None is the default of 256 MiB.
    precision : {"auto", "ieee", "tf32x3", "tf32"}

    Returns
    -------
    int

    Raises
    ------
    ValueError
        An unknown word, or a budget that is no integer or below 1 MiB.
    """
    checks.check_option(wavefront, "wavefront", WAVEFRONTS)
    checks.check_option(method, "method", METHODS)
    checks.check_option(precision, "precision", PRECISIONS)
    budget = DEFAULT_BYTE_BUDGET if byte_budget is None else byte_budget
    if not isinstance(budget, int) or budget < MINIMUM_BYTE_BUDGET:
        raise ValueError(f"byte_budget must be an integer of at least {MINIMUM_BYTE_BUDGET} bytes, got {byte_budget!r}")
    return budget


def geometry_arguments(
    array: PlanarArray, axes: tuple[Tensor, Tensor, Tensor], wavefront: str, method: str, budget: int, precision: str
) -> Any:
    """The arguments that describe array, points and method, in the order of every op's schema.

    Parameters
    ----------
    array : PlanarArray
    axes : three float64 CPU tensors
        Azimuths, elevations (radians) and ranges (metres).
    wavefront, method, precision : str
    budget : int
        Bytes.

    Returns
    -------
    tuple
        See ``Geometry`` in ``risfast.ops.register_common``.
    """
    return (array.positions_m, *axes, array.wavenumber, wavefront, method, budget, precision)


def axes_of(grid: SearchGrid) -> tuple[Tensor, Tensor, Tensor]:
    """The three axes of a grid.

    Parameters
    ----------
    grid : SearchGrid

    Returns
    -------
    tuple of three float64 tensors, shapes (G_az,), (G_el,), (G_r,)
    """
    return grid.azimuth_rad, grid.elevation_rad, grid.range_m
