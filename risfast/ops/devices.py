"""Where operators compute: the switches of the Triton kernels, and what is kept on a device between calls."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor

PRECISIONS = ("auto", "ieee", "tf32x3", "tf32")
_MODES = ("0", "1", "interpret")
_SMALL_BYTES = 1 << 21  # of an operand that one thread works on
CACHED_BYTES = 256 << 20  # most of one cache, all its entries together


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


@contextlib.contextmanager
def enough_threads(operand: Tensor) -> Iterator[None]:
    """One thread where an operand is small: its operations are too short to share.

    Two threads gain a third on such a map where all cores are idle, and take ten times as long where they are not.
    """
    threads = torch.get_num_threads()
    if threads == 1 or operand.numel() * operand.element_size() > _SMALL_BYTES:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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


def bytes_of(value: Any) -> int:
    """Bytes of the tensors in a value: ``value.cached_bytes`` where it has that, else of a tensor or its fields."""
    if hasattr(value, "cached_bytes"):
        return int(value.cached_bytes)
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, tuple):
        return sum(map(bytes_of, value))
    return sum(bytes_of(getattr(value, field.name)) for field in fields(value)) if is_dataclass(value) else 0


class ByteCache:
    """The values used last, bounded in bytes. Those that a CUDA graph was captured with stay until ``clear``."""

    def __init__(self, on_gpu: bool, most_bytes: int = CACHED_BYTES) -> None:
        self.on_gpu, self.most_bytes = on_gpu, most_bytes
        self._held: OrderedDict[Any, Any] = OrderedDict()
        self._captured: dict[Any, Any] = {}
        self._lock = Lock()

    def get(self, key: Any, build: Callable[[], Any]) -> Any:
        """The value of a key, built if there is none."""
        capturing = self.on_gpu and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        with self._lock:
            found = self._held.get(key, self._captured.get(key))
            if found is not None:
                if key in self._held:
                    self._held.move_to_end(key)
                if capturing:
                    self._captured[key] = found
                return found
        if capturing:
            raise RuntimeError(
                "the tables of this request are not on the GPU yet, and cannot be made while a CUDA graph is captured; "
                "make the same call once before the capture"
            )
        made = build()
        with self._lock:
            self._held[key] = made
            while len(self._held) > 1 and sum(map(bytes_of, self._held.values())) > self.most_bytes:
                self._held.popitem(last=False)
        return made

    def clear(self) -> None:
        """Forget all, which ends the use of graphs captured with it."""
        with self._lock:
            self._held.clear()
            self._captured.clear()


device_tables = ByteCache(on_gpu=True)  # tables of plans, and small constants such as the axes of a grid


def constant_on(values: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on a device; copied there once for equal contents, because a copy waits for the host."""
    if values.device == device:
        return values
    key = ("constant", values.numpy().tobytes(), values.shape, values.dtype, device)
    moved: Tensor = device_tables.get(key, lambda: values.to(device))
    return moved
