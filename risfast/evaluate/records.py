"""The results folder of the suite: one record file for each method, number of snapshots and chunk of scenes.

A record is either whole or absent at any instant, so that a run can be killed and goes on where it was. The folder
belongs to one configuration: anything else is refused.
"""

from __future__ import annotations

import io
import json
import platform
import sys
import time
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from risfast import __version__
from risfast.errors import FileFormatError
from risfast.io.durable import replace_file
from risfast.io.formats.npz import NpzContainer
from risfast.io.guard import Array, inside, load_json, naming
from risfast.simulate.system_file import differing_fields

CONFIG, ENVIRONMENT, RECORDS = "config.json", "environment.json", "records"
_APPEAR_S = 60.0  # how long other processes wait until the first one has opened the folder


class RecordPlace(NamedTuple):
    """Where a record belongs."""

    scene_set: str
    cell: int
    snapshots: int
    label: str  # Of the run, or ``truth``
    start: int  # Scenes of the cell
    stop: int  # Scenes of the cell

    @property
    def file(self) -> Path:
        """Relative to the folder of records."""
        chunk = f"{self.start:06d}-{self.stop:06d}.npz"
        return Path(self.scene_set, f"L{self.snapshots}", f"cell{self.cell:02d}", self.label, chunk)


class ResultsFolder:
    """config.json, environment.json, records, and what a run ends with."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.folder, self.config = folder, json.loads(json.dumps(config))

    def open(self, *, leads: bool = True) -> None:
        """Make the folder, or check that it holds these very results."""
        path = inside(self.folder, CONFIG)
        if not leads:
            self._wait_for(path)
        if path.is_file():
            merged = self._merged(path)
        elif self.folder.is_dir() and any(p for p in self.folder.iterdir() if not p.name.startswith(".")):
            raise ValueError(f"{self.folder} is not empty and holds no results; choose another folder")
        else:
            merged = self.config
        if leads:
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_file(path, json_bytes(merged))
            replace_file(inside(self.folder, ENVIRONMENT), json_bytes(environment()))

    def _wait_for(self, path: Path) -> None:
        began = time.monotonic()
        while not path.is_file():
            if time.monotonic() - began > _APPEAR_S:
                raise ValueError(f"{path} did not appear within {_APPEAR_S:g} s: do all processes see the same folder?")
            time.sleep(0.05)

    def _merged(self, path: Path) -> dict[str, Any]:
        """The configuration that is there with the methods of this one added."""
        before = load_json(path, "the configuration of an evaluation")
        with naming(path, "the configuration of an evaluation"):
            known = before["methods"]
            here = {**self.config, "methods": {**known, **self.config["methods"]}}
        changed = differing_fields(before, {**here, "methods": {n: here["methods"][n] for n in known}})
        if changed:
            raise ValueError(
                f"{self.folder} holds results of another configuration ({', '.join(changed)}); give the same options "
                "to go on with it, or another folder"
            )
        return here

    def has(self, place: RecordPlace) -> bool:
        """Whether this record is there."""
        return self._path(place).is_file()

    def _path(self, place: RecordPlace) -> Path:
        """Where a record is; no link leads elsewhere."""
        return reduce(inside, (RECORDS, *place.file.parts), self.folder)

    def write(self, place: RecordPlace, values: Mapping[str, Array]) -> None:
        """Write one record, whole or not at all."""
        path = self._path(place)
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, place=np.array(json.dumps(place)), **values)
        replace_file(path, buffer.getvalue())

    def read(self, place: RecordPlace) -> dict[str, Array]:
        """One record."""
        path = self._path(place)
        if not path.exists():
            raise FileFormatError(f"{path}: missing; run the same command again")
        try:
            container = NpzContainer(path)
            values = {name: container.load(name) for name in container.holds}
            own = json.loads(str(values.pop("place")))
        except (FileFormatError, ValueError, KeyError, RecursionError) as error:
            raise FileFormatError(f"{path}: damaged; remove it, and the same command makes it again") from error
        if own != list(place):
            raise FileFormatError(f"{path}: holds the record of {own}; remove it, and the same command makes it again")
        return values


def environment() -> dict[str, Any]:
    """Versions and processor, for a reader who wants to repeat the results."""
    return {
        "risfast": __version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "threads_per_process": 1,
    }


def _processor() -> str:
    """Its name, where the system tells."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def json_bytes(value: Any) -> bytes:
    """JSON whose keys are in order."""
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
