"""How a contestant enters a benchmark: memory, then the gate, then the clock, then the figures."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.accuracy import Errors, InaccurateContestantError, require_accuracy
from bench.measure import peak_memory, synchronised

_SECONDS_A_BENCHMARK = 1.0
_FEWEST_ROUNDS, _MOST_ROUNDS = 3, 20
_SLOW_SECONDS = 1.0


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
    """As many rounds as fit into a second, at least 3 and at most 20; one where a call takes more than a second.

    The first call may have made a plan, so another one tells how long a call takes.
    """
    if first_seconds > _SLOW_SECONDS:
        return 1
    start = time.process_time()
    call()
    seconds = time.process_time() - start
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
    once: bool = False,
) -> Any:
    """Time a contestant whose result is right, and put the figures into ``extra_info``.

    Parameters
    ----------
    benchmark : pytest-benchmark's fixture
    prepare : what the call may keep is made here; it is not timed but counts as memory
    check : from a result to its errors
    bound_db : the documented error
    once : whether the first call is the one that is timed, of a contestant that is slow and keeps nothing

    Returns
    -------
    What the call returns.

    Raises
    ------
    InaccurateContestantError
        The errors exceed the bound; no time is reported.
    """
    benchmark.group = match.group
    with peak_memory() as peak:
        call = synchronised(prepare())
        start = time.process_time()
        result = benchmark.pedantic(call, rounds=1) if once else call()
        first = time.process_time() - start
    errors = check(result)
    try:
        require_accuracy(name, errors, bound_db)
    except InaccurateContestantError:
        benchmark.has_error = True  # what was timed is neither recorded nor compared
        raise
    if not once:
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


def _beside(registry: Registry, entry: Entry) -> str:
    """Of risfast, how many times faster it is than the best peer; of a peer, how many times slower than risfast.

    By scenes (or points) a second, so that batches compare with the peer's single scene.
    """
    if entry.best_peer is not None:
        return f"{entry.ratio:.4g} x {entry.best_peer.name:.22s}"
    own = [other for other in registry.entries if not other.is_peer and other.group == entry.group]
    if not entry.is_peer or not own:
        return ""
    return f"{max(other.points_per_second for other in own) / entry.points_per_second:.4g} x"


def summary_lines(registry: Registry) -> list[str]:
    """At most 100 columns for every contestant: time of a scene, memory, error, and the ratio."""
    lines = []
    for group in dict.fromkeys(entry.group for entry in registry.entries):
        lines.append(group)
        for entry in (e for e in registry.entries if e.group == group):
            # Where the gate only says right or wrong, there is no error to show.
            error = f"{entry.errors.worst_db:.1e} dB" if entry.errors.worst_db else "right"
            lines.append(
                f"  {entry.name:24.24s}{entry.seconds / entry.batch * 1e3:12.3f} ms {entry.peak_mb:7.0f} MiB "
                f"{error:>12s}   {_beside(registry, entry)}".rstrip()
            )
    return lines


def draw(groups: Mapping[str, list[tuple[str, float, str]]], title: str, path: Path) -> None:
    """Bars of the times of the contestants of each group, (name, seconds, what stands beside), risfast's in blue."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    height = 0.24 * sum(len(group) + 1 for group in groups.values()) + 1.2
    figure, axes = pyplot.subplots(figsize=(10, height), layout="constrained")
    ticks, labels, y = [], [], 0.0
    for heading, group in groups.items():
        axes.text(0.0, y, f" {heading}", transform=axes.get_yaxis_transform(), weight="bold", va="center", fontsize=9)
        y += 1
        for name, seconds, beside in group:
            milliseconds = seconds * 1e3
            time_shown = f"{milliseconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
            axes.barh(y, milliseconds, color="tab:blue" if name.startswith("risfast") else "0.75", height=0.8)
            axes.text(milliseconds, y, f" {time_shown}" + f"   {beside} x" * bool(beside), va="center", fontsize=8)
            ticks.append(y)
            labels.append(name)
            y += 1
    axes.set_xscale("log")
    axes.set_xlim(0.5, axes.get_xlim()[1] * 12)
    axes.set_yticks(ticks, labels, fontsize=8)
    axes.set_ylim(y - 0.3, -0.7)
    axes.set_xlabel("median processor time of a scene, milliseconds")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def picture(registry: Registry, title: str, path: Path) -> None:
    """The closing table as a chart."""
    groups: dict[str, list[tuple[str, float, str]]] = {}
    for entry in registry.entries:
        bar = (entry.name, entry.seconds / entry.batch, _beside(registry, entry).partition(" x")[0])
        groups.setdefault(entry.group, []).append(bar)
    draw(groups, title, path)
