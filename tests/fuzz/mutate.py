"""Changes the good files of every format in some thousand ways and counts what the readers make of them.

``python -m tests.fuzz.mutate`` from the root of the source tree: 600 mutants of each format, a quarter of an hour.
``--mutants N``, ``--seed S`` and names of formats change that; ``--show`` prints each finding, ``--keep FOLDER`` keeps
its files. It exits with 1 where anything but an answer or a FileFormatError came.

Half of the changes are within the first bytes of a file, half of those of formats with a checksum are signed again.
Mutants are read in forked processes that may take a gigabyte more than they have: one that dies is counted, and the
next goes on behind it. An allocation that fails for this limit counts as over 1 GB whatever became of the error.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w
import torch

from risfast.errors import FileFormatError
from risfast.tune.options import StudyError

from .seeds import TARGETS, Target

MUTANTS, MOST_BYTES, MOST_SECONDS, PATIENCE_S = 600, 1 << 30, 10.0, 60.0
AT_ONCE = 100  # mutants of one process: what it has in its caches by then goes with it
_WIDTHS = (1, 2, 4, 8)
_NASTY = (0, 1, -1, 2, 127, 128, 255, 65535, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 10**5, 10**9, 2**63, 10**400, 0.5, -1e-300, 1e300, "", "x", "inf", "nan"),
    *("../x", "/etc/passwd", "\x00", "x" * 5000, [], {}, [1, 2], ["a"], [[1.0, 2.0], [3.0]], [None], {"a": {"b": 1}}),
)


def bytes_changed(data: bytes, rng: random.Random, head: int) -> bytes:
    """Bits flipped, a length in the place of another, cut off, put in, zeroed or doubled; half of it in the header."""
    if not data:
        return rng.randbytes(3)
    at = rng.randrange(min(head, len(data)) if rng.random() < 0.5 else len(data))
    what = rng.randrange(8)
    if what < 2:
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if what < 5:
        width = rng.choice(_WIDTHS)
        value = rng.choice(_NASTY) if rng.random() < 0.7 else int.from_bytes(data[at : at + width], "little") + 1
        order: Any = rng.choice(("little", "big"))
        return data[:at] + (value % (1 << 8 * width)).to_bytes(width, order) + data[at + width :]
    if what == 5:
        return data[:at]
    if what == 6:
        return data[:at] + rng.randbytes(rng.randrange(1, 40)) + data[at:]
    size = rng.randrange(1, 64)
    return data[:at] + (bytes(size) if rng.random() < 0.5 else data[at : at + size] * 2) + data[at + size :]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a document, and a key or index in it."""
    pairs = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    for key, inner in pairs:
        yield value, key
        yield from _places(inner)


def document_changed(document: Any, rng: random.Random) -> Any:
    """A value replaced, removed, put elsewhere or nested deeply."""
    places = list(_places(document))
    where, key = rng.choice(places)
    what = rng.randrange(6)
    if what < 3:
        where[key] = rng.choice(_VALUES)
    elif what == 3:
        del where[key]
    elif what == 4:
        other, there = rng.choice(places)
        where[key] = json.loads(json.dumps(other[there])) if there in range(len(other)) or there in other else None
    else:
        for _ in range(rng.choice((3, 60, 900))):
            where[key] = [where[key]] if rng.random() < 0.5 else {"a": where[key]}
    return document


def _toml(document: Any) -> bytes:
    """As TOML, which has no null."""
    return tomli_w.dumps(document).encode()


def changed(data: bytes, rng: random.Random, target: Target, name: str) -> bytes:
    """A mutant."""
    forms: dict[str, tuple[Callable[[str], Any], Callable[[Any], bytes]]] = {
        "json": (json.loads, lambda document: json.dumps(document).encode()),
        "toml": (tomllib.loads, _toml),
    }
    if target.kind in forms and not name.endswith(".safetensors") and rng.random() < 0.6:
        read, write = forms[target.kind]
        try:
            return write(document_changed(read(data.decode()), rng))
        except (TypeError, ValueError, RecursionError, AttributeError):  # what the format has no words for
            pass
    return bytes_changed(data, rng, target.head)


class Outcome(NamedTuple):
    """What became of one mutant."""

    kind: str  # answer, refused, raw, death
    seconds: float
    grown: int  # bytes
    detail: str


def _memory_failed(error: BaseException | None) -> bool:
    seen = 0
    while error is not None and seen < 20:
        if isinstance(error, MemoryError) or "allocate" in str(error) or "Unable to allocate" in str(error):
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False


def _resident(field: str) -> int:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(text.partition(f"{field}:")[2].split()[0])


def outcome(read: Callable[[], Any], no_fault: tuple[str, ...] = ()) -> Outcome:
    """Read, and say what came; a ValueError with one of the texts ``no_fault`` is an answer about the measurement."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts again
    before, began, beyond = _resident("VmRSS"), time.process_time(), 0
    kind, detail = "answer", ""
    try:
        read()
    except Exception as error:
        detail = f"{type(error).__name__}: {error}"
        allowed = isinstance(error, FileFormatError | StudyError)
        told = type(error) is ValueError and any(text in str(error) for text in no_fault)
        kind = "refused" if (allowed or told) and "\n" not in str(error) else "raw"
        beyond = MOST_BYTES + 1 if _memory_failed(error) else 0
    return Outcome(kind, time.process_time() - began, max(_resident("VmHWM") - before, beyond), detail[:300])


def _fill(folder: Path, files: dict[str, bytes]) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def mutate(target: Target, folder: Path, rng: random.Random) -> None:
    """Change one file of a good folder."""
    name = rng.choice(target.files)

    def change(data: bytes) -> bytes:
        return changed(data, rng, target, name)

    if target.resign is not None and rng.random() < 0.5:
        good = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        try:
            target.resign(folder, name, change)
            return
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # what cannot be signed at all
            for path, data in good.items():
                path.write_bytes(data)
    path = folder / name
    path.write_bytes(change(path.read_bytes()))


class Farm:
    """Mutants of one format, read in processes that may die."""

    def __init__(self, name: str, seed: int, keep: Path | None = None) -> None:
        self.name, self.target, self.seed, self.keep = name, TARGETS[name], seed, keep

    def run(self, mutants: int) -> list[Outcome]:
        found: list[Outcome] = []
        with tempfile.TemporaryDirectory() as place:
            self._folder = Path(place) / "case"
            self._folder.mkdir()
            self._made = self.target.make(self._folder)
            self._good = {
                str(p.relative_to(self._folder)): p.read_bytes() for p in self._folder.rglob("*") if p.is_file()
            }
            while len(found) < mutants:
                found += self._batch(len(found), min(len(found) + AT_ONCE, mutants))
        return found

    def _batch(self, first: int, stop: int) -> list[Outcome]:
        """Some mutants in a process of their own; fewer where it died."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            self._work(first, stop, writing)
        os.close(writing)
        found: list[Outcome] = []
        with os.fdopen(reading, "rb", buffering=0) as stream:
            told = b""
            while len(found) < stop - first:
                ready, _, _ = select.select([stream], [], [], PATIENCE_S)
                part = stream.read(1 << 16) if ready else b""
                if not part:
                    os.kill(child, signal.SIGKILL)
                    break
                *lines, told = (told + part).split(b"\n")
                found += [Outcome(*json.loads(line)) for line in lines]
        _, status = os.waitpid(child, 0)
        if len(found) < stop - first:
            number = first + len(found)
            found.append(Outcome("death", PATIENCE_S, 0, f"mutant {number} ended its process with status {status}"))
            self._keep(number)
        return found

    def _work(self, first: int, stop: int, pipe: int) -> None:
        """In the child: mutants from ``first`` on."""
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 2)  # parsers in C tell it there
        warnings.simplefilter("ignore")
        address = _resident("VmSize")
        resource.setrlimit(resource.RLIMIT_AS, (address + MOST_BYTES, address + MOST_BYTES))
        for number in range(first, stop):
            _fill(self._folder, self._good)
            mutate(self.target, self._folder, random.Random(f"{self.name}/{self.seed}/{number}"))
            there = outcome(lambda: self.target.read(self._folder, self._made), self.target.no_fault)
            if bad(there):
                self._keep(number)
            os.write(pipe, (json.dumps(there) + "\n").encode())
        os._exit(0)

    def _keep(self, number: int) -> None:
        """The files of a finding."""
        if self.keep is not None:
            _fill(self._folder, self._good)
            mutate(self.target, self._folder, random.Random(f"{self.name}/{self.seed}/{number}"))
            shutil.copytree(self._folder, self.keep / f"{self.name}-{number}".replace(" ", "-"), dirs_exist_ok=True)


def bad(found: Outcome) -> bool:
    """Whether this may not happen."""
    return found.kind in ("raw", "death") or found.seconds > MOST_SECONDS or found.grown > MOST_BYTES


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.mutate", description=__doc__)
    parser.add_argument("formats", nargs="*", metavar="FORMAT", help=f"some of {'; '.join(TARGETS)}; all by default")
    parser.add_argument("--mutants", type=int, default=MUTANTS, help="of each format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="print every finding")
    parser.add_argument("--keep", type=Path, help="folder for the files of every finding")
    chosen = parser.parse_args(arguments)
    unknown = sorted(set(chosen.formats) - TARGETS.keys())
    if unknown:
        parser.error(f"unknown format {unknown[0]!r}; the formats are {'; '.join(TARGETS)}")
    torch.set_num_threads(1)
    columns = ("answers", "refused", "raw", "deaths", "over 1 GB", "over 10 s", "longest s", "most MB")
    print(f"{'format':20}" + "".join(f"{name:>11}" for name in columns))
    total: Counter[str] = Counter()
    for name in chosen.formats or TARGETS:
        found = Farm(name, chosen.seed, chosen.keep).run(chosen.mutants)
        counts = Counter(one.kind for one in found)
        counts["large"] = sum(one.grown > MOST_BYTES for one in found)
        counts["slow"] = sum(one.seconds > MOST_SECONDS and one.kind != "death" for one in found)
        total += counts
        numbers = [counts[kind] for kind in ("answer", "refused", "raw", "death", "large", "slow")]
        longest = max((one.seconds for one in found if one.kind != "death"), default=0.0)
        most = max(one.grown for one in found) / 1e6
        print(f"{name:20}" + "".join(f"{n:11}" for n in numbers) + f"{longest:11.2f}{most:11.0f}", flush=True)
        if chosen.show:
            for detail, number in Counter(one.detail for one in found if bad(one)).most_common(40):
                print(f"    {number:4} {detail}")
    numbers = [total[kind] for kind in ("answer", "refused", "raw", "death", "large", "slow")]
    print(f"{'all':20}" + "".join(f"{n:11}" for n in numbers))
    return int(any(numbers[2:]))


if __name__ == "__main__":
    sys.exit(main())
