"""Operands of more than 2^31 numbers for kernel tests: files with holes, of which only touched pages take room.

Of a launch only the last programs run, in Triton's interpreter, whose int32 arithmetic wraps around as that of a GPU
does; every address is looked at. Import it where Triton's interpreter is on.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import oracles
import torch
import triton.language as tl
from triton.runtime import interpreter

sys.path.append(str(Path(__file__).resolve().parents[2]))
from bench.gpu_compiled import kernel_module
from bench.gpu_interpreter import patch_once_a_launch
from risfast.ops.domain import domain_of

patch_once_a_launch()
launch = kernel_module("launch")

PAST = 1 << 31
NUMPY = {torch.float32: np.float32, torch.float64: np.float64, torch.int32: np.int32, torch.int64: np.int64}
NUMPY |= {torch.int8: np.int8, torch.complex64: np.complex64, torch.complex128: np.complex128}
LATTICE = oracles.rectangular(4, 3)
N = len(LATTICE)
REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}


def beyond(numbers):
    """Scenes whose ``numbers`` each add up to more than 2^31; a multiple of 8, as some programs take several."""
    return PAST // numbers // 8 * 8 + 16


def memory_with_holes(folder, monkeypatch):
    """A function like torch.zeros, for more than there is memory; torch.empty becomes it for large tensors."""
    count = iter(range(1000))

    def zeros(*shape, dtype=torch.float32):
        size = math.prod(shape)
        file = np.memmap(folder / str(next(count)), NUMPY[dtype], "w+", shape=(size,))
        return torch.from_numpy(file).reshape(shape)

    empty = torch.empty

    def empty_or_holes(*shape, dtype=torch.float32, device=None):
        sizes = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        return zeros(*sizes, dtype=dtype) if math.prod(sizes) > 1 << 24 else empty(*sizes, dtype=dtype, device=device)

    monkeypatch.setattr(torch, "empty", empty_or_holes)
    monkeypatch.setattr(torch, "empty_like", lambda like: empty_or_holes(*like.shape, dtype=like.dtype))
    return zeros


def memory_of(args):
    """First and last address of the storage of every tensor."""
    storages = [arg.untyped_storage() for arg in args if isinstance(arg, torch.Tensor)]
    return [(storage.data_ptr(), storage.data_ptr() + storage.nbytes()) for storage in storages]


def assert_inside(pointers, mask, memory):
    """A wrapped offset would end the process where it is read: it is refused before."""
    there = np.broadcast_to(mask.data, pointers.data.shape)
    at = pointers.data[there].astype(np.uint64)
    known = np.zeros(at.shape, bool)
    for first, end in memory:
        known |= (at >= first) & (at < end)
    assert known.all(), "an address outside all operands"


def last_programs(monkeypatch):
    """A function of n: from then on only the last n programs of a launch run, and their addresses are looked at."""
    run = interpreter.GridExecutor.__call__
    builder = interpreter.interpreter_builder
    load, store = builder.create_masked_load, builder.create_masked_store

    def only(programs):
        def call(self, *args, **kwargs):
            first = max(0, self.grid[0] - programs)
            self.grid = (self.grid[0] - first,)
            memory = memory_of(args)

            def program_id(axis):
                number = np.array([builder.grid_idx[axis] + first], np.int32)
                return interpreter.TensorHandle(number, tl.int32)

            def checked_load(pointers, mask, *rest):
                assert_inside(pointers, mask, memory)
                return load(pointers, mask, *rest)

            def checked_store(pointers, value, mask, *rest):
                assert_inside(pointers, mask, memory)
                return store(pointers, value, mask, *rest)

            with monkeypatch.context() as patch:
                patch.setattr(builder, "create_get_program_id", program_id)
                patch.setattr(builder, "create_masked_load", checked_load)
                patch.setattr(builder, "create_masked_store", checked_store)
                return run(self, *args, **kwargs)

        monkeypatch.setattr(interpreter.GridExecutor, "__call__", call)

    return only


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def ending(zeros, batch, tail):
    """A batch of holes that ends with the scenes ``tail``."""
    whole = zeros(batch, *tail.shape[1:], dtype=tail.dtype)
    whole[-len(tail) :] = tail
    return whole


def box(n_az=5, n_el=3, ranges=(0.8, 3.0), wavefront="spherical"):
    axes = (torch.linspace(-0.8, 0.7, n_az).double(), torch.linspace(-0.4, 0.3, n_el).double(), torch.tensor(ranges))
    return domain_of(torch.as_tensor(LATTICE), (axes[0], axes[1], axes[2].double()), 20.9, wavefront, True)


def many_points(count):
    """A list of points in which only the last few differ."""
    position = torch.tensor([[0.3, 0.1, 2.0]]).expand(count, 3).double().clone()
    position[-8:, 0] = torch.linspace(-0.5, 0.5, 8)
    return domain_of(torch.as_tensor(LATTICE), tuple(position.mT.contiguous()), 20.9, "spherical", False)


def epilogue(batch, form="linear", offset=0):
    return launch.Epilogue(form, torch.ones(batch), offset)


def equal_to_rounding(actual, expected):
    """Equal integers; floats within a few roundings of the largest: past 2^31 bytes a GPU runs another binary."""
    if expected.is_floating_point() or expected.is_complex():
        rounding = 4 * torch.finfo(expected.dtype).eps * float(expected.abs().max())
        torch.testing.assert_close(actual, expected, rtol=0, atol=rounding)
    else:
        assert torch.equal(actual, expected)


def equal_at_the_end(actual, expected, count=1):
    """The last scenes of both, to rounding, and not all zero."""
    equal_to_rounding(actual[-count:], expected[-count:])
    assert bool((expected[-count:] != 0).any())
