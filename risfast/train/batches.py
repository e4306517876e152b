"""Which scenes a step learns from: a function of (seed, step) alone, so that a resumed run sees the same ones."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from risfast.simulate.scenes import Scenes, SystemConfig, generate_scenes
from risfast.simulate.shards import ShardSet
from risfast.simulate.streams import SceneRandom
from risfast.train.config import DataOptions

_BATCH_STREAM = 1 << 20  # far above the streams that scenes draw from
_ORDER_STREAM = _BATCH_STREAM + 1


@dataclass(frozen=True)
class Batch:
    """What step ``step`` learns from."""

    step: int
    n_snapshots: int  # L of all its scenes
    noise_known: bool  # Whether the backbone is given the noise power
    indices: Tensor  # (B,)

    def part(self, index: int, parts: int) -> Batch:
        """One of several equal runs of its scenes."""
        size = len(self.indices) // parts
        return Batch(self.step, self.n_snapshots, self.noise_known, self.indices[index * size : (index + 1) * size])


class SceneSource(Protocol):
    """Where training scenes come from."""

    def scenes(self, n_snapshots: int, indices: Tensor, device: torch.device) -> Scenes:
        """Some of the scenes with L = ``n_snapshots``.

        indices (B,)
        """


@dataclass(frozen=True)
class FlySource:
    """Scenes that are made when they are needed."""

    system: Callable[[int], SystemConfig]  # The system with a given L
    seed: int

    def scenes(self, n_snapshots: int, indices: Tensor, device: torch.device) -> Scenes:
        """The scenes ``indices`` with L = ``n_snapshots``.

        indices (B,)
        """
        return generate_scenes(self.system(n_snapshots), self.seed, indices, device)


class ShardSource:
    """Scenes from shards: every scene once an epoch, in an order of its own for each epoch."""

    def __init__(
        self,
        folder: Path,
        system: Callable[[int], SystemConfig],
        snapshots: Sequence[int],
        judged_on: Collection[int] = (),
    ) -> None:
        self._sets = {n: ShardSet(shard_folder(folder, "train", n), system(n)) for n in snapshots}
        self._orders: dict[tuple[int, int], Tensor] = {}
        for found in self._sets.values():
            if found.seed in judged_on:
                raise ValueError(f"{found.folder} has the seed {found.seed} of the scenes that the run is judged on")

    def scenes(self, n_snapshots: int, indices: Tensor, device: torch.device) -> Scenes:
        """The scenes at ``indices`` of the endless sequence of epochs.

        indices (B,)
        """
        found = self._sets[n_snapshots]
        epoch, place = indices // len(found), indices % len(found)
        stored = torch.stack(
            [self._order(n_snapshots, int(e))[p] for e, p in zip(epoch.tolist(), place.tolist(), strict=True)]
        )
        return found.scenes(stored, device)

    def _order(self, n_snapshots: int, epoch: int) -> Tensor:
        """The order of an epoch; the two latest are remembered, because a batch may lie across their border."""
        key = (n_snapshots, epoch)
        if key not in self._orders:
            found = self._sets[n_snapshots]
            for old in [k for k in self._orders if k[0] == n_snapshots and k[1] not in (epoch - 1, epoch + 1)]:
                del self._orders[old]
            self._orders[key] = SceneRandom(found.seed, [epoch]).permutation(_ORDER_STREAM, len(found))[0]
        return self._orders[key]


def shard_folder(folder: Path, split: str, n_snapshots: int) -> Path:
    """Where the set of one split and one L is."""
    return folder / split / f"L{n_snapshots}"


def plan_batch(data: DataOptions, batch_size: int, step: int) -> Batch:
    """The batch of a step: scenes ``step * batch_size ..``, their L and whether the noise power is known."""
    which, known = SceneRandom(data.seed, [step]).uniform(_BATCH_STREAM, (2,))[0].tolist()
    indices = torch.arange(step * batch_size, (step + 1) * batch_size)
    if data.pool:
        indices = indices % data.pool
    return Batch(step, _choose(data.snapshots, data.weights, which), known < data.noise_known, indices)


def _choose(values: Sequence[int], weights: Sequence[float], uniform: float) -> int:
    edges = list(accumulate(weights))
    return values[min(bisect_right(edges, uniform * edges[-1]), len(values) - 1)]
