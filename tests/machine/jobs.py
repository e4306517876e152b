"""What the C parts of all machines are handed in the same way: memory that may be touched, and the order of waves."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from tests.machine.building import build
from tests.machine.outcome import Order

u32, i32, u64 = ctypes.c_uint32, ctypes.c_int32, ctypes.c_uint64
# Operands above this have bounds alone: the shadow takes 32 times as much.
_MOST_SHADOWED_BYTES = 16 << 20
STATUS = {1: "the program counter left the code", 2: "more instructions than any program should need"}
_ORDERS = {"first": 0, "last": 1, "alternating": 2, "random": 3}


class Extent(ctypes.Structure):
    """Mirrors ``struct extent`` of memory.h."""

    _fields_ = [("base", u64), ("size", u64), ("shadow", i32)]


def extents_of(operands: Iterable[tuple[int, int]], *unshadowed: tuple[int, int]) -> Any:
    """Addresses and sizes as an array of Extent; those of the end have bounds alone."""
    all_of_them = [Extent(start, size, int(size <= _MOST_SHADOWED_BYTES)) for start, size in operands]
    all_of_them += [Extent(start, size, 0) for start, size in unshadowed]
    return (Extent * len(all_of_them))(*all_of_them)


def order_fields(order: Order) -> dict[str, int]:
    """The fields of a job that say in which order, and with what garbage."""
    return {
        "order": _ORDERS[order.waves],
        "programs_reversed": int(order.programs_reversed),
        "seed": order.seed,
        "poison": order.poison,
        "noise": int(order.noise),
        "step": order.step,
    }


@lru_cache(maxsize=4)
def library(name: str, source: str, job: type[ctypes.Structure], folder: Path) -> ctypes.CDLL:
    """A machine built from its C text, once a process."""
    made = build(name, source, folder)
    made.run.argtypes = [ctypes.POINTER(job)]
    made.run.restype = None
    return made
