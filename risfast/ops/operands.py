"""From covariances and factors to the matrices of the quadratic forms, on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from risfast.ops.domain import adjoint_of
from risfast.ops.evaluators import Operand

__all__ = ["capon_operand", "check_definite", "loaded_cholesky", "lowrank_operand", "mean_power", "woodbury_factor"]


def _hermitian(covariance: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
    """(R + R^H)/2 in complex128, a view of its diagonal, tr(R)/N [b, 1], and the rounding of R in units of that."""
    r = (covariance + adjoint_of(covariance)).to(torch.complex128).mul_(0.5)
    diagonal = r.diagonal(dim1=-2, dim2=-1)
    # The rounding of a sample covariance of N elements moves its zero eigenvalues by a few N eps.
    rounding = 32 * covariance.shape[-1] * torch.finfo(covariance.dtype).eps
    return r, diagonal, diagonal.real.mean(-1, keepdim=True), rounding


def _refuse_indefinite(lifted: Tensor, rounding: float, first: int) -> None:
    """Raise where R, lifted by its rounding, has no Cholesky factor."""
    info = torch.linalg.cholesky_ex(lifted).info
    if bool((info > 0).any()):
        raise ValueError(
            f"R[{first + int(info.nonzero()[0, 0])}] is indefinite: it has an eigenvalue below "
            f"-{rounding:.1e} trace(R)/N; a covariance is positive semi-definite"
        )


def check_definite(covariance: Tensor, first: int = 0) -> None:
    """Refuse covariances that are indefinite beyond their rounding.

    covariance (b, N, N)
    """
    r, diagonal, mean, rounding = _hermitian(covariance)
    diagonal.add_(rounding * mean)
    _refuse_indefinite(r, rounding, first)


def loaded_cholesky(covariance: Tensor, loading: float, first: int = 0) -> Tensor:
    """Lower Cholesky factor of (R + R^H)/2 + delta I, delta = loading tr(R)/N.

    covariance (b, N, N) -> (b, N, N)
    """
    r, diagonal, mean, rounding = _hermitian(covariance)
    if loading <= rounding:
        diagonal.add_(loading * mean)
        factor, info = torch.linalg.cholesky_ex(r)
        pivots = factor.diagonal(dim1=-2, dim2=-1).real.square().amin(-1)
        singular = (info > 0) | (pivots <= r.shape[-1] * torch.finfo(torch.float64).eps * mean[:, 0])
        if bool(singular.any()):
            scene = first + int(singular.nonzero()[0, 0])
            raise ValueError(
                f"loading = {loading:g} is too small: covariance R[{scene}] is singular or indefinite; pass "
                "loading > 0 (1e-2 is a good start)"
            )
        return factor
    diagonal.add_(rounding * mean)
    _refuse_indefinite(r, rounding, first)
    diagonal.add_((loading - rounding) * mean)
    return torch.linalg.cholesky_ex(r).L


def capon_operand(covariance: Tensor, loading: float, first: int = 0) -> Operand:
    """Operand with q = a^H (R + delta I)^-1 a."""
    # The inverse is complex128 whatever R is: in float64 the form loses nothing that matters, in complex64 the inverse
    # alone costs 0.014 dB.
    return Operand(torch.cholesky_inverse(loaded_cholesky(covariance, loading, first)), "hermitian")


def mean_power(factor: Tensor) -> Tensor:
    """Power of an element, tr(F F^H)/N.

    factor (b, N, K) -> (b,)
    """
    return torch.view_as_real(factor.resolve_conj()).double().square().sum((1, 2, 3)) / factor.shape[1]


def woodbury_factor(factor: Tensor, delta: Tensor) -> Tensor:
    """W with (F F^H + delta I)^-1 = (I - W W^H) / delta.

    factor (b, N, K), delta (b,) -> (b, N, K)
    """
    # W = F C^-H with C C^H = F^H F + delta I: a K x K Cholesky factor, no division by small singular values. M. A.
    # Woodbury, "Inverting modified matrices", Statistical Research Group, Princeton, 1950.
    f = factor.to(torch.complex128)
    gram = adjoint_of(f) @ f + delta[:, None, None] * torch.eye(f.shape[-1], dtype=torch.complex128)
    return adjoint_of(torch.linalg.solve_triangular(torch.linalg.cholesky(gram), adjoint_of(f), upper=False))


def lowrank_operand(factor: Tensor, delta: Tensor) -> Operand:
    """Operand with q = a^H W W^H a, so that N - q = delta a^H (F F^H + delta I)^-1 a."""
    return Operand(adjoint_of(woodbury_factor(factor, delta)), "rows")
