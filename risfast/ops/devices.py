"""Where operators compute: the switch of the Triton kernels, and what differs between devices."""

from __future__ import annotations

import contextlib
import os

import torch
from torch import Tensor

__all__ = ["PRECISIONS", "checks_values", "on_host", "serves_kernels", "triton_mode"]

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
