"""Compiles a launch exactly as a launch on a GPU would, on a machine without one.

What Triton compiles depends on more than the types of the arguments: sizes of one become constants, sizes and addresses
that 16 divides are known to be so, and on AMD an operand below 2 GB is reached with buffer instructions. All of it is
decided by ``JITFunction.run``, so that is what compiles here, with a driver that only names the target. It needs a
process without Triton's interpreter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

TARGETS = {"sm_80": ("cuda", 80, 32), "sm_90": ("cuda", 90, 32), "gfx942": ("hip", "gfx942", 64)}


@dataclass(frozen=True)
class Operand:
    """A tensor as the specialisation of a launch sees it."""

    dtype_name: str
    address: int  # only its remainder by 16 is looked at
    storage_bytes: int

    @property
    def dtype(self) -> Any:
        """The dtype of torch."""
        import torch

        return getattr(torch, self.dtype_name)

    def data_ptr(self) -> int:
        """Address of the first entry."""
        return self.address

    def ptr_range(self) -> int:
        """Bytes behind the pointer, which Triton compares with 2 GB."""
        return self.storage_bytes


@dataclass(frozen=True)
class TypeName:
    """A Triton dtype among the constants of a launch, by its name: dtypes themselves belong to a process."""

    name: str

    def in_triton(self) -> Any:
        """The dtype of triton.language."""
        import triton.language as tl

        return getattr(tl, self.name)


class _NamedTarget:
    """A driver without a device: what JITFunction.run asks for until it would launch."""

    def __init__(self, target: str) -> None:
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget(*TARGETS[target])

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_for(target: str) -> None:
    """Every launch of this process is compiled for ``target``: Triton's caches know devices, not targets."""
    import triton

    triton.runtime.driver.set_active(_NamedTarget(target))


def compile_launch(kernel: Any, arguments: dict[str, Any], options: dict[str, Any]) -> Any:
    """The compiled kernel of a launch: arguments by name, tensors as :class:`Operand`, dtypes as :class:`TypeName`."""
    given = {name: value.in_triton() if isinstance(value, TypeName) else value for name, value in arguments.items()}
    return kernel.run(grid=(1,), warmup=True, **given, **options)
