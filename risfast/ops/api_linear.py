"""The linear pair that the spectra are made of: analysis, and synthesis, its adjoint."""

from __future__ import annotations

import torch
from torch import Tensor

from risfast.errors import ShapeError
from risfast.geometry import PlanarArray, SearchGrid
from risfast.ops import checks, register_linear
from risfast.ops.api_options import axes_of, byte_budget_of, geometry_arguments
from risfast.ops.choice import require_lag

__all__ = ["analysis", "synthesis"]


def _where(grid_or_points: SearchGrid | Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], bool]:
    """Axes and whether they span a box; a list of points is checked here."""
    if isinstance(grid_or_points, SearchGrid):
        return axes_of(grid_or_points), True
    if not isinstance(grid_or_points, Tensor):
        raise TypeError(
            f"grid_or_points must be a SearchGrid or a real tensor of shape (G, 3), got {type(grid_or_points).__name__}"
        )
    points = grid_or_points
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


def _check_points_method(array: PlanarArray, wavefront: str, method: str, box: bool) -> None:
    if not box and method in ("chebyshev", "lag"):
        raise ValueError(f"method={method!r} needs a SearchGrid; a list of points is evaluated by method='dense'")
    if method == "lag":
        require_lag(array.lattice, wavefront)


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
    checks.check_array(array)
    budget = byte_budget_of(wavefront, method, byte_budget, precision)
    checks.check_complex(W_or_Q, "W_or_Q")
    is_factor = W_or_Q.shape[-1] != W_or_Q.shape[-2] if factored is None and W_or_Q.ndim >= 2 else bool(factored)
    checks.check_matrix(W_or_Q, "W_or_Q", array.n_elements, square=not is_factor)
    axes, box = _where(grid_or_points)
    _check_points_method(array, wavefront, method, box)
    batched = W_or_Q.ndim == 3
    matrix = W_or_Q if batched else W_or_Q[None]
    result = register_linear.analysis_op(
        matrix, is_factor, box, *geometry_arguments(array, axes, wavefront, method, budget, precision)
    )
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
    checks.check_array(array)
    budget = byte_budget_of(wavefront, method, byte_budget, precision)
    if not isinstance(p, Tensor) or p.dtype not in (torch.float32, torch.float64):
        came = p.dtype if isinstance(p, Tensor) else type(p).__name__
        raise TypeError(f"p must be a float32 or float64 tensor, got {came}")
    checks.check_device(p, "p")
    if dtype not in (None, torch.complex64, torch.complex128):
        raise TypeError(f"dtype must be complex64, complex128 or None, got {dtype}")
    axes, box = _where(grid_or_points)
    _check_points_method(array, wavefront, method, box)
    shape = tuple(a.shape[0] for a in axes) if box else (axes[0].shape[0],)
    if p.shape[-len(shape) :] != shape or p.ndim not in (len(shape), len(shape) + 1):
        raise ShapeError(f"p must have shape (B, {', '.join(map(str, shape))}) with or without B, got {tuple(p.shape)}")
    batched = p.ndim == len(shape) + 1
    weights = p if batched else p[None]
    if dtype is not None:
        weights = weights.to(dtype.to_real())
    result = register_linear.adjoint_op(
        weights, box, *geometry_arguments(array, axes, wavefront, method, budget, precision)
    )
    return result if batched else result[0]
