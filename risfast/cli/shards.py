"""``risfast shards``: make scenes once and keep them in files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from risfast.cli.options import Common, Flat, Opt, Whole
from risfast.cli.progress import Progress
from risfast.cli.training import ABOUT_CONFIG, from_file
from risfast.train.config import ShardsConfig

__all__ = ["Options", "defaults", "run"]

HELP = "Under torchrun every process makes its share."
RESUMES = "; the same command goes on"


@dataclass(frozen=True)
class Options:
    """Options of ``risfast shards``."""

    output: Path = Path("risfast-shards")
    """Folder of the scenes; the same command goes on with an interrupted run."""
    config: Annotated[Opt[Path], arg(help=ABOUT_CONFIG)] = None
    common: Annotated[Common, Flat] = field(default_factory=Common)
    shards: Annotated[ShardsConfig, Flat, Whole] = field(default_factory=ShardsConfig)


def defaults(arguments: Sequence[str]) -> Options:
    """Those of the file that ``--config`` names."""
    return Options(shards=from_file(ShardsConfig, arguments))


def run(options: Options, progress: Progress) -> int:
    """Make what is missing, and say what is there."""
    from risfast.simulate.shards import write_shards  # noqa: PLC0415
    from risfast.train.batches import shard_folder  # noqa: PLC0415

    config = options.shards
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if config.device == "cuda" and world > 1 else config.device
    written = []
    for (split, n), spec in config.sets().items():
        path = shard_folder(options.output, split, n)

        def report(done: int, total: int, label: str = f"{split} L{n}") -> None:
            progress(label, done, total, unit="scenes")

        write_shards(path, spec, device=device, report=report if rank == 0 else None, rank=rank, world=world)
        written.append(f"{path}: {spec.count} scenes, {spec.size_bytes() / 1e6:.0f} MB")
    progress.close()
    if rank == 0:
        print("\n".join(written))
    return 0
