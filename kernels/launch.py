"""What every launcher needs: epilogues, checks of device, size and precision, outputs."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from risfast.errors import ShapeError

EPILOGUES = ("linear", "reciprocal", "complement")
DOT_PRECISIONS = ("ieee", "tf32x3", "tf32")
# Within a scene the kernels count in int32, up to a tile past the end; what a scene is multiplied by is int64.
_MOST_NUMBERS = (1 << 31) - (1 << 12)
# The oldest compute capability that the pinned configurations are compiled for.
_OLDEST_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Epilogue:
    """From a quadratic form q to power."""

    form: str  # scale * q, scale / q, or scale / (offset - q)
    scale: Tensor  # (B,) Positive, so that the best plane is known from q alone
    # Of the complement (N: the squared norm of a steering vector); not looked at otherwise. An int, because Triton
    # would round a Python float to float32 on its way to a float64 kernel
    offset: int = 0

    def __post_init__(self) -> None:
        """Refuse an unknown form."""
        if self.form not in EPILOGUES:
            raise ValueError(f"form must be one of {', '.join(EPILOGUES)}; got {self.form!r}")

    def scale_on(self, batch: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Scale on the device in the dtype of q."""
        if self.scale.shape != (batch,):
            raise ShapeError(f"scale must have shape ({batch},), one number a scene, got {tuple(self.scale.shape)}")
        return self.scale.to(device, dtype).contiguous()


def check_operands(kernel: Any, **tensors: Tensor) -> torch.device:
    """The one device of the tensors, after checking that ``kernel`` can run there."""
    devices = {name: t.device for name, t in tensors.items()}
    if len(set(devices.values())) > 1:
        found = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"all tensors must be on one device, got {found}; move them with .to(device)")
    device = next(iter(devices.values()))
    interpreted = not isinstance(kernel, triton.runtime.jit.JITFunction)
    if device.type == "cpu" and not interpreted:
        raise RuntimeError(
            "a Triton kernel was given CPU tensors; move them to a GPU, use risfast.ops (which has CPU "
            "implementations), or set TRITON_INTERPRET=1 before triton is imported to run the kernel in its interpreter"
        )
    if device.type == "cuda" and torch.version.hip is None:
        capability = torch.cuda.get_device_capability(device)
        if capability < _OLDEST_CAPABILITY:
            raise RuntimeError(
                f"{torch.cuda.get_device_name(device)} has compute capability {capability[0]}.{capability[1]}; the "
                "kernels need 8.0 or newer; set the environment variable RISFAST_TRITON=0, with which risfast.ops "
                "computes in plain torch on that GPU, or move the tensors to the CPU"
            )
    return device


def check_extent(**sizes: int) -> None:
    """Raise ShapeError if one scene, or a table that all scenes share, holds more numbers than int32 can count."""
    for name, size in sizes.items():
        if size > _MOST_NUMBERS:
            raise ShapeError(
                f"{name} of one scene must hold at most {_MOST_NUMBERS} numbers on a GPU, got {size}; cut the grid or "
                "the list of points into parts"
            )


def dot_precision(asked: str | None = None) -> str:
    """Precision of products: what is asked for, or what AMD has that is no less; None asks for that of float32.

    That is three tf32 products on NVIDIA and native float32 matrix instructions on AMD, which has no tf32x3.
    """
    precision = asked or "tf32x3"
    if precision not in DOT_PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(DOT_PRECISIONS)}; got {precision!r}")
    return "ieee" if precision == "tf32x3" and torch.version.hip is not None else precision


def on_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Makes ``device`` current, so that Triton launches there, on that device's current stream."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def unused(like: Tensor, dtype: torch.dtype) -> Tensor:
    """An argument for an output that the kernel was told not to write."""
    return torch.empty(1, dtype=dtype, device=like.device)


def best_and_plane(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Memory for the power of the best plane and its index."""
    return torch.empty(shape, dtype=dtype, device=device), torch.empty(shape, dtype=torch.int32, device=device)
