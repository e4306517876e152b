"""Where operators compute: the switch of the Triton kernels, and what differs between devices."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

PRECISIONS = ("auto", "ieee", "tf32x3", "tf32")
_MODES = ("0", "1", "interpret")


def triton_mode() -> str:
    """What the environment variable ``RISFAST_TRITON`` says."""
    mode = os.environ.get("RISFAST_TRITON", "1")
    if mode not in _MODES:
        raise ValueError(f"the environment variable RISFAST_TRITON must be one of {', '.join(_MODES)}; got {mode!r}")
    return mode


def serves_kernels(tensor: Tensor) -> bool:
    """Whether an operator on this tensor runs the kernels of a GPU."""
    mode = triton_mode()
    return mode == "interpret" if tensor.device.type == "cpu" else tensor.device.type == "cuda" and mode == "1"


def checks_values(device: torch.device) -> bool:
    """Whether values (NaN, Hermitian, definite) are looked at before the work."""
    # Always on the CPU. On a GPU the host would have to wait for the answer: only where the environment variable
    # ``RISFAST_CHECK_VALUES`` is 1; without it an invalid scene comes out as NaN and leaves the others alone.
    return device.type == "cpu" or os.environ.get("RISFAST_CHECK_VALUES", "0") == "1"


def on_host(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Where plans are made: new tensors are on the CPU, also while plain torch computes on another device."""
    return contextlib.nullcontext() if device.type == "cpu" else torch.device("cpu")


def kernel_module(name: str) -> Any:
    """``risfast.kernels.<name>``, imported when it is first needed: importing risfast needs no Triton."""
    try:
        return importlib.import_module(f"risfast.kernels.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "triton":
            raise
        raise RuntimeError(
            "CUDA tensors are computed by Triton kernels, and Triton is not installed; run pip install triton, or "
            "set the environment variable RISFAST_TRITON=0 for plain torch"
        ) from error


def serve_gpu(op: Any, plain: Callable[..., Any], kernels: Callable[..., Any]) -> None:
    """Register the CUDA implementation of a custom op."""

    def on_gpu(first: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if triton_mode() == "0":
            with torch.device(first.device):
                return plain(first, *args, **kwargs)
        return kernels(first, *args, **kwargs)

    op.register_kernel("cuda", on_gpu)
    if triton_mode() == "interpret":
        op.register_kernel("cpu", kernels)


def serve_cpu(op: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the CPU implementation of an op that has one for any device, unless kernels serve the CPU."""

    def register(implementation: Callable[..., Any]) -> Callable[..., Any]:
        if triton_mode() != "interpret":
            op.register_kernel("cpu", implementation)
        return implementation

    return register
