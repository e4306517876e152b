"""Device helpers that the kernels share: sine and cosine, steering tiles, complex numbers and products, epilogues.

Lengths come in wavelengths and phases in turns, so that float32 reduces an argument exactly, by a subtraction.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


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
def sincos_turns_double(turns) -> Any:  # type: ignore[no-untyped-def]
    """(sin, cos) of 2 pi turns in float64, wrong by at most 4e-16 beyond the rounding of ``turns`` itself.

    Notes
    -----
    Quarter turns are taken off exactly, as in :func:`sincos_turns`; on the eighth of a turn to both sides that is left,
    the Taylor series leave out less than 5e-17.
    """
    part = turns - tl.floor(turns + 0.5)
    quarter = tl.floor(4.0 * part + 0.5)
    f = (4.0 * part - quarter) * tl.full([1], 1.5707963267948966, tl.float64)  # radians, in [-pi/4, pi/4]
    z = f * f
    s = tl.full([1], -7.647163731819816e-13, tl.float64)  # -1/15!
    s = 1.605904383682161e-10 + z * s
    s = -2.505210838544172e-08 + z * s
    s = 2.755731922398589e-06 + z * s
    s = -0.0001984126984126984 + z * s
    s = 0.008333333333333333 + z * s
    s = -0.16666666666666666 + z * s
    s = f + f * (z * s)
    c = tl.full([1], 4.779477332387385e-14, tl.float64)  # 1/16!
    c = -1.1470745597729725e-11 + z * c
    c = 2.08767569878681e-09 + z * c
    c = -2.755731922398589e-07 + z * c
    c = 2.48015873015873e-05 + z * c
    c = -0.001388888888888889 + z * c
    c = 0.041666666666666664 + z * c
    c = 1.0 - 0.5 * z + z * z * c
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
    The square of r must be a number: callers take 1e17 for anything farther.
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
def load_complex(entry, there) -> Any:  # type: ignore[no-untyped-def]
    """(real, imaginary) of interleaved numbers at pointers ``entry``; 0 where they are not ``there``."""
    return tl.load(entry, mask=there, other=0.0), tl.load(entry + 1, mask=there, other=0.0)


@triton.jit
def store_complex(entry, re, im, there) -> None:  # type: ignore[no-untyped-def]
    """Interleaved numbers at pointers ``entry``."""
    tl.store(entry, re, mask=there)
    tl.store(entry + 1, im, mask=there)


@triton.jit
def plus_conjugate_product(a_re, a_im, w_re, w_im, re, im, PRECISION: tl.constexpr) -> Any:  # type: ignore[no-untyped-def]
    """(re, im) + a conj(w), a matrix product of a [M, K] and w [K, N], in the dtype of ``re``."""
    re = tl.dot(a_re, w_re, re, input_precision=PRECISION, out_dtype=re.dtype)
    re = tl.dot(a_im, w_im, re, input_precision=PRECISION, out_dtype=re.dtype)
    im = tl.dot(a_im, w_re, im, input_precision=PRECISION, out_dtype=im.dtype)
    im = tl.dot(a_re, -w_im, im, input_precision=PRECISION, out_dtype=im.dtype)
    return re, im


@triton.jit
def load_points(point_ptr, index, size) -> Any:  # type: ignore[no-untyped-def]
    """(x, y, z) of points of [3, size]; twice ``size`` may pass 2^31, so that rows are stepped to one by one."""
    there = index < size
    second_ptr = point_ptr + size
    third_ptr = second_ptr + size
    x = tl.load(point_ptr + index, mask=there, other=0.0)
    y = tl.load(second_ptr + index, mask=there, other=0.0)
    return x, y, tl.load(third_ptr + index, mask=there, other=0.0)


@triton.jit
def steering_tile(u, r, position_ptr, n, N, WAVEFRONT: tl.constexpr) -> Any:  # type: ignore[no-untyped-def]
    """(real, imaginary) of steering vectors [G, BLOCK_N]: directions u = (x, y, z) and ranges r [G], elements n.

    In the dtype of ``r``. Lanes beyond N hold anything.
    """
    ux, uy, uz = u
    px, py, pz = load_points(position_ptr, n, N)
    px, py, pz = px.to(r.dtype)[None, :], py.to(r.dtype)[None, :], pz.to(r.dtype)[None, :]  # [1, BLOCK_N]
    turns = steering_turns(ux[:, None], uy[:, None], uz[:, None], r[:, None], px, py, pz, WAVEFRONT)
    if turns.dtype == tl.float64:
        sine, cosine = sincos_turns_double(turns)
    else:
        sine, cosine = sincos_turns(turns)
    return cosine, sine


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
def first_best(like, EPILOGUE: tl.constexpr) -> Any:  # type: ignore[no-untyped-def]
    """(best q, its plane) before the first plane, in the shape and dtype of ``like``."""
    worst: tl.constexpr = float("inf") if EPILOGUE == "reciprocal" else float("-inf")
    return tl.full(like.shape, worst, like.dtype), tl.zeros(like.shape, tl.int32)


@triton.jit
def keep_best(best, plane, q, index, EPILOGUE: tl.constexpr) -> Any:  # type: ignore[no-untyped-def]
    """Running (best q, its plane): the largest q, the smallest for a reciprocal; a tie leaves the earlier plane."""
    better = q < best if EPILOGUE == "reciprocal" else q > best
    return tl.where(better, q, best), tl.where(better, index, plane)


@triton.jit
def store_best(best_ptr, plane_ptr, best, plane, scale, offset, there, EPILOGUE: tl.constexpr) -> None:  # type: ignore[no-untyped-def]
    """Power of the best q, and its plane."""
    tl.store(best_ptr, power_of(best, scale, offset, EPILOGUE), mask=there)
    tl.store(plane_ptr, plane, mask=there)
