"""The quadratic form that the Capon power divides by, made once for the walk and the refinement of all candidates."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from risfast.ops import checks, spectra
from risfast.ops import register_cuda_operands as operands
from risfast.ops.devices import checks_values, serves_kernels
from risfast.ops.domain import adjoint_of

__all__ = ["Denominator", "denominator"]


class Denominator(NamedTuple):
    """The form that the Capon power divides by: scale / (a^H Q a), or scale / (N - ||W^H a||^2) where ``factored``."""

    # It does not depend on the scale of the covariance, so that no scale leaves the range of float32.

    matrix: Tensor  # (B, N, N) Q, or W
    factored: bool  # Which of the two
    scale: Tensor  # (B, 1) N times the mean power of an element, or N delta


def denominator(matrix: Tensor, factored: bool, loading: float) -> Denominator:
    """The form of a covariance or of a factor, with the checks of :func:`risfast.ops.refinement.refine_peaks`.

    matrix (B, N, N) or (B, N, K)
    """
    n = matrix.shape[-2]
    if checks_values(matrix.device):
        (checks.check_finite if factored else checks.check_covariance_values)(matrix, "matrix")
    if factored:
        if serves_kernels(matrix):
            delta = operands.lowrank_delta(matrix, loading)
            return Denominator(operands.woodbury_factor(matrix, delta), True, n * delta[:, None])
        delta = loading * spectra.mean_power(matrix)
        return Denominator(adjoint_of(spectra.lowrank_operand(matrix, delta).matrix), True, n * delta[:, None])
    mean = matrix.diagonal(dim1=-2, dim2=-1).real.double().mean(-1)
    if serves_kernels(matrix):
        inverse = operands.loaded_inverse(matrix, loading)
    else:
        inverse = spectra.capon_operand(matrix, loading).matrix
    return Denominator(inverse * mean[:, None, None], False, n * mean[:, None])
