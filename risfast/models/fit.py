"""The statistics of one step of the sparse covariance fit, and their gradient written out.

With R_l = Phi_l X Phi_l^H + sigma^2 I and X = sum_g p_g a_g a_g^H,

    n_g = sum_l |a_g^H Phi_l^H R_l^-1 y_l|^2,      d_g = a_g^H (sum_l Phi_l^H R_l^-1 Phi_l) a_g,

and p_g <- p_g sqrt(n_g / d_g) is the majorise-minimise step of the stochastic likelihood; sigma^2 follows the same rule
with sum_l |R_l^-1 y_l|^2 over sum_l tr R_l^-1. Automatic differentiation would keep every product of every snapshot;
the gradient below keeps R_l^-1 and two vectors a snapshot, and costs what the forward pass does.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from risfast.models.atoms import AtomGrid

__all__ = ["Statistics", "matched", "statistics"]

_JITTER = 2e-2  # of the mean of the diagonal


class Statistics(NamedTuple):
    """Numerators and denominators of the step."""

    numerator: Tensor  # (B, G_az, G_el, G_r) n and d
    denominator: Tensor  # (B, G_az, G_el, G_r) n and d
    noise_numerator: Tensor  # (B,) sum_l |R_l^-1 y_l|^2 and sum_l tr R_l^-1
    noise_denominator: Tensor  # (B,) sum_l |R_l^-1 y_l|^2 and sum_l tr R_l^-1


def _seen(phi: Tensor, matrix: Tensor) -> Tensor:
    """Phi_l X Phi_l^H [B, L, M, M] of Phi [B, L, M, N] and X [B, N, N]."""
    # As the conjugate of conj(Phi_l X) Phi_l^T, in place: a batch of products would first copy all of Phi^H.
    left = (phi.flatten(1, 2) @ matrix).view_as(phi)
    return (left.conj_physical_() @ phi.mT).conj_physical_()


def _spread(phi: Tensor, matrix: Tensor, atoms: AtomGrid) -> Tensor:
    """sum_l Phi_l^H G_l Phi_l [B, N, N], the adjoint of :func:`_seen`, for the analysis; G [B, L, M, M], Hermitian."""
    return atoms.products(phi.flatten(1, 2), (matrix @ phi).flatten(1, 2))


def matched(phi: Tensor, u: Tensor) -> Tensor:
    """Every snapshot's vector seen from the surface, Phi_l^H u_l."""
    # As a row from the left: a batch of products with a column is many times slower.
    return (u.conj()[:, :, None] @ phi)[:, :, 0].conj_physical()


def _factor(r: Tensor) -> Tensor:
    """Cholesky factors of R_l [B, L, M, M]; what the rounding of the atom maps made indefinite is loaded first."""
    # The maps hold 60 dB of the strongest direction of the whole grid: where noise lies further below the sources than
    # that, R_l can have a negative eigenvalue, which then says how much loading it takes.
    factor, info = torch.linalg.cholesky_ex(r)
    failed = info > 0
    if not bool(failed.any()):
        return factor
    broken = r[failed]
    finite = broken.isfinite().all(-1).all(-1)
    # What is not finite (from outside) shows as NaN in the result; eigvalsh would raise.
    least = torch.linalg.eigvalsh(torch.where(finite[:, None, None], broken, 0.0))[:, 0]
    mean = broken.diagonal(dim1=-2, dim2=-1).real.mean(-1)
    broken.diagonal(dim1=-2, dim2=-1).add_(torch.maximum(_JITTER * mean, -2 * least)[:, None])
    again = torch.linalg.cholesky_ex(broken)
    factor = factor.clone()
    factor[failed] = again.L.masked_fill((~finite | (again.info > 0))[:, None, None], torch.nan)
    return factor


class _StatisticsFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, power: Tensor, noise: Tensor, y: Tensor, phi: Tensor, atoms: AtomGrid
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        r = _seen(phi, atoms.synthesis(power))
        r.diagonal(dim1=-2, dim2=-1).add_(noise[:, None, None])
        inverse = torch.cholesky_inverse(_factor(r))
        u = inverse @ y[..., None]  # [B, L, M, 1]
        v = matched(phi, u[..., 0])  # [B, L, N]
        b = power.shape[0]
        both = atoms.analysis(torch.cat([v.mT @ v.conj(), _spread(phi, inverse, atoms)]))
        ctx.save_for_backward(phi, inverse, u, v)
        ctx.atoms = atoms
        traces = inverse.diagonal(dim1=-2, dim2=-1).real.sum((1, 2))
        return both[:b], both[b:], u.abs().square().sum((1, 2, 3)), traces

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_n, grad_d, grad_u, grad_trace = grads
        phi, inverse, u, v = ctx.saved_tensors
        b = phi.shape[0]
        both = ctx.atoms.synthesis(torch.cat([grad_n, grad_d]))
        grad_s, grad_q = both[:b], both[b:]
        # dR^-1 = -R^-1 dR R^-1 in both: u = R^-1 y enters n through v v^H, R^-1 itself enters d.
        pulled = v @ grad_s.mT
        q = (pulled[:, :, None] @ phi.mT).mT + grad_u[:, None, None, None] * u
        t = inverse @ q
        seen = _seen(phi, grad_q)
        seen.diagonal(dim1=-2, dim2=-1).add_(grad_trace[:, None, None])
        outer = u @ t.mH
        grad_r = -(outer + outer.mH) - inverse @ seen @ inverse
        grad_noise = grad_r.diagonal(dim1=-2, dim2=-1).real.sum((1, 2))
        grad_power = ctx.atoms.analysis(_spread(phi, grad_r, ctx.atoms))
        return grad_power, grad_noise, None, None, None


def statistics(power: Tensor, noise: Tensor, y: Tensor, phi: Tensor, atoms: AtomGrid) -> Statistics:
    """Numerators and denominators of a step of the fit, differentiable in the powers and the noise.

    power (B, G_az, G_el, G_r), noise (B,), y (B, L, M), phi (B, L, M, N)
    """
    # The step is that of sparse Bayesian learning by majorise-minimise (square root of the fixed-point ratio), which
    # never lowers the likelihood. Cost a scene and pass: three maps of the atom grid and 13 L M N^2 flops.
    return Statistics(*_StatisticsFunction.apply(power, noise, y, phi, atoms))
