"""Files that are either the old one or the whole new one at any instant, also after a kill or a power cut."""

from __future__ import annotations

import hashlib
import json
import math
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_OWNER = ".owner"


class OwnedError(ValueError):
    """Another process works in the folder."""


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
    """JSON with a checksum of its own, as :func:`risfast.io.guard.check_seal` verifies it."""
    rest = {name: value for name, value in content.items() if name != key}
    return canonical_json({**rest, key: sha256_of(canonical_json(rest))})


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


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """One process alone works in a folder for the time of a block; another is refused before it changes anything."""
    # A lock of the operating system, which whoever dies lets go of: what a killed process left behind hinders nobody.
    # Where the file system has no locks, the process that the file names must be gone, or the file removed by hand.
    path = folder / _OWNER
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise OwnedError(f"{path} is no plain file, so nobody can own {folder} by it; remove it")
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            locks = _locked(descriptor)
            named = " ".join(os.read(descriptor, 300).decode("utf-8", "replace").split())
            if locks is False or (locks is None and _alive(named)):
                told = named or "of unknown name"
                raise OwnedError(
                    f"{folder} is at work in another process ({told}); wait for it, or choose another folder"
                    + ("" if locks is False else f"; if that process is gone, remove {path}")
                )
            there = path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())
        except BaseException:
            os.close(descriptor)
            raise
        if there:
            break
        os.close(descriptor)  # its owner removed it between our opening and our locking it
    try:
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, f"host {socket.gethostname()} pid {os.getpid()}\n".encode())
        yield
    finally:
        if os.name == "posix":  # removed while the lock is ours; elsewhere a file that is open cannot be
            path.unlink(missing_ok=True)
        os.close(descriptor)
        if os.name != "posix":
            path.unlink(missing_ok=True)


def _locked(descriptor: int) -> bool | None:
    """Whether the lock is ours now; None where there are no locks."""
    try:
        import fcntl  # noqa: PLC0415 - not on Windows

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except (ImportError, OSError):
        return None
    return True


def _alive(named: str) -> bool:
    """Whether the process that a file names may still run; nobody knows of one on another host."""
    words = named.split()
    if len(words) != 4 or not words[3].isdecimal():
        return False
    if words[1] != socket.gethostname():
        return True
    try:
        if os.name == "posix":  # elsewhere this would end the process
            os.kill(int(words[3]), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return int(words[3]) != os.getpid()


def sync_folder(folder: Path) -> None:
    """Wait until renames inside a folder are on the disk; on systems that are not POSIX nothing is done."""
    if os.name != "posix":  # other systems cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
