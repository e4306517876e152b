"""Covariances: what a surface shows of them, estimates from snapshots, and the one effective covariance."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

import torch
from torch import Tensor

from risfast.errors import ShapeError

# Where the noise power is not given: the measurements are taken to be this much stronger than the noise (10 dB).
_ASSUMED_SNR = 10.0
# Least share of the measured power that is taken for signal, where the noise power says less or even nothing is left.
_LEAST_SIGNAL_SHARE = 0.01
# A low-rank fit with less than this share of the measured power has been wiped out by its ridge.
_VANISHED = 1e-3


class _Levels(NamedTuple):
    """What a regularisation needs to know, each of shape (...): sigma^2, power per element, mean tr(Phi Phi^H) / M."""

    noise: Tensor
    element: Tensor
    gain: Tensor


def check_measurements(y: Tensor, codes: Tensor, channel: Tensor) -> None:
    """Check that measurements (.., L, M), codes (.., L, N) and channel (.., M, N) belong together.

    y (..., L, M), codes (..., L, N), channel (..., M, N)
    """
    tensors = {"y": y, "codes": codes, "channel": channel}
    for name, t in tensors.items():
        if not t.is_complex():
            raise TypeError(
                f"{name} must be complex64 or complex128, got {t.dtype}; convert it with .to(torch.complex64)"
            )
        if t.ndim < 2:
            raise ShapeError(f"{name} must have at least two dimensions, got shape {tuple(t.shape)}")
    for name, t in tensors.items():
        if t.dtype != codes.dtype or t.device != codes.device:
            raise ValueError(
                f"{name} is {t.dtype} on {t.device} but codes is {codes.dtype} on {codes.device}; use one for all"
            )
    (n_snapshots, n), (m, n_channel) = codes.shape[-2:], channel.shape[-2:]
    if n_channel != n:
        mend = ""
        if channel.shape[-2] == n:
            mend = "; channel looks transposed, pass channel.mT"
        elif codes.shape[-2] == n_channel:
            mend = "; codes looks transposed, pass codes.mT"
        raise ShapeError(
            f"codes (.., L, N) and channel (.., M, N) must share N, got {tuple(codes.shape)} and "
            f"{tuple(channel.shape)}{mend}"
        )
    if y.shape[-2:] != (n_snapshots, m):
        mend = "; y looks transposed, pass y.mT" if y.shape[-2:] == (m, n_snapshots) else ""
        raise ShapeError(
            f"y must have shape (.., L, M) = (.., {n_snapshots}, {m}) as codes and channel say, "
            f"got {tuple(y.shape)}{mend}"
        )
    # ``torch.broadcast_shapes`` says the same and takes two seconds to import what it needs.
    for sizes in zip_longest(*(reversed(t.shape[:-2]) for t in tensors.values()), fillvalue=1):
        longer = [size for size in sizes if size != 1]
        if any(size != longer[0] for size in longer):
            shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items())
            raise ShapeError(f"the batch dimensions must agree or broadcast, got {shapes}")
    for name, t in tensors.items():
        if not bool(torch.isfinite(t).all()):
            raise ValueError(f"{name} must be finite; it holds NaN or infinite values")


@dataclass(frozen=True)
class SensingOperator:
    """Phi_l = H diag(c_l) of every snapshot, applied without forming any of them."""

    codes: Tensor  # (..., L, N)
    channel: Tensor  # (..., M, N)

    def apply(self, x: Tensor) -> Tensor:
        """What the antennas see of what falls on the surface: y_l = H (c_l x_l).

        x (..., L, N) -> (..., L, M)
        """
        return (self.codes * x) @ self.channel.mT

    def adjoint(self, y: Tensor) -> Tensor:
        """The adjoint of :meth:`apply`: x_l = conj(c_l) (H^H y_l).

        y (..., L, M) -> (..., L, N)
        """
        return self.codes.conj() * (y @ self.channel.conj())

    def project(self, factor: Tensor) -> Tensor:
        """Phi_l F of a factor, for all snapshots at once.

        factor (..., N, K) -> (..., L, M, K)
        """
        m, k = self.channel.shape[-2], factor.shape[-1]
        # [.., N, M, 1] * [.., N, 1, K]: one GEMM over N instead of a stack of L x N x K
        pairs = self.channel.mT[..., :, None] * factor[..., :, None, :]
        return (self.codes @ pairs.flatten(-2)).unflatten(-1, (m, k))

    def gram(self) -> Tensor:
        """Phi_l Phi_l^H = H diag(|c_l|^2) H^H.

        -> (..., L, M, M)
        """
        m = self.channel.shape[-2]
        # sum_n |c_ln|^2 h_mn conj(h_m'n) is one GEMM over n
        pairs = self.channel.mT[..., :, None] * self.channel.mT.conj()[..., None, :]  # [.., N, M, M]
        gain = self.codes.abs().square().to(self.codes.dtype)
        gram = (gain @ pairs.flatten(-2)).unflatten(-1, (m, m))
        return (gram + gram.mH) / 2


def _levels(y: Tensor, gram: Tensor, noise_power: Tensor | float | None) -> _Levels:
    """Split the measured power, mean |y|^2 = gain * element + noise."""
    measured = y.abs().square().mean((-2, -1))
    gain = gram.diagonal(dim1=-2, dim2=-1).real.mean((-2, -1))
    measured, gain = torch.broadcast_tensors(measured, gain)
    if noise_power is None:
        noise = measured / (1 + _ASSUMED_SNR)
    else:
        noise = _per_scene(noise_power, measured, "noise_power")
        if not bool((noise.isfinite() & (noise >= 0)).all()):
            raise ValueError("noise_power must be finite and >= 0")
    signal = torch.maximum(measured - noise, _LEAST_SIGNAL_SHARE * measured)
    one = torch.ones_like(gain)
    element = signal / torch.where(gain > 0, gain, one)
    return _Levels(noise, element, gain)


def _per_scene(value: Tensor | float, like: Tensor, name: str) -> Tensor:
    """A number for all scenes or one for each, in the shape of ``like``."""
    given = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    if given.ndim and given.shape != like.shape:
        raise ShapeError(f"{name} must be a number or have shape {tuple(like.shape)}, got {tuple(given.shape)}")
    return given.expand(like.shape)


def _ridge(value: Tensor | float | None, default: Tensor) -> Tensor:
    """A ridge > 0 of the shape of ``default``."""
    if value is None:
        return default
    ridge = _per_scene(value, default, "ridge")
    if not bool((ridge.isfinite() & (ridge > 0)).all()):
        raise ValueError("ridge must be finite and > 0")
    return ridge


def _safe_ratio(numerator: Tensor, denominator: Tensor, floor: Tensor) -> Tensor:
    """Ratio of two tensors, not below ``floor``, and 1 where both the denominator and the floor are zero."""
    ratio = torch.where(denominator > 0, numerator / denominator, torch.zeros_like(numerator))
    ratio = torch.maximum(ratio, floor)
    return torch.where(ratio > 0, ratio, torch.ones_like(ratio))


def ls_snapshots(
    y: Tensor,
    codes: Tensor,
    channel: Tensor,
    *,
    noise_power: Tensor | float | None = None,
    ridge: Tensor | float | None = None,
) -> Tensor:
    """Field on the surface in each snapshot by Tikhonov-regularised least squares.

    y, codes, channel (..., L, M), (..., L, N), (..., M, N), noise_power (...), ridge (...) -> (..., L, N)
    """
    # x_l = argmin |y_l - Phi_l x|^2 + lambda |x|^2 = Phi_l^H (Phi_l Phi_l^H + lambda I)^-1 y_l: only M x M systems. A.
    # E. Hoerl, R. W. Kennard, "Ridge regression: biased estimation for nonorthogonal problems", Technometrics 12, 1970.
    check_measurements(y, codes, channel)
    operator = SensingOperator(codes, channel)
    gram = operator.gram()
    levels = _levels(y, gram, noise_power)
    default = _safe_ratio(levels.noise, levels.element, 1e-6 * levels.gain)
    ridge = _ridge(ridge, default)[..., None, None, None]
    eye = torch.eye(gram.shape[-1], dtype=torch.complex128, device=gram.device)
    # M is small and the systems can be ill-conditioned: solve in double, where float32 would lose the weak directions
    lower = torch.linalg.cholesky(gram.to(torch.complex128) + ridge.double() * eye)
    rhs = y.to(torch.complex128).expand(*lower.shape[:-1])[..., None]
    return operator.adjoint(torch.cholesky_solve(rhs, lower)[..., 0].to(y.dtype))


def ls_covariance(
    y: Tensor,
    codes: Tensor,
    channel: Tensor,
    *,
    noise_power: Tensor | float | None = None,
    ridge: Tensor | float | None = None,
) -> Tensor:
    """Sample covariance R = mean_l x_l x_l^H of the least-squares fields of :func:`ls_snapshots`.

    Parameters
    ----------
    y, codes, channel : complex tensors, shapes (..., L, M), (..., L, N), (..., M, N)
        Measurements, codes and channel.
    noise_power, ridge : float or real tensor, shape (...), or None
        See :func:`ls_snapshots`.

    Returns
    -------
    complex tensor, shape (..., N, N)
        Hermitian, positive semi-definite, of rank at most L; biased toward zero by the ridge, so scale it (as
        :func:`effective_covariance` does) before comparing.

    Raises
    ------
    ShapeError, TypeError, ValueError
        As :func:`ls_snapshots`.
    """
    return _mean_outer(ls_snapshots(y, codes, channel, noise_power=noise_power, ridge=ridge))


def matched_filter_covariance(y: Tensor, codes: Tensor, channel: Tensor) -> Tensor:
    """Sample covariance of the matched-filter fields x_l = Phi_l^H y_l / g, g = mean_l tr(Phi_l Phi_l^H) / M.

    Parameters
    ----------
    y, codes, channel : complex tensors, shapes (..., L, M), (..., L, N), (..., M, N)
        Measurements, codes and channel.

    Returns
    -------
    complex tensor, shape (..., N, N)
        Hermitian, positive semi-definite; zero where the channel is.
        With a strong line of sight H is nearly of rank one and so is what the antennas tell of each snapshot: then this
        estimate is far worse than :func:`ls_covariance`; it serves as a baseline.

    Raises
    ------
    ShapeError, TypeError, ValueError
        See :func:`risfast.covariance.check_measurements`.
    """
    check_measurements(y, codes, channel)
    operator = SensingOperator(codes, channel)
    gain = (codes.abs().square() * channel.abs().square().sum(-2, keepdim=True)).sum(-1).mean(-1) / channel.shape[-2]
    gain = torch.where(gain > 0, gain, torch.ones_like(gain))
    return _mean_outer(operator.adjoint(y) / gain[..., None, None])


def _mean_outer(x: Tensor) -> Tensor:
    """mean_l x_l x_l^H of x (..., L, N): (..., N, N), exactly Hermitian."""
    r = x.mT @ x.conj() / x.shape[-2]
    return (r + r.mH) / 2


class LowRankFit(NamedTuple):
    """Result of :func:`als_fit`."""

    factor: Tensor  # (..., N, r) F with R = F F^H
    # (..., iterations + 1) The ridge objective before the first and after every iteration; it never rises beyond
    # rounding
    objective: Tensor


def als_covariance(
    y: Tensor,
    codes: Tensor,
    channel: Tensor,
    rank: int,
    *,
    noise_power: Tensor | float | None = None,
    iterations: int = 50,
) -> Tensor:
    """Rank-r covariance by alternating least squares: the factor alone of :func:`als_fit`.

    Parameters
    ----------
    y, codes, channel : complex tensors, shapes (..., L, M), (..., L, N), (..., M, N)
        Measurements, codes and channel.
    rank : int
        r, from 1 to N.
    noise_power : float or real tensor, shape (...), or None
        sigma^2; see :func:`als_fit`.
    iterations : int
        Alternations, >= 1.

    Returns
    -------
    complex tensor, shape (..., N, r)
        F with R = F F^H.

    Raises
    ------
    ShapeError, TypeError, ValueError
        As :func:`als_fit`.
    """
    return als_fit(y, codes, channel, rank, noise_power=noise_power, iterations=iterations).factor


def als_fit(
    y: Tensor,
    codes: Tensor,
    channel: Tensor,
    rank: int,
    *,
    noise_power: Tensor | float | None = None,
    ridge: Tensor | float | None = None,
    iterations: int = 50,
    inner_iterations: int = 5,
) -> LowRankFit:
    """Fit y_l = Phi_l F z_l with F (N, r) by alternating ridge regressions.

    y, codes, channel (..., L, M), (..., L, N), (..., M, N), noise_power (...), ridge (...)
    """
    # Minimises sum_l |y_l - Phi_l F z_l|^2 + sigma^2 sum_l |z_l|^2 + ridge |F|^2, exactly over the z_l (r x r systems),
    # then over F by conjugate gradients from where it stands, so that no step raises it. It starts from the r strongest
    # eigenvectors of :func:`ls_covariance` and uses no random numbers. Alternating minimisation of a low-rank matrix
    # seen through linear maps: P. Jain, P. Netrapalli, S. Sanghavi, "Low-rank matrix completion using alternating
    # minimization", STOC 2013 (matrix sensing), here with ridges. An unstructured factor has K (N + L) - K^2 unknowns
    # against M L measurements: on the reference system the fit is underdetermined from about K = 2 (L = 16) or K = 5 (L
    # = 64), and the ridge decides the rest.
    check_measurements(y, codes, channel)
    n = codes.shape[-1]
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= n:
        raise ValueError(f"rank must be an integer from 1 to N = {n}, got {rank!r}")
    if iterations < 1 or inner_iterations < 1:
        raise ValueError(f"iterations and inner_iterations must be at least 1, got {iterations} and {inner_iterations}")
    operator = SensingOperator(codes, channel)
    levels = _levels(y, operator.gram(), noise_power)
    floor = 1e-6 * (levels.noise + levels.gain * levels.element)
    symbol_ridge = _safe_ratio(levels.noise, torch.ones_like(levels.noise), floor)
    factor_ridge = _ridge(ridge, _safe_ratio(symbol_ridge * rank, levels.element, 1e-6 * levels.gain))
    problem = _LowRankProblem(operator, y, symbol_ridge, factor_ridge)

    start = ls_covariance(y, codes, channel, noise_power=noise_power)
    value, vector = torch.linalg.eigh(start)
    factor = start_factor = vector[..., -rank:] * value[..., None, -rank:].clamp_min(0).sqrt()
    symbols = problem.best_symbols(factor)
    objective = [problem.objective(factor, symbols)]
    for _ in range(iterations):
        factor = problem.improve_factor(factor, symbols, inner_iterations)
        symbols = problem.best_symbols(factor)
        objective.append(problem.objective(factor, symbols))
    factor = _fold_symbols(factor, symbols)
    vanished = factor.abs().square().sum((-2, -1)) < _VANISHED * n * levels.element
    factor = torch.where(vanished[..., None, None], start_factor, factor)
    return LowRankFit(factor, torch.stack(objective, -1))


def _fold_symbols(factor: Tensor, symbols: Tensor) -> Tensor:
    """The factor (.., N, r) of F (mean_l z_l z_l^H) F^H."""
    # with symbols = Q T, Q of orthonormal columns, sum_l z_l z_l^H = T^T conj(T)
    triangle = torch.linalg.qr(symbols, mode="r").R  # [.., min(L, r), r]
    folded = factor @ triangle.mT / math.sqrt(symbols.shape[-2])
    return torch.nn.functional.pad(folded, (0, factor.shape[-1] - folded.shape[-1]))


class _LowRankProblem(NamedTuple):
    """The ridge objective of :func:`als_fit` and its two half steps. Symbols are (.., L, r), residuals (.., L, M)."""

    operator: SensingOperator
    y: Tensor
    symbol_ridge: Tensor
    factor_ridge: Tensor

    def _predict(self, factor: Tensor, symbols: Tensor) -> Tensor:
        """Phi_l F z_l."""
        return self.operator.apply(symbols @ factor.mT)

    def objective(self, factor: Tensor, symbols: Tensor) -> Tensor:
        misfit = (self.y - self._predict(factor, symbols)).abs().square().sum((-2, -1))
        symbol_cost = self.symbol_ridge * symbols.abs().square().sum((-2, -1))
        return misfit + symbol_cost + self.factor_ridge * factor.abs().square().sum((-2, -1))

    def best_symbols(self, factor: Tensor) -> Tensor:
        """z_l = (G_l^H G_l + sigma^2 I)^-1 G_l^H y_l with G_l = Phi_l F."""
        projected = self.operator.project(factor)  # [.., L, M, r]
        eye = torch.eye(factor.shape[-1], dtype=torch.complex128, device=factor.device)
        normal = (projected.mH @ projected).to(torch.complex128)
        lower = torch.linalg.cholesky(normal + self.symbol_ridge.double()[..., None, None, None] * eye)
        rhs = (projected.mH @ self.y[..., None]).to(torch.complex128)
        return torch.cholesky_solve(rhs, lower)[..., 0].to(factor.dtype)

    def _normal(self, factor: Tensor, symbols: Tensor) -> Tensor:
        """The Hessian of the objective over F: sum_l Phi_l^H Phi_l F z_l z_l^H + ridge F."""
        field = self.operator.adjoint(self._predict(factor, symbols))  # [.., L, N]
        return field.mT @ symbols.conj() + self.factor_ridge[..., None, None] * factor

    def improve_factor(self, factor: Tensor, symbols: Tensor, steps: int) -> Tensor:
        """Conjugate gradients on F from where it stands: every step lowers the objective, or stays."""
        residual = self.operator.adjoint(self.y - self._predict(factor, symbols)).mT @ symbols.conj()
        residual = residual - self.factor_ridge[..., None, None] * factor
        direction = residual
        power = residual.abs().square().sum((-2, -1))
        for _ in range(steps):
            mapped = self._normal(direction, symbols)
            curvature = (direction.conj() * mapped).real.sum((-2, -1))
            step = torch.where(curvature > 0, power / curvature, torch.zeros_like(power))[..., None, None]
            factor = factor + step * direction
            residual = residual - step * mapped
            new_power = residual.abs().square().sum((-2, -1))
            ratio = torch.where(power > 0, new_power / power, torch.zeros_like(power))
            direction = residual + ratio[..., None, None] * direction
            power = new_power
        return factor


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
