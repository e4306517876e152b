"""How a contestant enters a benchmark: memory, then the gate, then the clock, then the figures."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bench.accuracy import Errors, require_accuracy
from bench.measure import peak_memory, synchronised

_SECONDS_A_BENCHMARK = 1.0
_FEWEST_ROUNDS, _MOST_ROUNDS = 3, 20
_SLOW_SECONDS = 5.0


@dataclass(frozen=True)
class Entry:
    """One timed contestant."""

    group: str
    name: str
    is_peer: bool
    batch: int
    seconds: float
    points_per_second: float
    peak_mb: float
    errors: Errors
    best_peer: Entry | None = None

    @property
    def ratio(self) -> float | None:
        """Points per second over those of the best peer."""
        return None if self.best_peer is None else self.points_per_second / self.best_peer.points_per_second


@dataclass
class Registry:
    """What was timed in this session."""

    entries: list[Entry] = field(default_factory=list)

    def best_peer(self, group: str) -> Entry | None:
        """The peer of a group with the most points a second."""
        rivals = [entry for entry in self.entries if entry.is_peer and entry.group == group]
        return max(rivals, key=lambda entry: entry.points_per_second, default=None)


@dataclass(frozen=True)
class Match:
    """What a contestant computes in a benchmark, and whom it is compared with.

    Attributes
    ----------
    group : str
        Everything timed on the same work.
    points, batch : int
        Values that a call computes, over how many scenes.
    peer_group : str or None
        Where the peers are, if they were timed on fewer scenes; by default in the same group.
    """

    group: str
    points: int
    batch: int
    peer_group: str | None = None


def rounds_for(call: Callable[[], Any], first_seconds: float) -> int:
    """As many rounds as fit into a second, at least 3 and at most 20; one where a call takes more than five seconds.

    The first call may have made a plan, so another one tells how long a call takes.
    """
    if first_seconds > _SLOW_SECONDS:
        return 1
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    return max(_FEWEST_ROUNDS, min(_MOST_ROUNDS, int(_SECONDS_A_BENCHMARK / max(seconds, 1e-6))))


def enter(
    benchmark: Any,
    registry: Registry,
    match: Match,
    name: str,
    prepare: Callable[[], Callable[[], Any]],
    check: Callable[[Any], Errors],
    bound_db: float,
    *,
    is_peer: bool,
) -> Any:
    """Time a contestant whose result is right, and put the figures into ``extra_info``.

    Parameters
    ----------
    benchmark : pytest-benchmark's fixture
    prepare : what the call may keep is made here; it is not timed but counts as memory
    check : from a result to its errors
    bound_db : the documented error

    Returns
    -------
    What the call returns.

    Raises
    ------
    InaccurateContestantError
        The errors exceed the bound; nothing was timed.
    """
    with peak_memory() as peak:
        call = synchronised(prepare())
        start = time.perf_counter()
        result = call()
        first = time.perf_counter() - start
    errors = check(result)
    require_accuracy(name, errors, bound_db)
    benchmark.group = match.group
    benchmark.pedantic(call, rounds=rounds_for(call, first))
    seconds = benchmark.stats.stats.median if benchmark.stats is not None else first
    entry = Entry(
        group=match.group,
        name=name,
        is_peer=is_peer,
        batch=match.batch,
        seconds=seconds,
        points_per_second=match.points / seconds,
        peak_mb=peak.bytes / 2**20,
        errors=errors,
        best_peer=None if is_peer else registry.best_peer(match.peer_group or match.group),
    )
    registry.entries.append(entry)
    benchmark.extra_info.update(
        contestant=name,
        peer=is_peer,
        batch=match.batch,
        points=match.points,
        points_per_second=entry.points_per_second,
        first_call_seconds=first,
        peak_memory_mb=entry.peak_mb,
        peak_memory_method=peak.method,
        error_db_peaks=errors.peaks_db,
        error_db_random=errors.random_db,
        error_bound_db=bound_db,
        threads=int(os.environ.get("OMP_NUM_THREADS", "0")),
    )
    if entry.best_peer is not None:
        benchmark.extra_info.update(
            best_peer=entry.best_peer.name, peer_batch=entry.best_peer.batch, ratio_to_best_peer=entry.ratio
        )
    return result


def summary_lines(registry: Registry) -> list[str]:
    """Every contestant with its speed, its ratio to the best peer of the run, its memory and its error."""
    lines = []
    for group in dict.fromkeys(entry.group for entry in registry.entries):
        lines.append(group)
        for entry in (e for e in registry.entries if e.group == group):
            best = entry.best_peer
            against = "" if best is None else f"{entry.ratio:8.3g} x {best.name}"
            against += "" if best is None or best.batch == entry.batch else f" at B = {best.batch}"
            lines.append(
                f"  {entry.name:24s} B = {entry.batch:<3d}{entry.seconds * 1e3:11.3f} ms"
                f"{entry.points_per_second / 1e6:10.3f} Mpoint/s {entry.peak_mb:6.0f} MiB  "
                f"{entry.errors.peaks_db:.1e} / {entry.errors.random_db:.1e} dB {against}"
            )
    return lines
