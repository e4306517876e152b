"""What stays on a GPU between calls: tables of plans, and small constants such as the axes of a grid."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from risfast.ops.plan import on_clear

_KEPT_BYTES = 256 << 20


def bytes_of(tables: Any) -> int:
    """Bytes of the tensors in tables."""
    if isinstance(tables, Tensor):
        return tables.numel() * tables.element_size()
    if isinstance(tables, tuple):
        return sum(map(bytes_of, tables))
    if not is_dataclass(tables):
        return 0
    return sum(bytes_of(getattr(tables, field.name)) for field in fields(tables))


class KeptTables:
    """The tables used last, bounded in bytes. Those that a CUDA graph was captured with stay until ``clear``."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._held: OrderedDict[Any, Any] = OrderedDict()
        self._captured: dict[Any, Any] = {}
        self._lock = Lock()

    def get(self, key: Any, build: Callable[[], Any]) -> Any:
        """What is kept for the key, built if nothing is."""
        capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
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
        """Forget all, which ends the use of graphs captured with them."""
        with self._lock:
            self._held.clear()
            self._captured.clear()


kept_tables = KeptTables(_KEPT_BYTES)
on_clear(kept_tables.clear)


def constant_on(values: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on a device; copied there once for equal contents, because a copy waits for the host."""
    if values.device == device:
        return values
    key = ("constant", values.numpy().tobytes(), values.shape, values.dtype, device)
    moved: Tensor = kept_tables.get(key, lambda: values.to(device))
    return moved
