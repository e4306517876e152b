"""``risfast doctor``: what works on this machine, how exactly and how fast, and what to do about what does not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from risfast import __version__
from risfast.cli.options import Command, Common, Flat, Opt
from risfast.cli.progress import ProgressBar
from risfast.errors import FileFormatError
from risfast.geometry import SearchGrid, SensorArray
from risfast.io.durable import replace_file
from risfast.ops import (
    analysis,
    bartlett_spectrum,
    local_maxima_3d,
    music_spectrum,
    mvdr_spectrum,
    mvdr_spectrum_lowrank,
    plan,
    synthesis,
)
from risfast.ops.devices import triton_mode

TOLERANCE_DB = 0.01
"""Largest error of a complex64 map at a grid point that counts as well: what the operators promise for low rank."""

_ERRORS = (RuntimeError, ValueError, TypeError, NotImplementedError)
_SPEED_SECONDS = 2.0
_FREE_BYTES = 1 << 30  # a run of training with its checkpoints, or a few thousand maps
_REQUIRED = ("torch", "numpy", "scipy", "h5py", "matplotlib", "safetensors", "tyro", "tomli-w")
_OPTIONAL = {
    "triton": "the kernels of CUDA tensors",
    "pyarrow": "results as .parquet (pip install 'risfast[parquet]')",
    "acoular": "benchmarks and examples with microphone arrays (pip install 'risfast[bench]')",
    "optuna": "studies (risfast hpo)",
}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str  # What
    status: str  # ``fail``: something that should work here does not; ``warn``: good to know
    found: str  # What was found, with its figures
    mend: str = ""  # What to do about it; empty if there is nothing to do


@dataclass(frozen=True)
class DoctorCommand(Command):
    """Options of ``risfast doctor``."""

    HELP: ClassVar[str] = "Ends with status 1 if anything fails."

    folder: Path = Path()  # Where results are to be written.
    device: Opt[str] = None  # The only device to look at, cpu or cuda; all by default.
    common: Annotated[Common, Flat] = field(default_factory=Common)

    def run(self, progress: ProgressBar) -> int:
        """1 if anything fails."""
        if not self.folder.is_dir():
            raise FileFormatError(f"--folder {self.folder}: there is no such folder")
        checks = examine(self.folder, self.device)
        progress.close()
        for check in checks:
            print(f"{check.status:<4}  {check.name}: {check.found}")
            if check.mend:
                print(f"      -> {check.mend}")
        failed = sum(check.status == "fail" for check in checks)
        warned = sum(check.status == "warn" for check in checks)
        print(f"{failed} failed, {warned} to know, {len(checks) - failed - warned} well")
        return 1 if failed else 0


def examine(folder: Path, device: str | None = None) -> list[Check]:
    """Look at versions, devices, operators, speed and disk."""
    names = [device] if device else ["cpu", "cuda"]
    checks = [*_versions(), _threads(), *(_device(name, device is not None) for name in names)]
    for name in names if device or torch.cuda.is_available() else ["cpu"]:
        if not any(check.status == "fail" and check.name == f"device {name}" for check in checks):
            checks += [*_operators(name), _speed(name)]
    return [*checks, _disk(folder), _writable(folder), _writable(Path(tempfile.gettempdir()))]


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> Iterator[Check]:
    yield Check(
        "risfast", "well", f"{__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}"
    )
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        yield Check("python", "fail", platform.python_version(), "risfast is made for Python 3.11 to 3.13")
    versions = {package: _version_of(package) for package in _REQUIRED}
    missing = [package for package, version in versions.items() if version is None]
    if missing:
        yield Check("packages", "fail", f"{', '.join(missing)} missing", f"pip install {' '.join(missing)}")
    else:
        yield Check("packages", "well", ", ".join(f"{package} {version}" for package, version in versions.items()))
    numbers = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if not (2, 11) <= numbers < (2, 14):
        yield Check("torch", "fail", torch.__version__, "pip install 'torch>=2.11,<2.14'")
    absent = {name: use for name, use in _OPTIONAL.items() if importlib.util.find_spec(name) is None}
    present = [f"{name} {_version_of(name)}" for name in _OPTIONAL if name not in absent]
    lacking = "".join(f"; without {name}: no {use}" for name, use in absent.items())
    yield Check("optional packages", "well", (", ".join(present) or "none") + lacking)


def _threads() -> Check:
    count, cores = torch.get_num_threads(), os.cpu_count() or 1
    found = f"{count} threads of torch on {cores} cores"
    if count > cores:
        mend = f"set OMP_NUM_THREADS={cores}: threads that wait for each other are slow"
        return Check("threads", "warn", found, mend)
    return Check("threads", "well", found)


def _device(name: str, asked: bool) -> Check:
    label = f"device {name}"
    try:
        torch.zeros(1, device=name).add_(1).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:120]
        if asked:
            return Check(label, "fail", reason, "choose another --device, or install a torch that knows it")
        if torch.version.cuda is None and torch.version.hip is None:
            return Check(label, "well", "none; this torch is built for the CPU")
        mend = "there is no GPU that this torch can use; nvidia-smi says whether the driver sees one"
        return Check(label, "warn", reason, mend)
    if torch.device(name).type != "cuda":
        processor = platform.processor() or platform.machine()
        return Check(label, "well", f"{processor}, {torch.get_num_threads()} threads")
    properties = torch.cuda.get_device_properties(name)
    free, total = torch.cuda.mem_get_info(name)
    found = f"{properties.name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    if triton_mode() == "0":
        return Check(label, "warn", f"{found}; kernels turned off", "unset RISFAST_TRITON")
    if importlib.util.find_spec("triton") is None:
        return Check(label, "fail", f"{found}; Triton is missing", "pip install triton, or RISFAST_TRITON=0")
    return Check(label, "well", found)


def _steering(array: SensorArray, points: Tensor) -> Tensor:
    """exp(j k (r - d)) in float64, straight from the formula: independent of the operators that are checked."""
    azimuth, elevation, r = points.reshape(-1, 3).double().unbind(-1)
    direction = torch.stack([azimuth.sin() * elevation.cos(), elevation.sin(), azimuth.cos() * elevation.cos()], -1)
    distance = (r[:, None, None] * direction[:, None] - array.positions_m).norm(dim=-1)
    return torch.exp(1j * array.wavenumber * (r[:, None] - distance))


_SOURCES = torch.tensor([[0.3, 0.1, 1.5], [-0.5, -0.2, 3.0]], dtype=torch.float64)


def _attempt(label: str, device: str, look: Callable[[], tuple[bool, str]]) -> Check:
    """Whether what was run is right, and what was found."""
    try:
        right, found = look()
    except _ERRORS as error:
        right, found = False, " ".join(str(error).split())[:200]
    return Check(f"{label} on {device}", "well" if right else "fail", found, "" if right else _mend(device))


def _operators(device: str) -> Iterator[Check]:
    """Run each operator on a small problem and compare with the definition in float64; say what computed it."""
    array = SensorArray.rectangular(6, 6)
    grid = SearchGrid.box(13, 9, (0.8, 2.0, 6.0), math.radians(50), math.radians(25))
    vectors, n = _steering(array, grid.points()), array.n_elements
    factor = _steering(array, _SOURCES).mT
    covariance = factor @ factor.mH + 0.1 * torch.eye(n)
    noise = torch.linalg.eigh(covariance).eigenvectors[:, :-2]
    where = "plain torch" if device == "cpu" or triton_mode() == "0" else "Triton kernels"

    def form(matrix: Tensor) -> Tensor:
        return ((vectors.conj() @ matrix) * vectors).sum(-1).real.reshape(grid.shape)

    def capon(R: Tensor) -> Tensor:
        return n / form(torch.linalg.inv(R + 1e-2 * R.trace().real / n * torch.eye(n)))

    F, R = (values.to(device, torch.complex64)[None] for values in (factor, covariance))
    maps: dict[str, tuple[Callable[[], Tensor], Tensor]] = {
        "mvdr_spectrum": (lambda: mvdr_spectrum(R, array, grid, reduce="none"), capon(covariance)),
        "mvdr_spectrum_lowrank": (
            lambda: mvdr_spectrum_lowrank(F, array, grid, reduce="none"),
            capon(factor @ factor.mH),
        ),
        "bartlett_spectrum": (lambda: bartlett_spectrum(R, array, grid, reduce="none"), form(covariance) / n**2),
        "music_spectrum": (
            lambda: music_spectrum(R, array, grid, n_sources=2, reduce="none"),
            n / form(noise @ noise.mH),
        ),
        "analysis": (lambda: analysis(R, array, grid), form(covariance)),
    }

    def compared(call: Callable[[], Tensor], expected: Tensor) -> tuple[bool, str]:
        error = float((10 * (call().cpu().double()[0] / expected).log10()).abs().max())
        if error <= TOLERANCE_DB:
            return True, f"{where}, within {error:.1e} dB of float64"
        return False, f"{where}, wrong by up to {error:.3g} dB (allowed {TOLERANCE_DB})"  # also for NaN

    for name, (call, expected) in maps.items():
        yield _attempt(name, device, partial(compared, call, expected))
    volume, weights = maps["mvdr_spectrum"][1], torch.rand(1, *grid.shape, generator=torch.Generator().manual_seed(0))

    def adjoint() -> tuple[bool, str]:
        wanted = vectors.mT @ (weights.double().reshape(-1, 1) * vectors.conj())
        made = synthesis(weights.to(device), array, grid).cpu()[0]
        error = float((made - wanted).abs().max() / wanted.abs().max())
        return error < 1e-5, f"{where}, relative error {error:.1e}"

    def highest() -> tuple[bool, str]:
        found = local_maxima_3d(volume[None].float().to(device), window=(3, 3, 3), k=1).index[0, 0].tolist()
        right = found == [int(i) for i in torch.unravel_index(volume.float().argmax(), grid.shape)]
        return right, f"{where}, {'finds' if right else 'misses'} the highest point"

    yield _attempt("synthesis", device, adjoint)
    yield _attempt("local_maxima_3d", device, highest)


def _mend(device: str) -> str:
    if device == "cpu":
        again = "pip install --force-reinstall torch risfast"
        return f"reinstall torch and risfast ({again}); if it stays, report this output"
    return "set RISFAST_TRITON=0 to compute with plain torch on the GPU, and report this output with nvidia-smi"


def _speed(device: str) -> Check:
    """Capon maps of the reference system for two seconds."""
    array, grid = SensorArray.rectangular(), SearchGrid.reference()
    vectors = _steering(array, _SOURCES)
    R = (vectors.mT @ vectors.conj() + 0.1 * torch.eye(array.n_elements)).to(device, torch.complex64)[None]

    def once() -> None:
        mvdr_spectrum(R, array, grid).power.sum().item()  # the sum waits for the device

    def timed() -> tuple[bool, str]:
        once()  # plans, tables, kernels
        count, passed, started = 0, 0.0, time.perf_counter()
        while count == 0 or passed < _SPEED_SECONDS:
            once()
            count, passed = count + 1, time.perf_counter() - started
        shape, method = " x ".join(map(str, grid.shape)), plan(array, grid).method
        text = f"{1e3 * passed / count:.1f} ms a Capon map of 144 elements on {shape} points"
        return True, f"{text} ({method}, {torch.get_num_threads()} threads)"

    return _attempt("speed", device, timed)


def _disk(folder: Path) -> Check:
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Check("disk", "fail", f"{folder}: {error.strerror or error}", "give a --folder that exists")
    found = f"{free / 2**30:.1f} GiB free in {folder.resolve()}"
    if free < _FREE_BYTES:
        mend = "make room, or give another --folder: a run with its checkpoints takes about 1 GiB"
        return Check("disk", "warn", found, mend)
    return Check("disk", "well", found)


def _writable(folder: Path) -> Check:
    """Write, sync, rename and remove a file, as every result is written."""
    label, content = f"writing to {folder}", b"risfast" * 1000
    try:
        with tempfile.TemporaryDirectory(prefix=".risfast-doctor-", dir=folder) as place:
            replace_file(Path(place) / "file", content)
            whole = (Path(place) / "file").read_bytes() == content
    except OSError as error:
        return Check(label, "fail", error.strerror or str(error), "choose a folder that you may write to (--folder)")
    if not whole:
        return Check(label, "fail", "what is read is not what was written", "do not keep results on this file system")
    return Check(label, "well", "written, synced, renamed and read")
