"""Clocks of a GPU: events, graph replays, ceilings, peak memory; without one, a single call that measures nothing."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

_MOST_COPIES = 64
_CALLS = 30
_SECONDS = 1.0  # of one measurement, about
_COPY_BYTES = 1 << 30
_GEMM_SIZE = 8192


@dataclass(frozen=True)
class Timing:
    """Seconds of a call: the 20th, 50th and 80th percentile over ``calls``; None where nothing was measured."""

    p20_s: float | None
    p50_s: float | None
    p80_s: float | None
    calls: int
    how: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Measured:
    """A call as it is made, the same replayed from a CUDA graph, and its peak memory beyond inputs."""

    eager: Timing
    graph: Timing
    peak_bytes: int | None
    first_s: float

    @property
    def best_s(self) -> float | None:
        times = [t.p50_s for t in (self.eager, self.graph) if t.p50_s is not None]
        return min(times, default=None)


def _percentiles(seconds: Sequence[float], how: str) -> Timing:
    ordered = sorted(seconds)
    at = [ordered[min(len(ordered) - 1, round(q * (len(ordered) - 1)))] for q in (0.2, 0.5, 0.8)]
    return Timing(at[0], statistics.median(ordered), at[2], len(ordered), how)


def copies_for(inputs: Sequence[torch.Tensor], device: torch.device) -> int:
    """Sets of inputs that together are three times the second-level cache, at most 64."""
    if device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    size = sum(t.numel() * t.element_size() for t in inputs)
    return max(1, min(_MOST_COPIES, math.ceil(3 * cache / max(size, 1))))


def _by_events(call: Callable[[int], Any], calls: int) -> list[float]:
    """Seconds of each call on the device; ``call`` takes the number of the input set."""
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(calls)]
    torch.cuda.synchronize()
    for number, (start, stop) in enumerate(marks):
        start.record()
        call(number)
        stop.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(stop) / 1e3 for start, stop in marks]


def _graph(call: Callable[..., Any], sets: list[tuple[torch.Tensor, ...]], seconds: float) -> Timing:
    """The call captured once for each input set, and the replays timed."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call(*sets[0])
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    held = []  # the outputs live in the memory of the graph
    with torch.cuda.graph(graph):
        held.extend(call(*inputs) for inputs in sets)
    repeats = max(5, min(_CALLS, int(seconds / max(1e-6, _by_events(lambda _: graph.replay(), 3)[-1]))))
    times = [t / len(sets) for t in _by_events(lambda _: graph.replay(), repeats)]
    del held
    return _percentiles(times, f"graph of {len(sets)} calls")


def measure(
    call: Callable[..., Any], inputs: tuple[torch.Tensor, ...], *, capture: bool = True, seconds: float = _SECONDS
) -> Measured:
    """Time a call on its inputs' device: after a warm-up, over input sets that together do not fit the cache.

    Parameters
    ----------
    call : from the inputs to outputs
    inputs : tensors on one device
    capture : bool
        Whether the call can be captured in a CUDA graph. If it raises there, the reason stands in place of the times.
    """
    device = inputs[0].device
    start = time.perf_counter()
    call(*inputs)
    if device.type != "cuda":
        single = Timing(None, None, None, 1, "one call, nothing measured: there is no GPU")
        return Measured(single, single, None, time.perf_counter() - start)
    torch.cuda.synchronize(device)
    first = time.perf_counter() - start
    with torch.cuda.device(device):
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call(*inputs)
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) - before
        sets = [inputs, *(tuple(t.clone() for t in inputs) for _ in range(copies_for(inputs, device) - 1))]
        warm = _by_events(lambda n: call(*sets[n % len(sets)]), 3)
        calls = max(3, min(_CALLS, int(seconds / max(warm[-1], 1e-6))))
        eager = _percentiles(_by_events(lambda n: call(*sets[n % len(sets)]), calls), "events around each call")
        graph = Timing(None, None, None, 0, "not captured")
        if capture:
            most = max(1, min(len(sets), int(seconds / max(warm[-1], 1e-6))))
            try:
                graph = _graph(call, sets[:most], seconds)
            except RuntimeError as error:
                graph = Timing(None, None, None, 0, f"capture failed: {str(error).splitlines()[0]}")
                torch.cuda.synchronize(device)
    return Measured(eager, graph, peak, first)


@dataclass(frozen=True)
class Ceilings:
    """What this device reaches: a large copy (bytes read and written), and matrix products in float32 and tf32."""

    copy_bytes_per_s: float | None
    fp32_flops_per_s: float | None
    tf32_flops_per_s: float | None


def ceilings(device: torch.device) -> Ceilings:
    """Measured once, on random data."""
    if device.type != "cuda":
        return Ceilings(None, None, None)
    with torch.cuda.device(device):
        copy = _copy_rate(device)
        allowed = torch.backends.cuda.matmul.allow_tf32
        try:
            fp32, tf32 = (_product_rate(device, reduced) for reduced in (False, True))
        finally:
            torch.backends.cuda.matmul.allow_tf32 = allowed
    return Ceilings(copy, fp32, tf32)


def _copy_rate(device: torch.device) -> float:
    """Bytes read and written a second by a large copy."""
    source = torch.randn(_COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    return 2 * _COPY_BYTES / statistics.median(_by_events(lambda _: target.copy_(source), 20)[3:])


def _product_rate(device: torch.device, reduced: bool) -> float:
    """Operations a second of a large product of float32 matrices, in tf32 where ``reduced``."""
    torch.backends.cuda.matmul.allow_tf32 = reduced
    a, b = (torch.randn(_GEMM_SIZE, _GEMM_SIZE, device=device) for _ in range(2))
    return 2 * _GEMM_SIZE**3 / statistics.median(_by_events(lambda _: a @ b, 10)[3:])
