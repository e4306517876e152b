"""One process or several: ranks, devices, threads, and the mean of gradients over them."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class World:
    """The processes of a run."""

    rank: int = 0  # This process's number, and how many there are
    size: int = 1  # This process's number, and how many there are
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))  # Where this one computes

    @property
    def leads(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def mean_gradients(self, parameters: Iterable[nn.Parameter], extra: Tensor) -> Tensor:
        """Replace every gradient, and return ``extra``, by its mean over the processes.

        extra (E,) -> (E,)
        """
        # One exchange a step: gradients and figures travel in one vector. A parameter without a gradient counts as
        # zero.
        if self.size == 1:
            return extra
        owners = list(parameters)
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in owners]
        flat = torch.cat([*(g.flatten().float() for g in gradients), extra.to(self.device).float()])
        dist.all_reduce(flat)
        flat /= self.size
        at = 0
        for parameter, gradient in zip(owners, gradients, strict=True):
            parameter.grad = flat[at : at + gradient.numel()].view_as(gradient).to(gradient.dtype)
            at += gradient.numel()
        return flat[at:].to(extra.device, extra.dtype)

    def agree(self, value: int) -> int:
        """What the first process says."""
        if self.size == 1:
            return value
        told = torch.tensor([value], device=self.device)
        dist.broadcast(told, src=0)
        return int(told.item())


@contextmanager
def open_world(device: str) -> Iterator[World]:
    """The processes that torchrun started, or this one alone."""
    chosen = torch.device(device)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"machine.device is {device!r}, but this torch finds no CUDA device; use --machine.device cpu")
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(device=chosen)
        return
    if device == "cuda":
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(chosen)
    # Functions of this module take the group that exists when it is first imported as the default of an argument, and
    # the optimiser imports it. Bound to a live group they would keep it, and its threads, beyond its end: a thread that
    # lets go of its last tensor while the interpreter shuts down aborts the process.
    importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size(), chosen)
        # The first process tests and writes while the others are through: none may take its connections away before
        # all have arrived. After an error nobody waits.
        dist.barrier()
    finally:
        dist.destroy_process_group()


@contextmanager
def machine_settings(threads: int, deterministic: bool) -> Iterator[None]:
    """Threads and determinism for the time of a run; both are as before afterwards."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        if threads:
            torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic or before[1])
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
