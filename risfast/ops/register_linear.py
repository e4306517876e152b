"""Analysis and synthesis as torch custom ops, each the gradient of the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from risfast.ops import register_cuda, spectra
from risfast.ops.checks import check_finite, check_hermitian
from risfast.ops.domain import adjoint_of
from risfast.ops.evaluators import Operand
from risfast.ops.register_common import GEOMETRY, define, fake_volume, planned, register_vmap
from risfast.ops.register_devices import serve_gpu

__all__ = ["adjoint_op", "analysis_op"]


def analysis_torch(
    matrix: Tensor,
    factored: bool,
    box: bool,
    *geometry: Any,
) -> Tensor:
    """q_g = a_g^H Q a_g of Hermitian Q, or ||W^H a_g||^2.

    matrix (B, N, N) or (B, N, K) -> (B, G_az, G_el, G_r)
    """
    check_finite(matrix, "W_or_Q")
    if not factored:
        check_hermitian(matrix, "W_or_Q", "; pass factored=True if it is a factor W")
    rank = matrix.shape[2] if factored else None
    _, plan, evaluator = planned("analysis", matrix, geometry, box, 0.0, rank)

    def operand(start: int, stop: int) -> Operand:
        part = matrix[start:stop]
        return Operand(adjoint_of(part), "rows") if factored else Operand((part + adjoint_of(part)) / 2, "hermitian")

    unit = spectra.linear(torch.ones(matrix.shape[0], dtype=torch.float64))
    return spectra.volume_of(plan, evaluator, operand, unit)


analysis_op = define("analysis", "Tensor matrix, bool factored, bool box", "Tensor", analysis_torch)


@analysis_op.register_fake
def _(matrix: Tensor, factored: bool, box: bool, *geometry: Any) -> Tensor:
    _, azimuth, elevation, r = geometry[:4]
    if box:
        return fake_volume(matrix, azimuth, elevation, r)
    return matrix.new_empty((matrix.shape[0], azimuth.shape[0]), dtype=matrix.dtype.to_real())


def adjoint_torch(
    weights: Tensor,
    box: bool,
    *geometry: Any,
) -> Tensor:
    """sum_g p_g a_g a_g^H, the adjoint of analysis.

    weights (B, G_az, G_el, G_r) or (B, G) -> (B, N, N)
    """
    check_finite(weights, "p")
    domain, plan, evaluator = planned("synthesis", weights, geometry, box, 0.0, None)
    result = torch.empty(weights.shape[0], domain.n_elements, domain.n_elements, dtype=plan.dtype)
    for start, stop in spectra.scene_groups(plan):
        result[start:stop] = evaluator.adjoint(weights[start:stop])
    return result


adjoint_op = define("synthesis", "Tensor weights, bool box", "Tensor", adjoint_torch)


@adjoint_op.register_fake
def _(weights: Tensor, box: bool, positions: Tensor, *geometry: Any) -> Tensor:
    n = positions.shape[0]
    return weights.new_empty((weights.shape[0], n, n), dtype=weights.dtype.to_complex())


def _analysis_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    matrix, ctx.factored, ctx.box, *geometry = inputs
    ctx.save_for_backward(matrix)
    ctx.geometry = geometry


def _analysis_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (matrix,) = ctx.saved_tensors
    outer = adjoint_op(grad, ctx.box, *ctx.geometry)
    return 2 * outer @ matrix if ctx.factored else outer, *[None] * (2 + GEOMETRY)


analysis_op.register_autograd(_analysis_backward, setup_context=_analysis_setup)


def _synthesis_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.box, *geometry = inputs
    ctx.geometry = geometry


def _synthesis_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return analysis_op((grad + adjoint_of(grad)) / 2, False, ctx.box, *ctx.geometry), *[None] * (1 + GEOMETRY)


adjoint_op.register_autograd(_synthesis_backward, setup_context=_synthesis_setup)


serve_gpu(analysis_op, analysis_torch, register_cuda.analysis)
serve_gpu(adjoint_op, adjoint_torch, register_cuda.synthesis)
for _op in (analysis_op, adjoint_op):
    register_vmap(_op)
