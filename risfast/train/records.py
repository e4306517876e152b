"""The metrics of a run, one JSON object a line, and running means between two lines."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from risfast.errors import FileFormatError
from risfast.io.durable import finite_json, replace_file

__all__ = ["EventFile", "MetricsFile", "RunningMeans"]


class MetricsFile:
    """``metrics.jsonl``: appended to during the run, cut back to a checkpoint when the run goes on from it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, line: Mapping[str, Any]) -> None:
        """Write one line. It lasts once :meth:`sync` has been called."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(finite_json(line), allow_nan=False) + "\n")

    def sync(self) -> None:
        """Make what has been written last."""
        if self.path.exists():
            with self.path.open("rb") as stream:
                os.fsync(stream.fileno())

    def read(self) -> list[dict[str, Any]]:
        """Every line; a last one that a kill cut short is left out."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        found = []
        for number, line in enumerate(lines, 1):
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError as error:
                if number < len(lines):
                    raise FileFormatError(f"{self.path}: line {number} is not JSON") from error
        return found

    def cut(self, step: int) -> None:
        """Drop the lines of later steps."""
        kept = [line for line in self.read() if line["step"] <= step]
        replace_file(self.path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in kept).encode())


class RunningMeans:
    """Means of named figures since the last line; a figure that was not given in a step is left out of its own mean."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}

    def add(self, figures: Mapping[str, float]) -> None:
        """Take in one step."""
        for name, value in figures.items():
            if math.isfinite(value):
                total, count = self._sums.get(name, (0.0, 0))
                self._sums[name] = [total + value, count + 1]

    def take(self) -> dict[str, float]:
        """The means, and start afresh."""
        means = {name: total / count for name, (total, count) in self._sums.items()}
        self._sums = {}
        return means

    def state(self) -> dict[str, list[float]]:
        """What a checkpoint keeps."""
        return dict(self._sums)

    def load_state(self, state: Mapping[str, list[float]]) -> None:
        """Take back what :meth:`state` gave."""
        self._sums = {name: list(pair) for name, pair in state.items()}


class EventFile:
    """The same figures as TensorBoard events."""

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  (an extra, and slow to import)
        except ImportError as error:
            raise ValueError(
                "machine.tensorboard needs the tensorboard package: pip install 'risfast[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def add(self, figures: Mapping[str, Any], step: int, prefix: str = "") -> None:
        """Write every number of nested figures; its name is the path to it."""
        for name, value in figures.items():
            if isinstance(value, Mapping):
                self.add(value, step, f"{prefix}{name}/")
            elif isinstance(value, int | float) and math.isfinite(value):
                self._writer.add_scalar(f"{prefix}{name}", value, step)
        self._writer.flush()
