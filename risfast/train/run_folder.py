"""The folder of a run, the options that every run has, and the scenes that follow from them."""

from __future__ import annotations

import json
import platform
import sys
import tomllib
from pathlib import Path
from typing import Protocol

import torch

from risfast import __version__
from risfast.errors import FileFormatError
from risfast.io.durable import replace_file
from risfast.io.toml_file import as_table, read_toml, to_toml
from risfast.localize.pipeline import PipelineOptions
from risfast.simulate.scenes import Scenes, generate_scenes
from risfast.simulate.system_file import differing_fields
from risfast.train.checkpoints import CheckpointFolder
from risfast.train.config import DataOptions, MachineOptions, OptimiserOptions, SystemOptions, ValidationOptions
from risfast.train.records import MetricsFile

__all__ = ["RunFolder", "RunOptions", "validation_scenes"]

# Parts of the configuration that may change between the start of a run and its resumption.
_FREE = ("machine",)


class RunOptions(Protocol):
    """What every configuration of a run holds."""

    @property
    def seed(self) -> int:
        """Of the initial weights."""
        ...

    @property
    def system(self) -> SystemOptions:
        """The system that the scenes come from."""
        ...

    @property
    def data(self) -> DataOptions:
        """Which scenes."""
        ...

    @property
    def optimiser(self) -> OptimiserOptions:
        """How to learn."""
        ...

    @property
    def validation(self) -> ValidationOptions:
        """How to judge."""
        ...

    @property
    def pipeline(self) -> PipelineOptions:
        """From an estimate to sources."""
        ...

    @property
    def machine(self) -> MachineOptions:
        """On what."""
        ...


def validation_scenes(config: RunOptions, n_snapshots: int, seed: int, count: int, device: torch.device) -> Scenes:
    """The fixed scenes of one L that a run is judged on."""
    system = config.system.system(n_snapshots, config.data.code_kinds)
    return generate_scenes(system, seed, range(count), device)


class RunFolder:
    """config.toml, environment.json, metrics.jsonl, checkpoints and what a run ends with."""

    def __init__(self, folder: Path, config: RunOptions) -> None:
        self.folder, self.config = folder, config
        self.metrics = MetricsFile(folder / "metrics.jsonl")
        self.checkpoints = CheckpointFolder(folder / "checkpoints", config.machine.keep)

    def open(self) -> None:
        """Make the folder, or check that it holds this very run."""
        path = self.folder / "config.toml"
        if path.is_file():
            self._refuse_earlier(path)
            before = read_toml(type(self.config), path)
            changed = [
                name
                for name in differing_fields(as_table(before), as_table(self.config))
                if name.split(".")[0] not in _FREE
            ]
            if changed:
                raise ValueError(
                    f"{self.folder} holds a run with other options ({', '.join(changed)}); give the same ones to go "
                    "on with it, or another folder"
                )
        elif self.folder.is_dir() and any(p for p in self.folder.iterdir() if not p.name.startswith(".")):
            raise ValueError(f"{self.folder} is not empty and holds no run; choose another folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(path, to_toml(self.config).encode())
        replace_file(self.folder / "environment.json", _environment(self.config).encode())

    def _refuse_earlier(self, path: Path) -> None:
        """Refuse a run of a version that validated in another way: its best checkpoint was chosen by other figures."""
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise FileFormatError(f"{path}: {error}") from error
        if "pipeline" not in table:
            command = "refiner" if "network" in table else "backbone"
            raise ValueError(
                f"{self.folder} holds a run of an earlier version, whose validation was told the noise power; its "
                f"model can be used as it is. Begin the run again in another folder: "
                f"`risfast {command} --config {path} --output FOLDER`"
            )


def _environment(config: RunOptions) -> str:
    found = {
        "risfast": __version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "platform": platform.platform(),
        "device": config.machine.device,
        "gpu": torch.cuda.get_device_name() if config.machine.device.startswith("cuda") else None,
        "threads": torch.get_num_threads(),
    }
    return json.dumps(found, indent=1) + "\n"
