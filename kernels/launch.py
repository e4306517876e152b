"""What every launcher needs: checks of device, size and precision, the launch itself, outputs."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from risfast.errors import ShapeError
from risfast.ops.spectra import Epilogue

# What a kernel of maps and volumes writes: power of the best plane and its index, or the volume.
Outputs = tuple[Tensor, Tensor, Tensor | None]

DOT_PRECISIONS = ("ieee", "tf32x3", "tf32")
# Within a scene the kernels count in int32, up to a tile past the end; what a scene is multiplied by is int64.
_MOST_NUMBERS = (1 << 31) - (1 << 12)
# The oldest compute capability that the pinned configurations are compiled for.
_OLDEST_CAPABILITY = (8, 0)


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


def launch(kernel: Any, programs: int, device: torch.device, *arguments: Any, **constants: Any) -> None:
    """Run so many programs of a kernel on the current stream of a device; none is no launch."""
    if programs:
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            kernel[(programs,)](*arguments, **constants)


def interleaved(matrix: Tensor) -> Tensor:
    """Complex numbers as the kernels read them, in real and imaginary parts.

    matrix (...) -> (..., 2)
    """
    return torch.view_as_real(matrix.resolve_conj()).contiguous()


def accumulator(dtype: torch.dtype) -> Any:
    """Triton's type of a real dtype."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def best_and_plane(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Memory for the power of the best plane and its index."""
    return torch.empty(shape, dtype=dtype, device=device), torch.empty(shape, dtype=torch.int32, device=device)


def map_or_volume(shape: tuple[int, ...], volume: bool, dtype: torch.dtype, device: torch.device) -> Outputs:
    """Memory for a map and its planes, and None; or for a volume, beside one number for what is not written.

    shape (B, R, ...)
    """
    if volume:
        return *best_and_plane((1,), dtype, device), torch.empty(shape, dtype=dtype, device=device)
    return *best_and_plane((shape[0], *shape[2:]), dtype, device), None


def written(epilogue: Epilogue, outputs: Outputs, batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Scale, best power, its plane, volume and offset, as the kernels of maps and volumes take them."""
    best, plane, volume = outputs
    scale = epilogue.scale_on(batch, best.dtype, best.device)
    return scale, best, plane, best if volume is None else volume, epilogue.offset


def power_and_plane(outputs: Outputs) -> tuple[Tensor, Tensor]:
    """The map and its planes; or the volume [B, X, Y, R], stored plane by plane, or values [B, G], and no planes."""
    best, plane, volume = outputs
    if volume is None:
        return best, plane
    return volume.permute(0, 2, 3, 1) if volume.ndim == 4 else volume, plane[:0]
