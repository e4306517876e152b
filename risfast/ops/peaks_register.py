"""Registration of the peak operators: schemas, fakes and vmap rules. The body is the definition, on any device.

A faster kernel for one kind of device is added with ``local_maxima_op.register_kernel(...)`` by the module that has it;
those of a GPU are added here.
Neither operator is differentiable, and says so to autograd: indices have no gradient, and the values can be gathered
from the volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from risfast.ops import register_cuda_peaks
from risfast.ops.devices import serve_gpu
from risfast.ops.peaks_reference import local_maxima_3d_reference, nms_3d_reference


def _mark_outputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output)


def _no_gradient(count: int) -> Any:
    """A backward for ``count`` inputs that is never reached by a gradient."""
    return lambda ctx, *gradients: (None,) * count


@torch.library.custom_op("risfast::local_maxima_3d", mutates_args=())
def local_maxima_op(
    volume: Tensor, window: Sequence[int], k: int, threshold: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Local maxima as a torch custom op."""
    return local_maxima_3d_reference(volume, window, k, threshold)


@local_maxima_op.register_fake
def _local_maxima_fake(
    volume: Tensor, window: Sequence[int], k: int, threshold: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    batch = volume.shape[0]
    return (
        volume.new_empty((batch, k, 3), dtype=torch.int64),
        volume.new_empty((batch, k)),
        volume.new_empty((batch,), dtype=torch.int64),
    )


serve_gpu(local_maxima_op, local_maxima_3d_reference, register_cuda_peaks.local_maxima_cuda)
local_maxima_op.register_autograd(_no_gradient(4), setup_context=_mark_outputs)


@local_maxima_op.register_vmap
def _local_maxima_vmap(
    info: Any, in_dims: tuple[Any, ...], volume: Tensor, window: Sequence[int], k: int, threshold: float | None
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    folded, lanes = _fold(volume, in_dims[0])
    results = torch.ops.risfast.local_maxima_3d(folded, window, k, threshold)
    return tuple(r.reshape(*lanes, *r.shape[1:]) for r in results), (0, 0, 0)


@torch.library.custom_op("risfast::nms_3d", mutates_args=())
def nms_op(
    position: Tensor, score: Tensor, separation: Sequence[float], k: int, wrap_azimuth: bool
) -> tuple[Tensor, Tensor]:
    """Greedy suppression as a torch custom op."""
    return nms_3d_reference(position, score, separation, k, wrap_azimuth)


@nms_op.register_fake
def _nms_fake(
    position: Tensor, score: Tensor, separation: Sequence[float], k: int, wrap_azimuth: bool
) -> tuple[Tensor, Tensor]:
    batch = score.shape[0]
    return score.new_empty((batch, k), dtype=torch.int64), score.new_empty((batch,), dtype=torch.int64)


serve_gpu(nms_op, nms_3d_reference, register_cuda_peaks.nms_cuda)
nms_op.register_autograd(_no_gradient(5), setup_context=_mark_outputs)


@nms_op.register_vmap
def _nms_vmap(
    info: Any,
    in_dims: tuple[Any, ...],
    position: Tensor,
    score: Tensor,
    separation: Sequence[float],
    k: int,
    wrap_azimuth: bool,
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    if in_dims[0] is None:
        position = position.expand(info.batch_size, *position.shape)
    if in_dims[1] is None:
        score = score.expand(info.batch_size, *score.shape)
    positions, lanes = _fold(position, in_dims[0])
    scores, _ = _fold(score, in_dims[1])
    results = torch.ops.risfast.nms_3d(positions, scores, separation, k, wrap_azimuth)
    return tuple(r.reshape(*lanes, *r.shape[1:]) for r in results), (0, 0)


def _fold(tensor: Tensor, lane_axis: int | None) -> tuple[Tensor, tuple[int, int]]:
    """Merge the mapped axis into the batch, and say what to unfold to."""
    moved = tensor.movedim(lane_axis or 0, 0)
    return moved.flatten(0, 1), (moved.shape[0], moved.shape[1])
