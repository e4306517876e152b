"""From operands to maps and back on a GPU: one method or another of the kernels, as the plan says.

Maps and volumes are stored with azimuth fastest.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from risfast.ops.devices import kernel_module
from risfast.ops.register_cuda_tables import DevicePlan


def filled(like: Tensor, value: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """One number for every scene.

    like (B, ...) -> (B,)
    """
    return torch.full((like.shape[0],), value, dtype=dtype, device=like.device)


def scale_for(operand: Tensor, value: float) -> Tensor:
    """The same number for every scene, but NaN where the operand is: the best of planes would not see it.

    operand (B, N, K) -> (B,)
    """
    return value + 0 * operand[:, 0, 0].real.double()


def _none(like: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.int32, device=like.device)


def from_matrix(plan: DevicePlan, matrix: Tensor, epilogue: Any, volume: bool) -> tuple[Tensor, Tensor]:
    """Power by the lag method from Hermitian matrices.

    matrix (B, N, N) -> power (B, G_az, G_el), or (B, G_az, G_el, G_r), plane (B, G_az, G_el)
    """
    lag = kernel_module("lag")
    assert plan.tables.lag is not None
    if volume:
        return lag.lag_volume(matrix, plan.tables.lag, epilogue), _none(matrix)
    return lag.lag_map(matrix, plan.tables.lag, epilogue)


def from_factor(
    plan: DevicePlan, factor: Tensor, epilogue: Any, volume: bool, *, triangular: bool = False
) -> tuple[Tensor, Tensor]:
    """Power by the dense or the chebyshev method from factors: q = ||W^H a||^2.

    factor (B, N, K)
    """
    dense = kernel_module("dense")
    points = plan.tables.points
    assert points is not None
    options: dict[str, Any] = {"triangular": triangular, "precision": plan.precision}
    if plan.method == "chebyshev":
        unit = kernel_module("launch").Epilogue("linear", filled(factor, 1.0, torch.float32))
        return from_nodes(plan, dense.dense_volume(factor, points, unit, **options), epilogue, volume)
    if not points.is_box:
        return dense.dense_volume(factor, points, epilogue, **options), _none(factor)
    if volume:
        return dense.dense_volume(factor, points, epilogue, **options).transpose(1, 2), _none(factor)
    power, plane = dense.dense_map(factor, points, epilogue, **options)
    return power.mT, plane.mT


def from_residual(
    plan: DevicePlan, factors: tuple[Tensor, Tensor], epilogue: Any, volume: bool
) -> tuple[Tensor, Tensor]:
    """As :func:`from_factor`, from q = ||a - U V^H a||^2 with U, V complex64 [B, N, K].

    factors (B, N, K)
    """
    lowrank = kernel_module("lowrank")
    points = plan.tables.points
    assert points is not None
    options: dict[str, Any] = {"precision": plan.precision}
    if plan.method == "chebyshev":
        unit = kernel_module("launch").Epilogue("linear", filled(factors[0], 1.0, torch.float32))
        return from_nodes(plan, lowrank.residual_volume(*factors, points, unit, **options), epilogue, volume)
    if volume:
        return lowrank.residual_volume(*factors, points, epilogue, **options).transpose(1, 2), _none(factors[0])
    power, plane = lowrank.residual_map(*factors, points, epilogue, **options)
    return power.mT, plane.mT


def from_nodes(plan: DevicePlan, at_nodes: Tensor, epilogue: Any, volume: bool) -> tuple[Tensor, Tensor]:
    """From q at the Chebyshev nodes to power on the grid.

    at_nodes (B, n_el, n_az, R)
    """
    interpolate = kernel_module("interpolate")
    tables = plan.tables
    assert tables.azimuth is not None
    assert tables.elevation is not None
    # Elevation takes the place of azimuth, so that azimuth is the axis that is stored fastest.
    operands = at_nodes.permute(0, 3, 1, 2), tables.elevation, tables.azimuth, epilogue
    if volume:
        return interpolate.interpolate_volume(*operands, precision=plan.precision).transpose(1, 2), _none(at_nodes)
    power, plane = interpolate.interpolate_map(*operands, precision=plan.precision)
    return power.mT, plane.mT


def _turned(weights: Any) -> Any:
    """The same weights with elevation as the outer axis, as the tables of a box have it."""

    def turn(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.transpose(1, 2)

    return kernel_module("weights").PointWeights(
        weights.values.transpose(1, 2), weights.epilogue, turn(weights.power), turn(weights.plane)
    )


def outer_products_cuda(plan: DevicePlan, weights: Any) -> Tensor:
    """sum_g p_g a_g a_g^H, by the method of the plan.

    -> (B, N, N)
    """
    synthesis = kernel_module("synthesis")
    tables = plan.tables
    if plan.method == "lag":
        return kernel_module("lag_adjoint").lag_synthesis(weights, tables.lag)
    points = tables.points
    assert points is not None
    if not points.is_box:
        return synthesis.dense_synthesis(weights, points, precision=plan.precision)
    turned = _turned(weights)
    if plan.method == "chebyshev":
        planes = points.shape[2]
        options = {"planes": planes, "precision": plan.precision}
        at_nodes = kernel_module("interpolate_adjoint").interpolate_adjoint(
            turned, tables.elevation, tables.azimuth, **options
        )
        turned = kernel_module("weights").PointWeights(at_nodes.permute(0, 2, 3, 1))
    return synthesis.dense_synthesis(turned, points, precision=plan.precision)
