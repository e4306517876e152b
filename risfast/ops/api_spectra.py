"""Spectra of covariances and factors: Capon (MVDR), low-rank Capon, MUSIC, Bartlett."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from risfast.geometry import PlanarArray, SearchGrid
from risfast.ops import checks, register
from risfast.ops.api_options import axes_of, byte_budget_of, geometry_arguments
from risfast.ops.choice import require_lag

__all__ = ["Spectrum", "bartlett_spectrum", "music_spectrum", "mvdr_spectrum", "mvdr_spectrum_lowrank"]

_SMALLEST_LOWRANK_LOADING = 1e-9


class Spectrum(NamedTuple):
    """The maximum of a spectrum over its range planes.

    Attributes
    ----------
    power : float32 or float64 tensor, shape (B, G_az, G_el)
        Linear power.
    plane : int32 tensor, shape (B, G_az, G_el)
        Index into ``grid.range_m`` of the winning plane, the lowest on a tie.
    """

    power: Tensor
    plane: Tensor


def _check_spectrum(
    array: PlanarArray,
    grid: SearchGrid,
    wavefront: str,
    method: str,
    reduce: str,
    byte_budget: int | None,
    precision: str,
) -> int:
    checks.check_array(array)
    checks.check_grid(grid)
    checks.check_option(reduce, "reduce", ("max", "none"))
    budget = byte_budget_of(wavefront, method, byte_budget, precision)
    if method == "lag":
        require_lag(array.lattice, wavefront)
    return budget


def _finish(power: Tensor, plane: Tensor, batched: bool, reduce: str) -> Any:
    if reduce == "none":
        return power if batched else power[0]
    return Spectrum(power, plane) if batched else Spectrum(power[0], plane[0])


def mvdr_spectrum(
    R: Tensor,
    array: PlanarArray,
    grid: SearchGrid,
    *,
    loading: float = 1e-2,
    wavefront: str = "spherical",
    method: str = "auto",
    reduce: str = "max",
    byte_budget: int | None = None,
    precision: str = "auto",
) -> Any:
    """Capon (MVDR) power of a batch of covariances on a near-field grid.

    Parameters
    ----------
    R : complex64 or complex128 tensor, shape (B, N, N) or (N, N)
        Hermitian, positive semi-definite; element order as in ``array``. Any strides.
    array : PlanarArray
        N elements.
    grid : SearchGrid
        Azimuth, elevation and range axes.
    loading : float
        Diagonal loading delta = loading * trace(R)/N, dimensionless; 0 is allowed where R is not singular.
    wavefront : {"spherical", "fresnel", "planar"}
        See :func:`risfast.steering.steering_vectors`.
    method : {"auto", "dense", "chebyshev", "lag"}
        ``print(plan(array, grid))`` says what ``auto`` chooses and why. See the table in :mod:`risfast.ops`.
    reduce : {"max", "none"}
        ``max`` over range planes, without ever holding the volume, or the volume itself.
    byte_budget : int or None
        Working memory above inputs and outputs, in bytes, at least 1 MiB; 256 MiB by default. The result does not
        depend on it (beyond rounding). On a GPU nothing is held that it could save.
    precision : {"auto", "ieee", "tf32x3", "tf32"}
        The least precision of products on a GPU; see :mod:`risfast.ops`. The CPU computes in float64 whatever it says.

    Returns
    -------
    Spectrum or tensor
        ``Spectrum(power, plane)``, each (B, G_az, G_el), power = N / (a^H (R + delta I)^-1 a), float32 for complex64
        and float64 for complex128; with ``reduce="none"`` the volume (B, G_az, G_el, G_r), stored plane by plane.
        Without the batch axis if R has none. Differentiable with respect to R, taken as Hermitian (once).

    Raises
    ------
    ShapeError
        R is not square, or N is not the array's.
    TypeError
        R is not a complex tensor, or array or grid are not what they should be.
    ValueError
        R holds NaN, is not Hermitian, has no positive trace, is indefinite, or is singular without loading (on a GPU
        such a scene comes out as NaN instead); an unknown option; ``lag`` for a non-uniform array or the spherical
        wavefront.

    Notes
    -----
    J. Capon, "High-resolution frequency-wavenumber spectrum analysis", Proc. IEEE 57, 1969. On the CPU the loaded
    covariance is inverted through its Cholesky factor and the form evaluated in float64.
    """
    budget = _check_spectrum(array, grid, wavefront, method, reduce, byte_budget, precision)
    checks.check_loading(loading, minimum_open=False)
    checks.check_complex(R, "R")
    checks.check_matrix(R, "R", array.n_elements, square=True)
    batched = R.ndim == 3
    power, plane = register.capon_op(
        R if batched else R[None],
        float(loading),
        reduce == "none",
        *geometry_arguments(array, axes_of(grid), wavefront, method, budget, precision),
    )
    return _finish(power, plane, batched, reduce)


def mvdr_spectrum_lowrank(
    F: Tensor,
    array: PlanarArray,
    grid: SearchGrid,
    *,
    loading: float = 1e-2,
    wavefront: str = "spherical",
    method: str = "auto",
    reduce: str = "max",
    byte_budget: int | None = None,
    precision: str = "auto",
) -> Any:
    """Capon (MVDR) power of R = F F^H without an N x N inverse.

    Parameters
    ----------
    F : complex64 or complex128 tensor, shape (B, N, K) or (N, K)
        Any K >= 1; columns may be zero or dependent.
    loading : float
        Diagonal loading delta = loading * trace(F F^H)/N, >= 1e-9, since F F^H is singular.
    array, grid, wavefront, method, reduce, byte_budget, precision
        As for :func:`mvdr_spectrum`.

    Returns
    -------
    Spectrum or tensor
        As :func:`mvdr_spectrum`. Differentiable with respect to F (once).

    Raises
    ------
    ShapeError, TypeError, ValueError
        As :func:`mvdr_spectrum`; F is zero; ``loading`` is not positive.

    Notes
    -----
    By Woodbury, a^H (F F^H + delta I)^-1 a = (N - ||W^H a||^2) / delta with W = F C^-H, C C^H = F^H F + delta I. The
    difference cancels to the last digits of float32 at a peak, so it is taken in float64.
    """
    budget = _check_spectrum(array, grid, wavefront, method, reduce, byte_budget, precision)
    checks.check_loading(loading, minimum_open=True)
    if loading < _SMALLEST_LOWRANK_LOADING:
        raise ValueError(
            f"loading must be at least {_SMALLEST_LOWRANK_LOADING:g} for a factor, got {loading:g}: the form "
            "cancels to loading / N of itself, which float64 must resolve"
        )
    checks.check_complex(F, "F")
    checks.check_matrix(F, "F", array.n_elements, square=False)
    batched = F.ndim == 3
    power, plane = register.capon_lowrank_op(
        F if batched else F[None],
        float(loading),
        reduce == "none",
        *geometry_arguments(array, axes_of(grid), wavefront, method, budget, precision),
    )
    return _finish(power, plane, batched, reduce)


def music_spectrum(
    R: Tensor,
    array: PlanarArray,
    grid: SearchGrid,
    *,
    n_sources: int,
    wavefront: str = "spherical",
    method: str = "auto",
    reduce: str = "max",
    byte_budget: int | None = None,
    precision: str = "auto",
) -> Any:
    """MUSIC pseudospectrum N / (N - ||U_s^H a||^2), U_s the leading ``n_sources`` eigenvectors of R.

    Parameters
    ----------
    R : complex64 or complex128 tensor, shape (B, N, N) or (N, N)
        Hermitian.
    n_sources : int
        Dimension of the signal subspace, 1 .. N - 1.
    array, grid, wavefront, method, reduce, byte_budget, precision
        As for :func:`mvdr_spectrum`.

    Returns
    -------
    Spectrum or tensor
        As :func:`mvdr_spectrum`, dimensionless, >= 1. Its peaks have no floor: at an exact null their height is set by
        rounding and by the interpolation error of the method. Not differentiable.

    Raises
    ------
    ShapeError, TypeError, ValueError
        As :func:`mvdr_spectrum`; ``n_sources`` out of range.

    Notes
    -----
    R. O. Schmidt, "Multiple emitter location and signal parameter estimation", IEEE Trans. AP 34, 1986.
    """
    budget = _check_spectrum(array, grid, wavefront, method, reduce, byte_budget, precision)
    checks.check_complex(R, "R")
    checks.check_matrix(R, "R", array.n_elements, square=True)
    if not isinstance(n_sources, int) or not 1 <= n_sources < array.n_elements:
        raise ValueError(f"n_sources must be an integer in 1 .. N - 1 = {array.n_elements - 1}, got {n_sources!r}")
    batched = R.ndim == 3
    covariance = R if batched else R[None]
    power, plane = register.music_op(
        covariance,
        n_sources,
        reduce == "none",
        *geometry_arguments(array, axes_of(grid), wavefront, method, budget, precision),
    )
    return _finish(power, plane, batched, reduce)


def bartlett_spectrum(
    R: Tensor,
    array: PlanarArray,
    grid: SearchGrid,
    *,
    wavefront: str = "spherical",
    method: str = "auto",
    reduce: str = "max",
    byte_budget: int | None = None,
    precision: str = "auto",
) -> Any:
    """Bartlett (conventional beamformer) power a^H R a / N^2.

    Parameters
    ----------
    R : complex64 or complex128 tensor, shape (B, N, N) or (N, N)
        Hermitian, positive semi-definite.
    array, grid, wavefront, method, reduce, byte_budget, precision
        As for :func:`mvdr_spectrum`.

    Returns
    -------
    Spectrum or tensor
        As :func:`mvdr_spectrum`. Not differentiable; :func:`analysis` is.

    Raises
    ------
    ShapeError, TypeError, ValueError
        As :func:`mvdr_spectrum`, but R may be singular.

    Notes
    -----
    H. Krim, M. Viberg, "Two decades of array signal processing research: the parametric approach", IEEE Signal Process.
    Mag. 13, 1996.
    """
    budget = _check_spectrum(array, grid, wavefront, method, reduce, byte_budget, precision)
    checks.check_complex(R, "R")
    checks.check_matrix(R, "R", array.n_elements, square=True)
    batched = R.ndim == 3
    covariance = R if batched else R[None]
    power, plane = register.bartlett_op(
        covariance, reduce == "none", *geometry_arguments(array, axes_of(grid), wavefront, method, budget, precision)
    )
    return _finish(power, plane, batched, reduce)
