"""Device helpers that the kernels share: sine and cosine, steering phases, complex products, epilogues.

Lengths come in wavelengths and phases in turns, so that float32 reduces an argument exactly, by a subtraction.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

__all__ = ["complex_product", "keep_best", "power_of", "sincos_turns", "steering_turns"]


@triton.jit
def sincos_turns(turns) -> Any:  # type: ignore[no-untyped-def]
    """(sin, cos) of 2 pi turns in float32, wrong by at most 9e-8 beyond the rounding of ``turns`` itself.

    Notes
    -----
    Quarter turns are taken off exactly; on what is left, in [-1/8, 1/8] turns, the polynomials are least-maximum fits
    in the square (errors 5e-9 and 5e-11). ``tl.sin`` would take the slow reduction path with a stack frame.
    """
    # The whole turns go first, so that the quarters fit an int32 and the sign arithmetic is right for negative phases.
    part = turns - tl.floor(turns + 0.5)
    quarter = tl.floor(4.0 * part + 0.5)
    f = 4.0 * part - quarter  # quarter turns, in [-1/2, 1/2]
    z = f * f
    s = f * (1.57079632 + z * (-0.64596348 + z * (0.07968023 + z * -0.00460218)))
    c = 1.0 + z * (-1.23370054 + z * (0.253669204 + z * (-0.0208600713 + z * 0.00090363170)))
    which = quarter.to(tl.int32)
    swapped = (which & 1) != 0
    sine = tl.where(swapped, c, s)
    cosine = tl.where(swapped, s, c)
    sine = tl.where((which & 2) != 0, -sine, sine)
    cosine = tl.where(((which + 1) & 2) != 0, -cosine, cosine)
    return sine, cosine


@triton.jit
def complex_product(a_re, a_im, b_re, b_im) -> Any:  # type: ignore[no-untyped-def]
    """(real, imaginary) of a b."""
    return a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re


@triton.jit
def steering_turns(ux, uy, uz, r, px, py, pz, WAVEFRONT: tl.constexpr) -> Any:  # type: ignore[no-untyped-def]
    """Phase (r - d_n) in turns of elements p_n seen from r u; lengths in wavelengths, shapes broadcast.

    Notes
    -----
    Spherical: d - r = (|p|^2 - 2 r u.p) / (d + r), which keeps float32 below 1e-5 rad where r - d itself would not.
    """
    projection = ux * px + uy * py + uz * pz  # u.p
    if WAVEFRONT == "planar":
        return projection
    squared = px * px + py * py + pz * pz  # |p|^2
    if WAVEFRONT == "fresnel":
        return projection - squared / (2.0 * r)
    numerator = 2.0 * r * projection - squared  # r^2 - d^2
    distance = tl.sqrt(tl.maximum(r * r - numerator, 0.0))
    return numerator / (distance + r)


@triton.jit
def power_of(q, scale, offset, EPILOGUE: tl.constexpr) -> Any:  # type: ignore[no-untyped-def]
    """Power from a quadratic form: scale q, scale / q, or scale / (offset - q).

    Rounding may carry q past the offset at an exact null; the floor is what the dtype of q resolves there.
    """
    if EPILOGUE == "linear":
        return scale * q
    if EPILOGUE == "reciprocal":
        return scale / q
    resolved: tl.constexpr = 1e-15 if q.dtype == tl.float64 else 1.1920929e-07
    return scale / tl.maximum(offset - q, offset * resolved)


@triton.jit
def keep_best(best, plane, q, index, EPILOGUE: tl.constexpr) -> Any:  # type: ignore[no-untyped-def]
    """Running (best q, its plane): the largest q, the smallest for a reciprocal; a tie leaves the earlier plane."""
    better = q < best if EPILOGUE == "reciprocal" else q > best
    return tl.where(better, q, best), tl.where(better, index, plane)
