"""C sources made into a shared library by the system's compiler."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
# -ffp-contract=off: a product and a sum are two roundings unless an instruction says that they are one.
FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-ffp-contract=off", "-fno-strict-aliasing", "-fPIC", "-shared")
HARDWARE_FMA = "-mfma"  # without it fma() is a call, several times slower, of the same value


def compiler() -> str | None:
    """Path of the C compiler, or None."""
    return next(filter(None, map(shutil.which, filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")))), None)


def build(name: str, source: str, folder: Path) -> ctypes.CDLL:
    """The library of one C text, which may include headers of this package, from ``folder`` if it is there already."""
    headers = "".join(path.read_text(encoding="utf-8") for path in sorted(HERE.rglob("*.h")))
    path = folder / f"{name}-{hashlib.sha256((source + headers).encode()).hexdigest()[:16]}.so"
    if not path.exists():
        command = compiler()
        if command is None:
            raise RuntimeError("no C compiler: set CC, or install gcc or clang")
        text = path.with_suffix(f".{os.getpid()}.c")
        text.write_text(source, encoding="utf-8")
        made = path.with_suffix(f".{os.getpid()}.so")
        flags = [*FLAGS, *([HARDWARE_FMA] if _has_fma() else []), f"-I{HERE}"]
        subprocess.run([command, *flags, "-o", str(made), str(text), "-lm"], check=True)
        made.replace(path)  # whole or not at all: two processes may build it at once
        text.unlink()
    return ctypes.CDLL(str(path))


def _has_fma() -> bool:
    flags = Path("/proc/cpuinfo")
    return flags.exists() and " fma " in flags.read_text(encoding="utf-8")
