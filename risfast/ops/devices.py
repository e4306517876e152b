"""Where operators compute: the switches of the Triton kernels."""

from __future__ import annotations

import contextlib
import importlib
import os
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
