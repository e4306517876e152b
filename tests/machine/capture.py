"""Launches of kernels caught where Triton's interpreter would run them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Launch:
    """A kernel, its arguments by name, and how many programs of it run.

    Attributes
    ----------
    module, kernel : str
        Names of the module and of the function in it.
    file : str
        The file of the module, for kernels that are not in ``risfast.kernels``.
    arguments : dict
        In the order of the function: tensors, numbers, constants.
    options : dict
        Such as ``num_warps``.
    grid : tuple of int
        Programs along three axes.
    first : int
        Number of the first program along the first axis: 0, but for tests that run only the last programs of a launch.
    """

    module: str
    kernel: str
    file: str
    arguments: dict[str, Any]
    options: dict[str, Any]
    grid: tuple[int, int, int]
    first: int = 0

    def tensors(self) -> dict[str, torch.Tensor]:
        """The operands, by name."""
        return {name: value for name, value in self.arguments.items() if isinstance(value, torch.Tensor)}

    def extents(self) -> list[tuple[int, int]]:
        """First address and bytes of what the operands hold, not what is around; those of one storage together."""
        found: dict[int, tuple[int, int]] = {}
        for tensor in self.tensors().values():
            storage = tensor.untyped_storage().data_ptr()
            start, end = _extent(tensor)
            if storage in found:
                start, end = min(start, found[storage][0]), max(end, found[storage][1])
            found[storage] = start, end
        return [(start, end - start) for start, end in found.values()]

    def memory(self) -> list[np.ndarray]:
        """The bytes of every storage, to be kept and restored."""
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in self.tensors().values()}
        return [_bytes_of(storage) for storage in storages.values() if storage.nbytes()]


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    start = tensor.data_ptr()
    if tensor.numel() == 0:
        return start, start
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.element_size()


def _bytes_of(storage: torch.UntypedStorage) -> np.ndarray:
    return torch.tensor([], dtype=torch.uint8).set_(storage).numpy()


def launch_of(executor: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Launch:
    """The launch that Triton's interpreter was given."""
    function = executor.fn
    names = inspect.getfullargspec(function).args
    options = {name: value for name, value in named.items() if name not in names and name not in ("warmup", "grid")}
    bound = inspect.getcallargs(function, *arguments, **{name: v for name, v in named.items() if name in names})
    ordered = {name: bound[name] for name in names}
    grid = executor.grid(ordered) if callable(executor.grid) else executor.grid
    x, y, z = (*grid, 1, 1, 1)[:3]
    return Launch(
        function.__module__,
        function.__name__,
        function.__code__.co_filename,
        ordered,
        options,
        (int(x), int(y), int(z)),
        _first_program(),
    )


def _first_program() -> int:
    """Where a test makes program_id count from (tests/helpers/large_operands.py), its first number; otherwise 0."""
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    if builder.create_get_program_id.__name__ != "program_id":
        return 0
    builder.grid_idx = (0, 0, 0)
    return int(np.asarray(builder.create_get_program_id(0).data).reshape(-1)[0])


@contextmanager
def captured(execute: Callable[[Launch, Callable[[], None]], None]) -> Iterator[None]:
    """Every launch goes to ``execute(launch, interpret)``; ``interpret()`` runs it in Triton's interpreter."""
    from triton.runtime import interpreter

    original = interpreter.GridExecutor.__call__

    def call(self: Any, *arguments: Any, **named: Any) -> None:
        execute(launch_of(self, arguments, named), lambda: original(self, *arguments, **named))

    interpreter.GridExecutor.__call__ = call
    try:
        yield
    finally:
        interpreter.GridExecutor.__call__ = original
