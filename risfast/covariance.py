"""Covariances at the surface: the one builder of the effective covariance.

The estimates from measurements live in ``risfast.sample_covariance`` and are offered here too.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from risfast.errors import ShapeError
from risfast.sample_covariance import (
    LowRankFit,
    als_covariance,
    als_fit,
    ls_covariance,
    ls_snapshots,
    matched_filter_covariance,
)

__all__ = [
    "LowRankFit",
    "als_covariance",
    "als_fit",
    "covariance_from_factor",
    "effective_covariance",
    "ls_covariance",
    "ls_snapshots",
    "matched_filter_covariance",
]

# Largest |R - R^H| over the largest |R| that passes for rounding (of a float32 matrix product over many snapshots).
_HERMITIAN_TOLERANCE = {torch.complex64: 1e-4, torch.complex128: 1e-9}


def covariance_from_factor(factor: Tensor) -> Tensor:
    """Covariance of a factor, R = F F^H.

    Parameters
    ----------
    factor : complex tensor, shape (..., N, K)
        F.

    Returns
    -------
    complex tensor, shape (..., N, N)
        Hermitian and positive semi-definite, of rank at most K.
    """
    return factor @ factor.mH


def effective_covariance(
    estimate: Tensor,
    *,
    sample: Tensor | None = None,
    beta: float = 0.0,
    snr_db: Tensor | float | None = None,
    loading: float = 0.0,
    strict: bool = False,
) -> Tensor:
    """The covariance that spectra are computed from; training, validation, inference and evaluation all call this.

    In this order: hermitise, (R + R^H) / 2; normalise to trace N; blend, (1 - beta) R + beta R_sample, both of trace N;
    shrink, (1 - alpha) R + alpha I with alpha = 1 / (1 + SNR), SNR linear; load, R + loading I.

    Parameters
    ----------
    estimate : complex tensor, shape (..., N, N)
        The estimated covariance; for a factor pass ``covariance_from_factor(F)``. Its scale does not matter.
    sample : complex tensor, shape (..., N, N), or None
        A sample covariance to blend in. Its scale does not matter.
    beta : float in [0, 1]
        Weight of ``sample``; above 0 it needs one.
    snr_db : float or real tensor of shape (...), or None
        Shrink toward the identity as an SNR in dB says; None or +inf does not shrink, -inf gives the identity.
    loading : float >= 0
        Diagonal loading, relative to trace / N. Loading is added once: leave it 0 when the result goes to
        ``mvdr_spectrum``, ``detect_sources`` or anything else that loads by itself (they do by default); set it only
        for consumers that do not load.
    strict : bool
        Whether a matrix that is not finite, not Hermitian beyond rounding, or without a positive trace raises. If not,
        it warns, and the matrix is hermitised or, where it carries no information, replaced by the identity (whose
        spectrum is flat); the other matrices of the batch are untouched, and gradients flow to them alone.

    Returns
    -------
    complex tensor, shape (..., N, N)
        Hermitian, of trace N (1 + loading), positive semi-definite if the inputs are.

    Raises
    ------
    ShapeError, TypeError, ValueError
        Not square, not complex, sizes that disagree, ``beta`` without ``sample``; and what ``strict`` says.

    Notes
    -----
    The shrinkage has a meaning: R with trace N is a field of unit power at each element, and (R + I / SNR), scaled back
    to trace N, is that field with white noise at the given SNR. Diagonal loading: B. D. Carlson, "Covariance matrix
    estimation errors and diagonal loading in adaptive arrays", IEEE Trans. AES 24, 1988.
    """
    _check_square("estimate", estimate)
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must lie in [0, 1], got {beta!r}")
    if beta > 0 and sample is None:
        raise ValueError(f"beta = {beta:g} blends in a sample covariance: pass sample, or beta=0")
    if not (math.isfinite(loading) and loading >= 0):
        raise ValueError(f"loading must be finite and >= 0, got {loading!r}")
    r = _normalized("estimate", estimate, strict)
    if sample is not None:
        _check_square("sample", sample)
        if sample.shape[-1] != estimate.shape[-1] or sample.dtype != estimate.dtype or sample.device != estimate.device:
            raise ShapeError(
                f"sample must match estimate, {tuple(estimate.shape)} {estimate.dtype} on {estimate.device}; "
                f"got {tuple(sample.shape)} {sample.dtype} on {sample.device}"
            )
        if beta > 0:
            r = (1 - beta) * r + beta * _normalized("sample", sample, strict)
    if snr_db is None and loading == 0:
        return r
    eye = torch.eye(r.shape[-1], dtype=r.dtype, device=r.device)
    if snr_db is not None:
        keep = _signal_share(snr_db, r)
        r = keep * r + (1 - keep) * eye
    return r + loading * eye


def _signal_share(snr_db: Tensor | float, r: Tensor) -> Tensor:
    """1 - alpha = SNR / (1 + SNR), shape (..., 1, 1); stable for any SNR including +-inf."""
    snr = torch.as_tensor(snr_db, dtype=torch.float64, device=r.device)
    if bool(snr.isnan().any()):
        raise ValueError("snr_db must not be NaN")
    if snr.ndim and snr.shape != r.shape[:-2]:
        raise ShapeError(f"snr_db must be a number or have shape {tuple(r.shape[:-2])}, got {tuple(snr.shape)}")
    share = torch.sigmoid(snr * (math.log(10) / 10))
    return share.to(r.real.dtype)[..., None, None]


def _check_square(name: str, matrix: Tensor) -> None:
    if not matrix.is_complex():
        raise TypeError(
            f"{name} must be complex64 or complex128, got {matrix.dtype}; convert it with .to(torch.complex64)"
        )
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2] or matrix.shape[-1] < 1:
        raise ShapeError(
            f"{name} must have shape (.., N, N) with N >= 1, got {tuple(matrix.shape)}; "
            "for a factor F pass covariance_from_factor(F)"
        )


def _normalized(name: str, matrix: Tensor, strict: bool) -> Tensor:
    """Checked, Hermitian, of trace N."""
    n = matrix.shape[-1]
    with torch.no_grad():
        finite = matrix.isfinite().flatten(-2).all(-1)
        trace = matrix.diagonal(dim1=-2, dim2=-1).real.sum(-1)
        peak = matrix.abs().flatten(-2).amax(-1)
        skew = (matrix - matrix.mH).abs().flatten(-2).amax(-1)
        positive = (trace > torch.finfo(trace.dtype).tiny * n) & trace.isfinite()
        faults = {
            "holds NaN or infinite values": ~finite,
            "is not Hermitian beyond rounding": finite & (skew > _HERMITIAN_TOLERANCE[matrix.dtype] * peak),
            "has a trace that is not positive": finite & ~positive,
        }
        useless = ~(finite & positive)
        found = [(fault, where) for fault, where in faults.items() if bool(where.any())]
    for fault, where in found:
        if strict:
            raise ValueError(f"{name} {fault} in {int(where.sum())} of {where.numel()} matrices")
        # the text is the same each time, so that Python's default filter shows it once
        warnings.warn(
            f"{name} {fault}: matrices that can be hermitised are, the others are replaced by the identity; "
            "pass strict=True to raise instead",
            RuntimeWarning,
            stacklevel=3,
        )
    if found:  # before any division, so that no NaN reaches the gradients of the other matrices
        eye = torch.eye(n, dtype=matrix.dtype, device=matrix.device)
        matrix = torch.where(useless[..., None, None], eye, matrix)
    hermitian = (matrix + matrix.mH) / 2
    return hermitian * (n / hermitian.diagonal(dim1=-2, dim2=-1).real.sum(-1))[..., None, None]
