"""In which order a launch is executed, and what came of it; the same for every machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# As ``enum fault`` of memory.h has them.
FAULT_NAMES = (
    "read out of bounds",
    "write out of bounds",
    "uninitialised read",
    "read/write race",
    "write/write race",
    "read before write is complete",
    "programs share a byte",
    "misaligned",
    "race of lanes",
    "copy not waited for",
    "divergent lanes",
    "benign writes",
)
BENIGN = "benign writes"
MESSAGE_BYTES = 4096
LARGEST_ERROR = "largest error"  # the property of a test that its judge records


@dataclass(frozen=True)
class Order:
    """How waves and programs take turns, and what memory that nothing was written to holds.

    Attributes
    ----------
    waves : {"first", "last", "alternating", "random"}
        Each wave runs to its next barrier, from the first wave or from the last; a switch at every instruction; random
        slices of up to 40 instructions.
    programs_reversed : bool
    poison : int
        Start of the garbage in registers and shared memory.
    seed : int
        Of random slices and of ``noise``.
    noise : bool
        Reciprocals, roots and exponentials may be off by a unit in the last place, as on the GPU.
    step : int
        Only every ``step``-th program runs.
    """

    waves: str = "first"
    programs_reversed: bool = False
    poison: int = 0x7FE50000
    seed: int = 1
    noise: bool = False
    step: int = 1


FORWARD = Order()
BACKWARD = Order("last", programs_reversed=True, poison=0x01234567)
TWO_ORDERS = (FORWARD, BACKWARD)
ALL_ORDERS = (
    *TWO_ORDERS,
    Order("random", seed=2),
    Order("alternating", programs_reversed=True, poison=0xFFF80001, seed=3),
)


@dataclass(frozen=True)
class Outcome:
    """What an execution reported."""

    faults: dict[str, int]
    message: str
    instructions: int

    @classmethod
    def of(cls, counts: Sequence[int], message: str, instructions: int) -> Outcome:
        """From the counts of memory.h."""
        found = {name: int(count) for name, count in zip(FAULT_NAMES, counts, strict=True) if count}
        return cls(found, message, instructions)

    @property
    def errors(self) -> dict[str, int]:
        """The faults that are errors."""
        return {name: count for name, count in self.faults.items() if name != BENIGN}
