"""Batched Cholesky factor and inverse of Hermitian positive-definite matrices on a GPU, one program a scene.

    R + delta I = L L^H,    W = L^-H (upper triangular),    R^-1 = W W^H

L is never returned: ||L^-1 a||^2 = ||W^H a||^2 is what dense analysis wants, and the structured methods want R^-1. One
buffer M holds both triangles while the columns are worked off in blocks of 16: W above and on the diagonal blocks, L
below. With T_j the inverse of the Cholesky factor C_j of the diagonal block, a column block of either is

    M_ij = (A_ij - sum_{k < j} M_ik L_jk^H) T_j^H,    A_ij = 0 and k >= i above the diagonal,    W_jj = T_j^H

so the left-looking Cholesky factorisation and the inversion of its factor are one loop over the same products.

Largest error of the Capon map in dB against numpy in float64: reference surface, one or five sources of equal power on
points of a 61 x 31 x 7 grid (the interpreter's arithmetic; in brackets LAPACK's in complex64):

    loading   W, float32         R^-1, float32      float64
    1e-2      1.5e-4 (3.5e-5)    2.0e-4 (8.2e-5)    9e-13
    1e-3      1.4e-3 (4.9e-4)    1.4e-3 (1.2e-3)    4e-11
    1e-4      1.1e-2 (3.6e-3)    1.2e-2 (1.2e-2)    2e-10
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from risfast.errors import ShapeError

from .device import load_complex, store_complex
from .launch import accumulator, check_operands, interleaved, launch

LARGEST = 256  # elements: what one program's time is reasonable for
_BLOCK = 16  # of a column; the least that matrix instructions take


@triton.jit
def _minus_product(x_re, x_im, y_re, y_im, re, im, PRECISION: tl.constexpr, ACC: tl.constexpr) -> Any:  # type: ignore[no-untyped-def]
    """(re, im) - x y, for x [M, K] and y [K, N]."""
    re = tl.dot(-x_re, y_re, re, input_precision=PRECISION, out_dtype=ACC)
    re = tl.dot(x_im, y_im, re, input_precision=PRECISION, out_dtype=ACC)
    im = tl.dot(-x_re, y_im, im, input_precision=PRECISION, out_dtype=ACC)
    im = tl.dot(-x_im, y_re, im, input_precision=PRECISION, out_dtype=ACC)
    return re, im


@triton.jit
def _load_loaded(r_ptr, row, column, there, shift, N, ACC: tl.constexpr) -> Any:  # type: ignore[no-untyped-def]
    """(R + R^H) / 2 + shift I at [row, column]; 1 on the diagonal beyond N, 0 elsewhere."""
    entry = r_ptr + 2 * (row[:, None] * N + column[None, :])
    image = r_ptr + 2 * (column[None, :] * N + row[:, None])
    re = (tl.load(entry, mask=there, other=0.0).to(ACC) + tl.load(image, mask=there, other=0.0).to(ACC)) * 0.5
    im = (tl.load(entry + 1, mask=there, other=0.0).to(ACC) - tl.load(image + 1, mask=there, other=0.0).to(ACC)) * 0.5
    diagonal = row[:, None] == column[None, :]
    return re + tl.where(diagonal & there, shift, 0.0) + tl.where(diagonal & (row >= N)[:, None], 1.0, 0.0), im


@triton.jit
def _inverse_cholesky(re, im, info, first, BLOCK: tl.constexpr, ACC: tl.constexpr) -> Any:  # type: ignore[no-untyped-def]
    """C^H and T^H = C^-H, real and imaginary, and info, of a block C C^H [BLOCK, BLOCK], in registers.

    ``info`` becomes the index, from 1, of the first pivot that is not positive, ``first`` being that of the block.

    Notes
    -----
    The column that is subtracted must be the column of C to the last bit: with the pivots kept apart (L D L^H) the two
    differ by a rounding that all rows share, which adds up along a strong source and costs decibels in float32.
    """
    row = tl.arange(0, BLOCK)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    c_re = tl.zeros([BLOCK, BLOCK], ACC)
    c_im = tl.zeros([BLOCK, BLOCK], ACC)
    t_re = tl.where(row == column, 1.0, 0.0).to(ACC)
    t_im = tl.zeros([BLOCK, BLOCK], ACC)
    for c in range(0, BLOCK):
        pivot = tl.sum(tl.sum(tl.where((row == c) & (column == c), re, 0.0), axis=1), axis=0)
        info = tl.where((info == 0) & ((pivot > 0.0) == 0), first + c + 1, info)  # NaN is not positive either
        root = 1.0 / tl.sqrt(pivot)
        # Column c of C, from the diagonal down, and row c of T, which the rows below lose their share of.
        here = (column == c) & (row >= c)
        l_re = tl.sum(tl.where(here, re, 0.0), axis=1) * root  # [BLOCK]
        l_im = tl.sum(tl.where(here & (row > c), im, 0.0), axis=1) * root
        u_re = tl.sum(tl.where(row == c, t_re, 0.0), axis=0)[None, :] * root  # [1, BLOCK]
        u_im = tl.sum(tl.where(row == c, t_im, 0.0), axis=0)[None, :] * root
        c_re = tl.where(row == c, l_re[None, :], c_re)
        c_im = tl.where(row == c, -l_im[None, :], c_im)
        f_re = tl.where(row > c, l_re[:, None], 0.0)  # [BLOCK, 1]
        f_im = tl.where(row > c, l_im[:, None], 0.0)
        re -= f_re * l_re[None, :] + f_im * l_im[None, :]
        im -= f_im * l_re[None, :] - f_re * l_im[None, :]
        t_re = tl.where(row == c, u_re, t_re - (f_re * u_re - f_im * u_im))
        t_im = tl.where(row == c, u_im, t_im - (f_re * u_im + f_im * u_re))
    return c_re, c_im, tl.trans(t_re), -tl.trans(t_im), info


@triton.jit
def _clear_below(w_ptr, N, BLOCK: tl.constexpr, BLOCK_M: tl.constexpr, ACC: tl.constexpr) -> None:  # type: ignore[no-untyped-def]
    """Zeros below the diagonal blocks, where the columns of L were."""
    for first in range(0, N, BLOCK):
        j = first + tl.arange(0, BLOCK)
        for first_i in range(first + BLOCK, N, BLOCK_M):
            i = first_i + tl.arange(0, BLOCK_M)
            nothing = tl.zeros([BLOCK_M, BLOCK], ACC)
            empty = (i < N)[:, None] & (j < N)[None, :]
            store_complex(w_ptr + 2 * (i[:, None] * N + j[None, :]), nothing, nothing, empty)


# Knowing that N divides by 16, ptxas would aim at fewer registers than the kernel needs, and spill.
@triton.jit(do_not_specialize=["N"])
def inverse_factor_kernel(  # type: ignore[no-untyped-def]
    r_ptr,  # [B, N, N, 2]
    delta_ptr,  # [B]
    w_ptr,  # [B, N, N, 2]
    info_ptr,  # [B] int32
    N,
    CLEAR: tl.constexpr,
    CORRECT: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,
) -> None:
    """W = L^-H of one scene, in N / BLOCK steps of one column block each, with one barrier between steps.

    Tiles [BLOCK_M, BLOCK] of M; a step reads the column blocks before j and writes block j.
    Reads R once and M from the caches; writes M, then zeros below the diagonal if CLEAR. 8/3 N^3 flops a scene.
    """
    scene = tl.program_id(0).to(tl.int64)
    r_ptr += 2 * scene * N * N
    w_ptr += 2 * scene * N * N
    shift = tl.load(delta_ptr + scene).to(ACC)
    info = 0
    for first in range(0, N, BLOCK):
        j = first + tl.arange(0, BLOCK)  # [BLOCK]
        d_re, d_im = _load_loaded(r_ptr, j, j, (j < N)[:, None] & (j < N)[None, :], shift, N, ACC)
        for first_k in range(0, first, BLOCK):
            k = first_k + tl.arange(0, BLOCK)
            l_re, l_im = load_complex(w_ptr + 2 * (j[:, None] * N + k[None, :]), (j < N)[:, None])  # [BLOCK, BLOCK]
            d_re, d_im = _minus_product(l_re, l_im, tl.trans(l_re), -tl.trans(l_im), d_re, d_im, PRECISION, ACC)
        c_re, c_im, t_re, t_im, info = _inverse_cholesky(d_re, d_im, info, first, BLOCK, ACC)  # C^H and T^H
        for first_i in range(0, N, BLOCK_M):
            i = first_i + tl.arange(0, BLOCK_M)  # [BLOCK_M]
            below = (i >= first + BLOCK) & (i < N)
            re, im = _load_loaded(r_ptr, i, j, below[:, None] & (j < N)[None, :], shift, N, ACC)
            # Above the diagonal block the sum starts at the row's own block; a tile that is all above starts there too.
            first_sum = tl.where(first_i + BLOCK_M <= first, first_i, 0)
            for first_k in range(first_sum, first, BLOCK):
                k = first_k + tl.arange(0, BLOCK)
                entry = w_ptr + 2 * (j[:, None] * N + k[None, :])
                l_re, l_im = load_complex(entry, (j < N)[:, None])  # [BLOCK, BLOCK]
                there = (below | ((i < first) & (i // BLOCK * BLOCK <= first_k)))[:, None]
                entry = w_ptr + 2 * (i[:, None] * N + k[None, :])
                m_re, m_im = load_complex(entry, there)  # [BLOCK_M, BLOCK]
                re, im = _minus_product(m_re, m_im, tl.trans(l_re), -tl.trans(l_im), re, im, PRECISION, ACC)
            zero = tl.zeros([BLOCK_M, BLOCK], ACC)
            out_re, out_im = _minus_product(-re, -im, t_re, t_im, zero, zero, PRECISION, ACC)
            if CORRECT:  # multiplying by T^H instead of substituting loses digits to the condition of C
                re, im = _minus_product(out_re, out_im, c_re, c_im, re, im, PRECISION, ACC)
                out_re, out_im = _minus_product(-re, -im, t_re, t_im, out_re, out_im, PRECISION, ACC)
            entry = w_ptr + 2 * (i[:, None] * N + j[None, :])
            there = (below | (i < first))[:, None] & (j < N)[None, :]
            store_complex(entry, out_re, out_im, there)
        # The diagonal block takes T^H.
        store_complex(w_ptr + 2 * (j[:, None] * N + j[None, :]), t_re, t_im, (j < N)[:, None] & (j < N)[None, :])
        tl.debug_barrier()
    tl.store(info_ptr + scene, info)
    if CLEAR:
        _clear_below(w_ptr, N, BLOCK, BLOCK_M, ACC)


@triton.jit
def gram_kernel(  # type: ignore[no-untyped-def]
    w_ptr,  # [B, N, N, 2]
    q_ptr,  # [B, N, N, 2]
    N,
    blocks,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """A tile [BLOCK, BLOCK] on or above the diagonal of Q = W W^H, and its mirror image; W upper triangular.

    Sums over the columns from the tile's own on; what W holds below its diagonal is not looked at.
    Reads W about N / BLOCK times from the caches, writes Q once, exactly Hermitian. 8/3 N^3 flops a scene.
    """
    pid = tl.program_id(0).to(tl.int64)
    block_m = (pid % blocks).to(tl.int32)
    block_n = (pid // blocks % blocks).to(tl.int32)
    scene = pid // blocks // blocks
    if block_m <= block_n:
        w_ptr += 2 * scene * N * N
        q_ptr += 2 * scene * N * N
        m = block_m * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
        n = block_n * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
        re = tl.zeros([BLOCK, BLOCK], ACC)
        im = tl.zeros([BLOCK, BLOCK], ACC)
        for first_k in range(block_n * BLOCK, N, BLOCK_K):
            k = first_k + tl.arange(0, BLOCK_K)
            there = (m[:, None] <= k[None, :]) & (k < N)[None, :]
            x_re, x_im = load_complex(w_ptr + 2 * (m[:, None] * N + k[None, :]), there)  # [BLOCK, BLOCK_K]
            there = (n[:, None] <= k[None, :]) & (k < N)[None, :]
            y_re, y_im = load_complex(w_ptr + 2 * (n[:, None] * N + k[None, :]), there)
            re, im = _minus_product(-x_re, -x_im, tl.trans(y_re), -tl.trans(y_im), re, im, PRECISION, ACC)
        im = tl.where(m[:, None] == n[None, :], 0.0, im)
        there = (m[:, None] <= n[None, :]) & (n < N)[None, :]
        store_complex(q_ptr + 2 * (m[:, None] * N + n[None, :]), re, im, there)
        store_complex(q_ptr + 2 * (n[None, :] * N + m[:, None]), re, -im, there)


def inverse_configuration(dtype: torch.dtype) -> dict[str, int]:
    """Pinned tile of the factorisation: small enough that two programs share a multiprocessor."""
    # One stage, because what a step loads the step before has stored. One correction of the block substitution gains a
    # factor of two to four in float32; float64 has digits to spare.
    correct = dtype == torch.float32
    return {"CORRECT": correct, "BLOCK": _BLOCK, "BLOCK_M": _BLOCK, "num_warps": 4, "num_stages": 1}


def product_configuration() -> dict[str, int]:
    """Pinned tile of the product W W^H."""
    return {"BLOCK": 32, "BLOCK_K": 16, "num_warps": 4, "num_stages": 1}


def _factor(covariance: Tensor, delta: Tensor, dtype: torch.dtype, clear: bool) -> tuple[Tensor, Tensor]:
    """W as [B, N, N, 2] and info; below its diagonal W holds zeros only if ``clear``."""
    device = check_operands(inverse_factor_kernel, covariance=covariance, delta=delta)
    if covariance.ndim != 3 or covariance.shape[1] != covariance.shape[2]:
        raise ShapeError(f"covariance must have shape (B, N, N), got {tuple(covariance.shape)}")
    if not 1 <= covariance.shape[1] <= LARGEST:
        raise ShapeError(
            f"the inverse kernel takes 1 to {LARGEST} elements, got {covariance.shape[1]}; use torch.linalg.cholesky_ex"
        )
    if not covariance.is_complex():
        raise TypeError(f"covariance must be complex64 or complex128, got {covariance.dtype}")
    if delta.shape != covariance.shape[:1]:
        raise ShapeError(
            f"delta must have shape ({covariance.shape[0]},), one loading a scene, got {tuple(delta.shape)}"
        )
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    batch, n = covariance.shape[:2]
    factor = torch.empty(batch, n, n, 2, dtype=dtype, device=device)
    info = torch.empty(batch, dtype=torch.int32, device=device)
    constants = {"CLEAR": clear, "ACC": accumulator(dtype), "PRECISION": "ieee", **inverse_configuration(dtype)}
    operands = interleaved(covariance), delta.contiguous(), factor, info, n
    launch(inverse_factor_kernel, batch, device, *operands, **constants)
    return factor, info


def inverse_factor(covariance: Tensor, delta: Tensor, *, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """W = L^-H with L L^H = (R + R^H) / 2 + delta I, for dense analysis with ``triangular=True``.

    covariance (B, N, N), delta (B,) -> factor (B, N, N), info (B,)
    """
    factor, info = _factor(covariance, delta, dtype, clear=True)
    return torch.view_as_complex(factor), info


def hermitian_inverse(
    covariance: Tensor, delta: Tensor, *, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """((R + R^H) / 2 + delta I)^-1, exactly Hermitian, and info; see :func:`inverse_factor`.

    -> inverse (B, N, N), info (B,)
    """
    factor, info = _factor(covariance, delta, dtype, clear=False)
    return inverse_from_factor(torch.view_as_complex(factor)), info


def inverse_from_factor(factor: Tensor) -> Tensor:
    """R^-1 = W W^H, exactly Hermitian.

    factor (B, N, N) -> (B, N, N)
    """
    device = check_operands(gram_kernel, factor=factor)
    batch, n = factor.shape[:2]
    factor = torch.view_as_real(factor)
    inverse = torch.empty_like(factor)
    blocks = triton.cdiv(n, product_configuration()["BLOCK"])
    constants = {"ACC": accumulator(factor.dtype), "PRECISION": "ieee", **product_configuration()}
    launch(gram_kernel, batch * blocks * blocks, device, factor, inverse, n, blocks, **constants)
    return torch.view_as_complex(inverse)
