"""The public operators: validate, then hand over to the registered op, which plans and executes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from risfast.errors import ShapeError
from risfast.geometry import PlanarArray, SearchGrid
from risfast.ops import checks, register
from risfast.ops.form import QuadraticForm, Spectrum, axes_of, byte_budget_of, evaluated
from risfast.ops.plan import require_lag

_SMALLEST_LOWRANK_LOADING = 1e-9


def mvdr_spectrum(
    R: Tensor,
    array: PlanarArray,
    grid: SearchGrid,
    *,
    loading: float | Tensor = 1e-2,
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
    loading : float or tensor of one value
        Diagonal loading delta = loading * trace(R)/N, dimensionless; 0 is allowed where R is not singular. A tensor may
        be learned; one on a GPU is waited for.
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
        Without the batch axis if R has none. Differentiable with respect to R, taken as Hermitian, and the loading, any
        number of times.

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
    shared = (array, grid, wavefront, method, reduce, byte_budget, precision)
    return evaluated(register.capon_op, R, "R", (checks.as_loading(loading, minimum_open=False),), (), *shared)


def mvdr_spectrum_lowrank(
    F: Tensor,
    array: PlanarArray,
    grid: SearchGrid,
    *,
    loading: float | Tensor = 1e-2,
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
    loading : float or tensor of one value
        Diagonal loading delta = loading * trace(F F^H)/N, >= 1e-9, since F F^H is singular.
    array, grid, wavefront, method, reduce, byte_budget, precision
        As for :func:`mvdr_spectrum`.

    Returns
    -------
    Spectrum or tensor
        As :func:`mvdr_spectrum`.

    Raises
    ------
    ShapeError, TypeError, ValueError
        As :func:`mvdr_spectrum`; F is zero; ``loading`` is not positive.

    Notes
    -----
    By Woodbury, a^H (F F^H + delta I)^-1 a = (N - ||W^H a||^2) / delta with W = F C^-H, C C^H = F^H F + delta I. The
    difference cancels to the last digits of float32 at a peak, so it is taken in float64.
    """
    delta = checks.as_loading(loading, minimum_open=True)
    if isinstance(loading, int | float) and loading < _SMALLEST_LOWRANK_LOADING:
        raise ValueError(
            f"loading must be at least {_SMALLEST_LOWRANK_LOADING:g} for a factor, got {loading:g}: the form "
            "cancels to loading / N of itself, which float64 must resolve"
        )
    shared = (array, grid, wavefront, method, reduce, byte_budget, precision)
    return evaluated(register.capon_lowrank_op, F, "F", (delta,), (), *shared)


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
        rounding and by the interpolation error of the method.

    Raises
    ------
    ShapeError, TypeError, ValueError
        As :func:`mvdr_spectrum`; ``n_sources`` out of range.

    Notes
    -----
    R. O. Schmidt, "Multiple emitter location and signal parameter estimation", IEEE Trans. AP 34, 1986.
    """
    how = {"wavefront": wavefront, "method": method, "reduce": reduce, "byte_budget": byte_budget}
    make = partial(QuadraticForm.music, n_sources=n_sources)
    return _of_form(make, R, array, grid, precision=precision, **how)


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
        As :func:`mvdr_spectrum`.

    Raises
    ------
    ShapeError, TypeError, ValueError
        As :func:`mvdr_spectrum`, but R may be singular.

    Notes
    -----
    H. Krim, M. Viberg, "Two decades of array signal processing research: the parametric approach", IEEE Signal Process.
    Mag. 13, 1996.
    """
    how = {"wavefront": wavefront, "method": method, "reduce": reduce, "byte_budget": byte_budget}
    return _of_form(QuadraticForm.bartlett, R, array, grid, precision=precision, **how)


def _of_form(make: Callable[[Tensor], QuadraticForm], R: Any, array: PlanarArray, grid: SearchGrid, **how: Any) -> Any:
    """Spectrum of the form that is made of R, with the batch axis or without."""
    checks.check_array(array)
    covariance = checks.complex_tensor(R, "R")
    checks.check_matrix(covariance, "R", array.n_elements, square=True)
    if covariance.ndim == 3:
        return make(covariance).spectrum(array, grid, **how)
    found = make(covariance[None]).spectrum(array, grid, **how)
    return found[0] if how["reduce"] == "none" else Spectrum(*(field[0] for field in found))


def _points_of(grid_or_points: SearchGrid | Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], bool]:
    """Axes and whether they span a box; a list of points is checked here."""
    if isinstance(grid_or_points, SearchGrid):
        return axes_of(grid_or_points), True
    points = checks.as_tensor(grid_or_points)
    if not isinstance(points, Tensor):
        raise TypeError(
            f"grid_or_points must be a SearchGrid or a real tensor of shape (G, 3), got {type(points).__name__}"
        )
    if points.is_complex() or not points.is_floating_point():
        raise TypeError(f"grid_or_points must be a real floating-point tensor, got {points.dtype}")
    if points.ndim != 2 or points.shape[1] != 3:
        raise ShapeError(f"grid_or_points must have shape (G, 3): azimuth, elevation, range; got {tuple(points.shape)}")
    if points.device.type != "cpu":
        raise ValueError(f"grid_or_points must be on the CPU, where plans are made; got device {points.device}")
    points = points.detach().to(torch.float64)
    if not torch.compiler.is_compiling():
        checks.check_finite(points[:, :2], "grid_or_points")
        if points.numel() and not bool((points[:, 2] > 0).all()):
            raise ValueError("grid_or_points must have ranges > 0 in its last column")
    return (points[:, 0], points[:, 1], points[:, 2]), False


def _geometry(
    array: PlanarArray, grid_or_points: Any, wavefront: str, method: str, byte_budget: int | None, precision: str
) -> tuple[bool, tuple[Any, ...]]:
    """Whether the points are a box, and the arguments that describe array, points and method."""
    checks.check_array(array)
    budget = byte_budget_of(wavefront, method, byte_budget, precision)
    axes, box = _points_of(grid_or_points)
    if not box and method in ("chebyshev", "lag"):
        raise ValueError(f"method={method!r} needs a SearchGrid; a list of points is evaluated by method='dense'")
    if method == "lag":
        require_lag(array.lattice, wavefront)
    return box, (array.positions_m, *axes, array.wavenumber, wavefront, method, budget, precision)


def analysis(
    W_or_Q: Tensor,
    array: PlanarArray,
    grid_or_points: SearchGrid | Tensor,
    *,
    factored: bool | None = None,
    wavefront: str = "spherical",
    method: str = "auto",
    byte_budget: int | None = None,
    precision: str = "auto",
) -> Tensor:
    """Quadratic forms of steering vectors: q_g = a_g^H Q a_g, or sum_k |w_k^H a_g|^2 for Q = W W^H.

    Parameters
    ----------
    W_or_Q : complex64 or complex128 tensor, shape (B, N, N), (B, N, K), (N, N) or (N, K)
        Hermitian Q, definite or not, or a factor W.
    grid_or_points : SearchGrid, or real tensor of shape (G, 3)
        Azimuth, elevation (radians) and range (metres, may be infinite) of each point.
    factored : bool or None
        Whether the matrix is a factor W; by default it is one unless it is square.
    array, wavefront, method, byte_budget, precision
        As for :func:`mvdr_spectrum`; a list of points is always evaluated by ``dense``.

    Returns
    -------
    real tensor, shape (B, G_az, G_el, G_r) or (B, G)
        Without the batch axis if the matrix has none. Differentiable with respect to the matrix, any number of times
        (by autograd, not by ``torch.func``): :func:`synthesis` is the adjoint.

    Raises
    ------
    ShapeError, TypeError, ValueError
        As :func:`mvdr_spectrum`.

    Notes
    -----
    Computed in the precision of the matrix; the error is relative to ||Q||_F.
    """
    box, geometry = _geometry(array, grid_or_points, wavefront, method, byte_budget, precision)
    matrix = checks.complex_tensor(W_or_Q, "W_or_Q")
    is_factor = matrix.shape[-1] != matrix.shape[-2] if factored is None and matrix.ndim >= 2 else bool(factored)
    checks.check_matrix(matrix, "W_or_Q", array.n_elements, square=not is_factor)
    batched = matrix.ndim == 3
    how = (None, is_factor, "linear", True, box, "analysis", None, False)
    result, _ = register.analysis_op(matrix if batched else matrix[None], *how, *geometry)
    return result if batched else result[0]


def synthesis(
    p: Tensor,
    array: PlanarArray,
    grid_or_points: SearchGrid | Tensor,
    *,
    wavefront: str = "spherical",
    method: str = "auto",
    byte_budget: int | None = None,
    dtype: torch.dtype | None = None,
    precision: str = "auto",
) -> Tensor:
    """Matrix of a source distribution: sum_g p_g a_g a_g^H, the adjoint of :func:`analysis`.

    Parameters
    ----------
    p : float32 or float64 tensor, shape (B, G_az, G_el, G_r) or (B, G); B may be left out
        Weights of the points; may be negative.
    grid_or_points : SearchGrid, or real tensor of shape (G, 3)
        Azimuth, elevation (radians) and range (metres, may be infinite) of each point.
    dtype : torch.complex64, torch.complex128 or None
        Of the result and of the computation; by default the complex type of p's precision.
    array, wavefront, method, byte_budget, precision
        As for :func:`analysis`.

    Returns
    -------
    complex tensor, shape (B, N, N)
        Exactly Hermitian; without the batch axis if p has none. Differentiable with respect to p.

    Raises
    ------
    ShapeError, TypeError, ValueError
        As :func:`analysis`; p does not fit the points.
    """
    box, geometry = _geometry(array, grid_or_points, wavefront, method, byte_budget, precision)
    p = checks.as_tensor(p)
    if not isinstance(p, Tensor) or p.dtype not in (torch.float32, torch.float64):
        came = p.dtype if isinstance(p, Tensor) else type(p).__name__
        raise TypeError(f"p must be a float32 or float64 tensor, got {came}")
    checks.check_device(p, "p")
    if dtype not in (None, torch.complex64, torch.complex128):
        raise TypeError(f"dtype must be complex64, complex128 or None, got {dtype}")
    shape = tuple(axis.shape[0] for axis in geometry[1:4]) if box else (geometry[1].shape[0],)
    if p.shape[-len(shape) :] != shape or p.ndim not in (len(shape), len(shape) + 1):
        raise ShapeError(f"p must have shape (B, {', '.join(map(str, shape))}) with or without B, got {tuple(p.shape)}")
    batched = p.ndim == len(shape) + 1
    weights = p if batched else p[None]
    if dtype is not None:
        weights = weights.to(dtype.to_real())
    result = register.synthesis_op(weights, None, box, "synthesis", None, *geometry)
    return result if batched else result[0]
