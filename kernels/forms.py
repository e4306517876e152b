"""Quadratic forms at points of their own for every scene on a GPU, in float32 or float64.

    a^H Q a,  or  N - ||W^H a||^2,    at P points (azimuth, elevation, 1/range) a scene

The steering vectors are made on the fly. Of a Hermitian Q only the upper triangle of blocks is read: what lies above
the diagonal counts twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from risfast.errors import ShapeError
from risfast.steering import check_wavefront

from .device import load_complex, plus_conjugate_product, sincos_turns_double, steering_tile
from .launch import accumulator, check_extent, check_operands, dot_precision, interleaved, launch
from .peaks import double_bits


@triton.jit(do_not_specialize=["wavelength_bits"])
def form_kernel(  # type: ignore[no-untyped-def]
    point_ptr,  # [B, P, 3] float64: azimuth, elevation, 1/range
    position_ptr,  # [3, N] float64, wavelengths
    matrix_ptr,  # [B, N, K, 2] float64: Hermitian Q, K = N, or a factor W
    value_ptr,  # [B, P]
    wavelength_bits,  # of a float64
    P,
    N,
    K,
    blocks,
    WAVEFRONT: tl.constexpr,
    FACTORED: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """The form at BLOCK_P points of one scene.

    Tile [BLOCK_P, BLOCK] of (M^H a)_k, real and imaginary, summed over elements BLOCK at a time.
    Reads the matrix from the caches; writes one number a point.
    4 N (N + BLOCK) flops a point for Q, 8 N K for a factor; N (N + BLOCK) / 2 BLOCK or N K / BLOCK steering entries.
    """
    pid = tl.program_id(0).to(tl.int64)
    scene = pid // blocks
    p = (pid % blocks).to(tl.int32) * BLOCK_P + tl.arange(0, BLOCK_P)  # [BLOCK_P]
    point = point_ptr + (scene * P + p) * 3
    per_radian = tl.full([1], 0.15915494309189535, tl.float64)
    sin_az, cos_az = sincos_turns_double(tl.load(point, mask=p < P, other=0.0) * per_radian)
    sin_el, cos_el = sincos_turns_double(tl.load(point + 1, mask=p < P, other=0.0) * per_radian)
    wavelength = wavelength_bits.to(tl.int64).to(tl.float64, bitcast=True)
    # Beyond 1e17 wavelengths nothing bends; float32 still holds the square.
    r = (1.0 / tl.maximum(tl.load(point + 2, mask=p < P, other=1.0) * wavelength, 1e-17)).to(DTYPE)
    u = ((sin_az * cos_el).to(DTYPE), sin_el.to(DTYPE), (cos_az * cos_el).to(DTYPE))
    total = tl.zeros([BLOCK_P], DTYPE)
    a_re = tl.zeros([BLOCK_P, BLOCK], DTYPE)
    a_im = tl.zeros([BLOCK_P, BLOCK], DTYPE)
    for first_k in range(0, K, BLOCK):
        k = first_k + tl.arange(0, BLOCK)  # [BLOCK]
        re = tl.zeros([BLOCK_P, BLOCK], DTYPE)
        im = tl.zeros([BLOCK_P, BLOCK], DTYPE)
        last_n = N if FACTORED else tl.minimum(N, first_k + BLOCK)
        for first_n in range(0, last_n, BLOCK):
            n = first_n + tl.arange(0, BLOCK)  # [BLOCK]
            a_re, a_im = steering_tile(u, r, position_ptr, n, N, WAVEFRONT)  # [BLOCK_P, BLOCK]
            # Rows beyond N are zero in the matrix, so what the steering vector holds there does not matter.
            entry = matrix_ptr + 2 * ((scene * N + n[:, None]) * K + k[None, :])
            there = (n < N)[:, None] & (k < K)[None, :]
            m_re, m_im = load_complex(entry, there)  # [BLOCK, BLOCK]
            m_re, m_im = m_re.to(DTYPE), m_im.to(DTYPE)
            if not FACTORED:
                weight = tl.where(n < first_k, 2.0, 1.0).to(DTYPE)[:, None]  # above the diagonal block
                m_re *= weight
                m_im *= weight
            re, im = plus_conjugate_product(a_re, a_im, m_re, m_im, re, im, PRECISION)
        if FACTORED:
            total += tl.sum(re * re + im * im, axis=1)
        else:
            # The last elements were those of the diagonal block, k itself; columns beyond N are zero.
            total += tl.sum(a_re * re + a_im * im, axis=1)
    if FACTORED:
        total = N - total
    tl.store(value_ptr + scene * P + p, total, mask=p < P)


@dataclass(frozen=True, eq=False)
class FormGeometry:
    """Array of the forms, on one device."""

    positions: Tensor  # (3, N) Wavelengths
    wavelength_m: float
    wavefront: str

    @classmethod
    def build(cls, positions_m: Tensor, wavenumber: float, wavefront: str, device: torch.device | str) -> FormGeometry:
        """From positions (N, 3) in metres and the wavenumber in rad/m."""
        check_wavefront(wavefront)
        wavelength = 2 * math.pi / wavenumber
        positions = (positions_m.double() / wavelength).mT.contiguous()
        return cls(positions.to(device), wavelength, wavefront)


def form_configuration(dtype: torch.dtype) -> dict[str, int]:
    """Pinned tile; 32 columns would halve the steering vectors, and four warps save barriers, but both spill."""
    return {"BLOCK_P": 64 if dtype == torch.float64 else 128, "BLOCK": 16, "num_warps": 8}


def forms(
    points: Tensor,
    matrix: Tensor,
    factored: bool,
    geometry: FormGeometry,
    dtype: torch.dtype,
    precision: str | None = None,
) -> Tensor:
    """a^H Q a, or N - ||W^H a||^2, at points of their own for every scene.

    points (B, P, 3), matrix (B, N, N), or (B, N, K) -> (B, P)
    """
    device = check_operands(form_kernel, points=points, matrix=matrix, geometry=geometry.positions)
    n = geometry.positions.shape[1]
    if matrix.ndim != 3 or matrix.shape[1] != n or (not factored and matrix.shape[2] != n) or not matrix.shape[2]:
        wanted = f"(B, {n}, K), K >= 1" if factored else f"(B, {n}, {n})"
        raise ShapeError(f"matrix must have shape {wanted}, got {tuple(matrix.shape)}")
    if points.ndim != 3 or points.shape[0] != matrix.shape[0] or points.shape[2] != 3:
        raise ShapeError(f"points must have shape ({matrix.shape[0]}, P, 3), got {tuple(points.shape)}")
    if not matrix.is_complex() or points.dtype != torch.float64:
        raise TypeError(f"matrix must be complex and points float64, got {matrix.dtype} and {points.dtype}")
    batch, count = points.shape[:2]
    check_extent(points=3 * count, matrix=n * matrix.shape[2])
    value = torch.empty(batch, count, dtype=dtype, device=device)
    configuration = form_configuration(dtype)
    blocks = triton.cdiv(count, configuration["BLOCK_P"])
    operands = points.contiguous(), geometry.positions, interleaved(matrix.to(torch.complex128)), value
    sizes = double_bits(geometry.wavelength_m), count, n, matrix.shape[2], blocks
    constants = {"WAVEFRONT": geometry.wavefront, "FACTORED": factored, "DTYPE": accumulator(dtype), **configuration}
    products = "ieee" if dtype == torch.float64 else dot_precision(precision)
    launch(form_kernel, batch * blocks, device, *operands, *sizes, PRECISION=products, **constants)
    return value
