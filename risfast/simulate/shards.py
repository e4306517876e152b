"""Scenes kept in files: folders of memory-mapped arrays and a manifest that vouches for them.

    FOLDER/manifest.json            setup, system, seed, counts, and the SHA-256 of every file
    FOLDER/shard-00000/y.npy ...    one array a file, the scenes of the shard along its first axis

A shard is written beside, synced, renamed and only then entered in the manifest, so that an interrupted set goes on
where it stopped. Several processes share a set: each leaves the entries of its shards in files, which the first one
moves into the manifest. Scene i of a set is scene i of :func:`risfast.simulate.generate_scenes`.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from risfast import __version__
from risfast.covariance import ls_covariance
from risfast.errors import FileFormatError
from risfast.io.durable import replace_file, sealed_json, sync_folder
from risfast.io.guard import Array, check_seal, file_digest, inside, load_json, naming, parsing, short_text
from risfast.setup import Setup
from risfast.simulate.scenes import Scenes, SystemConfig, generate_scenes
from risfast.simulate.system_file import differing_fields, system_from_json, system_to_json

SCENES_FORMAT = 2
"""Of the files, and of what a seed means: a change of either gets a new number. 1 is 2 without the setup."""

MANIFEST = "manifest.json"
SAMPLE_COVARIANCE = "sample_covariance"


@dataclass(frozen=True)
class ShardSpec:
    """What a set holds."""

    system: SystemConfig  # Its scenes, ``n_snapshots`` included
    seed: int  # Of :func:`risfast.simulate.generate_scenes`
    count: int  # Scenes of the set, at least 1
    shard_size: int = 4096  # Scenes of a shard (the last may be smaller), at least 1
    sample_covariance: bool = False  # Whether to keep the least-squares sample covariance of each scene too, [N, N]

    def __post_init__(self) -> None:
        """Check the counts."""
        for name in ("count", "shard_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)!r}")
        if self.system.wavelengths_m is not None:
            raise ValueError(f"scenes in files are of one band, and the system has {len(self.system.wavelengths_m)}")

    def description(self) -> dict[str, Any]:
        """As JSON values; two sets of the same description hold the same scenes."""
        return {
            "format": SCENES_FORMAT,
            "setup": self.system.setup.to_json(),
            "system": system_to_json(self.system),
            "seed": self.seed,
            "count": self.count,
            "shard_size": self.shard_size,
            SAMPLE_COVARIANCE: self.sample_covariance,
        }

    def ranges(self) -> list[range]:
        """Indices of the scenes of each shard."""
        return [range(a, min(a + self.shard_size, self.count)) for a in range(0, self.count, self.shard_size)]

    def shapes(self, scenes: int) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of each array of a shard."""
        s = self.system
        n, k = s.array.n_elements, s.max_sources
        found: dict[str, tuple[tuple[int, ...], str]] = {
            "y": ((scenes, s.n_snapshots, s.n_antennas), "complex64"),
            "codes": ((scenes, s.n_snapshots, n), "complex64"),
            "channel": ((scenes, s.n_antennas, n), "complex64"),
            "noise_power": ((scenes,), "float32"),
            "snr_db": ((scenes,), "float32"),
            "position": ((scenes, k, 3), "float32"),
            "mask": ((scenes, k), "bool"),
            "power": ((scenes, k), "float32"),
            "coherent": ((scenes, k), "bool"),
        }
        if self.sample_covariance:
            found[SAMPLE_COVARIANCE] = ((scenes, n, n), "complex64")
        return found

    def size_bytes(self) -> int:
        """Bytes of the whole set."""
        return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in self.shapes(self.count).values())


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest as it stands; one of format 1 comes with the setup of its system."""
    path, what = folder / MANIFEST, "the manifest of a set of shards"
    if not path.exists():
        raise FileFormatError(f"{path}: missing; this is not a folder of shards")
    manifest = load_json(path, what)
    with naming(path, what):
        found = manifest["set"]["format"]
        if found not in (1, SCENES_FORMAT):
            raise FileFormatError(
                f"{path}: format {found!r:.60}, this version reads 1 and {SCENES_FORMAT}; make the set again with "
                "`risfast shards`"
            )
        check_seal(path, manifest)
        if found == 1:
            system = system_from_json(manifest["set"]["system"])
            manifest["set"] |= {"format": SCENES_FORMAT, "setup": system.setup.to_json()}
    return manifest


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Replace the manifest of a folder in one step, sealed with its own checksum."""
    replace_file(folder / MANIFEST, sealed_json(manifest) + b"\n")


def shard_name(number: int) -> str:
    """Folder of a shard."""
    return f"shard-{number:05d}"


_ARRAYS = tuple(f.name for f in fields(Scenes) if f.name not in ("config", "indices"))
_POLL_S = 0.2
_BATCH = 64  # scenes made at once: some 64 MB of the reference system


ShardReport = Callable[[int, int], None]


def write_shards(
    folder: Path,
    spec: ShardSpec,
    *,
    device: torch.device | str = "cpu",
    report: ShardReport | None = None,
    rank: int = 0,
    world: int = 1,
) -> None:
    """Make a set of shards, or what is still missing of it."""
    if not 0 <= rank < world:
        raise ValueError(f"rank must lie in [0, {world}), got {rank}")
    while rank and not (folder / MANIFEST).exists():  # the first process makes it, or says why it cannot
        time.sleep(_POLL_S)
    manifest = _open_for_writing(folder, spec)
    ranges = spec.ranges()
    if rank == 0:
        for number in range(len(manifest["shards"])):  # entered by a run that was killed right then
            _entry_file(folder, number).unlink(missing_ok=True)
        _enter(folder, manifest, len(ranges))
    for number in range(rank, len(ranges), world):
        if number < len(manifest["shards"]) or _entry_file(folder, number).exists():
            continue
        if report:
            report(ranges[number].start, spec.count)
        entry = _write_shard(folder, number, ranges[number], spec, device, report)
        replace_file(_entry_file(folder, number), json.dumps(entry).encode())
        if rank == 0:
            _enter(folder, manifest, len(ranges))
    while rank == 0 and len(manifest["shards"]) < len(ranges):  # the others are still at theirs
        time.sleep(_POLL_S)
        _enter(folder, manifest, len(ranges))
    if report:
        report(spec.count, spec.count)


def _entry_file(folder: Path, number: int) -> Path:
    """Where the entry of a complete shard waits for the manifest."""
    return folder / f".{shard_name(number)}.json"


def _enter(folder: Path, manifest: dict[str, Any], total: int) -> None:
    """Move into the manifest what waits for it, in the order of the shards."""
    known = len(manifest["shards"])
    while len(manifest["shards"]) < total and (path := _entry_file(folder, len(manifest["shards"]))).exists():
        try:
            manifest["shards"].append(load_json(path, "the entry of a shard"))
        except FileFormatError as error:
            raise FileFormatError(f"{short_text(error)}; delete it, and the shard is made again") from error
    if len(manifest["shards"]) > known:
        write_manifest(folder, manifest)
    for number in range(known, len(manifest["shards"])):
        _entry_file(folder, number).unlink(missing_ok=True)


def _open_for_writing(folder: Path, spec: ShardSpec) -> dict[str, Any]:
    if (folder / MANIFEST).exists():
        manifest = read_manifest(folder)
        changed = differing_fields(manifest["set"], spec.description())
        if changed:
            raise ValueError(
                f"{folder} holds another set of shards ({', '.join(changed)} differ); choose another folder"
            )
        return manifest
    if folder.is_dir() and any(p for p in folder.iterdir() if not p.name.startswith(".")):
        raise ValueError(f"{folder} is not empty and holds no shards; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    free, needed = shutil.disk_usage(folder).free, spec.size_bytes()
    if needed > free:
        raise OSError(f"{folder}: the set takes {needed / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB left")
    manifest = {"version": __version__, "set": spec.description(), "shards": []}
    write_manifest(folder, manifest)
    return manifest


def _write_shard(
    folder: Path, number: int, indices: range, spec: ShardSpec, device: torch.device | str, report: ShardReport | None
) -> dict[str, Any]:
    """Write one shard and return its entry of the manifest."""
    beside, target = folder / f".{shard_name(number)}.tmp", folder / shard_name(number)
    for left_behind in (beside, target):  # by a run that was killed before the manifest knew of it
        if left_behind.exists():
            shutil.rmtree(left_behind)
    try:
        beside.mkdir()
        _fill(beside, indices, spec, device, report)
        files = {}
        for path in sorted(beside.iterdir()):
            files[path.name] = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        sync_folder(beside)
        beside.rename(target)
        sync_folder(folder)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise OSError(error.errno, f"cannot write shard {number}: {error.strerror}", str(target)) from error
    return {"name": shard_name(number), "first": indices.start, "count": len(indices), "files": files}


def _fill(
    folder: Path, indices: range, spec: ShardSpec, device: torch.device | str, report: ShardReport | None
) -> None:
    """Make the scenes of a shard in batches and append each array to its file."""
    names = spec.shapes(len(indices))
    with ExitStack() as stack:  # closes every file, also where closing one fails for want of room
        streams = {name: stack.enter_context((folder / f"{name}.npy").open("wb")) for name in names}
        for name, (shape, dtype) in names.items():
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(streams[name], header)
        for start in range(indices.start, indices.stop, _BATCH):
            part = generate_scenes(spec.system, spec.seed, range(start, min(start + _BATCH, indices.stop)), device)
            for name, (_, dtype) in names.items():
                values = _sample_covariance(part) if name == SAMPLE_COVARIANCE else getattr(part, name)
                streams[name].write(np.ascontiguousarray(values.cpu().numpy(), dtype=dtype).tobytes())
            if report:
                report(start + len(part), spec.count)
        for stream in streams.values():
            stream.flush()
            os.fsync(stream.fileno())


def _sample_covariance(scenes: Scenes) -> Tensor:
    return ls_covariance(scenes.y, scenes.codes, scenes.channel, noise_power=scenes.noise_power)


class ShardSet:
    """A complete set of shards, read through memory maps."""

    def __init__(self, folder: Path, system: SystemConfig | None = None, *, verify: bool = True) -> None:
        self.folder = folder
        manifest, what = read_manifest(folder), "the manifest of a set of shards"
        with naming(folder / MANIFEST, what):
            description = manifest["set"]
            self.system, self.setup = system_from_json(description["system"]), Setup.from_json(description["setup"])
            self.seed, count, size = (int(description[name]) for name in ("seed", "count", "shard_size"))
            self.spec = ShardSpec(self.system, self.seed, count, size, bool(description[SAMPLE_COVARIANCE]))
            found = [(e["name"], e["first"], e["count"]) for e in manifest["shards"]]
            files = [
                {str(name): (int(one["bytes"]), str(one["sha256"])) for name, one in e["files"].items()}
                for e in manifest["shards"]
            ]
        own = self.system.setup
        for name in ("array", "region", "wavefront", "sampling"):
            if getattr(self.setup, name) != getattr(own, name):
                raise FileFormatError(f"{folder / MANIFEST}: the {name} of the setup is not that of the system")
        if system is not None:
            changed = differing_fields(description["system"], system_to_json(system))
            if changed:
                raise ValueError(f"{folder} was made for another system: {', '.join(changed)} differ")
        expected = math.ceil(count / size)  # and only then a list of so many
        if len(found) != expected or found != [
            (shard_name(i), r.start, len(r)) for i, r in enumerate(self.spec.ranges())
        ]:
            raise FileFormatError(
                f"{folder / MANIFEST}: {len(found)} of {expected} shards are there; the command that began the set "
                "completes it"
            )
        self._maps = [self._open(*part, verify) for part in zip(found, files, strict=True)]

    def _open(
        self, shard: tuple[str, int, int], claims: Mapping[str, tuple[int, str]], verify: bool
    ) -> dict[str, Array]:
        maps: dict[str, Array] = {}
        for name, (shape, dtype) in self.spec.shapes(shard[2]).items():
            path = inside(inside(self.folder, shard[0]), f"{name}.npy")
            if path.name not in claims or not path.is_file():
                raise FileFormatError(f"{path}: missing")
            size, sum_ = claims[path.name]
            if path.stat().st_size != size:
                raise FileFormatError(f"{path}: {path.stat().st_size} bytes, the manifest says {size}")
            if verify and file_digest(path) != sum_:
                raise FileFormatError(f"{path}: damaged, or of another set: its checksum is not the manifest's")
            with parsing(path, "a NumPy array"):
                found = np.load(path, mmap_mode="r", allow_pickle=False)
            if found.shape != shape or found.dtype != np.dtype(dtype):
                raise FileFormatError(f"{path}: {found.dtype} {found.shape}, expected {dtype} {shape}")
            maps[name] = found
        return maps

    def __len__(self) -> int:
        """Scenes of the set."""
        return self.spec.count

    def _gather(self, name: str, indices: Tensor) -> Tensor:
        """Rows of one array, in the order of ``indices``."""
        shards = indices.numpy() // self.spec.shard_size
        rows = indices.numpy() % self.spec.shard_size
        shape, dtype = self.spec.shapes(len(rows))[name]
        gathered = np.empty(shape, dtype=dtype)
        for shard in np.unique(shards):
            here = shards == shard
            gathered[here] = self._maps[shard][name][rows[here]]
        return torch.from_numpy(gathered)

    def _checked(self, indices: Tensor) -> Tensor:
        wanted = indices.cpu().long()
        if wanted.numel() and not (int(wanted.min()) >= 0 and int(wanted.max()) < len(self)):
            raise IndexError(f"indices must lie in 0 .. {len(self) - 1}, the scenes of {self.folder}")
        return wanted

    def scenes(self, indices: Tensor, device: torch.device | str = "cpu") -> Scenes:
        """Some scenes of the set, in the order asked for.

        indices (B,)
        """
        wanted = self._checked(indices)
        arrays = {name: self._gather(name, wanted) for name in _ARRAYS}
        return Scenes(config=self.system, indices=wanted, **arrays).to(device)

    def sample_covariance(self, indices: Tensor) -> Tensor:
        """Least-squares sample covariances of some scenes; see :func:`risfast.covariance.ls_covariance`.

        indices (B,) -> (B, N, N)
        """
        if not self.spec.sample_covariance:
            raise ValueError(f"{self.folder} holds no sample covariances; make the set with them")
        return self._gather(SAMPLE_COVARIANCE, self._checked(indices))
