"""Weights of synthesis on a GPU: given as they are, or made in the kernels from the gradient of a power.

The gradient of sum_g c_g P_g passes through P(q) to weights c_g dP/dq of a_g a_g^H, and through a maximum over planes
only to the winning plane. Neither the weights nor their volume need memory of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from risfast.errors import ShapeError
from risfast.ops.spectra import Epilogue


@triton.jit
def load_weight(  # type: ignore[no-untyped-def]
    weight_ptr, power_ptr, plane_ptr, scale, scene, index, r, G, R, there, FORM: tl.constexpr, WINNER: tl.constexpr
) -> Any:
    """Weight of point ``index`` of G on plane r: w, or w dP/dq; 0 on planes that did not win.

    Arrays are [B, R, G], or [B, G] with WINNER. FORM is "given" for weights that are not multiplied by a derivative.
    """
    place = scene * G + index if WINNER else (scene * R + r) * G + index
    weight = tl.load(weight_ptr + place, mask=there, other=0.0)
    if FORM == "linear":
        weight *= scale
    if FORM == "reciprocal" or FORM == "complement":  # noqa: PLR1714 (Triton knows no membership)
        power = tl.load(power_ptr + place, mask=there, other=0.0)
        slope = power * (power / scale)  # P = s / q and s / (N - q): dP/dq = -P^2 / s and P^2 / s
        weight *= -slope if FORM == "reciprocal" else slope
    if WINNER:
        weight = tl.where(tl.load(plane_ptr + place, mask=there, other=-1) == r, weight, 0.0)
    return weight


@dataclass(frozen=True, eq=False)
class PointWeights:
    """Real weights of the points, in the layout of the powers that analysis returns."""

    values: Tensor  # (B, G_az, G_el, R) Weights p, or the gradient with respect to ``power``
    epilogue: Epilogue | None = None  # That made ``power`` from q: the weights are then ``values`` times dP/dq
    power: Tensor | None = None  # Needed with a reciprocal or complement epilogue
    plane: Tensor | None = None  # (B, G_az, G_el) The winning planes: the weights are for them alone

    def __post_init__(self) -> None:
        """Refuse a power or planes that do not belong to the values."""
        if self.epilogue is not None and self.epilogue.form != "linear" and self.power is None:
            raise ValueError(f"a {self.epilogue.form} epilogue needs the power that it made")
        for name, tensor in (("power", self.power), ("plane", self.plane)):
            if tensor is not None and tensor.shape != self.values.shape:
                raise ShapeError(
                    f"{name} must have the shape of the weights, {tuple(self.values.shape)}, got {tuple(tensor.shape)}"
                )

    @property
    def form(self) -> str:
        """The epilogue's form, or "given"."""
        return "given" if self.epilogue is None else self.epilogue.form

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
        named = {"weights": self.values, "power": self.power, "plane": self.plane}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def operands(self, dtype: torch.dtype, azimuth_last: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(values, power, plane, scale [B]) as the kernels read them: [B, R, G] or [B, G], in ``dtype``."""
        # Without a copy where they are stored as the analysis of the same method stores its results: plane by plane,
        # with azimuth last in memory for the lag method. What is not used is stood in for by the values.
        batch, device = self.values.shape[0], self.values.device

        def stored(tensor: Tensor) -> Tensor:
            if tensor.ndim == 4:
                return tensor.permute(0, 3, 2, 1) if azimuth_last else tensor.permute(0, 3, 1, 2)
            return tensor.mT if azimuth_last else tensor

        values = stored(self.values).to(dtype).contiguous()
        power = values if self.power is None else stored(self.power).to(dtype).contiguous()
        plane = values if self.plane is None else stored(self.plane).to(torch.int32).contiguous()
        scale = values if self.epilogue is None else self.epilogue.scale_on(batch, dtype, device)
        return values, power, plane, scale
