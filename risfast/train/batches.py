"""Which scenes a step learns from: a function of (seed, step) alone, so that a resumed run sees the same ones."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
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
    """What a step learns from."""

    n_snapshots: int  # L of all its scenes
    noise_known: bool  # Whether the backbone is given the noise power
    indices: Tensor  # (B,)

    def part(self, index: int, parts: int) -> Batch:
        """One of several equal runs of its scenes."""
        size = len(self.indices) // parts
        return replace(self, indices=self.indices[index * size : (index + 1) * size])


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
        self._order = lru_cache(2 * len(self._sets))(self._drawn_order)  # a batch may lie across the border of epochs
        for found in self._sets.values():
            if found.seed in judged_on:
                raise ValueError(f"{found.folder} has the seed {found.seed} of the scenes that the run is judged on")

    def scenes(self, n_snapshots: int, indices: Tensor, device: torch.device) -> Scenes:
        """The scenes at ``indices`` of the endless sequence of epochs.

        indices (B,)
        """
        found = self._sets[n_snapshots]
        epoch, place = indices // len(found), indices % len(found)
        places = zip(epoch.tolist(), place.tolist(), strict=True)
        return found.scenes(torch.stack([self._order(n_snapshots, e)[p] for e, p in places]), device)

    def _drawn_order(self, n_snapshots: int, epoch: int) -> Tensor:
        """The order of an epoch."""
        found = self._sets[n_snapshots]
        return SceneRandom(found.seed, [epoch]).permutation(_ORDER_STREAM, len(found))[0]


def shard_folder(folder: Path, split: str, n_snapshots: int) -> Path:
    """Where the set of one split and one L is."""
    return folder / split / f"L{n_snapshots}"


def plan_batch(data: DataOptions, batch_size: int, step: int) -> Batch:
    """The batch of a step: scenes ``step * batch_size ..``, their L and whether the noise power is known."""
    which, known = SceneRandom(data.seed, [step]).uniform(_BATCH_STREAM, (2,))[0].tolist()
    indices = torch.arange(step * batch_size, (step + 1) * batch_size)
    if data.pool:
        indices = indices % data.pool
    edges = list(accumulate(data.weights))
    chosen = min(bisect_right(edges, which * edges[-1]), len(edges) - 1)
    return Batch(data.snapshots[chosen], known < data.noise_known, indices)
