"""Where operators compute: the switch of the Triton kernels, and one way to register an operator on every device."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

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


# The low-level interface: the wrapper of ``torch.library.custom_op`` imports the compiler with the first call.
_LIBRARY = torch.library.Library("risfast", "DEF")


def define(
    name: str,
    plain: Callable[..., Any],
    kernels: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    schema: str | None = None,
    check: Callable[..., None] | None = None,
    cpu: Callable[..., Any] | None = None,
    batched: int = 0,
    backward: Callable[..., Any] | None = None,
    save: Callable[..., None] | None = None,
) -> Any:
    """Register ``risfast::<name>``: plain torch (a GPU's too, without kernels), the kernels of a GPU, and its fake.

    ``schema`` is read off ``plain`` if not given; ``check`` looks at values before the work; ``cpu`` is a faster
    implementation for the CPU; the first ``batched`` arguments have a batch that ``torch.vmap`` may extend;
    ``backward`` is the gradient from what ``save`` kept, and without it there is none.
    """

    # The products of a body are kept in their precision where autocast is on.
    def on_any(first: Tensor, *args: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            if check is not None:
                check(first, *args)
            return plain(first, *args)

    def by_kernels(first: Tensor, *args: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            if check is not None and checks_values(first.device):
                check(first, *args)
            return kernels(first, *args)

    def on_gpu(first: Tensor, *args: Any) -> Any:
        if triton_mode() != "0":
            return by_kernels(first, *args)
        with torch.device(first.device):
            return on_any(first, *args)

    qualified = f"risfast::{name}"
    schema = schema or torch.library.infer_schema(plain, mutates_args=())
    _LIBRARY.define(name + schema, tags=torch.Tag.pt2_compliant_tag)
    _LIBRARY.impl(name, by_kernels if triton_mode() == "interpret" else cpu or on_any, "CPU")
    _LIBRARY.impl(name, on_gpu, "CUDA")
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)
    torch.library.register_autograd(qualified, backward, setup_context=save, lib=_LIBRARY)  # type: ignore[arg-type]
    op = getattr(torch.ops.risfast, name).default
    if batched:
        torch.library.register_vmap(qualified, _vmap_rule(op, batched), lib=_LIBRARY)
    return op


def _vmap_rule(op: Any, batched: int) -> Callable[..., Any]:
    """The rule of ``torch.vmap``: the mapped dimension of the first arguments becomes part of their batch."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        if any(dim is not None for dim in tree_leaves(in_dims[batched:])):
            raise ValueError("vmap over risfast operators maps the matrix argument only; the geometry is shared")
        merged: list[Tensor | None] = []
        for tensor, dim in zip(args[:batched], in_dims, strict=False):
            if tensor is None:
                merged.append(None)
                continue
            lanes = tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            merged.append(lanes.flatten(0, 1))
        results = op(*merged, *args[batched:])
        several = results if isinstance(results, tuple) else (results,)
        size = len(merged[0])  # type: ignore[arg-type]  # the first is never left out
        # The planes of a volume are empty, and the same for all.
        dims = tuple(0 if len(t) == size else None for t in several)
        split = tuple(t.unflatten(0, (info.batch_size, -1)) if len(t) == size else t for t in several)
        return (split, dims) if isinstance(results, tuple) else (split[0], dims[0])

    return rule
