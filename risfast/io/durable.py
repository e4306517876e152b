"""Files that are either the old one or the whole new one at any instant, also after a kill or a power cut."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def finite_json(value: Any) -> Any:
    """The same value with None in place of NaN and infinities, which JSON cannot hold."""
    if isinstance(value, Mapping):
        return {str(name): finite_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def canonical_json(content: Mapping[str, Any]) -> bytes:
    """The one text of JSON values that checksums are of."""
    return json.dumps(content, sort_keys=True, allow_nan=False, indent=1).encode()


def sealed_json(content: Mapping[str, Any], key: str = "sha256") -> bytes:
    """JSON with a checksum of its own, as :func:`risfast.io.guard.load_json` verifies it."""
    rest = {name: value for name, value in content.items() if name != key}
    return canonical_json({**rest, key: sha256_of(canonical_json(rest))}) + b"\n"


def sha256_of(data: bytes) -> str:
    """The checksum of a file."""
    return hashlib.sha256(data).hexdigest()


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write the file that takes the place of ``path`` when it is complete."""
    beside = path.with_name(f".{path.name}.tmp")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(path.parent)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file beside, sync it, and rename it into its place."""
    with replacing(path) as beside:
        write_synced(beside, data)


def sync_folder(folder: Path) -> None:
    """Wait until renames inside a folder are on the disk; on systems that are not POSIX nothing is done."""
    if os.name != "posix":  # other systems cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
