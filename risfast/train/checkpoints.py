"""Checkpoints that survive a kill at any instant.

A checkpoint is a folder, ``ckpt-00001200``, of safetensors files and a ``state.json`` that holds their SHA-256 sums and
its own. It is written beside under another name, synced, renamed, and only then named in the file ``LATEST``. A reader
verifies every sum; a damaged checkpoint is named in a message and the one before it is used. Nothing is unpickled.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from risfast.errors import FileFormatError
from risfast.io.durable import replace_file, sealed_json, sha256_of, sync_folder, write_synced
from risfast.io.guard import check_seal, inside, load_json, naming, read_whole
from risfast.models.files import read_tensors

_FORMAT = 1
_NAME = re.compile(r"ckpt-(\d{8,})")
_STATE = "state.json"
_LATEST = "LATEST"
_MARKER_BYTES = 4096

Tensors = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Checkpoint:
    """What was read."""

    path: Path  # The folder of the checkpoint
    step: int
    tensors: dict[str, dict[str, Tensor]]  # By file name without its suffix, then by tensor name; on the CPU
    state: dict[str, Any]  # JSON values


class CheckpointFolder:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, keep: int = 3) -> None:
        self.folder = folder
        self.keep = keep

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return self.folder / f"ckpt-{step:08d}"

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, complete or not, ascending."""
        if not self.folder.is_dir():
            return []
        found = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(name[1]) for name in found if name)

    def save(
        self, step: int, tensors: Tensors, state: Mapping[str, Any], protect: frozenset[int] = frozenset()
    ) -> Path:
        """Write a checkpoint, mark it the latest, and remove those that are no longer kept."""
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.path(step)
        beside = self.folder / f".{target.name}.tmp"
        shutil.rmtree(beside, ignore_errors=True)
        try:
            beside.mkdir()
            sums = {}
            for name, group in tensors.items():
                data = save({key: value.detach().cpu().contiguous() for key, value in group.items()})
                sums[f"{name}.safetensors"] = sha256_of(data)
                write_synced(beside / f"{name}.safetensors", data)
            content = {"format": _FORMAT, "step": step, "files": sums, "state": dict(state)}
            write_synced(beside / _STATE, sealed_json(content))
            sync_folder(beside)
            if target.exists():  # left behind by a run that was killed before it could mark it
                shutil.rmtree(target)
            beside.rename(target)
            sync_folder(self.folder)
            replace_file(self.folder / _LATEST, f"{target.name}\n".encode())
        except OSError as error:
            shutil.rmtree(beside, ignore_errors=True)
            raise OSError(
                error.errno, f"cannot write the checkpoint of step {step}: {error.strerror}", str(target)
            ) from error
        self._prune(step, protect)
        return target

    def _prune(self, latest: int, protect: frozenset[int]) -> None:
        steps = self.steps()
        marked = [step for step in steps if step <= latest]
        for step in set(steps) - set(marked[-self.keep :]) - protect:
            shutil.rmtree(self.path(step), ignore_errors=True)

    def read(self, step: int) -> Checkpoint:
        """Read and verify one checkpoint."""
        folder, what = self.path(step), "the state of a checkpoint"
        path = inside(folder, _STATE)
        content = load_json(path, what)
        with naming(path, what):
            if content["format"] != _FORMAT:
                raise FileFormatError(f"{path}: format {content['format']!r:.60}, this version reads {_FORMAT}")
            check_seal(path, content)
            if content["step"] != step:
                raise FileFormatError(f"{path}: of step {content['step']!r:.60}, in the folder of step {step}")
            files, state = dict(content["files"]), dict(content["state"])
        tensors = {}
        for name, expected in files.items():
            found = inside(folder, name)
            tensors[found.stem] = read_tensors(found, expected)
        return Checkpoint(folder, step, tensors, state)

    def read_latest(self) -> tuple[Checkpoint | None, list[str]]:
        """The latest intact checkpoint, and what was found damaged on the way to it."""
        steps = self.steps()
        marker = self.folder / _LATEST
        problems: list[str] = []
        if marker.exists():
            try:
                data = read_whole(inside(self.folder, _LATEST), "name of a checkpoint", _MARKER_BYTES)
                text = data.decode("utf-8", "replace")
            except FileFormatError as error:
                text = ""
                problems.append(str(error))
            named = _NAME.fullmatch(text.strip())
            # What is later than the marker was never marked as complete; one before all that is there is no marker.
            marked = [step for step in steps if step <= int(named[1])] if named else []
            steps = marked or steps
        for step in reversed(steps):
            try:
                return self.read(step), problems
            except FileFormatError as error:
                problems.append(str(error))
        if steps:
            raise FileFormatError(
                "no intact checkpoint is left: " + "; ".join(problems) + "; start again in another folder"
            )
        return None, []
