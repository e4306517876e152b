"""Weights of synthesis on a GPU: of every point of a grid, or of one range plane in each direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from risfast.errors import ShapeError


@triton.jit
def load_weight(  # type: ignore[no-untyped-def]
    weight_ptr, plane_ptr, scene, index, r, G, R, there, WINNER: tl.constexpr
) -> Any:
    """Weight of point ``index`` of G on plane r of [B, R, G]; with WINNER of [B, G], 0 on planes that did not win."""
    place = scene * G + index if WINNER else (scene * R + r) * G + index
    weight = tl.load(weight_ptr + place, mask=there, other=0.0)
    if WINNER:
        weight = tl.where(tl.load(plane_ptr + place, mask=there, other=-1) == r, weight, 0.0)
    return weight


@dataclass(frozen=True, eq=False)
class PointWeights:
    """Real weights of the points, in the layout of the powers that analysis returns."""

    values: Tensor  # (B, G_az, G_el, R)
    plane: Tensor | None = None  # (B, G_az, G_el) The winning planes: the weights are for them alone

    def __post_init__(self) -> None:
        """Refuse planes that do not belong to the values."""
        if self.plane is not None and self.plane.shape != self.values.shape:
            raise ShapeError(
                f"plane must have the shape of the weights, {tuple(self.values.shape)}, got {tuple(self.plane.shape)}"
            )

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ShapeError unless the weights are for points of this shape, (G_az, G_el, R) or (G,)."""
        expected = shape[:2] if self.plane is not None else shape
        if self.plane is not None and len(shape) != 3:
            raise ShapeError("winning planes are those of a box grid; a list of points has none")
        if self.values.ndim != len(expected) + 1 or tuple(self.values.shape[1:]) != expected:
            wanted = ", ".join(map(str, ("B", *expected)))
            raise ShapeError(f"weights must have shape ({wanted}), got {tuple(self.values.shape)}")

    def tensors(self) -> dict[str, Tensor]:
        """What must be on one device."""
        return {"weights": self.values} if self.plane is None else {"weights": self.values, "plane": self.plane}

    def operands(self, dtype: torch.dtype, azimuth_last: bool) -> tuple[Tensor, Tensor]:
        """(values, plane) as the kernels read them: [B, R, G] or [B, G], in ``dtype``."""

        # Without a copy where they are stored as the analysis of the same method stores its results: plane by plane,
        # with azimuth last in memory for the lag method.
        def stored(tensor: Tensor) -> Tensor:
            if tensor.ndim == 4:
                return tensor.permute(0, 3, 2, 1) if azimuth_last else tensor.permute(0, 3, 1, 2)
            return tensor.mT if azimuth_last else tensor

        values = stored(self.values).to(dtype).contiguous()
        # Without planes the values stand in for them, and are not read.
        return values, values if self.plane is None else stored(self.plane).to(torch.int32).contiguous()
