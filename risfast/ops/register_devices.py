"""One op, several devices: plain torch on the CPU, kernels on a GPU, or plain torch there where they are turned off."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from risfast.ops.devices import triton_mode

__all__ = ["kernel_module", "serve_cpu", "serve_gpu"]


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
