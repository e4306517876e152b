"""The arguments of a launch as bytes, each at a multiple of its size: the same on every GPU."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

# Size and format of arguments by Triton's type; pointers are u64.
FORMATS = {"i1": "<?", "i8": "<b", "u8": "<B", "i16": "<h", "i32": "<i", "u32": "<I", "i64": "<q", "u64": "<Q"}
FORMATS |= {"fp32": "<f", "fp64": "<d"}
# Behind the arguments that a kernel names Triton adds two pointers to scratch memory.
SCRATCH_POINTERS = 16


def kernel_arguments(signature: dict[str, str], values: dict[str, Any]) -> np.ndarray:
    """The segment of arguments: Triton's types by name, and their values."""
    data = b""
    for name, kind in signature.items():
        if kind == "constexpr":
            continue
        if kind.startswith("*"):
            item = struct.pack("<Q", values[name].data_ptr())
        else:
            item = struct.pack(FORMATS[kind], values[name])
        data += b"\0" * (-len(data) % len(item)) + item
    data += b"\0" * (-len(data) % 8 + SCRATCH_POINTERS)
    return np.frombuffer(data, np.uint8).copy()
