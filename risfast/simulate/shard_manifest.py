"""What a folder of shards holds, and the manifest that vouches for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from risfast.errors import FileFormatError
from risfast.io.durable import replace_file
from risfast.simulate.scenes import SystemConfig
from risfast.simulate.system_json import system_from_json, system_to_json

__all__ = [
    "MANIFEST",
    "SAMPLE_COVARIANCE",
    "SCENES_FORMAT",
    "ShardSpec",
    "file_digest",
    "read_manifest",
    "shard_name",
    "write_manifest",
]

SCENES_FORMAT = 2
"""Of the files, and of what a seed means: a change of either gets a new number. 1 is 2 without the setup."""

MANIFEST = "manifest.json"
SAMPLE_COVARIANCE = "sample_covariance"
_CHUNK = 1 << 22  # bytes that a digest reads at once


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


def file_digest(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    found = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest as it stands; one of format 1 comes with the setup of its system."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        if manifest["set"]["format"] not in (1, SCENES_FORMAT):
            raise FileFormatError(
                f"{path}: format {manifest['set']['format']!r}, this version reads 1 and {SCENES_FORMAT}; make the set "
                "again with `risfast shards`"
            )
        claimed = manifest.pop("sha256")
        if hashlib.sha256(_canonical(manifest)).hexdigest() != claimed:
            raise FileFormatError(f"{path}: damaged, its checksum does not match")
        if manifest["set"]["format"] == 1:
            system = system_from_json(manifest["set"]["system"])
            manifest["set"] |= {"format": SCENES_FORMAT, "setup": system.setup.to_json()}
    except FileNotFoundError as error:
        raise FileFormatError(f"{path}: missing; this is not a folder of shards") from error
    except FileFormatError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:  # JSON and UTF-8 that are none are of the last
        raise FileFormatError(f"{path}: damaged, not the manifest of a set of shards") from error
    return dict(manifest)


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, allow_nan=False, indent=1).encode()


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Replace the manifest of a folder in one step, sealed with its own checksum."""
    sealed = {**manifest, "sha256": hashlib.sha256(_canonical(manifest)).hexdigest()}
    replace_file(folder / MANIFEST, _canonical(sealed) + b"\n")


def shard_name(number: int) -> str:
    """Folder of a shard."""
    return f"shard-{number:05d}"
